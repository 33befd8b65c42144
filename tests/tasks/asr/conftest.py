"""Small corpora in LibriSpeech's layout, splits without audio, and models of a few hundred weights."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from bbnet.tasks.asr import task
from bbnet.tasks.asr.data.batches import Batch, Utterances
from bbnet.tasks.asr.model import SpeechTransformer
from bbnet.tasks.asr.settings import Transformer

FOLDERS = ("train-clean-100", "dev-clean", "test-clean", "test-other")
LETTERS = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
STRICT = dict.fromkeys(("undecodable", "unpaired", "low_rate", "too_short", "no_words", "too_many_tokens"), "refuse")


@pytest.fixture
def noise():
    """Int16 [samples]: noise below half of full scale."""

    def make(seed: int, samples: int = 9000, channels: int | None = None) -> np.ndarray:
        shape = (samples,) if channels is None else (samples, channels)
        return np.random.default_rng(seed).integers(-9000, 9000, shape, dtype=np.int16)

    return make


@pytest.fixture
def write_corpus(tmp_path, noise):
    """Writes utterances {key: (wave or None, transcript or None)} of splits; a split that is not given gets one."""

    def write(splits: Mapping[str, Mapping[str, tuple]] | None = None, given_rate: int = 16_000) -> Path:
        root = tmp_path / "corpus"
        for number, folder in enumerate(FOLDERS):
            only = {f"{900 + number}-1-0000": (noise(900 + number), "SOLE TEXT")}
            rate = given_rate if folder in (splits or {}) else 16_000
            for key, (wave, text) in (splits or {}).get(folder, only).items():
                speaker, chapter, _ = key.split("-")
                home = root / folder / speaker / chapter
                home.mkdir(parents=True, exist_ok=True)
                if wave is not None:
                    soundfile.write(home / f"{key}.flac", wave, rate, subtype="PCM_16")
                if text is not None:
                    with open(home / f"{speaker}-{chapter}.trans.txt", "a") as file:
                        file.write(f"{key} {text}\n")
        return root

    return write


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Fetches and prepares a folder as the workflow does, manifest and index having been JSON."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(root: Path, name: str = "prepared", tokens: Mapping[str, Any] | None = None, **faults: str):
        raw, target = tmp_path / "raw", tmp_path / name
        raw.mkdir(exist_ok=True)
        target.mkdir(exist_ok=True)
        manifest = {"root": str(raw)} | task.fetch({"pack": "librispeech", "path": str(root), "complete": False}, raw)
        settings = {"tokens": tokens or {"kind": "characters"}, "faults": STRICT | faults}
        return target, json.loads(
            json.dumps(task.prepare(json.loads(json.dumps(manifest, sort_keys=True)), settings, target), sort_keys=True)
        )

    return run


@pytest.fixture
def split_of(tmp_path):
    """A split of utterances of the given numbers of frames, with random features, between splits of other lengths."""

    def make(lengths: Iterable[int], texts: Iterable[str] | None = None, split: str = "train") -> Utterances:
        lengths = list(lengths)
        texts = [LETTERS[2:][: 1 + number % 7] for number in range(len(lengths))] if texts is None else list(texts)
        sizes = {"train": [9, 11], "val": [8], "test": [12, 7]} | {split: lengths}
        words = {"train": ["IT", "IS"], "val": ["SO"], "test": ["OR", ""]} | {split: texts}
        names = {"train": FOLDERS[:1], "val": FOLDERS[1:2], "test": FOLDERS[2:]}
        frames = [count for own in sizes.values() for count in own]
        tokens = [[2 + LETTERS.index(letter) for letter in text] for own in words.values() for text in own]
        generator = np.random.default_rng(3)
        np.save(tmp_path / "features.npy", generator.random((sum(frames), 80), dtype=np.float32))
        np.save(tmp_path / "starts.npy", np.cumsum([0, *frames], dtype=np.int64))
        np.save(tmp_path / "tokens.npy", np.array([token for own in tokens for token in own], dtype=np.int32))
        np.save(tmp_path / "token_starts.npy", np.cumsum([0, *map(len, tokens)], dtype=np.int64))
        index = {
            "tokens": {"kind": "characters", "vocabulary": 2 + len(LETTERS)},
            "splits": {
                name: {
                    "utterances": [f"{name}-{number}" for number in range(len(sizes[name]))],
                    "texts": words[name],
                    "folders": [[folders[0], len(sizes[name]) - len(folders) + 1], *([one, 1] for one in folders[1:])],
                }
                for name, folders in names.items()
            },
        }
        return Utterances(tmp_path, index, split)

    return make


@pytest.fixture
def sizes():
    """Settings of a model of a few hundred weights."""

    def make(**changed: Any) -> Transformer:
        small = {"width": 16, "hidden": 24, "encoder_layers": 2, "decoder_layers": 2, "heads": 2, "stem_channels": 3}
        return Transformer(**small | changed)

    return make


@pytest.fixture
def small_model(sizes):
    """In evaluation mode, of random weights large enough for its outputs to differ."""

    def make(seed: int = 0, vocabulary: int = 30, spread: float = 1.5, **changed: Any) -> SpeechTransformer:
        torch.manual_seed(seed)
        model = SpeechTransformer(sizes(**changed), vocabulary)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(spread).add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture
def random_batch():
    """A batch of utterances of these frames and numbers of tokens, padded to the longest or by more."""

    def make(frames: Iterable[int], counts: Iterable[int], seed: int = 0, vocabulary: int = 30, more: int = 0) -> Batch:
        frames, counts = torch.tensor(list(frames)), torch.tensor(list(counts))
        generator = torch.Generator().manual_seed(seed)
        features = torch.zeros(len(frames), int(frames.max()) + more, 80)
        tokens = torch.zeros(len(frames), max(1, int(counts.max())) + more, dtype=torch.int64)
        for row, (length, count) in enumerate(zip(frames.tolist(), counts.tolist(), strict=True)):
            features[row, :length] = torch.randn(length, 80, generator=generator)
            tokens[row, :count] = torch.randint(2, vocabulary, (count,), generator=generator)
        return Batch(features, frames, tokens, counts)

    return make
