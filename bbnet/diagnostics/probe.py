"""Probes layers of a model by their dotted names: weights, activations, on-rates, similarities and feature maps."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from bbnet.diagnostics.histogram import Histogram
from bbnet.diagnostics.images import save_image, tiles
from bbnet.diagnostics.record import frame, write_csv
from bbnet.diagnostics.similarity import LinearCKA, mean_cosine, mean_kl
from bbnet.sparsity.copies import OfSparsified
from bbnet.sparsity.forward_averages import axes_without_batch
from bbnet.sparsity.slab import CHANNELS_FIRST, is_layer, unwrap

if TYPE_CHECKING:
    import pandas

TABLES = ("activations", "weights", "units", "histograms", "alignment")
MOST_CALLS = 16  # of a layer in a forward pass that are told apart; later ones count with the last
MOST_CHANNELS = 4096  # of features that are aligned
AT_BOUND = 0.01  # of the range of an activation, or of the largest weight
BOUNDS: dict[type[nn.Module], tuple[float, float]] = {
    nn.Tanh: (-1, 1),
    nn.Softsign: (-1, 1),
    nn.Sigmoid: (0, 1),
    nn.Hardsigmoid: (0, 1),
}
CHANNELS_LAST = (nn.LayerNorm, nn.Embedding, nn.MultiheadAttention)


def probe(
    model: nn.Module,
    inputs: Any,
    layers: str | Iterable[str] | None = None,
    *,
    similarity: int | None = None,
    against: nn.Module | None = None,
    maps: int = 0,
    step: int | None = None,
) -> "Probe":
    """Runs `model` on `inputs` in evaluation mode and returns what its layers hold and put out.

    The model is the same afterwards: its hooks, names, random numbers, and the mode of every module. Figures are
    computed in float32 or better. Memory is that of one batch, and of figures whose size does not depend on `inputs`.
    Under autocast, call it inside `torch.autocast`; for latent weights, inside `binarizer.latent()`.

    Args:
        model: the model, or the model wrapped by torch.compile or DistributedDataParallel.
        inputs: a batch: a tensor, a tuple of arguments, or a mapping of keyword arguments; or an iterable of batches.
        layers: dotted names or patterns such as "encoder.*.linear1", where * also matches dots. By default all modules
            without children.
        similarity: axis of the outputs whose slices are compared, for example 1 for the channels of a convolution.
        against: a model with the same layers, with whose features those of `model` are aligned by linear CKA.
        maps: number of channels whose maps of the first input are kept, of outputs with height and width.
        step: written into all tables, to join those of several epochs.
    Raises: ValueError for a pattern that matches no layer, no inputs, a layer that `against` lacks or that has other
        positions there, and layers of more than 4,096 channels with `against`.
    """
    model = unwrap(model)
    chosen = choose(model, layers)
    found = Probe(step)
    found._add_weights(model, chosen)
    other = None if against is None else unwrap(against)
    twins = {} if other is None else {name: _twin(other, name) for name in chosen}
    count = 0
    with ExitStack() as stack:
        for each in [model] if other is None else [model, other]:
            stack.enter_context(_left_as_it_was(each))
        for count, batch in enumerate(_batches(inputs), 1):
            features: dict[tuple[str, int], Tensor] = {}

            def add(key: tuple[str, int], module: nn.Module, output: Tensor, kept=features, first=count == 1) -> None:
                found._add_output(key, module, output, similarity, maps if first else 0)
                if other is not None:
                    kept.setdefault(key, _features(module, output).clone())

            def align(key: tuple[str, int], module: nn.Module, output: Tensor, kept=features) -> None:
                if key in kept:
                    found._align(key, kept.pop(key), _features(module, output))

            _run(model, chosen, batch, add)
            if other is not None:
                _run(other, twins, batch, align)
    if count == 0:
        raise ValueError("no inputs to probe the model with")
    found.not_called = [name for name in chosen if (name, 0) not in found._outputs]
    return found


def choose(model: nn.Module, layers: str | Iterable[str] | None) -> dict[str, nn.Module]:
    """Returns the modules that `layers` of `probe` means, by name, in the order of the model."""
    named = {name: module for name, module in model.named_modules() if name} or {"": model}
    if layers is None:
        return {name: module for name, module in named.items() if not any(True for _ in module.children())}
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in named):
            some = ", ".join(list(named)[:8])
            raise ValueError(f"layers: {pattern!r} matches no layer of the model; its layers are {some} ...")
    return {name: each for name, each in named.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}


def _twin(other: nn.Module, name: str) -> nn.Module:
    try:
        return other.get_submodule(name)
    except AttributeError:
        raise ValueError(f"layer {name}: the model given as `against` has no such layer") from None


def _batches(inputs: Any) -> Iterable[Any]:
    return [inputs] if isinstance(inputs, Tensor | tuple | Mapping) else inputs


@contextmanager
def _left_as_it_was(model: nn.Module) -> Iterator[None]:
    """Puts all modules into evaluation mode, and restores the mode of each and the random numbers at the end."""
    modes = [(module, module.training) for module in model.modules()]
    devices = {each.device.index for each in model.parameters() if each.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices)))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # compiled parts do not notice new hooks
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def _run(
    model: nn.Module,
    chosen: Mapping[str, nn.Module],
    batch: Any,
    use: Callable[[tuple[str, int], nn.Module, Tensor], None],
) -> None:
    """Runs a forward pass and calls `use` with (name, number of the call), module and output of each layer's calls."""
    calls = dict.fromkeys(chosen, 0)

    def see(name: str, module: nn.Module, output: Any) -> None:
        tensor = _first_tensor(output)
        if tensor is not None:
            use((name, min(calls[name], MOST_CALLS - 1)), module, tensor.detach())
            calls[name] += 1

    handles = [
        module.register_forward_hook(lambda module, _, output, name=name: see(name, module, output))
        for name, module in chosen.items()
    ]
    try:
        if isinstance(batch, Mapping):
            model(**batch)
        else:
            model(*(batch if isinstance(batch, tuple) else (batch,)))
    finally:
        for handle in handles:
            handle.remove()


def _first_tensor(output: Any) -> Tensor | None:
    """Returns the first tensor of floating point in an output, which may be a tuple, list or mapping."""
    if isinstance(output, Tensor):
        if output.is_nested:  # without padding, as inside nn.TransformerEncoder
            output = torch.cat([each.flatten(0, -2) for each in output.unbind()])
        return output if output.is_floating_point() and output.dim() else None
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return next((found for found in map(_first_tensor, output) if found is not None), None)
    return None


def _channel_axis(module: nn.Module, output: Tensor) -> int:
    """Returns the axis of the channels: 1 for convolutions, norms over channels and images, otherwise the last."""
    if isinstance(module, CHANNELS_FIRST):
        return 0 if output.dim() == axes_without_batch(module) else 1
    is_last = isinstance(module, CHANNELS_LAST) or is_layer(module)
    return 1 if output.dim() >= 4 and not is_last else output.dim() - 1


def _features(module: nn.Module, output: Tensor) -> Tensor:
    """Returns an output as [positions, channels]."""
    return output.movedim(_channel_axis(module, output), -1).flatten(0, -2)


class _Output:
    """Figures of the outputs of one call of a layer."""

    def __init__(self) -> None:
        self.count = self.zeros = self.non_finite = self.saturated = self.positions = 0
        self.mean = self.squares = 0.0
        self.smallest, self.largest = np.inf, -np.inf
        self.is_bounded = False
        self.histogram = Histogram()
        self.on: Tensor | None = None
        self.has_units = True
        self.cosines: list[float] = []
        self.divergences: list[float] = []


class Probe:
    """What `probe` has found, as tables of rows, and feature maps.

    Attributes:
        maps: feature maps [channels, height, width], float32, by name of the layer and number of its call.
        not_called: names of layers that the forward pass did not call as modules.
    """

    def __init__(self, step: int | None = None) -> None:
        self.step = step
        self.maps: dict[tuple[str, int], np.ndarray] = {}
        self.not_called: list[str] = []
        self._outputs: dict[tuple[str, int], _Output] = {}
        self._weights: list[dict[str, Any]] = []
        self._weight_histograms: dict[str, Histogram] = {}
        self._alignments: dict[tuple[str, int], LinearCKA] = {}

    # --- Gathering --------------------------------------------------------------------------------------------------

    def _add_weights(self, model: nn.Module, chosen: Mapping[str, nn.Module]) -> None:
        hooks = [hook for hook in model._forward_pre_hooks.values() if isinstance(hook, OfSparsified)]
        sparsifiers = [each for each in (hook.sparsifier() for hook in hooks) if each is not None]
        dead = {id(masked.weight): masked.dead() for each in sparsifiers for masked in each.weights}
        for name, module in chosen.items():
            for own, parameter in module.named_parameters(recurse=False):
                values = parameter.detach().double()
                if id(parameter) in dead:
                    values = values[(dead[id(parameter)] == 0).expand_as(values)]
                full = f"{name}.{own}" if name else own
                self._weight_histograms[full] = histogram = Histogram()
                histogram.add(values)
                finite = values[values.isfinite()]
                known = bool(finite.numel())
                largest = finite.abs().max() if known else None
                self._weights.append(
                    {
                        "parameter": full,
                        "entries": parameter.numel(),
                        "live": values.numel(),
                        "mean": float(finite.mean()) if known else None,
                        "std": float(finite.std(correction=0)) if known else None,
                        "smallest": float(finite.min()) if known else None,
                        "largest": float(finite.max()) if known else None,
                        "zero_share": float((finite == 0).double().mean()) if known else None,
                        "saturated_share": float((finite.abs() >= (1 - AT_BOUND) * largest).double().mean())
                        if known and float(largest) > 0
                        else None,
                        "non_finite": values.numel() - finite.numel(),
                    }
                )

    def _add_output(
        self, key: tuple[str, int], module: nn.Module, output: Tensor, similarity: int | None, maps: int
    ) -> None:
        one = self._outputs.setdefault(key, _Output())
        values = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        axis = _channel_axis(module, values)
        one.histogram.add(values)
        finite = values[values.isfinite()].double()
        one.non_finite += values.numel() - finite.numel()
        if finite.numel():
            self._add_moments(one, finite)
            bounds = _bounds(module)
            if bounds is not None:
                one.is_bounded = True
                one.saturated += int(_at_bounds(finite, *bounds).sum())
        on = (values > 0).movedim(axis, -1).flatten(0, -2)
        one.positions += len(on)
        if one.on is not None and one.on.shape != on.shape[1:]:
            one.has_units = False
        else:
            one.on = on.sum(0) if one.on is None else one.on + on.sum(0)
        if similarity is not None and -values.dim() <= similarity < values.dim():
            for found, measure in ((one.cosines, mean_cosine), (one.divergences, mean_kl)):
                value = measure(values, similarity)
                if value is not None:
                    found.append(value)
        if maps and key not in self.maps and values.numel():
            first = values if axis == 0 else values[0].movedim(axis - 1, 0)
            if first.dim() == 3:
                self.maps[key] = first[:maps].float().cpu().numpy()

    def _add_moments(self, one: _Output, finite: Tensor) -> None:
        """Joins mean and sum of squares around it with those of further values (Chan, Golub and LeVeque 1979)."""
        count, mean = finite.numel(), float(finite.mean())
        squares = float((finite - mean).square().sum())
        total = one.count + count
        one.squares += squares + (mean - one.mean) ** 2 * one.count * count / total
        one.mean += (mean - one.mean) * count / total
        one.count = total
        one.zeros += int((finite == 0).sum())
        smallest, largest = (float(end) for end in finite.aminmax())
        one.smallest, one.largest = min(one.smallest, smallest), max(one.largest, largest)

    def _align(self, key: tuple[str, int], mine: Tensor, others: Tensor) -> None:
        name = key[0]
        if max(mine.shape[1], others.shape[1]) > MOST_CHANNELS:
            raise ValueError(
                f"layer {name}: it has {max(mine.shape[1], others.shape[1])} channels, and CKA takes memory for their "
                f"square; at most {MOST_CHANNELS} are aligned, name other layers"
            )
        if len(mine) != len(others):
            raise ValueError(f"layer {name}: it has {len(mine)} positions, but {len(others)} in `against`")
        self._alignments.setdefault(key, LinearCKA()).add(mine, others.to(mine.device))

    # --- What was found ---------------------------------------------------------------------------------------------

    def activations(self) -> list[dict[str, Any]]:
        """Returns a row for each call of a layer, with the statistics of its outputs."""
        rows = []
        for (name, call), one in self._outputs.items():
            known = one.count > 0
            on_rate = _on_rate(one)
            rows.append(
                {
                    "layer": name,
                    "call": call,
                    "values": one.count + one.non_finite,
                    "mean": one.mean if known else None,
                    "std": (one.squares / one.count) ** 0.5 if known else None,
                    "smallest": one.smallest if known else None,
                    "largest": one.largest if known else None,
                    "zero_share": one.zeros / one.count if known else None,
                    "saturated_share": one.saturated / one.count if known and one.is_bounded else None,
                    "non_finite": one.non_finite,
                    "units": None if on_rate is None else len(on_rate),
                    "on_rate": None if on_rate is None else float(on_rate.mean()),
                    "dead_units": None if on_rate is None else int((on_rate == 0).sum()),
                    "positions": one.positions,
                    "cosine": _mean(one.cosines),
                    "kl": _mean(one.divergences),
                }
            )
        return self._with_step(rows)

    def weights(self) -> list[dict[str, Any]]:
        """Returns a row for each parameter of the layers, with the statistics of its live entries."""
        return self._with_step(self._weights)

    def units(self) -> list[dict[str, Any]]:
        """Returns a row for each unit of each call: layer, call, unit, on_rate (share of positions above 0)."""
        return self._with_step(
            [
                {"layer": name, "call": call, "unit": unit, "on_rate": rate}
                for (name, call), one in self._outputs.items()
                for unit, rate in enumerate([] if _on_rate(one) is None else _on_rate(one).tolist())
            ]
        )

    def histograms(self) -> list[dict[str, Any]]:
        """Returns a row for each bin that is not empty: kind (weight or output), name, call, low, high, count."""
        weights = [("weight", name, 0, each) for name, each in self._weight_histograms.items()]
        outputs = [("output", name, call, one.histogram) for (name, call), one in self._outputs.items()]
        return self._with_step(
            [
                {"kind": kind, "name": name, "call": call, **bin_}
                for kind, name, call, histogram in [*weights, *outputs]
                for bin_ in histogram.rows()
            ]
        )

    def alignment(self) -> list[dict[str, Any]]:
        """Returns a row for each call of a layer of both models: layer, call, positions, cka (None if not defined)."""
        return self._with_step(
            [
                {"layer": name, "call": call, "positions": one.positions, "cka": one.value()}
                for (name, call), one in self._alignments.items()
            ]
        )

    def table(self, name: str) -> list[dict[str, Any]]:
        """Returns a table of `TABLES` by its name; raises ValueError for others."""
        if name not in TABLES:
            raise ValueError(f"unknown table {name!r}, allowed: {', '.join(TABLES)}")
        return getattr(self, name)()

    def to_frame(self, table: str = "activations") -> "pandas.DataFrame":
        """Returns a table as a pandas.DataFrame; raises ImportError if pandas is not installed."""
        return frame(self.table(table))

    def save(self, folder: str | Path) -> None:
        """Writes every table that is not empty as CSV, and the feature maps of a layer as an image (by Pillow)."""
        for name in TABLES:
            rows = self.table(name)
            if rows:
                write_csv(Path(folder, f"{name}.csv"), rows)
        for (name, call), maps in self.maps.items():
            finite = maps[np.isfinite(maps)]
            low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
            save_image(Path(folder, "maps", f"{name}-{call}.png"), tiles(maps, low, high))

    def _with_step(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return rows if self.step is None else [{"step": self.step, **row} for row in rows]


def _on_rate(one: _Output) -> Tensor | None:
    return one.on.double() / one.positions if one.on is not None and one.has_units and one.positions else None


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _bounds(module: nn.Module) -> tuple[float | None, float] | None:
    """Returns the ends at which an activation saturates; None in place of the end at which it is off."""
    if isinstance(module, nn.ReLU6):
        return None, 6.0
    if isinstance(module, nn.Hardtanh):
        return module.min_val, module.max_val
    return BOUNDS.get(type(module))


def _at_bounds(values: Tensor, low: float | None, high: float) -> Tensor:
    margin = AT_BOUND * (high - (low or 0.0))
    above = values >= high - margin
    return above if low is None else above | (values <= low + margin)
