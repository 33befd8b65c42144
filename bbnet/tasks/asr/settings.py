"""Settings of the speech-recognition task."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bbnet.tasks.settings import Estimate, ModelLabel, NetworkSettings, PublishedPack, Section, TaskSettings, Training

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

LEXICON_SIZE = 273  # words of bbnet/data/synthetic/spoken_words.py, which this module must not import
SECONDS_PER_SPOKEN_WORD = 0.27  # measured on the embedded pack
FILLED_SHARE = 0.93  # typical share of a batch that is not padding
FRAMES_PER_SECOND = 100
CLASS_RATIO = 1.15  # largest ratio of lengths within a class of utterances of a batch, which limits the padding
BYTES_PER_SECOND = FRAMES_PER_SECOND * 80 * 4  # each frame has 80 float32 features


class SpokenWords(Section):
    """The embedded pack: English words spoken by espeak-ng, in the layout of LibriSpeech."""

    pack: Literal["spoken_words"] = Field(description="Synthesised locally, without any download.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the generator; independent of the seeds of the study.")
    train: int = Field(ge=1, le=1_000_000, description="Utterances of train-clean-100.")
    val: int = Field(ge=1, le=1_000_000, description="Utterances of dev-clean.")
    test: int = Field(ge=1, le=1_000_000, description="Utterances of test-clean, and as many of test-other.")
    train_speakers: int = Field(16, ge=1, le=40, description="Speakers of the training split.")
    speakers: int = Field(4, ge=1, le=6, description="Speakers of each other split; no speaker is in two splits.")
    words: int = Field(160, ge=10, description="Number of words in the lexicon of the training split.")
    unseen_words: int = Field(20, ge=0, description="Further words, which occur only in dev and test.")
    unseen: float = Field(0.03, ge=0, le=1, description="Share of such words in dev and test.")
    shortest: int = Field(2, ge=1, le=20, description="Smallest number of words of an utterance.")
    longest: int = Field(4, ge=1, le=20, description="Largest number of words of an utterance.")
    zipf: float = Field(1.0, ge=0, le=3, description="The word of rank r is drawn with probability ~ r^-zipf.")
    noise: float = Field(20.0, ge=-10, le=60, description="Lowest signal-to-noise ratio in dB; test-other has 10 less.")

    @model_validator(mode="after")
    def _words_suffice(self) -> "SpokenWords":
        if self.words + self.unseen_words > LEXICON_SIZE:
            words = f"words {self.words} and unseen_words {self.unseen_words}"
            raise ValueError(f"{words} exceed the lexicon of {LEXICON_SIZE}")
        return self

    @model_validator(mode="after")
    def _some_length(self) -> "SpokenWords":
        if self.shortest > self.longest:
            raise ValueError(f"shortest {self.shortest} must not exceed longest {self.longest}")
        return self


TrainingPart = Literal["train-clean-100", "train-clean-360", "train-other-500"]


class LibriSpeech(PublishedPack):
    """LibriSpeech, or any corpus in its layout: {part}/{speaker}/{chapter}/*.flac (or .wav, ...) and *.trans.txt."""

    pack: Literal["librispeech"]
    train: list[TrainingPart] = Field(
        ["train-clean-100"], min_length=1, description="Parts to train on, of 100, 360 and 500 hours."
    )

    def files(self) -> list[str]:
        """Returns the names of the archives that are needed."""
        return [f"{part}.tar.gz" for part in (*self.train, "dev-clean", "test-clean", "test-other")]

    @field_validator("train")
    @classmethod
    def _each_once(cls, parts: list[str]) -> list[str]:
        if len(set(parts)) < len(parts):
            raise ValueError("a part is given twice")
        return parts


Data = Annotated[SpokenWords | LibriSpeech, Field(discriminator="pack")]


class Characters(Section):
    """One token per character: A to Z, apostrophe and space."""

    kind: Literal["characters"]


class SentencePiece(Section):
    """A sentencepiece vocabulary, learned from the training text."""

    kind: Literal["unigram", "bpe"]
    size: int = Field(ge=32, le=100_000, description="Number of tokens in the vocabulary.")


Tokens = Annotated[Characters | SentencePiece, Field(discriminator="kind")]

Rule = Literal["refuse", "skip"]


class Faults(Section):
    """Handling of unusable utterances: `refuse` raises an error, `skip` omits and counts them."""

    undecodable: Rule = Field("refuse", description="Audio that cannot be decoded.")
    unpaired: Rule = Field("refuse", description="Audio without a transcript, or a transcript without audio.")
    low_rate: Literal["refuse", "skip", "resample"] = Field(
        "refuse", description="Audio below 16 kHz, whose upper mel bins are empty; higher rates are always resampled."
    )
    too_short: Rule = Field("refuse", description="Audio too short for the model's two convolutions.")
    no_words: Rule = Field("refuse", description="A transcript without any letter A to Z or apostrophe.")
    too_many_tokens: Rule = Field(
        "skip", description="In training: more tokens than CTC can align with the encoder's positions."
    )


class Transformer(NetworkSettings):
    """A pre-LN encoder-decoder Transformer with joint CTC and attention, after two convolutions (time / 4)."""

    width: int = Field(ge=8, le=4096, description="Model width d_model; 384 in the released notebook.")
    hidden: int = Field(ge=8, le=65_536, description="Hidden units of each feed-forward layer; 1536 in the notebook.")
    encoder_layers: int = Field(ge=1, le=64, description="Number of encoder layers; 4 in the notebook.")
    decoder_layers: int = Field(ge=1, le=64, description="Number of decoder layers; 4 in the notebook.")
    heads: int = Field(ge=1, le=64, description="Heads of each attention layer; 8 in the notebook.")
    stem_channels: int = Field(ge=1, le=4096, description="Channels of both convolutions; 384 in the notebook.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Applied after embeddings, sublayers and FFN activations.")
    activation: Literal["relu", "gelu", "silu"] = Field("gelu", description="Activation of the feed-forward layers.")
    ctc_weight: float = Field(0.3, ge=0, lt=1, description="Weight of the CTC loss; 0: no CTC head.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of the attention loss.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "Transformer":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        return self


class Decoding(Section):
    """Decoding of test. Dev, which selects weights after every epoch, is always decoded greedily."""

    beam: int = Field(1, ge=1, le=64, description="Number of hypotheses kept; 1: greedy decoding.")
    length_normalisation: float = Field(
        1.0, ge=0, le=2, description="Scores are log-probability / tokens ** this, if beam > 1."
    )


class SpecAugment(Section):
    """Random masks (Park et al. 2019), drawn within the length of each utterance. Masked features are 0."""

    frequency_masks: int = Field(0, ge=0, le=40, description="Masks over bins; 4 in the notebook.")
    frequency_width: int = Field(4, ge=1, le=80, description="Widths in bins are drawn from 0 to below this.")
    time_masks: int = Field(0, ge=0, le=100, description="Masks over frames; 8 in the notebook.")
    time_width: int = Field(50, ge=1, le=10_000, description="Widths in frames are drawn from 0 to below this.")
    time_share: float = Field(0.3, ge=0, le=1, description="Largest share of the frames that time masks cover.")


class SpeechTraining(Training):
    """Training settings for batches of a maximal duration, of utterances of similar length."""

    batch_seconds: float = Field(ge=1, le=100_000, description="Seconds of audio per step, including padding.")
    spec_augment: SpecAugment = Field(default_factory=SpecAugment, description=SpecAugment.__doc__)


class Settings(TaskSettings):
    """Speech recognition."""

    data: Data = Field(description="Source of the utterances.")
    tokens: Tokens = Field(Characters(kind="characters"), description="Kind of tokens that the model predicts.")
    faults: Faults = Field(default_factory=Faults, description=Faults.__doc__)
    slabs: Literal["paper", "wide"] = Field("paper", description="Feed-forward layers of the decoder, or all of them.")
    models: dict[ModelLabel, Transformer] = Field(min_length=1, description="Settings of each model, by label.")
    training: SpeechTraining
    decoding: Decoding = Field(default_factory=Decoding, description=Decoding.__doc__)

    def steps_per_epoch(self) -> int | None:
        """Returns None, because the number of steps depends on the durations of the utterances."""
        return None

    def estimate(self, pack: "Pack | None") -> Estimate:
        """Returns an estimate from the hours of speech, with batches filled to `FILLED_SHARE`."""
        if isinstance(self.data, SpokenWords):
            per_utterance = SECONDS_PER_SPOKEN_WORD * (self.data.shortest + self.data.longest) / 2
            seconds = self.data.train * per_utterance
            others = (self.data.val + 2 * self.data.test) * per_utterance
        else:
            seconds = 3600 * sum(pack.hours[part] for part in self.data.train)
            others = 3600 * sum(pack.hours[part] for part in ("dev-clean", "test-clean", "test-other"))
        steps = round(seconds / (FILLED_SHARE * self.training.batch_seconds))
        return Estimate(max(1, steps), round(BYTES_PER_SECOND * (seconds + others)))

    def prepared_steps(self, prepared: Path, index: Mapping[str, Any]) -> int:
        """Returns the steps per epoch with the data in the folder `prepared`, of which training comes first.

        These are the batches that `Utterances` makes, whose module imports torch.
        """
        import numpy as np  # imported here because each call of Snakemake reads this module

        utterances = len(index["splits"]["train"]["utterances"])
        frames = np.diff(np.load(prepared / "starts.npy")[: utterances + 1])
        classes = np.floor(np.log(frames) / np.log(CLASS_RATIO))
        budget, steps = self.training.batch_seconds * FRAMES_PER_SECOND, 0
        for value in np.unique(classes):
            members = frames[classes == value]
            steps += math.ceil(len(members) / max(1, budget // members.max()))
        return steps

    def scoring(self) -> dict[str, Any]:
        """Returns the settings that only scoring on test uses."""
        return {"decoding": self.decoding.model_dump()}

    def fans(self) -> dict[str, set[int]]:
        """Returns the fans that occur among the slabs of each model, on any side."""
        return {label: {model.width} for label, model in self.models.items()}
