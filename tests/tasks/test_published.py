"""A pack that claims to be the published one is whole, or what is missing is named."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from bbnet.data import packs
from bbnet.tasks import task as tasks

SPEECH = {"pack": "spoken_words", "train": 6, "val": 2, "test": 2, "train_speakers": 2}
SCENES = {"pack": "aerial_scenes", "size": 32, "train": 6, "val": 2, "test": 3}
FACES = {
    "pack": "rendered_faces",
    "size": 24,
    "identities": 3,
    "train": 9,
    "val": 1,
    "test": 1,
    "gallery": 2,
    "probes": 1,
    "strangers": 1,
}


@pytest.fixture
def describe(tmp_path, monkeypatch):
    """Puts counts into the table for a pack."""

    def put(name: str, counts: dict[str, int]) -> None:
        table = yaml.safe_load(packs.TABLE.read_text())
        table[name]["counts"] = counts
        monkeypatch.setattr(packs, "TABLE", tmp_path / "packs.yaml")
        packs.TABLE.write_text(yaml.safe_dump(table))

    return put


@pytest.fixture
def speech(tmp_path, describe) -> Path:
    manifest = tasks.load("asr").fetch(SPEECH, tmp_path / "pack")
    describe("librispeech", manifest["audio_files"])
    return tmp_path / "pack"


@pytest.fixture
def scenes(tmp_path, describe) -> Path:
    root = tmp_path / "pack"
    tasks.load("change").fetch(SCENES, root)
    for split in ("train", "val", "test"):
        for part in ("A", "B", "label"):
            for number, file in enumerate(sorted((root / split / part).iterdir()), start=1):
                file.rename(file.with_name(f"{split}_{number}.png"))
    describe("levir_cd", {split: SCENES[split] for split in ("train", "val", "test")})
    return root


@pytest.fixture
def faces(tmp_path, describe) -> Path:
    root = tmp_path / "pack"
    tasks.load("face").fetch(FACES, root)
    counts = {"identities": 3, "train": 9, "known": 2, "unknown_dev": 3, "unknown_test": 3}
    describe("faces", counts)
    return root


def fetch(task: str, pack: str, path: Path, target: Path, **options) -> dict:
    target.mkdir(exist_ok=True)
    return json.loads(
        json.dumps(tasks.load(task).fetch({"pack": pack, "path": str(path)} | options, target), sort_keys=True)
    )


def refusal(task: str, pack: str, path: Path, target: Path) -> str:
    with pytest.raises(ValueError) as refused:
        fetch(task, pack, path, target)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def remove_one(root: Path, pattern: str) -> Path:
    path = sorted(root.glob(pattern))[-1]
    path.unlink()
    return path


def test_whole_packs_on_disk_are_taken_in_place(speech, tmp_path):
    manifest = fetch("asr", "librispeech", speech, tmp_path / "raw")
    assert manifest["root"] == str(speech)
    assert manifest["splits"]["test"] == ["test-clean", "test-other"]


def test_an_utterance_that_is_missing_is_named_by_its_transcript(speech, tmp_path):
    gone = remove_one(speech, "train-clean-100/*/*/*.flac")
    message = refusal("asr", "librispeech", speech, tmp_path / "raw")
    assert "train-clean-100: has 5 of the 6 utterances of the published pack" in message
    assert f"{gone}: has a transcript but no audio" in message
    assert "complete: false" in message


def test_a_transcript_that_is_missing_is_named_by_its_audio(speech, tmp_path):
    remove_one(speech, "dev-clean/*/*/*.trans.txt")
    assert "has no transcript" in refusal("asr", "librispeech", speech, tmp_path / "raw")


def test_more_than_was_published_is_refused_too(speech, tmp_path):
    audio = sorted(speech.glob("test-other/*/*/*.flac"))[0]
    shutil.copy(audio, audio.with_name("9-9-0009.flac"))
    transcript = next(audio.parent.glob("*.trans.txt"))
    transcript.write_text(transcript.read_text() + "9-9-0009 MORE\n")
    assert "has 3 of the 2 utterances" in refusal("asr", "librispeech", speech, tmp_path / "raw")


def test_audio_that_cannot_be_read_is_found_in_the_sample(speech, tmp_path):
    damaged = sorted(speech.glob("test-clean/*/*/*.flac"))[0]
    damaged.write_bytes(b"fLaC" + bytes(100))
    assert f"{damaged}: cannot be decoded" in refusal("asr", "librispeech", speech, tmp_path / "raw")


@pytest.mark.parametrize("parts", [["train-clean-100", "train-other-500"], ["train-other-500", "train-clean-100"]])
def test_several_parts_are_trained_on_in_the_order_given(speech, tmp_path, parts, describe):
    shutil.copytree(speech / "train-clean-100", speech / "train-other-500")
    for path in sorted((speech / "train-other-500").rglob("*.flac")):
        path.rename(path.with_name(f"7{path.name}"))
    for path in sorted((speech / "train-other-500").rglob("*.trans.txt")):
        path.write_text("".join(f"7{line}\n" for line in path.read_text().splitlines()))
    describe(
        "librispeech", {"train-clean-100": 6, "train-other-500": 6, "dev-clean": 2, "test-clean": 2, "test-other": 2}
    )
    manifest = fetch("asr", "librispeech", speech, tmp_path / "raw", train=parts)
    settings = {"faults": {}, "tokens": {"kind": "characters"}}
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    index = tasks.load("asr").prepare(manifest, settings, prepared)
    assert index["splits"]["train"]["folders"] == [[part, 6] for part in parts]
    keys = index["splits"]["train"]["utterances"]
    assert [key.startswith("7") for key in keys] == [part == "train-other-500" for part in parts for _ in range(6)]


def test_a_pair_that_is_missing_is_named(scenes, tmp_path):
    for part in ("A", "B", "label"):
        (scenes / "train" / part / "train_4.png").unlink()
    message = refusal("change", "levir_cd", scenes, tmp_path / "raw")
    assert f"{scenes / 'train'}: has 5 of the 6 pairs of the published pack: train_4.png" in message
    manifest = fetch("change", "levir_cd", scenes, tmp_path / "raw", complete=False)
    assert manifest["splits"]["train"][-1] == ["train_6.png"] * 3


def test_a_scene_that_cannot_be_read_is_found_in_the_sample(scenes, tmp_path):
    damaged = scenes / "val" / "label" / "val_2.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert str(damaged) in refusal("change", "levir_cd", scenes, tmp_path / "raw")


def test_an_archive_of_all_splits_may_have_an_outer_folder(scenes, tmp_path):
    shutil.make_archive(str(tmp_path / "levir"), "zip", scenes.parent, scenes.name)
    manifest = fetch("change", "levir_cd", tmp_path / "levir.zip", tmp_path / "raw")
    assert manifest["root"] == "pack"
    assert list(manifest["files"]) == ["levir.zip"]
    assert (tmp_path / "raw" / "pack" / "train" / "A" / "train_1.png").is_file()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("classification/train/*/*", "has 8 of the 9 images"),
        ("verification/known/*/*", "has 1 of the 2 images"),
        ("verification/unknown_test/*", "has 2 of the 3 images"),
    ],
)
def test_an_image_that_is_missing_is_counted(faces, tmp_path, pattern, message):
    remove_one(faces, pattern)
    assert message in refusal("face", "faces", faces, tmp_path / "raw")


def test_a_probe_that_is_missing_is_named_by_the_label_file(faces, tmp_path):
    gone = remove_one(faces, "verification/unknown_dev/*")
    assert gone.name in refusal("face", "faces", faces, tmp_path / "raw")


def test_an_identity_that_is_missing_is_named_by_dev(faces, tmp_path):
    gone = sorted((faces / "classification" / "train").iterdir())[1]
    shutil.rmtree(gone)
    message = refusal("face", "faces", faces, tmp_path / "raw")
    assert f"has 2 of the 3 identities of the published pack: {gone.name}" in message


def test_a_face_that_cannot_be_read_is_found_in_the_sample(faces, tmp_path):
    damaged = sorted((faces / "verification" / "known").glob("*/*"))[0]
    damaged.write_bytes(b"no image")
    assert str(damaged) in refusal("face", "faces", faces, tmp_path / "raw")


@pytest.mark.parametrize(("task", "pack"), [("asr", "librispeech"), ("change", "levir_cd"), ("face", "faces")])
def test_without_being_whole_any_pack_of_the_layout_is_taken(request, tmp_path, task, pack):
    root = request.getfixturevalue({"asr": "speech", "change": "scenes", "face": "faces"}[task])
    table = yaml.safe_load(packs.TABLE.read_text())
    table[pack]["counts"] = {key: value + 1 for key, value in table[pack]["counts"].items()}
    packs.TABLE.write_text(yaml.safe_dump(table))
    assert "of the published pack" in refusal(task, pack, root, tmp_path / "raw")
    assert fetch(task, pack, root, tmp_path / "raw", complete=False)["root"] == str(root)
