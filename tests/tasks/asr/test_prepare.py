"""A corpus in LibriSpeech's layout becomes features and tokens; what cannot be used is named, refused or left out."""

import importlib
import logging
import os
import time
import tracemalloc
import unicodedata

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from bbnet.tasks.asr import task
from bbnet.tasks.asr.data.corpus import AUDIO, _read_transcript
from bbnet.tasks.asr.data.features import log_mel, positions

FOLDERS = ("train-clean-100", "dev-clean", "test-clean", "test-other")
SPLIT_OF_FOLDER = {"train-clean-100": "train", "dev-clean": "val", "test-clean": "test", "test-other": "test"}
# The formats of soundfile for suffixes that are not their names.
KINDS = {
    **dict.fromkeys((".aif", ".aifc"), "AIFF"),
    **dict.fromkeys((".oga", ".opus"), "OGG"),
    **{".snd": "AU", ".sph": "NIST"},
}
TEXTS = ("ONE TWO", "IT'S A DAY", "THREE", "A HORSE", "SO IT IS", "NO")


def samples_of(frames: int) -> int:
    return 400 + 160 * (frames - 1)


def fbank(wave: np.ndarray) -> np.ndarray:
    """Of int16 samples at 16 kHz, as Kaldi reads them."""
    scaled = torch.from_numpy(wave.astype(np.float32))[None]
    return torchaudio.compliance.kaldi.fbank(scaled, num_mel_bins=80, dither=0.0).numpy()


def raw_features(target, index, split: str) -> dict[str, np.ndarray]:
    """Features of each utterance before normalisation, by key."""
    opened = task.open_split(target, index, split)
    mean, sd = np.array(index["mean"]), np.array(index["sd"])
    edges = opened.starts.tolist()
    return {
        key: opened.features[first:last].numpy() * sd + mean
        for key, first, last in zip(opened.keys, edges, edges[1:], strict=False)
    }


def files_of(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def utterances(noise):
    """Of several lengths, speakers and chapters: {key: (wave, text)}."""

    def make(first_speaker: int, count: int = 5, shortest: int = 9000) -> dict[str, tuple[np.ndarray, str]]:
        keys = [f"{first_speaker + number // 3}-{70 + number % 2}-{number:04d}" for number in range(count)]
        return {
            key: (noise(first_speaker + number, shortest + 777 * number), TEXTS[number % len(TEXTS)])
            for number, key in enumerate(keys)
        }

    return make


@pytest.fixture
def several(utterances):
    """Splits of 5, 2, 3 and 2 utterances."""
    counts = dict(zip(FOLDERS, (5, 2, 3, 2), strict=True))
    return {folder: utterances(100 * (place + 1), counts[folder]) for place, folder in enumerate(FOLDERS)}


@pytest.fixture
def check_alignment():
    """Utterance i of the index has the features, tokens and text of its own audio and transcript."""

    def check(target, index, written) -> None:
        for split in ("train", "val", "test"):
            opened = task.open_split(target, index, split)
            features = raw_features(target, index, split)
            known = {key: pair for folder, own in written.items() if SPLIT_OF_FOLDER[folder] == split
                     for key, pair in own.items()}  # fmt: skip
            edges = opened.token_starts.tolist()
            for number, key in enumerate(opened.keys):
                wave, text = known[key]
                np.testing.assert_allclose(features[key], fbank(wave), atol=2e-3)
                tokens = opened.tokens[edges[number] : edges[number + 1]].tolist()
                assert opened.texts[number] == opened.tokeniser.decode(tokens) == text

    return check


# Features.


def test_features_are_kaldis_of_each_utterance_and_texts_belong_to_them(
    write_corpus, prepare, several, check_alignment
):
    target, index = prepare(write_corpus(several))
    check_alignment(target, index, several)
    for folder in FOLDERS:
        kept = index["splits"][SPLIT_OF_FOLDER[folder]]["utterances"]
        assert set(several[folder]) <= set(kept)
    assert index["splits"]["test"]["folders"] == [["test-clean", 3], ["test-other", 2]]
    assert task.open_split(target, index, "test").other.tolist() == [0, 0, 0, 1, 1]
    assert task.open_split(target, index, "val").other.tolist() == [0, 0]


def test_arrays_are_mapped_float32_and_starts_count_frames(write_corpus, prepare, several):
    target, index = prepare(write_corpus(several))
    features, starts = np.load(target / "features.npy", mmap_mode="r"), np.load(target / "starts.npy")
    assert (features.dtype, features.shape[1]) == (np.float32, 80)
    frames = [
        1 + (len(several[folder][key][0]) - 400) // 160
        for folder in FOLDERS
        for key in index["splits"][SPLIT_OF_FOLDER[folder]]["utterances"]
        if key in several[folder]
    ]
    assert starts.tolist() == np.cumsum([0, *frames]).tolist()
    assert len(features) == sum(frames)
    assert isinstance(np.load(target / "features.npy", mmap_mode="c"), np.memmap)
    assert (target / "tokens.npy").exists()
    assert not (target / "shards").exists()


def test_bins_of_the_training_split_have_mean_0_and_sd_1(write_corpus, prepare, several):
    # Other splits are far louder: they must not count.
    for folder in FOLDERS[1:]:
        several[folder] = {key: ((wave * 3).astype(np.int16), text) for key, (wave, text) in several[folder].items()}
    target, index = prepare(write_corpus(several))
    train = np.concatenate([fbank(wave) for wave, _ in several[FOLDERS[0]].values()]).astype(np.float64)
    np.testing.assert_allclose(index["mean"], train.mean(0), atol=1e-4)
    np.testing.assert_allclose(index["sd"], train.std(0), rtol=1e-4)
    end = int(np.load(target / "starts.npy")[5])
    stored = np.load(target / "features.npy").astype(np.float64)
    np.testing.assert_allclose(stored[:end].mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(stored[:end].std(0), 1, atol=1e-5)
    assert stored[end:].mean() > 0.5


def test_stereo_at_44100_hz_is_mixed_and_resampled(write_corpus, prepare, noise):
    wave = noise(5, 40_000, channels=2)
    target, index = prepare(write_corpus({"dev-clean": {"1-1-0000": (wave, "A")}}, given_rate=44_100))
    mono = torch.from_numpy(wave.astype(np.float64).mean(1).astype(np.float32))[None]
    resampled = torchaudio.functional.resample(mono, 44_100, 16_000)[0].numpy()
    found = raw_features(target, index, "val")["1-1-0000"]
    assert len(found) == 1 + (len(resampled) - 400) // 160
    np.testing.assert_allclose(found, fbank(resampled), atol=2e-3)


def test_a_tone_looks_alike_at_whichever_rate_it_was_sampled():
    def features(rate: int) -> np.ndarray:
        return log_mel((0.3 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)).astype(np.float32), rate).numpy()

    plain = features(16_000)
    for rate in (44_100, 48_000, 22_050, 8_000):
        found = features(rate)
        assert abs(len(found) - len(plain)) <= 1
        assert (found[5:-5].argmax(1) == plain[5:-5].argmax(1)[: len(found) - 10]).all()
        np.testing.assert_allclose(found[20:70].max(1), plain[20:70].max(1), atol=0.05)


def test_silence_is_finite_after_normalisation(write_corpus, prepare):
    silent = np.zeros(4000, np.int16)
    target, index = prepare(write_corpus({"train-clean-100": {"1-1-0000": (silent, "A")}}))
    assert np.isfinite(np.load(target / "features.npy")).all()
    assert min(index["sd"]) > 0


@pytest.mark.parametrize("frames", [1, 2, 6, 7, 8])
def test_a_stored_wave_has_as_many_frames_as_windows_fit(noise, frames):
    for samples in (samples_of(frames), samples_of(frames) + 159):
        wave = noise(1, samples).astype(np.float32) / 2**15
        assert log_mel(wave, 16_000).shape == (frames, 80)
    assert len(log_mel(wave[: samples_of(frames) - 1], 16_000)) == frames - 1


def test_positions_are_what_two_convolutions_of_kernel_3_and_stride_2_give():
    first, second = torch.nn.Conv1d(1, 1, 3, 2), torch.nn.Conv1d(1, 1, 3, 2)
    for length in range(7, 201):
        expected = second(first(torch.zeros(1, 1, length))).shape[2]
        assert expected == ((length - 3) // 2 + 1 - 3) // 2 + 1
        assert positions(length) == expected
        assert positions(torch.tensor([length])).tolist() == [expected]


@pytest.mark.parametrize("length", range(7))
def test_fewer_frames_than_the_receptive_field_have_no_position(length):
    assert positions(length) < 1


# Layout and order.


def test_the_index_is_in_the_order_of_the_keys_as_numbers(write_corpus, prepare, noise):
    keys = ["10-2-0001", "9-2-0000", "9-10-0000", "10-2-0000"]
    written = {key: (noise(number, 9000 + 400 * number), "A") for number, key in enumerate(keys)}
    _, index = prepare(write_corpus({"dev-clean": written}))
    assert index["splits"]["val"]["utterances"] == ["9-2-0000", "9-10-0000", "10-2-0000", "10-2-0001"]


def test_transcripts_are_normalised(write_corpus, prepare, noise):
    target, index = prepare(write_corpus({"dev-clean": {"1-1-0000": (noise(1), "  it's -- a\tbig,Day!  ")}}))
    assert index["splits"]["val"]["texts"] == ["IT'S A BIG DAY"]
    assert task.open_split(target, index, "val").longest == len("IT'S A BIG DAY")


@pytest.mark.parametrize("text", ["", "12 34", "привет"])
def test_a_transcript_without_letters_is_refused_by_name_or_skipped(write_corpus, prepare, noise, text):
    written = {"1-1-0000": (noise(1), "A"), "1-1-0001": (noise(2), text), "1-1-0002": (noise(3), "B C")}
    root = write_corpus({"dev-clean": written})
    with pytest.raises(ValueError, match="^1-1-0001: its transcript has no letters .*faults.no_words"):
        prepare(root)
    target, index = prepare(root, "skipped", no_words="skip")
    assert task.open_split(target, index, "val").texts == ["A", "B C"]
    assert index["skipped"] == {"dev-clean": {"no_words": ["1-1-0001"]}}


def test_a_split_without_any_word_is_refused(write_corpus, prepare, noise):
    root = write_corpus({"test-clean": {"1-1-0000": (noise(1), "7"), "1-1-0001": (noise(2), "8")}})
    with pytest.raises(ValueError, match="test-clean: no utterance is left"):
        prepare(root, no_words="skip")


@pytest.mark.parametrize("line", ["\ufeff1-1-0000 A B", "1-1-0000\tA B", "1-1-0000  A B "])
def test_marks_and_tabs_in_a_transcript_are_no_part_of_key_or_text(write_corpus, prepare, noise, line):
    root = write_corpus({"dev-clean": {"1-1-0000": (noise(1), "A B")}})
    (path,) = root.glob("dev-clean/*/*/*.trans.txt")
    path.write_text(line + "\n", encoding="utf-8")
    target, index = prepare(root)
    assert task.open_split(target, index, "val").texts == ["A B"]


@pytest.mark.parametrize("suffix", AUDIO)
@pytest.mark.parametrize("change", [str.lower, str.upper])
def test_every_suffix_of_audio_is_seen_in_any_case_and_read_by_content(write_corpus, prepare, several, suffix, change):
    root = write_corpus({"dev-clean": several["dev-clean"]})
    _, expected = prepare(root)
    kind = KINDS.get(suffix, suffix.removeprefix(".").upper())
    for path in root.glob("dev-clean/*/*/*.flac"):
        wave, rate = soundfile.read(path)
        path.unlink()
        subtype = "PCM_16" if soundfile.check_format(kind, "PCM_16") else None
        soundfile.write(path.with_suffix(change(suffix)), wave, rate, format=kind, subtype=subtype)
    target, index = prepare(root, "again")
    assert index == expected
    if soundfile.check_format(kind, "PCM_16"):
        assert files_of(target) == files_of(target.parent / "prepared")


def test_files_that_are_not_read_are_named_and_listed_in_the_index(write_corpus, prepare, several, caplog):
    root = write_corpus(several)
    expected, index = prepare(root)
    home = next((root / "dev-clean").glob("*/*"))
    names = ["notes.txt", f"{home.parent.name}/a.flac", f"{home.parent.name}/{home.name}/1-1-0000.m4a"]
    names += [f"{home.parent.name}/{home.name}/{name}" for name in ("1-1-0000.lab", "deeper/1-1-0000.flac")]
    for name in names:
        (root / "dev-clean" / name).parent.mkdir(exist_ok=True)
        (root / "dev-clean" / name).write_bytes(b"fLaC")
    target, again = prepare(root, "again")
    assert sorted(again["skipped"]["dev-clean"]["not_read"]) == sorted(f"dev-clean/{name}" for name in names)
    assert again | {"skipped": {}} == index
    assert files_of(target) == files_of(expected)
    assert f"{root / 'dev-clean'}: files that are not read: 5: " in caplog.text


def test_files_beside_the_folders_are_named_but_those_of_the_published_corpus(write_corpus, prepare, several, caplog):
    caplog.set_level("INFO")
    root = write_corpus(several)
    expected, index = prepare(root)
    unread = ["notes.txt", "dev-clean2/1/1/1-1-0000.flac", "transcripts/1-1.trans.txt"]
    for name in (*unread, "README.TXT", "SPEAKERS.TXT", "dev-other/1/1/1-1-0000.flac"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"fLaC")
    target, again = prepare(root, "again")
    assert again == index | {"skipped": {".": {"not_read": unread}}}
    assert files_of(target) == files_of(expected)
    assert f"{root}: files that are not read: 3: notes.txt, " in caplog.text
    assert f"{root}: folders that data.train does not choose: dev-other" in caplog.text


@pytest.mark.parametrize("suffix", [".m4a", ".wma", ""])
def test_an_utterance_whose_audio_is_not_of_a_format_that_is_read_says_so(write_corpus, prepare, noise, suffix):
    root = write_corpus({"dev-clean": {"1-1-0000": (noise(1), "A"), "1-1-0001": (noise(2), "B")}})
    audio = root / "dev-clean" / "1" / "1" / "1-1-0001.flac"
    audio.rename(audio.with_suffix(suffix))
    message = f"^{audio}: has a transcript but no audio, and {audio.with_suffix(suffix)} is not read; allowed is .*wav"
    with pytest.raises(ValueError, match=message):
        prepare(root)


def test_two_audio_files_of_an_utterance_are_both_named(write_corpus, prepare, noise):
    root = write_corpus({"dev-clean": {"1-1-0000": (noise(1), "A")}})
    audio = root / "dev-clean" / "1" / "1" / "1-1-0000.flac"
    for name in ("1-1-0000.FLAC", "1-1-0000.wav"):
        audio.with_name(name).write_bytes(audio.read_bytes())
        with pytest.raises(ValueError, match="utterance 1-1-0000 has two audio files, the other is") as refused:
            prepare(root)
        assert str(audio) in str(refused.value) and name in str(refused.value)
        audio.with_name(name).unlink()


def test_a_rate_without_a_common_divisor_is_resampled_in_little_memory():
    tone = np.sin(2 * np.pi * 440 * np.arange(44_101) / 44_101).astype(np.float32)
    near = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100).astype(np.float32)
    tracemalloc.start()
    found = log_mel(tone, 44_101).numpy()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**27
    loud = log_mel(near, 44_100).numpy()
    around = loud.mean(0).argmax()
    np.testing.assert_allclose(found[2:-2, around], loud[2:-2, around], atol=0.02)


def test_a_folder_of_the_archives_is_found_and_nothing_is_copied(write_corpus, tmp_path):
    root = write_corpus()
    archive = tmp_path / "archive"
    archive.mkdir()
    root.rename(archive / "LibriSpeech")
    before = files_of(archive)
    raw = tmp_path / "raw"
    raw.mkdir()
    manifest = task.fetch({"pack": "librispeech", "path": str(archive), "complete": False}, raw)
    assert manifest["root"] == str(archive / "LibriSpeech")
    assert manifest["audio_files"] == dict.fromkeys(FOLDERS, 1)
    assert list(raw.iterdir()) == []
    assert files_of(archive) == before


# Equal bytes.


def test_the_number_of_workers_changes_no_byte(write_corpus, prepare, several, monkeypatch):
    monkeypatch.setattr(importlib.import_module("bbnet.tasks.asr.data.prepare"), "UTTERANCES_PER_SHARD", 2)
    root = write_corpus(several)
    one, index = prepare(root, "one")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    two, other_index = prepare(root, "two")
    assert index == other_index
    assert files_of(one) == files_of(two)


def test_the_size_of_shards_changes_hardly_a_value(write_corpus, prepare, several, monkeypatch):
    root = write_corpus(several)
    one, index = prepare(root, "one")
    monkeypatch.setattr(importlib.import_module("bbnet.tasks.asr.data.prepare"), "UTTERANCES_PER_SHARD", 1)
    two, other_index = prepare(root, "two")
    assert index["splits"] == other_index["splits"]
    np.testing.assert_allclose(np.load(one / "features.npy"), np.load(two / "features.npy"), atol=1e-5)


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of two utterances; `log` names those computed, `fail_at` says when the call breaks off."""
    module = importlib.import_module("bbnet.tasks.asr.data.prepare")
    monkeypatch.setattr(module, "UTTERANCES_PER_SHARD", 2)
    compute = module.compute_shard

    class Watched:
        log: list[str] = []
        fail_at = None

    watched = Watched()
    watched.log = []

    def compute_and_log(shard):
        if watched.fail_at == len(watched.log):
            raise KeyboardInterrupt
        compute(shard)
        watched.log.append(shard.path.name)

    monkeypatch.setattr(module, "compute_shard", compute_and_log)
    return watched


@pytest.mark.parametrize("done", [0, 1, 3, 6])
def test_an_interrupted_call_is_continued_to_the_same_bytes(write_corpus, prepare, several, small_shards, done):
    root = write_corpus(several)
    expected, expected_index = prepare(root, "whole")
    shards = list(small_shards.log)
    assert len(shards) == 3 + 1 + 2 + 1
    small_shards.log.clear()
    small_shards.fail_at = done
    with pytest.raises(KeyboardInterrupt):
        prepare(root, "broken")
    small_shards.fail_at = None
    target, index = prepare(root, "broken")
    assert sorted(small_shards.log) == sorted(shards)
    assert index == expected_index
    assert files_of(target) == files_of(expected)


@pytest.mark.parametrize("tokens", [{"kind": "characters"}, {"kind": "bpe", "size": 32}])
def test_a_call_that_failed_after_the_features_is_continued(
    write_corpus, prepare, several, small_shards, monkeypatch, tokens
):
    module = importlib.import_module("bbnet.tasks.asr.data.prepare")
    root = write_corpus(several)
    expected, _ = prepare(root, "whole", tokens=tokens)
    small_shards.log.clear()
    append = module.appended_array
    monkeypatch.setattr(module, "appended_array", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(root, "broken", tokens=tokens)
    monkeypatch.setattr(module, "appended_array", append)
    assert len(small_shards.log) == 7
    target, _ = prepare(root, "broken", tokens=tokens)
    assert len(small_shards.log) == 7
    assert files_of(target) == files_of(expected)


def test_a_damaged_shard_is_computed_again(write_corpus, prepare, several, small_shards):
    root = write_corpus(several)
    expected, _ = prepare(root, "whole")
    small_shards.log.clear()
    small_shards.fail_at = 3
    with pytest.raises(KeyboardInterrupt):
        prepare(root, "broken")
    small_shards.fail_at = None
    damaged = expected.parent / "broken" / "shards" / small_shards.log[1]
    damaged.write_bytes(damaged.read_bytes()[:100])
    target, _ = prepare(root, "broken")
    assert small_shards.log.count(damaged.name) == 2
    assert files_of(target) == files_of(expected)


def test_audio_replaced_between_two_calls_is_noticed(write_corpus, prepare, several, small_shards, noise):
    root = write_corpus(several)
    small_shards.fail_at = 6
    with pytest.raises(KeyboardInterrupt):
        prepare(root, "broken")
    small_shards.fail_at = None
    small_shards.log.clear()
    key, (wave, text) = next(iter(several["train-clean-100"].items()))
    (path,) = root.glob(f"*/*/*/{key}.flac")
    time.sleep(0.01)
    soundfile.write(path, noise(4711, len(wave)), 16_000, subtype="PCM_16")
    target, index = prepare(root, "broken")
    assert len(small_shards.log) == 2  # that shard and the one that was missing
    np.testing.assert_allclose(raw_features(target, index, "train")[key], fbank(noise(4711, len(wave))), atol=2e-3)
    expected, _ = prepare(root, "whole")
    assert files_of(target) == files_of(expected)


def test_a_refused_file_that_was_repaired_is_accepted_next_time(write_corpus, prepare, several, check_alignment, noise):
    root = write_corpus(several)
    key, (wave, text) = next(iter(several["dev-clean"].items()))
    (path,) = root.glob(f"*/*/*/{key}.flac")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be decoded"):
        prepare(root)
    path.write_bytes(whole)
    os.utime(path)
    target, index = prepare(root)
    check_alignment(target, index, several)
    assert index["skipped"] == {}


# Faults.


def damage(path, how: str) -> None:
    content = path.read_bytes()
    if how == "text":
        path.write_text("<html>404</html>")
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "header alone":  # a stream of unknown length, 0 as it turns out
        path.write_bytes(b"fLaC" + b"\x80" + content[5:8] + content[8:21] + bytes([content[21] & 0xF0, 0, 0, 0, 0]))
        path.write_bytes(path.read_bytes() + bytes(16))
    elif how == "bits":
        middle = len(content) // 2
        path.write_bytes(
            content[:middle] + bytes(byte ^ 0x5A for byte in content[middle : middle + 8]) + content[middle + 8 :]
        )
    else:
        path.write_bytes(content[: int(float(how) * len(content))])


DAMAGES = ["text", "empty", "header alone", "bits", "0.004", "0.01", "0.3", "0.9", "0.999"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_file_that_does_not_decode_is_refused_by_name_in_one_line(write_corpus, prepare, several, how):
    root = write_corpus(several)
    path = sorted(root.glob("test-other/*/*/*.flac"))[1]
    damage(path, how)
    with pytest.raises(ValueError, match="cannot be decoded|too short") as refused:
        prepare(root)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "1 of" in str(refused.value)


@pytest.mark.parametrize("how", ["text", "empty", "header alone", "bits", "0.5"])
def test_a_file_that_does_not_decode_is_skipped_and_counted(
    write_corpus, prepare, several, check_alignment, how, caplog
):
    caplog.set_level(logging.INFO)
    root = write_corpus(several)
    path = sorted(root.glob("train-clean-100/*/*/*.flac"))[1]
    damage(path, how)
    target, index = prepare(root, undecodable="skip", too_short="skip")
    check_alignment(target, index, several)
    assert path.stem not in index["splits"]["train"]["utterances"]
    assert len(index["splits"]["train"]["utterances"]) == 4
    assert list(index["skipped"]["train-clean-100"].values()) == [[path.stem]]
    assert str(path) in caplog.text


def test_a_stream_that_does_not_tell_its_length_is_read_or_named(write_corpus, prepare, several, check_alignment):
    """As encoders write that cannot seek in their output: 0 samples in the header means unknown."""
    root = write_corpus(several)
    path = sorted(root.glob("train-clean-100/*/*/*.flac"))[1]
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    target, index = prepare(root, undecodable="skip")
    check_alignment(target, index, several)
    assert index["skipped"] in ({}, {"train-clean-100": {"undecodable": [path.stem]}})


def test_a_folder_named_like_audio_is_named(write_corpus, prepare, several):
    root = write_corpus(several)
    path = sorted(root.glob("dev-clean/*/*/*.flac"))[0]
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match="faults") as refused:
        prepare(root)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("folder", ["train-clean-100", "test-other"])
@pytest.mark.parametrize("missing", ["audio", "transcript"])
def test_an_unpaired_utterance_is_refused_by_name_or_skipped(
    write_corpus, prepare, several, check_alignment, noise, missing, folder
):
    pair = (None, "LOST WORDS") if missing == "audio" else (noise(1), None)
    root = write_corpus(several | {folder: {"7-7-0003": pair} | several[folder]})
    with pytest.raises(ValueError, match=missing) as refused:
        prepare(root)
    assert "7-7-0003" in str(refused.value)
    assert folder in str(refused.value)
    assert "\n" not in str(refused.value)
    target, index = prepare(root, unpaired="skip")
    check_alignment(target, index, several)
    assert index["skipped"] == {folder: {"unpaired": ["7-7-0003"]}}
    assert all("7-7-0003" not in index["splits"][split]["utterances"] for split in ("train", "val", "test"))


def test_faulty_utterances_are_counted_and_the_first_are_named(write_corpus, prepare, several, noise):
    lost = {f"7-7-{number:04d}": (noise(number), None) for number in range(12)}
    root = write_corpus(several | {"dev-clean": several["dev-clean"] | lost})
    with pytest.raises(ValueError, match="12 of dev-clean") as refused:
        prepare(root)
    assert "7-7-0000.flac" in str(refused.value)
    assert "9 more" in str(refused.value)
    _, index = prepare(root, unpaired="skip")
    assert index["skipped"] == {"dev-clean": {"unpaired": sorted(lost)}}


def test_a_transcript_given_twice_is_refused_by_name(write_corpus, prepare, several):
    root = write_corpus(several)
    path = sorted(root.glob("dev-clean/*/*/*.trans.txt"))[0]
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match="two transcripts") as refused:
        prepare(root)
    assert str(path) in str(refused.value)


def test_a_transcript_that_is_no_text_is_refused_by_name(write_corpus, prepare):
    root = write_corpus()
    path = sorted(root.glob("dev-clean/*/*/*.trans.txt"))[0]
    path.write_bytes(b"903-1-0000 CAF\xc9\n")
    with pytest.raises(ValueError, match="UTF-8") as refused:
        prepare(root)
    assert str(path) in str(refused.value)


def test_audio_that_lies_twice_in_a_split_is_not_dropped_silently(write_corpus, prepare, several):
    """Two copies of a chapter, in two folders: one of them would be lost without a word."""
    root = write_corpus(several)
    path = sorted(root.glob("dev-clean/*/*/*.flac"))[0]
    copy = path.parent.parent / "99" / path.name
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=path.stem):
        prepare(root)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_missing_split_and_an_empty_one_are_named(write_corpus, prepare, folder):
    root = write_corpus()
    (root / folder).rename(root / "elsewhere")
    with pytest.raises(ValueError, match="no such folder") as refused:
        prepare(root)
    assert str(root / folder) in str(refused.value)
    (root / folder).mkdir()
    with pytest.raises(ValueError, match="no audio") as refused:
        prepare(root)
    assert str(root / folder) in str(refused.value)


@pytest.mark.parametrize("kind", ["characters", "unigram", "bpe"])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_split_of_which_nothing_is_left_is_named(write_corpus, prepare, noise, folder, kind):
    train = {"5-5-0000": (noise(1, 40_000), "THE HORSE AND THE HARBOR AND THE HORSES OF THE HARBOR")}
    short = {"1-1-0000": (np.zeros(300, np.int16), "A"), "1-1-0001": (np.zeros(0, np.int16), "B")}
    tokens = {"kind": kind} if kind == "characters" else {"kind": kind, "size": 33}
    with pytest.raises(ValueError, match=folder):
        prepare(
            write_corpus({"train-clean-100": train} | {folder: short}),
            tokens=tokens,
            too_short="skip",
            undecodable="skip",
        )


def low_rate_corpus(write_corpus, several, noise):
    """An utterance of dev at 8 kHz among those at 16 kHz."""
    root = write_corpus(several)
    key = list(several["dev-clean"])[0]
    (path,) = root.glob(f"*/*/*/{key}.flac")
    soundfile.write(path, noise(8, 3000), 8_000, subtype="PCM_16")
    return root, path


def test_a_low_sample_rate_is_refused_with_file_and_rate(write_corpus, prepare, several, noise):
    root, path = low_rate_corpus(write_corpus, several, noise)
    with pytest.raises(ValueError, match="8000 Hz") as refused:
        prepare(root)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_low_sample_rate_is_skipped(write_corpus, prepare, several, noise, check_alignment):
    root, path = low_rate_corpus(write_corpus, several, noise)
    target, index = prepare(root, low_rate="skip")
    check_alignment(target, index, several)
    assert path.stem not in index["splits"]["val"]["utterances"]
    assert index["skipped"] == {"dev-clean": {"low_rate": [path.stem]}}


def test_a_low_sample_rate_is_resampled(write_corpus, prepare, several, noise):
    root, path = low_rate_corpus(write_corpus, several, noise)
    target, index = prepare(root, low_rate="resample")
    wave = torchaudio.functional.resample(torch.from_numpy(noise(8, 3000).astype(np.float32))[None], 8_000, 16_000)
    np.testing.assert_allclose(raw_features(target, index, "val")[path.stem], fbank(wave[0].numpy()), atol=5e-3)
    assert index["skipped"] == {}
    assert index["resampled"] == {"dev-clean": {"low_rate": [path.stem]}}


@pytest.mark.parametrize(
    ("folder", "samples"),
    [("train-clean-100", 1), ("test-clean", 399), ("dev-clean", 400), ("train-clean-100", samples_of(7) - 1)],
)
def test_an_utterance_below_the_receptive_field_is_refused_by_name_or_skipped(
    write_corpus, prepare, several, noise, check_alignment, samples, folder
):
    root = write_corpus(several | {folder: {"7-7-0003": (noise(1, samples), "")} | several[folder]})
    with pytest.raises(ValueError, match="too short") as refused:
        prepare(root)
    assert "7-7-0003.flac" in str(refused.value)
    assert "\n" not in str(refused.value)
    target, index = prepare(root, too_short="skip")
    check_alignment(target, index, several)
    assert index["skipped"] == {folder: {"too_short": ["7-7-0003"]}}


def test_an_utterance_of_just_the_receptive_field_is_kept(write_corpus, prepare, several, noise):
    root = write_corpus(several | {"dev-clean": {"7-7-0003": (noise(1, samples_of(7)), "A")}})
    target, index = prepare(root)
    assert task.open_split(target, index, "val").frames.tolist() == [7]


def frames_with(place: int) -> int:
    """The fewest frames of so many encoder positions."""
    return next(frames for frames in range(7, 500) if ((frames - 3) // 2 + 1 - 3) // 2 + 1 == place)


@pytest.mark.parametrize(("text", "needed"), [("ABC", 3), ("AAA", 5), ("AB BA", 5), ("A", 1), ("BOO", 4)])
def test_tokens_that_ctc_cannot_align_are_refused_or_skipped_in_training_alone(
    write_corpus, prepare, several, noise, check_alignment, text, needed
):
    enough, lacking = samples_of(frames_with(needed)), samples_of(frames_with(needed)) - 1
    fits = {"7-7-0002": (noise(1, enough), text)}
    several["train-clean-100"] |= fits
    several["dev-clean"] |= {"8-8-0003": (noise(2, max(lacking, samples_of(7))), text * 3)}
    target, index = prepare(write_corpus(several))
    assert "7-7-0002" in index["splits"]["train"]["utterances"]
    assert "8-8-0003" in index["splits"]["val"]["utterances"]
    if needed == 1:
        return
    several["train-clean-100"] |= {"7-7-0001": (noise(1, lacking), text)}
    root = write_corpus({"train-clean-100": {"7-7-0001": several["train-clean-100"]["7-7-0001"]}} | {
        folder: {} for folder in FOLDERS[1:]
    })  # fmt: skip
    with pytest.raises(ValueError, match="7-7-0001") as refused:
        prepare(root, "refused")
    assert "\n" not in str(refused.value)
    target, index = prepare(root, "skipped", too_many_tokens="skip")
    assert index["skipped"] == {"train-clean-100": {"too_many_tokens": ["7-7-0001"]}}
    assert "7-7-0001" not in index["splits"]["train"]["utterances"]
    check_alignment(target, index, several)


def test_statistics_are_of_the_utterances_that_are_kept(write_corpus, prepare, several, noise):
    loud = (noise(5, samples_of(8)) * 3).astype(np.int16)
    root = write_corpus(several | {"train-clean-100": several["train-clean-100"] | {"7-7-0001": (loud, "ABCDEFGH")}})
    _, index = prepare(root, too_many_tokens="skip")
    train = np.concatenate([fbank(wave) for wave, _ in several["train-clean-100"].values()]).astype(np.float64)
    np.testing.assert_allclose(index["mean"], train.mean(0), atol=1e-4)


def test_several_faults_at_once_leave_the_others_as_they_are(write_corpus, prepare, several, noise, check_alignment):
    bad = {
        "7-7-0000": (noise(1), None),
        "7-7-0001": (None, "GONE"),
        "7-7-0002": (noise(2, 200), "A"),
        "7-7-0003": (noise(3, samples_of(8)), "AAAAA"),
        "7-7-0004": (noise(4), "BAD"),
    }
    root = write_corpus(several | {"train-clean-100": bad | several["train-clean-100"]})
    damage(root / "train-clean-100" / "7" / "7" / "7-7-0004.flac", "0.5")
    kinds = ("undecodable", "unpaired", "too_short", "too_many_tokens")
    target, index = prepare(root, **dict.fromkeys(kinds, "skip"))
    check_alignment(target, index, several)
    assert len(index["splits"]["train"]["utterances"]) == 5
    assert index["skipped"]["train-clean-100"] == {
        "unpaired": ["7-7-0000", "7-7-0001"],
        "too_short": ["7-7-0002"],
        "too_many_tokens": ["7-7-0003"],
        "undecodable": ["7-7-0004"],
    }


@pytest.mark.parametrize(("of_audio", "of_transcript"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_keys_and_texts_compare_however_their_accents_are_stored(write_corpus, prepare, noise, of_audio, of_transcript):
    name, text = "José-1-0001", "DÉJÀ VU"
    root = write_corpus({"dev-clean": {unicodedata.normalize(of_audio, name): (noise(1), None)}})
    chapter = next(path for path in root.glob("dev-clean/*/1"))
    line = unicodedata.normalize(of_transcript, f"{name} {text}\n")
    (chapter / "any.trans.txt").write_text(line, encoding="utf-8")
    _, index = prepare(root)
    assert index["splits"]["val"]["utterances"] == ["José-1-0001"]
    assert index["splits"]["val"]["texts"] == ["D J VU"]


def test_lines_of_transcripts_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "1-2.trans.txt"
    path.write_bytes("1-2-0 WE\u2028ON\r\n1-2-1 X\u0085Y\n".encode())
    assert _read_transcript(path) == [("1-2-0", "WE\u2028ON"), ("1-2-1", "X\u0085Y")]
