"""The embedded texts: files of the locked torch, to the byte, and nothing else."""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest

from bbnet.data.synthetic import python_source
from bbnet.tasks.language.data_settings import PYTHON_SOURCE_BYTES

SIZES = {"train": 40_000, "val": 5_000, "test": 9_000}
LOCK = Path(__file__).parents[3] / "envs" / "requirements.lock.txt"


def written(root: Path) -> dict[str, set[str]]:
    return {split: {str(file.relative_to(root / split)) for file in (root / split).rglob("*.py")} for split in SIZES}


def test_files_are_those_of_the_installed_package_and_in_one_split(tmp_path):
    python_source.write(tmp_path, SIZES)
    found = written(tmp_path)
    torch = distribution("torch")
    for split, files in found.items():
        contents = {file: (tmp_path / split / file).read_bytes() for file in files}
        assert all(Path(torch.locate_file(file)).read_bytes() == content for file, content in contents.items())
        size = sum(map(len, contents.values()))
        assert SIZES[split] <= size < SIZES[split] + python_source.LARGEST
    assert len(set().union(*found.values())) == sum(map(len, found.values()))
    assert not any(file.endswith("version.py") for files in found.values() for file in files)


def test_more_training_text_keeps_the_other_splits(tmp_path):
    python_source.write(tmp_path / "small", SIZES)
    python_source.write(tmp_path / "large", SIZES | {"train": 90_000})
    small, large = written(tmp_path / "small"), written(tmp_path / "large")
    assert small["train"] < large["train"]
    assert (small["val"], small["test"]) == (large["val"], large["test"])


def test_there_is_as_much_text_as_settings_allow_of_the_torch_that_is_locked():
    files = python_source.candidates(python_source.installed_torch())
    assert sum(file.size for file in files) >= PYTHON_SOURCE_BYTES + 3 * python_source.LARGEST
    assert re.search(r"^torch==([\d.]+)", LOCK.read_text(), re.MULTILINE)[1] == python_source.TORCH


class Installed:
    """A torch whose RECORD or version is another one."""

    def __init__(self, root: Path, record: str, version: str = python_source.TORCH) -> None:
        self.root, self.record, self.version = root, record, version

    def read_text(self, _: str) -> str:
        return self.record

    def locate_file(self, path: str) -> Path:
        return self.root / path


def test_another_version_a_changed_record_and_a_changed_file_are_refused(tmp_path, monkeypatch):
    real = distribution("torch")
    record = real.read_text("RECORD")
    others = {
        r"consists of files of torch 2\.11\.0 .* but torch 9\.0 is installed": Installed(tmp_path, record, "9.0"),
        "the RECORD of the installed torch .* is not that of its wheel": Installed(
            tmp_path, record[: len(record) // 2]
        ),
    }
    for message, torch in others.items():
        monkeypatch.setattr(python_source, "distribution", lambda _, torch=torch: torch)
        with pytest.raises(ValueError, match=message):
            python_source.write(tmp_path / "target", SIZES)
    first = python_source.candidates(real)[0].path
    (tmp_path / first).parent.mkdir(parents=True)
    (tmp_path / first).write_text("edited")
    local = Installed(tmp_path, record, f"{python_source.TORCH}+cpu")  # a local version label changes no text
    monkeypatch.setattr(python_source, "distribution", lambda _: local)
    with pytest.raises(ValueError, match=f"{re.escape(first)}: differs from the file of torch"):
        python_source.write(tmp_path / "target", SIZES)
