"""Settings of the data of the language task. Imports no torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from bbnet.tasks.settings import LocalPack, PublishedPack, Section

SPLITS = ("train", "val", "test")
PYTHON_SOURCE_BYTES = 7_300_000  # of the files that bbnet/data/synthetic/python_source.py chooses from


class PythonSource(Section):
    """The embedded pack: Python files of the torch package that the lock file names, which is on every machine.

    A file is a document. They are ordered by a hash of their path, so the splits depend on no seed: the first ones
    form test, up to `test` bytes, those after them dev, and the next ones training. A larger training set keeps dev and
    test and the files of the smaller one.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".py",)
    pack: Literal["python_source"] = Field(description="Read from the installed torch, without any download.")
    train: int = Field(ge=10_000, description="Bytes of training text; the last file may be up to 16 KiB longer.")
    val: int = Field(ge=1_000, description="Bytes of dev.")
    test: int = Field(ge=1_000, description="Bytes of test.")

    @model_validator(mode="after")
    def _there_is_enough(self) -> "PythonSource":
        wanted = self.train + self.val + self.test
        if wanted > PYTHON_SOURCE_BYTES:
            raise ValueError(f"train, val and test are {wanted} bytes, the pack has {PYTHON_SOURCE_BYTES}")
        return self


class WikiText2(PublishedPack):
    """WikiText-2, the raw version: articles of Wikipedia with all their words. An article is a document."""

    pack: Literal["wikitext2"]


class TextFolder(LocalPack):
    """A folder of your own, or an archive: text files at any depth, each of them a document.

    If it has the folders train, val and test, these are the splits. Otherwise files are ordered by a hash of their
    path: the first ones form test, the next ones dev, and the rest training.
    """

    pack: Literal["text_folder"]
    suffixes: list[Annotated[str, StringConstraints(pattern=r"^\.[A-Za-z0-9_]+$")]] = Field(
        [".txt"], min_length=1, description="Endings of the names of the files that are read, in any case of letters."
    )
    dev_share: float = Field(0.1, gt=0, lt=0.5, description="Share of the bytes that form dev, without folders.")
    test_share: float = Field(0.1, gt=0, lt=0.5, description="Share of the bytes that form test, without folders.")


Data = Annotated[PythonSource | WikiText2 | TextFolder, Field(discriminator="pack")]


class Bytes(Section):
    """One token per byte of UTF-8."""

    kind: Literal["bytes"]
    bytes_per_token: ClassVar[float] = 1.0


class SentencePiece(Section):
    """A sentencepiece vocabulary, learned from the training text. Characters that it lacks are written as bytes."""

    kind: Literal["unigram", "bpe"]
    size: int = Field(ge=300, le=100_000, description="Number of tokens, of which 256 are single bytes.")
    bytes_per_token: ClassVar[float] = 3.0  # measured on Python files with 1,000 to 4,000 tokens: 2.8 to 3.7


Tokens = Annotated[Bytes | SentencePiece, Field(discriminator="kind")]

Rule = Literal["refuse", "skip"]


class Faults(Section):
    """Handling of unusable text files: `refuse` raises an error, `skip` omits and counts them."""

    undecodable: Rule = Field("refuse", description="A file that is not UTF-8.")
    empty: Rule = Field("skip", description="A file without any character.")
