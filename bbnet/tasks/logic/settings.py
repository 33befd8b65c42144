"""Settings of the didactic task."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from bbnet.tasks.settings import Estimate, ModelLabel, NetworkSettings, Section, SharedBatchTraining, TaskSettings

if TYPE_CHECKING:
    from bbnet.data.packs import Pack

FORMULAS = ("xor", "dnf")


class RandomFormulas(Section):
    """The embedded pack: inputs of random bits, with the XOR of some of them and a random DNF as labels."""

    pack: Literal["formulas"] = Field(description="Drawn locally, without any download.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of the generator; independent of the seeds of the study.")
    bits: int = Field(24, ge=8, le=62, description="Bits of an input.")
    xor_bits: int = Field(2, ge=2, le=62, description="Bits whose XOR is one of the two labels.")
    dnf_literals: int = Field(
        4, ge=2, le=16, description="Literals of a term of the DNF; it has terms until half of the inputs are true."
    )
    train: int = Field(ge=1, le=10_000_000, description="Training inputs. All inputs are different.")
    val: int = Field(ge=1, le=1_000_000, description="Inputs of dev.")
    test: int = Field(ge=1, le=1_000_000, description="Test inputs.")

    @model_validator(mode="after")
    def _fits(self) -> "RandomFormulas":
        for name in ("xor_bits", "dnf_literals"):
            if getattr(self, name) > self.bits:
                raise ValueError(f"{name} {getattr(self, name)} exceeds the {self.bits} bits of an input")
        if self.inputs() > 2**self.bits:
            raise ValueError(f"{self.inputs()} different inputs need more than the {self.bits} bits of an input")
        return self

    def inputs(self) -> int:
        return self.train + self.val + self.test


class Perceptron(NetworkSettings):
    """A multilayer perceptron with ReLU that learns one of the formulas."""

    formula: Literal["xor", "dnf"] = Field(description="Formula that the network learns.")
    widths: list[Annotated[int, Field(ge=8, le=65_536)]] = Field(
        min_length=2, max_length=64, description="Units of each hidden layer."
    )


class LogicTraining(SharedBatchTraining):
    """Training settings of the didactic task, whose epochs may be shorter than a pass over the training data."""

    epoch_steps: int = Field(25, ge=1, description="Steps of an epoch; its inputs are drawn anew from all of train.")


class Settings(TaskSettings):
    """Boolean formulas of random bits: XOR and random DNF."""

    data: RandomFormulas
    slabs: Literal["hidden"] = Field("hidden", description="The matrices of the hidden layers.")
    models: dict[ModelLabel, Perceptron] = Field(min_length=1, description="Settings of each model, by label.")
    training: LogicTraining

    def estimate(self, _: "Pack | None") -> Estimate:
        """Returns the size of the data, which is known exactly."""
        return Estimate(self.training.epoch_steps, self.data.inputs() * (self.data.bits + len(FORMULAS)))

    def prepared_steps(self, _: Path, __: Mapping[str, Any]) -> int:
        """Returns the steps per epoch."""
        return self.training.epoch_steps

    def fans(self) -> dict[str, set[int]]:
        """Returns the fans that occur among the slabs of each model, on any side."""
        return {label: {self.data.bits, *model.widths} for label, model in self.models.items()}

    @model_validator(mode="after")
    def _an_epoch_of_different_inputs(self) -> "Settings":
        steps, batch, inputs = self.training.epoch_steps, self.training.batch_size, self.data.train
        if steps * batch > inputs:
            raise ValueError(
                f"training.epoch_steps {steps} of training.batch_size {batch} need {steps * batch} different training "
                f"inputs, data.train has {inputs}"
            )
        return self
