"""Writes the tokens of each split as arrays, scores the n-gram floor on test, and returns the index."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from bbnet.data.image_folders import Faulty
from bbnet.tasks.language.data.kneser_ney import KneserNey
from bbnet.tasks.language.data.pack import Document, articles, files_of, inner_folder, path_in
from bbnet.tasks.language.data.tokens import END, Tokeniser, copy_tokeniser, train_tokeniser
from bbnet.tasks.language.data_settings import SPLITS, Data, Faults, Tokens, WikiText2
from bbnet.tasks.task import Trained

logger = logging.getLogger(__name__)
FEW_DOCUMENTS = 10
LARGEST_INT16 = 2**15


def prepare(
    manifest: Mapping[str, Any], settings: Mapping[str, Any], target: Path, trained: Trained | None = None
) -> dict[str, Any]:
    """Writes `{split}.npy`, int16 or int32 [tokens]: `END`, then the tokens of each document with `END` behind them.

    `{split}_starts.npy`, int64 [documents + 1], has the place of the first token of each document, and the number of
    tokens. `floor.npy`, float32 [tokens - 1], has the negative log-likelihood in nats of each token of test but the
    first, by an n-gram model of order `floor_order` of the training tokens; without that order there is no such file.

    Returns the index: the settings and the names of the tokens, how often each occurs in training, names and bytes of
        the documents of each split, and the files that were skipped or are not restored by their tokens, by kind.
    Raises: ValueError naming files that a rule of `faults` refuses, or a split without documents.
    """
    splits = SPLITS if trained is None else ("test",)
    documents, skipped = _read(inner_folder(Path(manifest["root"])), settings, splits)
    if trained is None:
        tokens: Tokens = TypeAdapter(Tokens).validate_python(settings["tokens"])
        tokeniser = train_tokeniser(tokens, (document.text for document in documents["train"]), target)
    else:
        tokeniser = copy_tokeniser(trained.folder, trained.index, target)
    lossy: list[str] = []
    arrays = {split: _write(found, tokeniser, target, split, lossy) for split, found in documents.items()}
    if lossy:
        logger.warning("%d documents are not restored by decoding their tokens, the first is %s", len(lossy), lossy[0])
    learned = arrays["train"] if trained is None else np.load(trained.folder / "train.npy").astype(np.int32)
    if settings["floor_order"] is not None:
        model = KneserNey(learned[1:], tokeniser.size, END, settings["floor_order"])
        floor = model.nll(arrays["test"][1:])
        logger.info("the %d-gram model has perplexity %.2f on test", len(model.orders), np.exp(floor.mean()))
        np.save(target / "floor.npy", floor.astype(np.float32))
    return {
        "tokens": settings["tokens"] | {"vocabulary": tokeniser.size},
        "context": settings["context"],
        "names": list(tokeniser.names),
        "counts": np.bincount(learned[1:], minlength=tokeniser.size).tolist(),
        "skipped": skipped,
        "converted": {"not_restored": lossy} if lossy else {},
        "splits": {
            split: {
                "documents": [document.name for document in found],
                "bytes": [len(document.text.encode()) for document in found],
                "tokens": len(arrays[split]) - 1,
            }
            for split, found in documents.items()
        },
    }


def _read(
    root: Path, settings: Mapping[str, Any], splits: Sequence[str]
) -> tuple[dict[str, list[Document]], dict[str, list[str]]]:
    """Returns the documents of each split, and the files that were skipped, by kind."""
    pack: Data = TypeAdapter(Data).validate_python(settings["data"])
    faulty = Faulty(Faults(**settings["faults"]), root)
    files, unread = files_of(root, pack, splits)
    faulty.leave_out(root, unread, "wiki.*.raw" if isinstance(pack, WikiText2) else "*" + ", *".join(pack.suffixes))
    texts = _texts([file for split in splits for file in files[split]], faulty)
    documents: dict[str, list[Document]] = {}
    for split in splits:
        found = [(path_in(root, file), texts[file]) for file in files[split] if file in texts]
        documents[split] = [Document(*one) for one in found]
        if isinstance(pack, WikiText2):
            documents[split] = [article for one in found for article in articles(*one)]
        if not documents[split]:
            raise ValueError(f"{root}: no document of {split} is left")
    if len(documents["test"]) < FEW_DOCUMENTS:
        few = len(documents["test"])
        logger.warning("test has %d documents; intervals take documents as drawn at random, and are wide", few)
    return documents, faulty.skipped


def _texts(files: Sequence[Path], faulty: Faulty) -> dict[Path, str]:
    """Returns the texts of the files, without those that a rule skips."""
    texts, undecodable, empty = {}, [], []
    for file in files:
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            undecodable.append(f"{file} (byte {error.start})")
            continue
        if text:
            texts[file] = text
        else:
            empty.append(str(file))
    faulty.judge("undecodable", undecodable, "not UTF-8")
    faulty.judge("empty", empty, "without text")
    return texts


def _write(
    documents: Sequence[Document], tokeniser: Tokeniser, target: Path, split: str, lossy: list[str]
) -> np.ndarray:
    """Writes and returns the tokens of a split; adds the documents that decoding does not restore to `lossy`."""
    parts = [np.array([END], dtype=np.int32)]
    for document in documents:
        tokens = tokeniser.encode(document.text)
        if tokeniser.decode(tokens) != document.text:
            lossy.append(document.name)
        parts.append(np.append(tokens, np.int32(END)))
    array = np.concatenate(parts)
    np.save(target / f"{split}.npy", array.astype(np.int16 if tokeniser.size <= LARGEST_INT16 else np.int32))
    np.save(target / f"{split}_starts.npy", np.cumsum([len(part) for part in parts], dtype=np.int64))
    return array
