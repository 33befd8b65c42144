"""Settings of the language task."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from bbnet.models.settings import decoder
from bbnet.models.settings.decoder import FeedForwardKind, Which
from bbnet.tasks.language.data_settings import SPLITS, Bytes, Data, Faults, PythonSource, Tokens
from bbnet.tasks.settings import Estimate, FixedBatchTraining, ModelLabel, NetworkSettings, TaskSettings

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

NETWORKS = ("decoder",)  # the modules of bbnet.models whose networks this task uses


class Decoder(NetworkSettings):
    """A causal decoder: RMSNorm before each layer, rotary positions, no biases."""

    width: int = Field(ge=8, le=65_536, description="Features of the residual stream, a multiple of twice the heads.")
    hidden: int = Field(ge=8, le=262_144, description="Units of each feed-forward layer.")
    layers: int = Field(ge=1, le=256, description="Blocks of attention and feed-forward layer.")
    heads: int = Field(ge=1, le=256, description="Heads of each attention.")
    ffn: FeedForwardKind = Field("swiglu", description="Feed-forward layer; swiglu has a third matrix.")
    tied: bool = Field(True, description="The head has the weights of the embedding.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of the embedding and of what each layer adds.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "Decoder":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of twice the {self.heads} heads")
        return self


class Settings(TaskSettings):
    """Language modelling: the next token of a text."""

    data: Data = Field(description="Source of the texts.")
    tokens: Tokens = Field(Bytes(kind="bytes"), description="Kind of tokens that the model predicts.")
    context: int = Field(
        256,
        ge=8,
        le=1_000_000,
        description="Tokens that the network reads at once. In scoring, each token has at least half as many before "
        "it, unless its document begins later.",
    )
    floor_order: int | None = Field(
        5, ge=2, le=9, description="Order of the n-gram model that is scored on test as a floor; null: none."
    )
    faults: Faults = Field(default_factory=Faults, description=Faults.__doc__)
    slabs: Which = Field("wide", description="Matrices of the feed-forward layers, or all matrices of the blocks.")
    models: dict[ModelLabel, Decoder] = Field(min_length=1, description="Settings of each model, by label.")
    training: FixedBatchTraining

    def steps_per_epoch(self) -> int | None:
        """Returns None, because the number of tokens is unknown before the data are prepared."""
        return None

    def estimate(self, pack: "Pack | None") -> Estimate:
        """Returns the size of the data, from the bytes of the text and the usual bytes per token."""
        of_splits = vars(self.data) if isinstance(self.data, PythonSource) else pack.counts
        tokens = {split: round(of_splits[split] / self.tokens.bytes_per_token) for split in SPLITS}
        return Estimate(max(1, self._steps(tokens["train"])), 2 * sum(tokens.values()))

    def prepared_steps(self, _: Path, index: Mapping[str, Any]) -> int:
        """Returns the steps per epoch with the prepared data that `index` describes."""
        return self._steps(index["splits"]["train"]["tokens"])

    def _steps(self, tokens: int) -> int:
        return windows_per_epoch(tokens, self.context) // self.training.batch_size

    def fans(self) -> dict[str, set[int]]:
        """Returns the fans that occur among the slabs of each model, on any side."""
        return {label: decoder.fans(model.width, model.hidden) for label, model in self.models.items()}


def windows_per_epoch(tokens: int, context: int) -> int:
    """Returns how many windows of `context` tokens follow each other, whatever the first of them begins with."""
    return max(0, (tokens - context + 1) // context)
