"""On-rates: the share of positions at which each unit is on, counted exactly and folded into a slow average."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bbnet.sparsity.slab import Slab

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


class Counts(NamedTuple):
    """Of one module since the last step: `on` int64 [units], `seen` int64 scalar, the valid positions looked at."""

    on: Tensor
    seen: Tensor


class OnRates:
    """Counts the on and valid positions of named modules in training-mode (or evaluation-mode) forward passes.

    Counts are summed over forward passes, micro-batches and weight-shared branches, and folded once per optimiser
    step. Every `stride`-th index of the first position axis is looked at, its offset moving with the steps. Units are
    axis 1 of the outputs of convolutions and norms over channels, and of modules named in `channels_first`; else the
    last axis.
    """

    @classmethod
    def of_slabs(cls, model: nn.Module, slabs: Iterable[Slab], **options: Any) -> "OnRates":
        """Counts the units of slabs; those of a convolution's slab are channels, whatever module they are read at."""
        slabs = list(slabs)
        modules = {name: model.get_submodule(name) for slab in slabs for name in slab.units}
        channels = {name for slab in slabs for name in slab.units if model.get_submodule(slab.name).weight.dim() > 2}
        return cls(modules, channels_first=channels, **options)

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        decay: float = 0.99,
        stride: int = 4,
        in_training: bool = True,
        channels_first: Collection[str] = (),
    ) -> None:
        self.decay = decay
        self.stride = stride
        self.steps = 0
        self.in_training = in_training
        self.counting = True
        self.counts: dict[str, Counts] = {}
        self._valid: Tensor | None = None
        # Of all modules seen so far, joined: `on`, `on_since`, `average` and `owner` (a unit's module) per unit, the
        # others per module. One set of operations then folds a step, however many modules there are.
        self._joined: dict[str, Tensor] = {}
        self._hooks = [
            module.register_forward_hook(
                self._counter(name, channels_first=name in channels_first or isinstance(module, CHANNELS_FIRST))
            )
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
        """One optimiser step: the counts since the last one enter the averages, of modules that were seen."""
        self.steps += 1
        if not self.counts:
            return
        joined = self._joined
        on, seen, owner = joined["on"], joined["seen"], joined["owner"]
        step_weight = (seen > 0).double() * (1 - self.decay)
        joined["average"].lerp_(on.double() / seen.clamp(min=1)[owner], step_weight[owner])
        joined["weight"].lerp_(torch.ones_like(joined["weight"]), step_weight)
        joined["on_since"] += on
        joined["seen_since"] += seen
        on.zero_()
        seen.zero_()

    def forget(self) -> None:
        """A refresh: silence is judged anew."""
        if self.counts:
            self._joined["on_since"].zero_()
            self._joined["seen_since"].zero_()

    def of(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Bias-corrected on-rates, float64, and silence, bool, of the units of several modules, in that order.

        A unit is silent that was on at none of at least 1,000 positions since the last refresh.

        Raises: RuntimeError if a module was never seen.
        """
        rates, silent = [], []
        order = list(self.counts)
        for name in names:
            index = order.index(name) if name in self.counts else -1
            if index < 0 or not bool(self._joined["weight"][index] > 0):
                raise RuntimeError(
                    f"no on-rates of {name}: no forward pass in training mode was seen before the first refresh. "
                    "Call bbnet.sparsify before the first compiled forward pass, and model.train() before training"
                )
            mine = self._joined["owner"] == index
            rates.append(self._joined["average"][mine] / self._joined["weight"][index])
            heard = self._joined["seen_since"][index] >= SILENT_POSITIONS
            silent.append((self._joined["on_since"][mine] == 0) & heard)
        return torch.cat(rates), torch.cat(silent)

    def state_dict(self) -> dict:
        units = {name: len(counts.on) for name, counts in self.counts.items()}
        return {
            "steps": self.steps,
            "units": units,
            "joined": {name: tensor.clone() for name, tensor in self._joined.items()},
        }

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        self.steps = state["steps"]
        self._joined = {name: tensor.to(device, copy=True) for name, tensor in state["joined"].items()}
        self._view_counts(state["units"])

    def _join(self, name: str, units: int, device: torch.device) -> None:
        """A module is seen for the first time: its counts stand behind those of the others."""
        new = {key: torch.zeros(units, dtype=torch.int64, device=device) for key in ("on", "on_since")}
        new |= {key: torch.zeros(1, dtype=torch.int64, device=device) for key in ("seen", "seen_since")}
        new["average"] = torch.zeros(units, dtype=torch.float64, device=device)
        new["weight"] = torch.zeros(1, dtype=torch.float64, device=device)
        new["owner"] = torch.full((units,), len(self.counts), device=device)
        old = self._joined or {key: tensor[:0] for key, tensor in new.items()}
        self._joined = {key: torch.cat([old[key], tensor]) for key, tensor in new.items()}
        self._view_counts({module: len(counts.on) for module, counts in self.counts.items()} | {name: units})

    def _view_counts(self, units: Mapping[str, int]) -> None:
        parts = self._joined["on"].split(list(units.values())) if units else ()
        self.counts = {
            name: Counts(on, self._joined["seen"][index])
            for index, (name, on) in enumerate(zip(units, parts, strict=True))
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
                self._join(name, by_channel.shape[-1], output.device)
            counts = self.counts[name]
            # sign, clamp and a floating sum take a third of the time of a sum of booleans on a CPU.
            on = by_channel.sign().clamp_(min=0)
            positions = by_channel[..., 0].numel()
            if valid is None:
                counts.seen.add_(positions)
            else:
                on *= valid[..., None]
                counts.seen.add_(valid.sum())
            exact = torch.float32 if positions <= EXACT_IN_FLOAT32 else torch.float64
            counts.on.add_(on.sum(tuple(range(on.dim() - 1)), dtype=exact).long())

        return count
