"""Vocabularies of sentencepiece, which tasks with text train and load."""

import io
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bbnet.data.store import whole_file

MODEL_FILE = "tokeniser.model"


class PieceTokeniser:
    """A sentencepiece model. Raises ValueError naming the file if it does not contain one."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor  # imported here because other tokens do not need it

        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: not a sentencepiece model ({error})") from None
        self.size: int = self._model.get_piece_size()


def train_pieces(kind: str, size: int, texts: Iterable[str], folder: Path, **options: Any) -> Path:
    """Trains a sentencepiece model on texts that are normalised already, and returns its file in `folder`.

    Args:
        kind: unigram or bpe.
        size: number of tokens.
        options: others of `SentencePieceTrainer`.
    Raises: ValueError if the texts are too short.
    """
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"tokens: the training text does not allow {kind} of size {size} ({reason})") from None
    with whole_file(folder / MODEL_FILE) as partial:
        partial.write_bytes(model.getvalue())
    return folder / MODEL_FILE


def copy_pieces(prepared: Path, folder: Path) -> None:
    """Copies the sentencepiece model of prepared data, if they have one."""
    if (prepared / MODEL_FILE).is_file():
        shutil.copyfile(prepared / MODEL_FILE, folder / MODEL_FILE)
