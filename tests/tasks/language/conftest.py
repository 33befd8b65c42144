"""A small folder of texts, prepared as bytes or as subwords."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from bbnet.tasks.language import task

BYTES, PIECES = {"kind": "bytes"}, {"kind": "bpe", "size": 300}
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "and",
    "the",
    "dog",
    "ran",
    "to",
    "the",
    "red",
    "house",
    "by",
    "the",
    "sea",
]


def text(number: int, words: int) -> str:
    """Lines of words that repeat in an order of their own."""
    chosen = (WORDS[(number * 7 + place * (1 + number % 3)) % len(WORDS)] for place in range(words))
    return "".join(f"{word}{' ' if place % 6 else chr(10)}" for place, word in enumerate(chosen))


@pytest.fixture
def folder(tmp_path) -> Path:
    """train, val and test with some documents each; one of test is in Greek, whose bytes training lacks."""
    root = tmp_path / "texts"
    for split, lengths in {"train": (90, 70, 120, 60), "val": (40, 30), "test": (50, 3, 80)}.items():
        (root / split).mkdir(parents=True)
        for number, words in enumerate(lengths):
            (root / split / f"{number}.txt").write_text(text(number + len(split), words))
    (root / "test" / "greek.txt").write_text("αβγ\n", encoding="utf-8")
    return root


@pytest.fixture
def prepared(folder, tmp_path):
    """Prepares the folder; keywords replace settings."""

    def make(tokens=BYTES, name: str = "prepared", **settings) -> SimpleNamespace:
        raw, target = tmp_path / f"raw-{name}", tmp_path / name
        raw.mkdir()
        target.mkdir()
        data = {"pack": "text_folder", "path": str(folder)} | settings.pop("data", {})
        manifest = task.fetch(data, raw)
        manifest["root"] = str(raw / manifest["root"])  # which is absolute if the folder is read in place
        settings = {"data": data, "tokens": tokens, "context": 16, "floor_order": 3, "faults": {}} | settings
        return SimpleNamespace(folder=target, index=task.prepare(manifest, settings, target))

    return make
