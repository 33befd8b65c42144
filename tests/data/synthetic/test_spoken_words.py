"""The spoken corpus: its layout, its words, and equal bytes from equal parameters."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bbnet.data.synthetic import spoken_words
from bbnet.data.synthetic.spoken_words import LEXICON, Section, write_spoken_words

SECTIONS = {
    "train-clean-100": Section(8, 3, (10.0, 20.0)),
    "dev-clean": Section(4, 2, (10.0, 20.0), 0.5),
    "test-other": Section(4, 1, (0.0, 5.0), 0.5),
}


def write(target: Path, **changed) -> Path:
    usual = {
        "seed": 3,
        "sections": SECTIONS,
        "words": 12,
        "unseen_words": 6,
        "words_per_utterance": (1, 3),
        "zipf": 1.0,
    }
    write_spoken_words(target, **usual | changed)
    return target


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def transcripts(root: Path, split: str = "*") -> dict[str, str]:
    lines = [line for path in root.glob(f"{split}/*/*/*.trans.txt") for line in path.read_text().splitlines()]
    return dict(line.split(" ", 1) for line in lines)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("spoken"))


@pytest.fixture
def mute(monkeypatch):
    """In place of speech a short wave, and no sound in the files, so that hundreds of utterances are quick."""

    class Mute:
        def __init__(self, seed: int) -> None:
            pass

        def speak(self, text, speaker):
            return np.sin(np.arange(80.0))

    monkeypatch.setattr(spoken_words, "Synthesiser", Mute)
    monkeypatch.setattr(spoken_words.soundfile, "write", lambda path, *_, **__: Path(path).touch())


# Layout.


def test_the_layout_is_librispeechs(written):
    for path in written.rglob("*"):
        if path.is_file():
            split, speaker, chapter, name = path.relative_to(written).parts
            assert split in SECTIONS
            assert speaker.isdigit()
            assert chapter.isdigit()
            if name.endswith(".flac"):
                own_speaker, own_chapter, number = name.removesuffix(".flac").split("-")
                assert (own_speaker, own_chapter) == (speaker, chapter)
                assert len(number) == 4
                assert number.isdigit()
            else:
                assert name == f"{speaker}-{chapter}.trans.txt"


def test_every_recording_has_a_transcript_and_every_transcript_a_recording(written):
    for split, section in SECTIONS.items():
        audio = {path.stem for path in written.glob(f"{split}/*/*/*.flac")}
        assert audio == set(transcripts(written, split))
        assert len(audio) == section.utterances
        for path in written.glob(f"{split}/*/*"):
            assert len(list(path.glob("*.trans.txt"))) == 1
            assert set(transcripts(path.parents[2], split)) >= {own.stem for own in path.glob("*.flac")}


def test_recordings_are_16_khz_mono_flac_with_something_to_hear(written):
    for path in written.rglob("*.flac"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.format, info.subtype) == (16_000, 1, "FLAC", "PCM_16")
        wave, _ = soundfile.read(path)
        assert 0.2 < len(wave) / 16_000 < 6
        assert np.abs(wave).max() < 1
        assert wave.std() > 0.003


def test_more_words_take_longer(written):
    seconds = {1: [], 3: []}
    for path in written.rglob("*.flac"):
        count = len(transcripts(written)[path.stem].split())
        if count in seconds:
            seconds[count].append(soundfile.info(path).duration)
    assert max(map(len, seconds.values())) > 0
    assert np.mean(seconds[3]) > 1.5 * np.mean(seconds[1])


def test_speakers_are_disjoint_and_as_many_as_asked_for(written):
    speakers = {split: {path.name for path in (written / split).iterdir()} for split in SECTIONS}
    assert {split: len(own) for split, own in speakers.items()} == {
        split: section.speakers for split, section in SECTIONS.items()
    }
    assert len(set().union(*speakers.values())) == 6


def test_keys_are_unique_over_the_corpus(written):
    keys = [path.stem for path in written.rglob("*.flac")]
    assert len(keys) == len(set(keys)) == 16


def test_speakers_share_the_utterances_evenly_and_chapters_are_small(tmp_path, mute):
    root = write(tmp_path, sections={"train-clean-100": Section(130, 3, (10.0, 20.0))})
    counts = [len(list(path.rglob("*.flac"))) for path in (root / "train-clean-100").iterdir()]
    assert sorted(counts) == [43, 43, 44]
    chapters = [path.name for path in root.glob("*/*/*")]
    assert len(chapters) == len(set(chapters)) > 3


# Words.


def test_transcripts_are_capital_words_of_the_lexicon(written):
    words = {word for text in transcripts(written).values() for word in text.split()}
    assert {word.lower() for word in words} <= set(LEXICON[:18])
    assert words == {word.upper() for word in words}
    assert all(1 <= len(text.split()) <= 3 for text in transcripts(written).values())


def test_the_lexicon_has_no_word_twice_and_letters_alone():
    assert len(LEXICON) == len(set(LEXICON))
    assert all(word.isascii() and word.isalpha() and word.islower() for word in LEXICON)


def test_unseen_words_are_outside_training_alone(tmp_path, mute):
    sections = {"train-clean-100": Section(200, 3, (0.0, 1.0)), "dev-clean": Section(400, 2, (0.0, 1.0), 0.25)}
    root = write(tmp_path, sections=sections)
    unseen = {word.upper() for word in LEXICON[12:18]}
    train = Counter(word for text in transcripts(root, "train-clean-100").values() for word in text.split())
    dev = Counter(word for text in transcripts(root, "dev-clean").values() for word in text.split())
    assert not unseen & set(train)
    assert unseen <= set(dev)
    share = sum(dev[word] for word in unseen) / dev.total()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / dev.total()) ** 0.5


def test_no_unseen_words_means_none(tmp_path, mute):
    sections = {"dev-clean": Section(50, 2, (0.0, 1.0), 0.25)}
    root = write(tmp_path, sections=sections, unseen_words=0)
    assert {word.lower() for text in transcripts(root).values() for word in text.split()} <= set(LEXICON[:12])


@pytest.mark.parametrize("zipf", [0.0, 1.5])
def test_words_follow_zipfs_law(tmp_path, mute, zipf):
    sections = {"train-clean-100": Section(400, 2, (0.0, 1.0))}
    root = write(tmp_path, sections=sections, zipf=zipf, words_per_utterance=(2, 4))
    counts = Counter(word.lower() for text in transcripts(root).values() for word in text.split())
    weights = np.array([1 / rank**zipf for rank in range(1, 13)])
    expected = counts.total() * weights / weights.sum()
    found = np.array([counts[word] for word in LEXICON[:12]])
    assert ((found - expected) ** 2 / expected).sum() < 31.3  # 99.9 % of chi-squared with 11 degrees of freedom


def test_utterances_have_all_lengths_allowed_evenly(tmp_path, mute):
    root = write(tmp_path, sections={"train-clean-100": Section(400, 2, (0.0, 1.0))}, words_per_utterance=(2, 5))
    lengths = Counter(len(text.split()) for text in transcripts(root).values())
    assert set(lengths) == {2, 3, 4, 5}
    assert all(abs(count - 100) < 35 for count in lengths.values())


@pytest.mark.parametrize(
    "changed", [{"words": len(LEXICON), "unseen_words": 1}, {"sections": {"a": Section(99, 99, (0.0, 1.0))}}]
)
def test_too_few_words_or_voices_are_refused(tmp_path, changed):
    with pytest.raises(ValueError, match="lexicon|voices"):
        write(tmp_path, **changed)


# Equal bytes.


def test_equal_parameters_give_equal_bytes_also_after_another_seed(written, tmp_path):
    expected = files(written)
    assert files(write(tmp_path / "again")) == expected
    other = files(write(tmp_path / "other", seed=4))
    assert files(write(tmp_path / "once more")) == expected
    assert len(other) >= 16
    shared = [name for name in expected if name in other and name.endswith(".flac")]
    assert all(other[name] != expected[name] for name in shared)


def test_a_split_does_not_depend_on_the_size_of_those_behind_it(written, tmp_path):
    longer = write(tmp_path, sections=SECTIONS | {"test-other": Section(6, 1, (0.0, 5.0), 0.5)})
    expected = {name: content for name, content in files(written).items() if not name.startswith("test-other")}
    assert {name: content for name, content in files(longer).items() if not name.startswith("test-other")} == expected


def test_no_two_recordings_are_the_same(written):
    audio = [content for name, content in files(written).items() if name.endswith(".flac")]
    assert len(set(audio)) == len(audio)


def test_noisier_splits_are_noisier(tmp_path):
    """Noise fills the pauses: the quietest tenth of a second is louder where there is more of it."""

    def quietest(root: Path) -> float:
        waves = [soundfile.read(path)[0] for path in root.rglob("*.flac")]
        levels = [min(wave[first : first + 1600].std() for first in range(0, len(wave) - 1600, 400)) for wave in waves]
        return float(np.mean(np.array(levels) / [wave.std() for wave in waves]))

    clean = write(tmp_path / "clean", sections={"dev-clean": Section(4, 2, (30.0, 30.0))})
    noisy = write(tmp_path / "noisy", sections={"dev-clean": Section(4, 2, (0.0, 0.0))})
    assert quietest(noisy) > 2 * quietest(clean)
