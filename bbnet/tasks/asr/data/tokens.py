"""Converts text to tokens and back. Tokens are characters, or subwords learned from the training text."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bbnet.data.store import whole_file
from bbnet.tasks.asr.settings import SentencePiece, Tokens

PAD = 0  # also the blank of CTC
EOS = 1  # also the first input of the decoder
SPECIALS = 2
APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\uff07", "'"))  # of typesetters, of linguists, and full-width
ALPHABET = " 'ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MODEL_FILE = "tokeniser.model"


def normalise(text: str) -> str:
    """Returns the text in upper case, with single spaces instead of all characters but A to Z and apostrophes."""
    return " ".join(re.sub("[^A-Z']+", " ", text.upper().translate(APOSTROPHES)).split())


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


class PieceTokeniser:
    """A sentencepiece model. Raises ValueError naming the file if it does not contain one."""

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor  # imported here because characters do not need it

        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path}: not a sentencepiece model ({error})") from None
        self.size: int = self._model.get_piece_size()

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._model.decode(list(tokens))


def train_tokeniser(tokens: Tokens, texts: Iterable[str], folder: Path) -> Tokeniser:
    """Returns a tokeniser, trained on normalised texts if necessary; raises ValueError if the text is too short."""
    if not isinstance(tokens, SentencePiece):
        return CharacterTokeniser()
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter([text for text in texts if text]),
            model_writer=model,
            model_type=tokens.kind,
            vocab_size=tokens.size,
            pad_id=PAD,
            eos_id=EOS,
            unk_id=SPECIALS,
            bos_id=-1,
            required_chars=ALPHABET.strip(),
            character_coverage=1.0,
            normalization_rule_name="identity",
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        why = f"the training text does not allow {tokens.kind} of size {tokens.size} ({reason})"
        raise ValueError(f"tokens: {why}") from None
    with whole_file(folder / MODEL_FILE) as partial:
        partial.write_bytes(model.getvalue())
    return PieceTokeniser(folder / MODEL_FILE)


def load_tokeniser(prepared: Path, index: Mapping[str, Any]) -> Tokeniser:
    return CharacterTokeniser() if index["tokens"]["kind"] == "characters" else PieceTokeniser(prepared / MODEL_FILE)
