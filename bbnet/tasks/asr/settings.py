"""Settings of the speech-recognition task."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from bbnet.tasks.settings import Estimate, ModelLabel, PublishedPack, Section, Training

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

LEXICON_SIZE = 273  # of bbnet/data/synthetic/spoken_words.py, which the study must not import
SECONDS_PER_SPOKEN_WORD = 0.27  # of the embedded pack, measured
FILLED_SHARE = 0.93  # share of a batch that is not padding
BYTES_PER_SECOND = 100 * 80 * 4  # of features


class SpokenWords(Section):
    """The embedded pack: English words spoken by espeak-ng, in LibriSpeech's layout."""

    pack: Literal["spoken_words"] = Field(description="Spoken here, nothing is fetched.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of the generator; not a seed of the study.")
    train: int = Field(ge=1, le=1_000_000, description="Utterances of train-clean-100.")
    val: int = Field(ge=1, le=1_000_000, description="Utterances of dev-clean.")
    test: int = Field(ge=1, le=1_000_000, description="Utterances of test-clean, and as many of test-other.")
    train_speakers: int = Field(16, ge=1, le=40, description="Speakers of the training split.")
    speakers: int = Field(4, ge=1, le=6, description="Speakers of each other split, who speak in no other.")
    words: int = Field(160, ge=10, description="Size of the lexicon of the training split.")
    unseen_words: int = Field(20, ge=0, description="Further words, in dev and test alone.")
    unseen: float = Field(0.03, ge=0, le=1, description="Share of the words of dev and test that are such.")
    shortest: int = Field(2, ge=1, le=20, description="Fewest words of an utterance.")
    longest: int = Field(4, ge=1, le=20, description="Most words of an utterance.")
    zipf: float = Field(1.0, ge=0, le=3, description="The word of rank r is drawn with probability ~ r^-zipf.")
    noise: float = Field(20.0, ge=-10, le=60, description="Lowest signal-to-noise ratio in dB; test-other has 10 less.")

    @model_validator(mode="after")
    def _words_suffice(self) -> "SpokenWords":
        if self.words + self.unseen_words > LEXICON_SIZE:
            raise ValueError(
                f"words {self.words} and unseen_words {self.unseen_words} exceed the lexicon of {LEXICON_SIZE}"
            )
        return self

    @model_validator(mode="after")
    def _some_length(self) -> "SpokenWords":
        if self.shortest > self.longest:
            raise ValueError(f"shortest {self.shortest} must not exceed longest {self.longest}")
        return self


TrainingPart = Literal["train-clean-100", "train-clean-360", "train-other-500"]


class LibriSpeech(PublishedPack):
    """LibriSpeech, or any corpus in its layout: {part}/{speaker}/{chapter}/*.flac and *.trans.txt."""

    pack: Literal["librispeech"]
    train: list[TrainingPart] = Field(
        ["train-clean-100"], min_length=1, description="Parts to train on: 100, 360 and 500 hours."
    )

    def files(self) -> list[str]:
        """Returns the archives of the pack that are needed."""
        return [f"{part}.tar.gz" for part in (*self.train, "dev-clean", "test-clean", "test-other")]

    @field_validator("train")
    @classmethod
    def _each_once(cls, parts: list[str]) -> list[str]:
        if len(set(parts)) < len(parts):
            raise ValueError("a part is given twice")
        return parts


Data = Annotated[SpokenWords | LibriSpeech, Field(discriminator="pack")]


class Characters(Section):
    """One token per character: A to Z, apostrophe, space."""

    kind: Literal["characters"]


class SentencePiece(Section):
    """Subwords, trained on the training text."""

    kind: Literal["unigram", "bpe"]
    size: int = Field(ge=32, le=100_000, description="Tokens of the vocabulary.")


Tokens = Annotated[Characters | SentencePiece, Field(discriminator="kind")]

Rule = Literal["refuse", "skip"]


class Faults(Section):
    """What is done with unusable utterances: `refuse` raises an error, `skip` leaves them out and counts them."""

    undecodable: Rule = Field("refuse", description="Its audio cannot be decoded.")
    unpaired: Rule = Field("refuse", description="Audio without a transcript, or a transcript without audio.")
    low_rate: Literal["refuse", "skip", "resample"] = Field(
        "refuse", description="Sampled below 16 kHz, so that the upper bins are empty; higher rates are resampled."
    )
    too_short: Rule = Field("refuse", description="Shorter than the receptive field of the model's two convolutions.")
    no_words: Rule = Field("refuse", description="Its transcript is empty once normalised to A to Z and apostrophe.")
    too_many_tokens: Rule = Field(
        "skip", description="Of the training split alone: more tokens than CTC can align with the encoder's positions."
    )


class Transformer(Section):
    """A pre-LN encoder-decoder Transformer with joint CTC and attention, after two convolutions (time / 4)."""

    width: int = Field(ge=8, le=4096, description="d_model; 384 in the released notebook.")
    hidden: int = Field(ge=8, le=65_536, description="Units of each feed-forward layer; 1536 in the notebook.")
    encoder_layers: int = Field(ge=1, le=64, description="4 in the notebook.")
    decoder_layers: int = Field(ge=1, le=64, description="4 in the notebook.")
    heads: int = Field(ge=1, le=64, description="Of every attention; 8 in the notebook.")
    stem_channels: int = Field(ge=1, le=4096, description="Of both convolutions; 384 in the notebook.")
    dropout: float = Field(0.1, ge=0, lt=1, description="After embeddings, sublayers and FFN activations.")
    activation: Literal["relu", "gelu"] = Field("gelu", description="Of the feed-forward layers.")
    ctc_weight: float = Field(0.3, ge=0, lt=1, description="Share of the CTC loss; at 0 there is no CTC head.")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Of the attention loss.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "Transformer":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the {self.heads} heads")
        return self


class Decoding(Section):
    """How test is decoded. Dev, which selects weights after every epoch, is decoded greedily."""

    beam: int = Field(1, ge=1, le=64, description="Hypotheses kept; 1 is greedy.")
    length_normalisation: float = Field(
        1.0, ge=0, le=2, description="Of a beam above 1: scores are log-probabilities / tokens ** this."
    )


class SpecAugment(Section):
    """Masks over features (Park et al. 2019), drawn over each utterance's own length. Masked features are 0."""

    frequency_masks: int = Field(0, ge=0, le=40, description="4 in the notebook.")
    frequency_width: int = Field(4, ge=1, le=80, description="Bins: widths are drawn from 0 to below this.")
    time_masks: int = Field(0, ge=0, le=100, description="8 in the notebook.")
    time_width: int = Field(50, ge=1, le=10_000, description="Frames: widths are drawn from 0 to below this.")
    time_share: float = Field(0.3, ge=0, le=1, description="Cap: all time masks together cover no more of the frames.")


class SpeechTraining(Training):
    """Training with batches by duration, of utterances of similar length."""

    batch_seconds: float = Field(ge=1, le=100_000, description="Audio per step, padding included.")
    spec_augment: SpecAugment = Field(default_factory=SpecAugment, description=SpecAugment.__doc__)


class Settings(Section):
    """Speech recognition."""

    data: Data = Field(description="Where utterances come from.")
    tokens: Tokens = Field(Characters(kind="characters"), description="What the model writes.")
    faults: Faults = Field(default_factory=Faults, description=Faults.__doc__)
    slabs: Literal["paper", "wide"] = Field("paper", description="Feed-forward layers of the decoder, or all.")
    models: dict[ModelLabel, Transformer] = Field(min_length=1, description="Label: its sizes.")
    training: SpeechTraining
    decoding: Decoding = Field(default_factory=Decoding, description=Decoding.__doc__)

    def steps_per_epoch(self) -> int | None:
        """Returns None, because the number depends on the durations of the utterances."""
        return None

    def estimate(self, pack: "Pack | None") -> Estimate:
        """Returns an estimate from the hours of speech; batches are not quite full."""
        if isinstance(self.data, SpokenWords):
            per_utterance = SECONDS_PER_SPOKEN_WORD * (self.data.shortest + self.data.longest) / 2
            seconds = self.data.train * per_utterance
            others = (self.data.val + 2 * self.data.test) * per_utterance
        else:
            seconds = 3600 * sum(pack.hours[part] for part in self.data.train)
            others = 3600 * sum(pack.hours[part] for part in ("dev-clean", "test-clean", "test-other"))
        steps = round(seconds / (FILLED_SHARE * self.training.batch_seconds))
        return Estimate(max(1, steps), round(BYTES_PER_SECOND * (seconds + others)))

    def scoring(self) -> dict[str, Any]:
        """Returns the settings that only the scoring on test uses."""
        return {"decoding": self.decoding.model_dump()}

    def fans(self) -> dict[str, set[int]]:
        """Returns the fans of the slabs of each model, on either side."""
        return {label: {model.width} for label, model in self.models.items()}
