"""Moving averages over forward passes of named modules: sums over positions, folded once per optimiser step."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bbnet.sparsity.hooks import WatchingHook, forget_compiled
from bbnet.sparsity.parameters import AVERAGE_DECAY
from bbnet.sparsity.ranks import sum_over_ranks
from bbnet.sparsity.slab import CHANNELS_FIRST, CONVOLUTIONS

# Minimum per forward pass. Five passes then reach the 1,000 positions that are needed to call a unit silent.
FEWEST_POSITIONS = 200


class Sums(NamedTuple):
    """Sums of one module since the last step: `total`, float64 [channels], over `seen` positions, int64 scalar."""

    total: Tensor
    seen: Tensor


class Place(NamedTuple):
    """Position of one module in the joined tensors: its slice of the channels, and its index among the modules."""

    channels: slice
    index: int


class OfValidPositions:
    """Reads modules, but not at positions that the caller excludes."""

    def __init__(self) -> None:
        self._valid: Mapping[str, Tensor] = {}

    @contextmanager
    def valid(self, positions: Tensor | Mapping[str, Tensor]) -> Iterator[None]:
        """Counts only positions where `positions`, of the outputs' shape without channels, is true (context manager).

        For a model whose parts differ in their positions, such as encoder and decoder, pass them by name of the part.
        A module uses those of the first part that contains it. All positions of other modules are valid.
        """
        self._valid = {"": positions} if isinstance(positions, Tensor) else positions
        try:
            yield
        finally:
            self._valid = {}

    def valid_of(self, name: str) -> Tensor | None:
        """Returns the valid positions of a module, None if all are valid."""
        for part, positions in self._valid.items():
            if part in ("", name) or name.startswith(f"{part}."):
                return positions
        return None


class ForwardAverages(OfValidPositions, ABC):
    """Moving averages of a figure per channel of named modules, over all positions of their forward passes.

    Sums run over forward passes, micro-batches and weight-shared branches. They are folded into a bias-corrected
    average after each sampled optimiser step, the first of every `every` steps. Of the first position axis, every
    `stride`-th index is sampled, with an offset that changes from step to step; or every index if fewer than 200
    positions would be left.

    Args:
        modules: the modules by name.
        decay: decay of the average per optimiser step.
        in_training: whether forward passes in training mode count, or those in evaluation mode.
        root: the module whose mode decides, since some of the others may be kept in evaluation mode while the model
            trains, as batch norms often are; by default that of each module itself.
        channels_first: names of modules with channels on axis 1 instead of the last axis, with the number of axes of an
            output without a batch axis, see `channels_first`. Convolutions and norms over channels need not be named.
    """

    figure: ClassVar[str]  # its name in error messages
    fewest_since: ClassVar[int] = 1  # positions that `since` tells of, as long as so many were seen

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        decay: float = AVERAGE_DECAY,
        stride: int = 4,
        every: int = 1,
        in_training: bool = True,
        root: nn.Module | None = None,
        channels_first: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.decay = decay
        self.stride = stride
        self.every = every
        self.in_training = in_training
        self.root = root
        self.active = True
        self._set_step(0)
        self.sums: dict[str, Sums] = {}
        self._places: dict[str, Place] = {}
        # The figures of all modules seen so far, joined: `total`, `total_since`, `average` and `owner` (index of the
        # module) per channel, the others per module. A step is thus folded in one set of operations for all modules.
        self._joined: dict[str, Tensor] = {}
        self._hooks = [
            self._register(module, _Counter(self, name, module, channels_first.get(name)))
            for name, module in modules.items()
        ]
        forget_compiled()

    @abstractmethod
    def _register(self, module: nn.Module, counter: "_Counter") -> Any:
        """Registers the hook on `module` and returns its handle."""

    @abstractmethod
    def _read(self, arguments: tuple, other: Any) -> Tensor:
        """Returns the values to count, given what the hook is called with beside the module."""

    @abstractmethod
    def _total(self, positions: Tensor, valid: Tensor | None) -> Tensor:
        """Returns the sums [channels] of the figure over those `positions` [..., channels] that are `valid` [...]."""

    def remove(self) -> None:
        """Removes the hooks from the modules."""
        for hook in self._hooks:
            hook.remove()

    def fold(self) -> None:
        """Ends an optimiser step: folds its sums into the averages of the modules that were called.

        In training the sums are those of all ranks; what is evaluated need not be shared among them.
        """
        sampled, step = self.sums and self.steps % self.every == 0, self.steps + 1
        self._set_step(step)
        if not sampled:
            return
        joined = self._joined
        total, seen, owner = joined["total"], joined["seen"], joined["owner"]
        if self.in_training:
            sum_over_ranks(total)
            sum_over_ranks(seen)
        step_weight = (seen > 0).double() * (1 - self.decay**self.every)
        joined["average"].lerp_(total / seen.clamp(min=1)[owner], step_weight[owner])
        joined["weight"].lerp_(torch.ones_like(joined["weight"]), step_weight)
        joined["total_since"] += total
        joined["seen_since"] += seen
        total.zero_()
        seen.zero_()

    def watch(self, active: bool) -> None:
        """Sets whether forward passes are sampled, in every `every`-th step."""
        self.active = active
        self._set_step(self.steps)

    def _set_step(self, step: int) -> None:
        # Stored as attributes that rarely change, since a compiled forward pass is recompiled for each new value.
        self.steps = step
        self.counting = self.active and step % self.every == 0
        self.phase = step // self.every % self.stride

    def forget(self) -> None:
        """Begins new sums for `since`, of those modules that saw enough positions since this was last done."""
        if not self.sums:
            return
        joined = self._joined
        begins = joined["seen_since"] >= self.fewest_since
        for name, of_entries in (("total", begins[joined["owner"]]), ("seen", begins)):
            since, before = joined[f"{name}_since"], joined[f"{name}_before"]
            torch.where(of_entries, since, before, out=before)
            since.masked_fill_(of_entries, 0)

    def average(self, names: Iterable[str]) -> Tensor:
        """Returns the bias-corrected averages, float64, of the channels of several modules, in that order.

        Raises: RuntimeError if a module has not been sampled yet.
        """
        joined = self._joined
        parts = []
        for name in names:
            place = self._places.get(name)
            weight = 0.0 if place is None else float(joined["weight"][place.index])
            if weight == 0:
                raise RuntimeError(
                    f"no {self.figure} of {name}: it ran no forward pass in training mode before the first refresh. "
                    "Call bbnet.sparsify before the first compiled forward pass, and model.train() before training"
                )
            parts.append(joined["average"][place.channels] / weight)
        return torch.cat(parts)

    def since(self, names: Iterable[str]) -> tuple[Tensor, Tensor]:
        """Returns the sums since the last `forget` and the number of their positions, both [channels].

        Where fewer than `fewest_since` positions were seen since then, those before count too.
        """
        joined, totals, seen = self._joined, [], []
        for channels, index in (self._places[name] for name in names):
            too_few = joined["seen_since"][index] < self.fewest_since
            totals.append(joined["total_since"][channels] + too_few * joined["total_before"][channels])
            seen.append((joined["seen_since"][index] + too_few * joined["seen_before"][index]).expand(len(totals[-1])))
        return torch.cat(totals), torch.cat(seen)

    def state_dict(self) -> dict[str, Any]:
        channels = {name: len(sums.total) for name, sums in self.sums.items()}
        return {
            "steps": self.steps,
            "channels": channels,
            "joined": {name: tensor.clone() for name, tensor in self._joined.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._set_step(state["steps"])
        self._joined = {name: tensor.to(device, copy=True) for name, tensor in state["joined"].items()}
        self._view_sums(state["channels"])

    def _add_module(self, name: str, channels: int, device: torch.device) -> None:
        """Appends a module at its first forward pass to the joined tensors."""
        # float64 represents all counts that occur exactly, and adds sums in float32 in one operation.
        sums = ("total", "total_since", "total_before", "average")
        new = {key: torch.zeros(channels, dtype=torch.float64, device=device) for key in sums}
        for key in ("seen", "seen_since", "seen_before"):
            new[key] = torch.zeros(1, dtype=torch.int64, device=device)
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


def axes_without_batch(module: nn.Module) -> int:
    """Returns the number of axes of an output of a convolution without a batch axis; 0 for other modules."""
    return module.weight.dim() - 1 if isinstance(module, CONVOLUTIONS) else 0


def _in_inference_mode() -> bool:
    """Returns whether tensors are made in inference mode, which cannot be added to others later.

    torch.compile cannot trace the question, so that compiled forward passes count in inference mode, too.
    """
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def _inside_transforms(values: Tensor) -> Tensor:
    """Returns the values inside the wrappers of torch.func, with the axes of vmap first."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(values):
        batch_axis = functorch.maybe_get_bdim(values)
        values = functorch.get_unwrapped(values)
        values = values if batch_axis < 0 else values.movedim(batch_axis, 0)
    return values.detach()


def fitted_positions(valid: Tensor, shape: torch.Size, name: str) -> Tensor:
    """Returns valid positions for outputs whose position axes were joined, or pooled over all but the first ones.

    A pooled output is valid if any of its positions is.

    Args:
        shape: that of the values at the module `name`, without channels.
    Raises: ValueError if the valid positions do not fit them.
    """
    if len(shape) == 1 and valid.numel() == shape[0]:
        return valid.flatten()
    if 0 < len(shape) < valid.dim() and valid.shape[: len(shape)] == shape:
        return valid.flatten(len(shape)).any(-1)
    if valid.shape != shape:
        raise ValueError(
            f"valid positions of shape {list(valid.shape)} do not match the positions of {name}, "
            f"{list(shape)} (without channels)"
        )
    return valid


class _Counter(WatchingHook):
    """Adds the inputs or outputs of one module to its sums.

    torch.compile traces it together with the forward pass. That of torch 2.6 cannot trace `|=` of dicts and
    `next` with a default.
    """

    def __init__(self, averages: ForwardAverages, name: str, module: nn.Module, unbatched: int | None) -> None:
        self.averages = averages
        self.name = name
        self.channels_first = unbatched is not None or isinstance(module, CHANNELS_FIRST)
        self.unbatched = axes_without_batch(module) if unbatched is None else unbatched

    def __call__(self, module: nn.Module, arguments: tuple, other: Any) -> None:
        averages = self.averages
        training = module.training if averages.root is None else averages.root.training
        if averages.counting and training == averages.in_training and not _in_inference_mode():
            values = averages._read(arguments, other)
            first = 0 if values.dim() == self.unbatched else 1
            positions = values.movedim(first, -1) if self.channels_first else values
            with torch.no_grad():
                if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(positions):
                    with torch._C._DisableFuncTorch():
                        self._count(_inside_transforms(positions))
                else:
                    self._count(positions)

    def _count(self, positions: Tensor) -> None:
        averages = self.averages
        valid = averages.valid_of(self.name)
        if positions.is_nested:  # without padding, as inside nn.TransformerEncoder
            positions, valid = torch.cat([each.flatten(0, -2) for each in positions.unbind()]), None
        if positions.dim() == 1:  # one position, without any other axis
            positions = positions[None]
        axis = 0 if positions.dim() == 2 else 1
        if valid is not None:
            valid = fitted_positions(valid, positions.shape[:-1], self.name)
        stride = averages.stride
        if positions.shape[axis] >= 2 * stride and positions[..., 0].numel() >= stride * FEWEST_POSITIONS:
            # A compiled forward pass uses a constant offset, since it would be recompiled for each new value.
            phase = 0 if torch.compiler.is_compiling() else averages.phase
            every = (slice(None),) * axis + (slice(phase, None, stride),)
            positions = positions[every]
            valid = None if valid is None else valid[every]
        if self.name not in averages.sums:
            averages._add_module(self.name, positions.shape[-1], positions.device)
        sums = averages.sums[self.name]
        sums.seen.add_(positions[..., 0].numel() if valid is None else valid.sum())
        # A forward pass that overflows in half precision, whose step is skipped, must not make the average NaN.
        sums.total.add_(averages._total(positions, valid).nan_to_num_(nan=0.0, posinf=0.0))
