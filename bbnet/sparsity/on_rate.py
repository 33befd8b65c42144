"""On-rates: the share of positions at which each unit is on, counted exactly and folded into a slow average."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

CHANNELS_FIRST = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
SILENT_POSITIONS = 1000
EXACT_IN_FLOAT32 = 2**24


@dataclass
class UnitCounts:
    """Counts of one module's units: tensors [units], but `seen`, `seen_since` and `weight` are scalars."""

    on: Tensor
    seen: Tensor
    on_since: Tensor
    seen_since: Tensor
    average: Tensor
    weight: Tensor

    @classmethod
    def zeros(cls, units: int, device: torch.device) -> "UnitCounts":
        def count(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        def average(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        return cls(count(units), count(), count(units), count(), average(units), average())

    def fold(self, decay: float) -> None:
        """One optimiser step: the counts since the last one enter the average, if there are any."""
        step_weight = (1 - decay) * (self.seen > 0)
        self.average.lerp_(self.on.double() / self.seen.clamp(min=1), step_weight)
        self.weight.lerp_(torch.ones_like(self.weight), step_weight)
        self.on_since += self.on
        self.seen_since += self.seen
        self.on.zero_()
        self.seen.zero_()

    def forget(self) -> None:
        """A refresh: silence is judged anew."""
        self.on_since.zero_()
        self.seen_since.zero_()

    def rates(self) -> Tensor:
        """Bias-corrected average on-rates, float64 [units]; NaN before the first position."""
        return self.average / self.weight

    def silent(self) -> Tensor:
        """Bool [units]: on at none of at least 1,000 positions since the last refresh."""
        return (self.on_since == 0) & (self.seen_since >= SILENT_POSITIONS)


class OnRates:
    """Counts the on and valid positions of named modules in training-mode (or evaluation-mode) forward passes.

    Counts are summed over forward passes, micro-batches and weight-shared branches, and folded once per optimiser
    step. Every `stride`-th index of the first position axis is looked at, its offset moving with the steps.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], decay: float = 0.99, stride: int = 4, in_training: bool = True
    ) -> None:
        self.counts: dict[str, UnitCounts] = {}
        self.decay = decay
        self.stride = stride
        self.steps = 0
        self.in_training = in_training
        self.counting = True
        self._valid: Tensor | None = None
        self._hooks = [
            module.register_forward_hook(self._counter(name, channels_first=isinstance(module, CHANNELS_FIRST)))
            for name, module in modules.items()
        ]

    def remove(self) -> None:
        """Takes the hooks off the modules."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def valid(self, positions: Tensor) -> Iterator[None]:
        """Forward passes inside count only where `positions`, of the outputs' shape without channels, is true."""
        self._valid = positions
        try:
            yield
        finally:
            self._valid = None

    def fold(self) -> None:
        for counts in self.counts.values():
            counts.fold(self.decay)
        self.steps += 1

    def forget(self) -> None:
        for counts in self.counts.values():
            counts.forget()

    def of(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """On-rates and silence of the units of several modules, joined; raises RuntimeError if one was never seen."""
        for name in names:
            if name not in self.counts or not bool(self.counts[name].weight > 0):
                raise RuntimeError(
                    f"no on-rates of {name}: no forward pass in training mode was seen before the first refresh. "
                    "Call bbnet.sparsify before the first compiled forward pass, and model.train() before training"
                )
        counts = [self.counts[name] for name in names]
        return torch.cat([count.rates() for count in counts]), torch.cat([count.silent() for count in counts])

    def state_dict(self) -> dict:
        counts = {
            name: {field.name: getattr(count, field.name).clone() for field in fields(count)}
            for name, count in self.counts.items()
        }
        return {"steps": self.steps, "counts": counts}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        self.steps = state["steps"]
        self.counts = {
            name: UnitCounts(**{key: tensor.to(device, copy=True) for key, tensor in count.items()})
            for name, count in state["counts"].items()
        }

    def _counter(self, name: str, channels_first: bool):
        @torch.no_grad()
        def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if not self.counting or module.training != self.in_training:
                return
            by_channel = output.detach().movedim(1, -1) if channels_first else output.detach()
            axis = 0 if by_channel.dim() == 2 else 1
            valid = self._valid
            if valid is not None and valid.shape != by_channel.shape[:-1]:
                raise ValueError(
                    f"valid positions of shape {list(valid.shape)} do not match the outputs of {name}, "
                    f"{list(by_channel.shape[:-1])} without channels"
                )
            if by_channel.shape[axis] >= 2 * self.stride:
                every = (slice(None),) * axis + (slice(self.steps % self.stride, None, self.stride),)
                by_channel = by_channel[every]
                valid = None if valid is None else valid[every]
            if name not in self.counts:
                self.counts[name] = UnitCounts.zeros(by_channel.shape[-1], output.device)
            # sign, clamp and a floating sum take a third of the time of a sum of booleans on a CPU.
            on = by_channel.sign().clamp_(min=0)
            positions = by_channel[..., 0].numel()
            if valid is None:
                self.counts[name].seen += positions
            else:
                on *= valid[..., None]
                self.counts[name].seen += valid.sum()
            exact = torch.float32 if positions <= EXACT_IN_FLOAT32 else torch.float64
            self.counts[name].on += on.sum(tuple(range(on.dim() - 1)), dtype=exact).long()

        return count
