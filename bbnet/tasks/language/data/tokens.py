"""Converts text to tokens and back. Tokens are bytes, or subwords learned from the training text."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bbnet.data import pieces
from bbnet.tasks.language.data_settings import SentencePiece, Tokens

END = 0  # the token behind every document
END_NAME = "</s>"
LONGEST_LINE = 1 << 20  # bytes; the training of subwords leaves out longer ones
COVERAGE = 0.9995  # share of the training text's characters that are subwords; others are written as bytes


class Tokeniser(Protocol):
    """Encodes text as tokens int32 [tokens] from 1 to `size` - 1, of which `END` is none; `names` are all different."""

    size: int
    names: Sequence[str]

    def encode(self, text: str) -> np.ndarray: ...

    def decode(self, tokens: np.ndarray) -> str: ...


class ByteTokeniser:
    """One token for each byte of UTF-8."""

    size = 257
    names = (END_NAME, *(f"0x{byte:02X}" for byte in range(256)))

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) + 1

    def decode(self, tokens: np.ndarray) -> str:
        tokens = np.asarray(tokens)
        return (tokens[tokens != END] - 1).astype(np.uint8).tobytes().decode(errors="replace")


class PieceTokeniser(pieces.PieceTokeniser):
    """A sentencepiece model, of which a line break is one token."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.names = [self._model.id_to_piece(token) for token in range(self.size)]

    def encode(self, text: str) -> np.ndarray:
        return np.array(self._model.encode(text), dtype=np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        tokens = np.asarray(tokens)
        return self._model.decode(tokens[tokens != END].tolist())


def train_tokeniser(tokens: Tokens, texts: Iterable[str], folder: Path) -> Tokeniser:
    """Returns a tokeniser, trained on the texts if necessary; raises ValueError if they are too short."""
    if not isinstance(tokens, SentencePiece):
        return ByteTokeniser()
    model = pieces.train_pieces(
        tokens.kind,
        tokens.size,
        (line for text in texts for line in text.split("\n") if line),
        folder,
        eos_id=END,
        unk_id=END + 1,
        bos_id=-1,
        pad_id=-1,
        user_defined_symbols=["\n"],
        byte_fallback=True,
        character_coverage=COVERAGE,
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=LONGEST_LINE,
    )
    return PieceTokeniser(model)


def load_tokeniser(prepared: Path, index: Mapping[str, Any]) -> Tokeniser:
    return ByteTokeniser() if index["tokens"]["kind"] == "bytes" else PieceTokeniser(prepared / pieces.MODEL_FILE)


def copy_tokeniser(prepared: Path, index: Mapping[str, Any], folder: Path) -> Tokeniser:
    """Returns the tokeniser of prepared data, and copies its file, if it has one, into `folder`."""
    pieces.copy_pieces(prepared, folder)
    return load_tokeniser(prepared, index)
