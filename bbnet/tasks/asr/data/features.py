"""Computes log-mel filterbanks from FLAC files, as Kaldi does."""

import math
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

SAMPLE_RATE = 16_000
BINS = 80
FRAME_MS, SHIFT_MS = 25.0, 10.0
FRAMES_PER_SECOND = 1000 / SHIFT_MS
FULL_SCALE = 2**15
SMALLEST_GCD = 25  # scipy resamples below it: torchaudio stores a kernel per phase, which takes gigabytes at 44,101 Hz


class UndecodableError(ValueError):
    """Raised for audio that cannot be decoded. The message names the file."""


def read_audio(path: Path) -> tuple[np.ndarray, int]:
    """Returns the mean of all channels, float32 [samples] in [-1, 1], and the sample rate; raises UndecodableError."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, ValueError, MemoryError) as error:  # the last two with absurd lengths
        last_sentence = str(error).split(": ")[-1].rstrip(".")
        raise UndecodableError(f"{path}: cannot be decoded ({last_sentence})") from None
    if not np.isfinite(samples).all():
        raise UndecodableError(f"{path}: contains samples that are not finite")
    return samples.mean(axis=1), rate


def log_mel(samples: np.ndarray, rate: int) -> Tensor:
    """Returns 80-bin log-mel filterbanks, float32 [frames, 80], of 25 ms every 10 ms, resampled to 16 kHz if necessary.

    They are computed by torchaudio.compliance.kaldi.fbank without dither, from samples at 16-bit scale, for which
    Kaldi's energy floor is meant. The result is [0, 80] if the audio is shorter than a frame.
    """
    from torchaudio.compliance.kaldi import fbank  # imported here because training only reads arrays

    wave = torch.from_numpy(samples if rate == SAMPLE_RATE else _resampled(samples, rate))[None]
    if wave.shape[1] < SAMPLE_RATE * FRAME_MS / 1000:
        return torch.empty(0, BINS)
    frames = {"num_mel_bins": BINS, "frame_length": FRAME_MS, "frame_shift": SHIFT_MS}
    return fbank(wave * FULL_SCALE, dither=0.0, sample_frequency=SAMPLE_RATE, **frames)


def _resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    if math.gcd(rate, SAMPLE_RATE) >= SMALLEST_GCD:
        from torchaudio.functional import resample

        return resample(torch.from_numpy(samples)[None], rate, SAMPLE_RATE)[0].numpy()
    from scipy.signal import resample_poly

    return resample_poly(samples, SAMPLE_RATE, rate).astype(np.float32)


def positions(frames: Tensor | int) -> Tensor | int:
    """Returns the number of encoder positions, after two convolutions of kernel 3 and stride 2 without padding."""
    return ((frames - 3) // 2 + 1 - 3) // 2 + 1
