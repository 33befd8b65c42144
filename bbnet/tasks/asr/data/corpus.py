"""Reads LibriSpeech's layout: {split}/{speaker}/{chapter}/{utterance}.flac and {speaker}-{chapter}.trans.txt.

Audio may be of any format that soundfile reads with its sample rate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from bbnet.data.files import beside, contents, files_below, normal_form
from bbnet.data.packs import DOWNLOADS, bring, read_pack, refuse_incomplete, spread
from bbnet.tasks.asr.data.features import read_audio
from bbnet.tasks.asr.settings import Data, SpokenWords

# By suffix, because text and tables can look like MP3 or HTK to libsndfile. It tells formats apart by their content.
AUDIO = (
    *(".flac", ".wav", ".rf64", ".w64", ".aif", ".aiff", ".aifc", ".caf", ".au", ".snd", ".sph", ".nist"),
    *(".mp3", ".ogg", ".oga", ".opus"),
)
ALLOWED = f"{{speaker}}/{{chapter}}/* of {', '.join(AUDIO)}"
DOCUMENTS = tuple(f"{name}.TXT" for name in ("BOOKS", "CHAPTERS", "LICENSE", "README", "SPEAKERS"))  # of LibriSpeech
SPLITS = {"train": ("train-clean-100",), "val": ("dev-clean",), "test": ("test-clean", "test-other")}


@dataclass(frozen=True)
class Utterance:
    """An utterance: `key` is speaker-chapter-number, `audio` its file, `text` its transcript."""

    key: str
    audio: Path
    text: str


def fetch(
    data: Mapping[str, Any], target: Path, downloads: Path = DOWNLOADS, test_only: bool = False
) -> dict[str, Any]:
    """Synthesises the embedded pack or unpacks LibriSpeech into `target`, or uses the given folder; and checks it.

    Returns the manifest: the folders of each split, their numbers of audio files, and the entries of `bring`.
    Raises: ValueError naming a missing or incomplete folder, one without audio, or a file that cannot be downloaded.
    """
    pack = TypeAdapter(Data).validate_python(data)
    splits = SPLITS | ({} if isinstance(pack, SpokenWords) else {"train": tuple(pack.train)})
    if test_only:
        splits |= {"train": (), "val": ()}
    folders = folders_of(splits)
    if isinstance(pack, SpokenWords):
        _synthesise(pack, target)
        return {"pack": pack.pack, "splits": splits, "audio_files": _count_audio(target, folders)}
    asked = {"complete": pack.complete, "holding": folders, "parts": [f"{folder}.tar.gz" for folder in folders]}
    root, origin = bring(pack.pack, pack.path, target, downloads, **asked)
    counts = _count_audio(root, folders)
    if pack.complete:
        for folder in folders:
            _check_complete(root, folder, read_pack(pack.pack).counts[folder])
    return {"pack": pack.pack, "splits": splits, "audio_files": counts} | origin


def folders_of(splits: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the folders of all splits, in order."""
    return [folder for folders in splits.values() for folder in folders]


def _check_complete(root: Path, folder: str, published: int) -> None:
    utterances, unpaired, _ = read_folder(root, folder)
    refuse_incomplete(root / folder, len(utterances), published, "utterances", list(unpaired.values()))
    for utterance in spread(utterances):
        read_audio(utterance.audio)


def _synthesise(pack: SpokenWords, target: Path) -> None:
    # Imported here because training jobs do not need the generator.
    from bbnet.data.synthetic.spoken_words import Section, write_spoken_words

    def evaluation_section(utterances: int, lowest_db: float) -> Section:
        return Section(utterances, pack.speakers, (lowest_db, lowest_db + 15), pack.unseen)

    write_spoken_words(
        target,
        seed=pack.seed,
        sections={
            "train-clean-100": Section(pack.train, pack.train_speakers, (pack.noise - 5, pack.noise + 15)),
            "dev-clean": evaluation_section(pack.val, pack.noise),
            "test-clean": evaluation_section(pack.test, pack.noise),
            "test-other": evaluation_section(pack.test, pack.noise - 10),
        },
        words=pack.words,
        unseen_words=pack.unseen_words,
        words_per_utterance=(pack.shortest, pack.longest),
        zipf=pack.zipf,
    )


def _count_audio(root: Path, folders: Sequence[str]) -> dict[str, int]:
    counts = {}
    for folder in folders:
        if not (root / folder).is_dir():
            raise ValueError(f"{root / folder}: no such folder; a corpus has {', '.join(folders)}")
        counts[folder] = len(_list_files(root / folder).audio)
        if not counts[folder]:
            raise ValueError(f"{root / folder}: has no audio; allowed is {ALLOWED}")
    return counts


class Files(NamedTuple):
    """The files of a folder of the corpus; what is neither audio nor a transcript in its place is not read."""

    audio: list[Path]
    transcripts: list[Path]
    unread: list[Path]


def _list_files(home: Path) -> Files:
    beside, speakers = contents(home)
    audio, transcripts, unread = [], [], beside
    for speaker in speakers:
        beside, chapters = contents(speaker)
        unread += beside
        for chapter in chapters:
            files, folders = contents(chapter)
            for file in files:
                if file.suffix.lower() in AUDIO:
                    audio.append(file)
                elif file.name.lower().endswith(".trans.txt"):
                    transcripts.append(file)
                else:
                    unread.append(file)
            unread += files_below(folders)
    return Files(audio, transcripts, unread)


def read_folder(root: Path, folder: str) -> tuple[list[Utterance], dict[str, str], list[Path]]:
    """Returns a folder's utterances, ordered by key, what each unpaired one lacks, by key, and the files not read.

    Raises: ValueError naming a transcript that cannot be read or an utterance that occurs twice.
    """
    files = _list_files(root / folder)
    audio: dict[str, Path] = {}
    for path in files.audio:
        key = normal_form(path.stem)
        if key in audio:
            raise ValueError(f"{path}: utterance {key} has two audio files, the other is {audio[key]}")
        audio[key] = path
    texts: dict[str, str] = {}
    homes: dict[str, Path] = {}
    for path in files.transcripts:
        for key, text in _read_transcript(path):
            if key in texts:
                raise ValueError(f"{path}: utterance {key} has two transcripts")
            texts[key], homes[key] = text, path.parent
    unread = {normal_form(path.stem): path for path in files.unread}
    utterances, unpaired = [], {}
    for key in sorted(audio.keys() | texts.keys(), key=_numeric_key):
        if key not in texts:
            unpaired[key] = f"{audio[key]}: has no transcript"
        elif key in audio and audio[key].is_file():
            utterances.append(Utterance(key, audio[key], texts[key]))
        else:
            instead = f", and {unread[key]} is not read; allowed is {ALLOWED}" if key in unread else ""
            unpaired[key] = f"{homes[key] / key}.flac: has a transcript but no audio{instead}"
    return utterances, unpaired, files.unread


def unread_beside(root: Path, folders: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """Returns the files beside the folders of a corpus, and the published folders that are not among `folders`.

    The documents of LibriSpeech and the files in its other folders, of which a study chooses some, are not among them.
    """
    published = [root / name for name in read_pack("librispeech").counts]
    known = [*published, *(root / name for name in (*folders, *DOCUMENTS))]
    return beside(root, known), [path for path in published if path.name not in folders and path.is_dir()]


def _read_transcript(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines also splits at other characters
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a transcript in UTF-8 ({error.reason})") from None
    pairs = ([*line.split(maxsplit=1), ""] for line in lines if line.strip())
    return [(normal_form(key), text.strip()) for key, text, *_ in pairs]


def _numeric_key(key: str) -> list[tuple[int, str]]:
    """Returns a sort key that places 1-2-10 after 1-2-9."""
    return [(int(part) if part.isdecimal() else -1, part) for part in key.split("-")]
