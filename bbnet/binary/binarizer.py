"""BinaryConnect: keeps weights binary in forward and backward passes, and real in the steps of their optimiser."""

import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bbnet.binary.half_range import glorot_half_range
from bbnet.sparsity.claims import BINARIZERS
from bbnet.sparsity.masked_weight import rescale_of, weakly
from bbnet.sparsity.slab import CONVOLUTIONS, TRANSPOSED_CONVOLUTIONS, is_layer, unwrap
from bbnet.sparsity.sparsifier import check_supported, inner_optimizer

Scale = Literal["glorot", "one"]
SCALES = ("glorot", "one")
UNSUPPORTED_OPTIMIZERS = {
    "LBFGS": "it evaluates the loss several times per step, at weights that are not binary",
    "ZeroRedundancyOptimizer": "its weights are stepped by an inner optimizer on one rank and copied to the others",
}
UNSUPPORTED_MODULES = dict.fromkeys(("FullyShardedDataParallel", "FSDPModule"), "no rank holds whole weights")


def binarize(
    model: nn.Module,
    optimizer: Optimizer,
    layers: Literal["all", "inner"] | Iterable[str] = "all",
    *,
    stochastic: bool = False,
    scale: Scale = "glorot",
    seed: int = 0,
) -> "Binarizer":
    """Keeps the weights of layers at -h or +h while `optimizer` trains the real, latent weights behind them.

    This is BinaryConnect (Courbariaux et al. 2015, algorithm 1). In forward and backward passes a weight is +h or -h
    by the sign of its latent weight w; a latent weight of exactly 0 stays 0, so a weight that `bbnet.sparsify` has
    pruned stays pruned, and the other ones are -h or +h (ternary weights). The optimiser's step changes w by the
    gradient at the binary weight, after which w is clipped to [-h, h]. Biases and norms are not changed. Between steps
    the parameters of the model hold the binary weights, so its scores and its `state_dict` are those of the binary
    network.

    Call it after `bbnet.sparsify`, if both are used, and after wrapping the model in DistributedDataParallel. To
    resume, load the states of model, optimizer, sparsifier and binarizer, in any order.

    Args:
        layers: `all` linear layers and convolutions; `inner`, all except the first and the last of them in the order
            of `model.modules()`, which for most networks are the first convolution and the classifier; or names.
        stochastic: draw a weight anew after each step, +h with the probability clip((w / h + 1) / 2, 0, 1) (equation
            2 of the paper), instead of using the sign.
        scale: `glorot`, h = sqrt(1.5 / (fan_in + fan_out)) for each layer, where the fans count the taps of a kernel;
            or `one`, h = 1. The learning rate of a layer with h trains as that of a layer with h = 1 that is divided
            by h (Adam) or h^2 (SGD), so `glorot` contains the paper's scaling of learning rates.
        seed: seed of the stochastic draws, which depend on it and on the number of applied steps alone.
    Returns: the binarizer, whose `restore` or `remove` ends the binarisation. If nothing holds it any more, the weights
        stay binary until this function is called again with one of them.
    Raises: ValueError for an unknown layer, layers or optimizer that are not supported, a weight that `optimizer` does
        not train, that another layer shares or that is binary already, and masked weights that are rescaled.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}, allowed: {', '.join(SCALES)}")
    optimizer = inner_optimizer(optimizer)
    check_supported("binarize", model, optimizer, UNSUPPORTED_MODULES, UNSUPPORTED_OPTIMIZERS)
    model = unwrap(model)
    chosen = choose_layers(model, layers)
    _check_layers(model, optimizer, chosen)
    return Binarizer(optimizer, chosen, stochastic, scale, seed)


def choose_layers(model: nn.Module, layers: str | Iterable[str]) -> dict[str, nn.Module]:
    """Returns the layers that `layers` of `binarize` means, by name, in the order of `model.modules()`."""
    kinds = (*CONVOLUTIONS, *TRANSPOSED_CONVOLUTIONS)
    found = {name: each for name, each in model.named_modules() if is_layer(each) or isinstance(each, kinds)}
    if layers == "all":
        chosen = found
    elif layers == "inner":
        chosen = dict(list(found.items())[1:-1])
    elif isinstance(layers, str):
        raise ValueError(f"layers {layers!r} is unknown, allowed: all, inner, or a list of names")
    else:
        wanted = set(layers)
        unknown = sorted(wanted - set(found))
        if unknown:
            raise ValueError(f"layer {unknown[0]} is no linear layer or convolution of the model: {', '.join(found)}")
        chosen = {name: layer for name, layer in found.items() if name in wanted}
    if not chosen:
        raise ValueError(f"layers {layers} names no linear layer or convolution of the model")
    return chosen


def _check_layers(model: nn.Module, optimizer: Optimizer, chosen: Mapping[str, nn.Module]) -> None:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            holders.setdefault(id(parameter), []).append(name)
    for name, layer in chosen.items():
        if "weight" not in layer._parameters:
            raise ValueError(
                f"layer {name}: its weight is computed from other parameters (weight_norm, spectral_norm, prune); "
                "remove the parametrization first"
            )
        if id(layer.weight) not in trained or not layer.weight.requires_grad:
            raise ValueError(f"layer {name}: its weight is not trained by the optimizer; name the layers to binarize")
        others = [other for other in holders[id(layer.weight)] if other != name]
        if others:
            raise ValueError(f"layer {name}: its weight is also that of {', '.join(others)}, which would be binary too")
        if rescale_of(layer.weight) != "none":
            raise ValueError(
                f"layer {name}: its sparsifier rescales rows, which has no effect on binary weights; use rescale='none'"
            )


def half_range(weight: Tensor, scale: Scale) -> float:
    """Returns h of a weight [out, in, *taps] (or its transpose): 1, or that of `glorot_half_range`."""
    return 1.0 if scale == "one" else glorot_half_range(weight.shape)


class Binarizer:
    """Holds the latent weights of layers whose parameters are binary. Created by `binarize`.

    Attributes:
        step: number of applied optimiser steps so far.
        layers: the layers whose weights are binary, by name.
        half_ranges: h of each layer, by name.
    """

    def __init__(
        self, optimizer: Optimizer, layers: Mapping[str, nn.Module], stochastic: bool, scale: Scale, seed: int
    ) -> None:
        self.optimizer = optimizer
        self.stochastic = stochastic
        self.scale = scale
        self.seed = seed
        self.step = 0
        self.layers = dict(layers)
        self._weights = [layer.weight for layer in layers.values()]
        self.half_ranges = {name: half_range(layer.weight, scale) for name, layer in layers.items()}
        self._attached: list[Any] = []
        self._in_context = self._state_loaded = False
        self._depth = 0
        self._attach()

    def _attach(self) -> None:
        BINARIZERS.release_dropped(self._weights)
        for name, weight in zip(self.layers, self._weights, strict=True):
            if weight in BINARIZERS:
                raise ValueError(f"layer {name}: its weight is binary already; call remove() or restore() first")
        # The hooks hold another object with the same state, so that it can be noticed when the caller drops this one.
        shared = object.__new__(type(self))
        shared.__dict__ = self.__dict__
        self._latent = [weight.detach().clone() for weight in self._weights]
        self._holds_latent = True
        self._write()
        self._attached = [
            self.optimizer.register_step_pre_hook(shared._before_step),
            self.optimizer.register_step_post_hook(shared._after_step),
            *(weight.register_hook(weakly(shared._check_gradient)) for weight in self._weights),
            BINARIZERS.add(self._weights, self, shared),
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Binarizer":
        raise TypeError(
            "a Binarizer cannot be copied or pickled, because its hooks belong to one optimizer; save its "
            "state_dict(), call bbnet.binarize for the copies and load the state there"
        )

    def __reduce__(self) -> tuple:
        self.__deepcopy__({})

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are in place, that is, neither `remove` nor `restore` was called."""
        return bool(self._attached)

    def remove(self) -> None:
        """Removes the hooks from the optimizer. The parameters keep their binary weights, and are trained as such."""
        self._check_context()
        for part in self._attached:
            part.remove()
        self._attached = []

    def restore(self) -> None:
        """Removes the hooks from the optimizer, and puts the latent weights back into the parameters.

        Raises: ValueError if a parameter was overwritten; then call `remove`, which keeps the new values.
        """
        self._check_context()
        if not self._holds_latent:
            self._check_unchanged()
        self._put_latent()
        self.remove()

    @torch.no_grad()
    def release(self) -> None:
        """Ends the binarisation like `restore`, but keeps the values of parameters that were overwritten."""
        if not self._holds_latent:
            for weight, latent, kept in zip(self._weights, self._latent, self._unchanged(self.stochastic), strict=True):
                if kept:
                    weight.copy_(latent)
        self.remove()

    def latent_weights(self) -> dict[str, Tensor]:
        """Returns a copy of the latent weight of each layer, by name of the layer."""
        sources = self._weights if self._holds_latent else self._latent
        return {name: value.detach().clone() for name, value in zip(self.layers, sources, strict=True)}

    @contextmanager
    def latent(self) -> Iterator[None]:
        """Puts the latent weights into the parameters inside a `with`, for example to average or to load weights.

        Changes that are made there to the parameters are changes of the latent weights.
        """
        self._check_context()
        if not self._holds_latent:
            self._check_unchanged()
        self._put_latent()
        self._in_context = True
        try:
            yield
        finally:
            self._in_context = False
            self._write()

    @contextmanager
    def signs(self) -> Iterator[None]:
        """Puts the signs of the latent weights into the parameters inside a `with`, times h, instead of random draws.

        It has no effect unless the binarizer is stochastic.
        """
        self._check_context()
        self._check_unchanged()
        if not self.stochastic:
            yield
            return
        self._write_again(drawn=False)
        self._in_context = True
        try:
            yield
            self._check_unchanged(drawn=False)
        finally:
            self._in_context = False
            self._write_again(drawn=True)

    def state_dict(self) -> dict[str, Any]:
        """Returns everything needed to resume bitwise, besides the states of model, optimiser and sparsifier."""
        return {"identity": self._identity(), "step": self.step, "latent": self.latent_weights()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a state of the same settings and layers; raises ValueError naming what differs."""
        self._check_context()
        if "identity" not in state or "latent" not in state:
            keys = ", ".join(map(str, list(state)[:5]))
            raise ValueError(f"this is not a state of a binarizer: its keys are {keys} ...")
        own, saved = self._identity(), state["identity"]
        differing = [f"{key} is {saved.get(key)}, here {own[key]}" for key in own if saved.get(key) != own[key]]
        if differing:
            raise ValueError(f"the binarizer's state belongs to another run: {'; '.join(differing)}")
        self.step = state["step"]
        for name, weight in zip(self.layers, self._weights, strict=True):
            weight.copy_(state["latent"][name])
        self._holds_latent = True
        self._state_loaded = True
        self._write()

    def _identity(self) -> dict[str, Any]:
        shapes = {name: list(weight.shape) for name, weight in zip(self.layers, self._weights, strict=True)}
        return {"stochastic": self.stochastic, "scale": self.scale, "seed": self.seed, "layers": shapes}

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        self._check_context()
        # A fused optimiser under a GradScaler also runs its hooks on skipped steps, which change nothing.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return None
        # An optimiser whose step() calls the step() of its base class runs these hooks twice, one inside the other.
        self._depth = self._depth + 1 if self._holds_latent else 1
        if self._holds_latent:
            return None
        self._check_unchanged()
        if self.step == 0 and not self._state_loaded and all(map(torch.equal, self._weights, self._latent)):
            warnings.warn(
                "the training of binary weights begins at latent weights that are all -h, 0 or +h, as those of a saved "
                "binary network are; to resume a training, load also the binarizer's state_dict()",
                stacklevel=2,
            )
        closures = [each for each in (*args, *kwargs.values()) if callable(each)]
        if not closures:
            self._put_latent()
            return None
        # The only callable argument is a closure, whose forward and backward pass need the binary weights.
        args = tuple(self._around(each) if callable(each) else each for each in args)
        return args, {name: self._around(each) if callable(each) else each for name, each in kwargs.items()}

    def _around(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Returns a closure that puts the latent weights into the parameters when the gradients are computed."""

        def closure_then_latent() -> Any:
            if self._holds_latent:
                raise RuntimeError(
                    f"{type(self.optimizer).__name__} evaluates the loss several times per step, at weights that are "
                    "not binary"
                )
            loss = closure()
            self._put_latent()
            return loss

        return closure_then_latent

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        self._depth -= 1
        if self._depth > 0 or not self._holds_latent:
            return
        self.step += 1
        self._write()

    def _check_gradient(self, gradient: Tensor) -> None:
        """Raises RuntimeError if a gradient is computed while the parameters hold latent weights."""
        if self._holds_latent and not self._in_context:
            raise RuntimeError(
                f"the last step of {type(self.optimizer).__name__} did not end, as after an exception, so "
                "that the model computes with latent weights; write `with binarizer.latent(): pass`, which makes them "
                "binary again, and repeat the forward pass"
            )

    @torch.no_grad()
    def _put_latent(self) -> None:
        if not self._holds_latent:
            torch._foreach_copy_(self._weights, self._latent)
            self._holds_latent = True
            torch.clear_autocast_cache()

    @torch.no_grad()
    def _write(self) -> None:
        """Clips the latent weights, which the parameters hold, keeps them, and writes the binary ones."""
        bounds = list(self.half_ranges.values())
        torch._foreach_clamp_max_(self._weights, bounds)
        torch._foreach_clamp_min_(self._weights, [-bound for bound in bounds])
        self._follow()
        torch._foreach_copy_(self._latent, self._weights)
        self._holds_latent = False
        self._make_binary(self._weights, self.stochastic)
        self._note_written()

    @torch.no_grad()
    def _write_again(self, *, drawn: bool) -> None:
        """Writes the binary weights of the latent ones that are kept."""
        self._follow()
        torch._foreach_copy_(self._weights, self._latent)
        self._make_binary(self._weights, drawn)
        self._note_written()

    def _follow(self) -> None:
        """Moves or converts the latent weights as the model was since they were kept."""
        self._latent = [latent.to(weight) for latent, weight in zip(self._latent, self._weights, strict=True)]

    def _make_binary(self, weights: list[Tensor], drawn: bool) -> None:
        """Replaces latent weights, those that are kept, by their signs or by draws, times h."""
        bounds = list(self.half_ranges.values())
        torch._foreach_sign_(weights)
        torch._foreach_mul_(weights, bounds)
        if drawn:
            self._draw(weights, bounds)
        torch._foreach_add_(weights, self._latent, alpha=0)  # NaN, whose sign is 0, stays NaN

    def _draw(self, weights: list[Tensor], bounds: list[float]) -> None:
        """Chooses the signs of weights anew; those of 0 stay 0."""
        # A hash, because torch's generator on a CPU uses 32 bits of its seed.
        seed = zlib.crc32(f"{self.seed}/{self.step}".encode())
        devices = {latent.device for latent in self._latent}
        generators = {device: torch.Generator(device).manual_seed(seed) for device in devices}
        for weight, latent, bound in zip(weights, self._latent, bounds, strict=True):
            # Contiguous, so that draws do not depend on the memory format, and in float32 or better.
            dtype = torch.promote_types(latent.dtype, torch.float32)
            uniform = torch.empty(latent.shape, dtype=dtype, device=latent.device)
            uniform.uniform_(-bound, bound, generator=generators[latent.device])
            weight.copysign_(uniform.add_(latent))

    def _note_written(self) -> None:
        self._versions = [weight._version for weight in self._weights]
        torch.clear_autocast_cache()

    @torch.no_grad()
    def _unchanged(self, drawn: bool) -> list[bool]:
        """Returns for each weight whether it holds what the binarizer has written last, as after a swap and back."""
        if [weight._version for weight in self._weights] == self._versions:
            return [True] * len(self._weights)
        self._follow()
        written = [latent.clone() for latent in self._latent]
        self._make_binary(written, drawn)
        return list(map(torch.equal, written, self._weights))

    def _check_context(self) -> None:
        if self._in_context:
            raise RuntimeError(
                "the latent weights or their signs are in the parameters: leave latent() or signs() first"
            )

    def _check_unchanged(self, *, drawn: bool | None = None) -> None:
        """Raises ValueError if a weight was replaced or overwritten since the binarizer has written it last."""
        unchanged = self._unchanged(self.stochastic if drawn is None else drawn)
        for (name, layer), weight, kept in zip(self.layers.items(), self._weights, unchanged, strict=True):
            if layer.weight is not weight or not kept:
                raise ValueError(
                    f"layer {name}: its weight was overwritten or replaced since it was binarised, so that its latent "
                    "weight is that of another model; load also the binarizer's state, load real weights inside "
                    "`with binarizer.latent():`, or call binarizer.remove()"
                )
