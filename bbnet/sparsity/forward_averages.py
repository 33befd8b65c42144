"""Averages of what passes named modules in forward passes: sums over positions, folded once per optimiser step."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bbnet.sparsity.hooks import WatchingHook, forget_compiled
from bbnet.sparsity.ranks import mean_over_ranks, sum_over_ranks
from bbnet.sparsity.slab import CHANNELS_FIRST

# Of a forward pass, at least: five of them then see as many as a unit must be seen at to be called silent.
FEWEST_POSITIONS = 200


class Sums(NamedTuple):
    """Of one module since the last step: `total` float64 [channels], and `seen` int64 scalar, positions behind it."""

    total: Tensor
    seen: Tensor


class Place(NamedTuple):
    """Where the figures of one module are: its slice of all channels, and its number among the modules."""

    channels: slice
    index: int


class ForwardAverages(ABC):
    """A figure per position and channel of named modules, averaged over training-mode forward passes.

    Sums run over forward passes, micro-batches and weight-shared branches, and are folded into a bias-corrected
    average after each optimiser step that is looked at, the first of every `every`. Every `stride`-th index of the
    first position axis is looked at, its offset moving with the steps; all where that would leave fewer than 200
    positions.

    Args:
        modules: by name.
        decay: of the average, per optimiser step.
        in_training: whether training-mode forward passes count, or evaluation-mode ones.
        channels_first: names of modules where channels are axis 1, as at convolutions and at norms over channels;
            elsewhere they are the last axis.
    """

    figure: ClassVar[str]  # its name

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        decay: float = 0.99,
        stride: int = 4,
        every: int = 1,
        in_training: bool = True,
        channels_first: Collection[str] = (),
    ) -> None:
        self.decay = decay
        self.stride = stride
        self.every = every
        self.in_training = in_training
        self.active = True
        self._at_step(0)
        self.sums: dict[str, Sums] = {}
        self._places: dict[str, Place] = {}
        self._valid: Mapping[str, Tensor] = {}
        # Of all modules seen so far, joined: `total`, `total_since`, `average` and `owner` (a channel's module) per
        # channel, the others per module. One set of operations then folds a step, however many modules there are.
        self._joined: dict[str, Tensor] = {}
        self._hooks = [
            self._register(module, _Counter(self, name, name in channels_first or isinstance(module, CHANNELS_FIRST)))
            for name, module in modules.items()
        ]
        forget_compiled()

    @abstractmethod
    def _register(self, module: nn.Module, counter: "_Counter") -> Any:
        """Puts the hook on `module`; returns its handle."""

    @abstractmethod
    def _total(self, positions: Tensor, valid: Tensor | None) -> Tensor:
        """Sum of the figure over positions, [channels], of `positions` [..., channels] that are `valid` [...]."""

    def remove(self) -> None:
        """Takes the hooks off the modules."""
        for hook in self._hooks:
            hook.remove()

    @contextmanager
    def valid(self, positions: Tensor | Mapping[str, Tensor]) -> Iterator[None]:
        """Forward passes inside count only where `positions`, of the outputs' shape without channels, is true.

        Parts of a model with positions of their own, such as encoder and decoder, are given by name: a module has the
        positions of the first part that it is or lies in, and where there is none all of its own are valid.
        """
        self._valid = {"": positions} if isinstance(positions, Tensor) else positions
        try:
            yield
        finally:
            self._valid = {}

    def valid_of(self, name: str) -> Tensor | None:
        """The valid positions of a module's outputs; None if all are."""
        parts = (part for part in self._valid if part in ("", name) or name.startswith(f"{part}."))
        return next((self._valid[part] for part in parts), None)

    def fold(self) -> None:
        """One optimiser step: the sums since the last one enter the averages, of modules that were seen."""
        looked, step = self.sums and self.steps % self.every == 0, self.steps + 1
        self._at_step(step)
        if not looked:
            return
        joined = self._joined
        total, seen, owner = joined["total"], joined["seen"], joined["owner"]
        step_weight = (seen > 0).double() * (1 - self.decay**self.every)
        joined["average"].lerp_(total / seen.clamp(min=1)[owner], step_weight[owner])
        joined["weight"].lerp_(torch.ones_like(joined["weight"]), step_weight)
        joined["total_since"] += total
        joined["seen_since"] += seen
        total.zero_()
        seen.zero_()

    def watch(self, active: bool) -> None:
        """From now on forward passes are looked at, those of every `every`-th step, or not."""
        self.active = active
        self._at_step(self.steps)

    def _at_step(self, step: int) -> None:
        # As attributes that rarely change: a compiled forward pass is compiled anew for each value that it sees.
        self.steps = step
        self.counting = self.active and step % self.every == 0
        self.phase = step // self.every % self.stride

    def join_ranks(self) -> None:
        """Ranks that train together get the mean of their averages, and the sum of their sums since `forget`."""
        if self.sums:
            for name in ("average", "weight"):
                mean_over_ranks(self._joined[name])
            for name in ("total_since", "seen_since"):
                sum_over_ranks(self._joined[name])

    def forget(self) -> None:
        """Sums since the last refresh start anew."""
        if self.sums:
            self._joined["total_since"].zero_()
            self._joined["seen_since"].zero_()

    def average(self, names: Iterable[str]) -> Tensor:
        """Bias-corrected averages, float64, of the channels of several modules, in that order.

        Raises: RuntimeError if a module was never seen.
        """
        joined = self._joined
        parts = []
        for name in names:
            place = self._places.get(name)
            weight = 0.0 if place is None else float(joined["weight"][place.index])
            if weight == 0:
                raise RuntimeError(
                    f"no {self.figure} of {name}: no forward pass in training mode was seen before the first refresh. "
                    "Call bbnet.sparsify before the first compiled forward pass, and model.train() before training"
                )
            parts.append(joined["average"][place.channels] / weight)
        return torch.cat(parts)

    def since(self, names: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Sums since the last `forget` and the positions seen since then, both [channels], like `average`."""
        totals, seen = [], []
        for channels, index in (self._places[name] for name in names):
            totals.append(self._joined["total_since"][channels])
            seen.append(self._joined["seen_since"][index].expand(len(totals[-1])))
        return torch.cat(totals), torch.cat(seen)

    def state_dict(self) -> dict[str, Any]:
        channels = {name: len(sums.total) for name, sums in self.sums.items()}
        return {
            "steps": self.steps,
            "channels": channels,
            "joined": {name: tensor.clone() for name, tensor in self._joined.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._at_step(state["steps"])
        self._joined = {name: tensor.to(device, copy=True) for name, tensor in state["joined"].items()}
        self._view_sums(state["channels"])

    def _join(self, name: str, channels: int, device: torch.device) -> None:
        """A module is seen for the first time: its figures stand behind those of the others."""
        # float64 holds all counts that are met, and takes up sums of float32 in one operation.
        sums = ("total", "total_since", "average")
        new = {key: torch.zeros(channels, dtype=torch.float64, device=device) for key in sums}
        new |= {key: torch.zeros(1, dtype=torch.int64, device=device) for key in ("seen", "seen_since")}
        new["weight"] = torch.zeros(1, dtype=torch.float64, device=device)
        new["owner"] = torch.full((channels,), len(self.sums), device=device)
        old = self._joined or {key: tensor[:0] for key, tensor in new.items()}
        self._joined = {key: torch.cat([old[key], tensor]) for key, tensor in new.items()}
        self._view_sums({module: len(sums.total) for module, sums in self.sums.items()} | {name: channels})

    def _view_sums(self, channels: Mapping[str, int]) -> None:
        ends = list(accumulate(channels.values()))
        self._places = {
            name: Place(slice(end - channels[name], end), index)
            for index, (name, end) in enumerate(zip(channels, ends, strict=True))
        }
        self.sums = {
            name: Sums(self._joined["total"][place.channels], self._joined["seen"][place.index])
            for name, place in self._places.items()
        }


class _Counter(WatchingHook):
    """Adds what passes one module to the sums."""

    def __init__(self, averages: ForwardAverages, name: str, channels_first: bool) -> None:
        self.averages = averages
        self.name = name
        self.channels_first = channels_first

    def __call__(self, module: nn.Module, inputs: tuple, output: Tensor | None = None) -> None:
        averages = self.averages
        if averages.counting and module.training == averages.in_training:
            with torch.no_grad():
                self._count(inputs[0] if output is None else output)

    def _count(self, passing: Tensor) -> None:
        averages = self.averages
        positions = passing.movedim(1, -1) if self.channels_first else passing
        axis = 0 if positions.dim() == 2 else 1
        valid = averages.valid_of(self.name)
        if valid is not None and valid.shape != positions.shape[:-1]:
            raise ValueError(
                f"valid positions of shape {list(valid.shape)} do not match what passes {self.name}, "
                f"{list(positions.shape[:-1])} without channels"
            )
        stride = averages.stride
        if positions.shape[axis] >= 2 * stride and positions[..., 0].numel() >= stride * FEWEST_POSITIONS:
            # An offset that moves would be compiled anew for each of its values.
            phase = 0 if torch.compiler.is_compiling() else averages.phase
            every = (slice(None),) * axis + (slice(phase, None, stride),)
            positions = positions[every]
            valid = None if valid is None else valid[every]
        if self.name not in averages.sums:
            averages._join(self.name, positions.shape[-1], positions.device)
        sums = averages.sums[self.name]
        sums.seen.add_(positions[..., 0].numel() if valid is None else valid.sum())
        # A forward pass that overflows in half precision, its step skipped, must not spoil the average for good.
        sums.total.add_(averages._total(positions, valid).nan_to_num_(nan=0.0, posinf=0.0))
