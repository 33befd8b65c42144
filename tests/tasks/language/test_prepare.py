"""What is read of a pack, which of its files are left out, and what its tokens are."""

import json
import shutil

import numpy as np
import pytest

from bbnet.tasks.language import task
from bbnet.tasks.language.buckets import make_buckets
from bbnet.tasks.language.data.pack import WIKITEXT_FILES, articles
from bbnet.tasks.language.data.tokens import END, load_tokeniser
from tests.tasks.language.conftest import BYTES, PIECES, text

ODD = "tab\tand  spaces \n\n\n  indented, λ, 日本, 🙂 and e\u0301; </s> <0x41>\r\nend"
FIRST = " \n = First = \n \n Text of it . \n \n = = Section = = \n \n More . \n \n"
FIRST = " \n = First = \n \n Text of it . \n \n = = Section = = \n \n More . \n \n"
ARTICLES = f"{FIRST} = Second = \n \n a = b \n = c = \n d \n"


def texts_of(pack, split: str) -> list[str]:
    """The texts of the documents of a split, from their tokens."""
    tokens, starts = (np.load(pack.folder / f"{split}{part}.npy") for part in ("", "_starts"))
    assert tokens[0] == END and (tokens[starts[1:] - 1] == END).all() and (tokens == END).sum() == len(starts)
    tokeniser = load_tokeniser(pack.folder, pack.index)
    return [tokeniser.decode(tokens[first:end]) for first, end in zip(starts[:-1], starts[1:], strict=True)]


@pytest.mark.parametrize("tokens", [BYTES, PIECES, PIECES | {"kind": "unigram"}])
def test_tokens_restore_every_text(prepared, folder, tokens):
    (folder / "test" / "odd.txt").write_text(ODD, encoding="utf-8", newline="")
    pack = prepared(tokens)
    for split, documents in pack.index["splits"].items():
        found = texts_of(pack, split)
        assert found == [(folder / name).read_bytes().decode() for name in documents["documents"]]
        assert documents["bytes"] == [len(one.encode()) for one in found]
        assert documents["tokens"] == len(np.load(pack.folder / f"{split}.npy")) - 1
    train = np.load(pack.folder / "train.npy")[1:]
    assert np.bincount(train, minlength=len(pack.index["names"])).tolist() == pack.index["counts"]
    assert len(set(pack.index["names"])) == len(pack.index["names"]) == pack.index["tokens"]["vocabulary"]
    assert pack.index["converted"] == {}
    assert np.load(pack.folder / "floor.npy").shape == (pack.index["splits"]["test"]["tokens"],)
    json.dumps(pack.index)


def test_a_character_that_subwords_take_for_a_blank_is_named(prepared, folder, caplog):
    (folder / "val" / "block.txt").write_text("low \u2581 block")
    pack = prepared(PIECES)
    assert pack.index["converted"] == {"not_restored": ["val/block.txt"]}
    assert "val/block.txt" in caplog.text
    assert prepared(BYTES, "bytes").index["converted"] == {}


def test_files_that_are_no_texts_are_counted_and_named(prepared, folder, caplog):
    (folder / "notes.txt").write_text("beside the splits")
    (folder / "train" / "picture.png").write_bytes(b"\x89PNG")
    (folder / "train" / "deep" / "er").mkdir(parents=True)
    (folder / "train" / "deep" / "er" / "MORE.TXT").write_text("more\n")
    (folder / "train" / ".hidden.txt").write_text("litter")
    (folder / "test" / "empty.txt").write_text("")
    pack = prepared()
    assert pack.index["skipped"] == {"not_read": ["train/picture.png", "notes.txt"], "empty": ["test/empty.txt"]}
    assert "picture.png" in caplog.text
    assert "train/deep/er/MORE.TXT" in pack.index["splits"]["train"]["documents"]


def test_a_file_that_is_not_utf_8_is_refused_or_skipped_by_name(prepared, folder):
    (folder / "train" / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt \(byte 3\): not UTF-8 \(faults\.undecodable: skip"):
        prepared()
    assert len(prepared(name="skipping", faults={"undecodable": "skip"}).index["skipped"]["undecodable"]) == 1


def test_a_byte_order_mark_is_no_text(prepared, folder):
    (folder / "val" / "0.txt").write_text("marked", encoding="utf-8-sig")
    pack = prepared()
    assert texts_of(pack, "val")[0] == "marked" and pack.index["splits"]["val"]["bytes"][0] == 6


def test_a_folder_without_splits_is_divided_by_the_names_and_sizes_of_its_files(prepared, folder, tmp_path):
    loose = tmp_path / "loose"
    loose.mkdir()
    for number in range(40):
        (loose / f"{number}.txt").write_text(text(number, 30))
    data = {"path": str(loose), "dev_share": 0.2, "test_share": 0.1}
    found = prepared(data=data).index["splits"]
    names = {split: set(part["documents"]) for split, part in found.items()}
    assert set().union(*names.values()) == {f"{number}.txt" for number in range(40)}
    assert sum(map(len, names.values())) == 40
    total = sum(sum(part["bytes"]) for part in found.values())
    for split, share in (("val", 0.2), ("test", 0.1)):
        assert share <= sum(found[split]["bytes"]) / total < share + 0.05
    (loose / "one more.txt").write_text("a")
    again = prepared(data=data, name="again").index["splits"]
    assert len(set(again["test"]["documents"]) ^ names["test"]) <= 2
    archive = shutil.make_archive(str(tmp_path / "texts"), "zip", tmp_path, "loose")
    assert prepared(data=data | {"path": archive}, name="archive").index["splits"] == again
    for file in sorted(loose.iterdir())[2:]:
        file.unlink()
    with pytest.raises(ValueError, match=r"loose: has 2 files that end in \.txt; train, val and test need"):
        prepared(data=data, name="few")


def test_a_split_without_texts_is_named(prepared, folder):
    for file in (folder / "val").iterdir():
        file.rename(file.with_suffix(".md"))
    with pytest.raises(ValueError, match=r"val: has no file that ends in \.txt"):
        prepared()
    assert len(prepared(name="both", data={"suffixes": [".txt", ".md"]}).index["splits"]["val"]["documents"]) == 2


def test_a_vocabulary_too_large_for_the_text_is_refused(prepared):
    with pytest.raises(ValueError, match="tokens: the training text does not allow bpe of size 90000"):
        prepared({"kind": "bpe", "size": 90_000})


def test_articles_of_wikitext_are_documents_and_together_the_file(tmp_path):
    found = list(articles("wiki.test.raw", ARTICLES))
    assert [one.name for one in found] == ["First", "Second"]
    assert "".join(one.text for one in found) == ARTICLES
    assert found[1].text.startswith(" = Second = \n") and " = c = \n" in found[1].text
    assert [one.name for one in articles("f", ARTICLES + ARTICLES)] == ["First", "Second", "First (2)", "Second (2)"]
    assert [one.name for one in articles("name", "no title\n")] == ["name"]


def test_wikitext_is_read_in_its_own_layout(tmp_path):
    pack, raw, target = (tmp_path / name for name in ("pack", "raw", "target"))
    for path in (pack, raw, target):
        path.mkdir()
    for split, file in WIKITEXT_FILES.items():
        (pack / file).write_text(ARTICLES.replace("First", f"First of {split}"))
    data = {"pack": "wikitext2", "path": str(pack)}
    with pytest.raises(ValueError, match=r"wiki\.train\.raw: has \d+ of the 10940747 bytes of the published pack"):
        task.fetch(data, raw)
    data |= {"complete": False}
    manifest = task.fetch(data, raw)
    settings = {"data": data, "tokens": BYTES, "context": 8, "floor_order": None, "faults": {}}
    index = task.prepare(manifest, settings, target)
    assert index["splits"]["val"]["documents"] == ["First of val", "Second"]
    assert sum(index["splits"]["test"]["bytes"]) == (pack / WIKITEXT_FILES["test"]).stat().st_size
    assert not (target / "floor.npy").exists()
    (pack / WIKITEXT_FILES["test"]).unlink()
    with pytest.raises(ValueError, match=r"wiki\.test\.raw: there is no such file"):
        task.fetch(data, raw)


def test_buckets_are_of_the_tokens_that_training_has(prepared):
    index = prepared(PIECES).index
    found = make_buckets(index)
    assert set(found["types"]) == {name for name, count in zip(index["names"], index["counts"], strict=True) if count}
    assert sum(size["occurrences"] for size in found["sizes"].values()) == index["splits"]["train"]["tokens"]
