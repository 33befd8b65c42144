"""Converts text to tokens and back. Tokens are characters, or subwords learned from the training text."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bbnet.data import pieces
from bbnet.data.files import normal_form
from bbnet.tasks.asr.settings import SentencePiece, Tokens

PAD = 0  # also the blank of CTC
EOS = 1  # also the first input of the decoder
SPECIALS = 2
APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\uff07", "'"))  # of typesetters, of linguists, and full-width
ALPHABET = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def normalise(text: str) -> str:
    """Returns the text in upper case, with single spaces instead of all characters but A to Z and apostrophes."""
    return " ".join(re.sub("[^A-Z']+", " ", normal_form(text).upper().translate(APOSTROPHES)).split())


class Tokeniser(Protocol):
    """Encodes text as integers from `SPECIALS` to `size` - 1, never as `PAD` or `EOS`."""

    size: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class CharacterTokeniser:
    """One token per character of the alphabet."""

    size = SPECIALS + len(ALPHABET)

    def encode(self, text: str) -> list[int]:
        return [SPECIALS + ALPHABET.index(character) for character in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(ALPHABET[token - SPECIALS] for token in tokens)


class PieceTokeniser(pieces.PieceTokeniser):
    """A sentencepiece model."""

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._model.decode(list(tokens))


def train_tokeniser(tokens: Tokens, texts: Iterable[str], folder: Path) -> Tokeniser:
    """Returns a tokeniser, trained on normalised texts if necessary; raises ValueError if the text is too short."""
    if not isinstance(tokens, SentencePiece):
        return CharacterTokeniser()
    model = pieces.train_pieces(
        tokens.kind,
        tokens.size,
        [text for text in texts if text],
        folder,
        pad_id=PAD,
        eos_id=EOS,
        unk_id=SPECIALS,
        bos_id=-1,
        required_chars=ALPHABET.strip(),
        character_coverage=1.0,
    )
    return PieceTokeniser(model)


def load_tokeniser(prepared: Path, index: Mapping[str, Any]) -> Tokeniser:
    characters = index["tokens"]["kind"] == "characters"
    return CharacterTokeniser() if characters else PieceTokeniser(prepared / pieces.MODEL_FILE)


def copy_tokeniser(prepared: Path, index: Mapping[str, Any], folder: Path) -> Tokeniser:
    """Returns the tokeniser of prepared data, and copies its file, if it has one, into `folder`."""
    pieces.copy_pieces(prepared, folder)
    return load_tokeniser(prepared, index)
