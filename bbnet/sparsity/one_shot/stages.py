"""Stages: the parts of a model that are pruned one after the other, and the calibration inputs of each.

A stack of blocks is run block by block: the inputs of the first block and the other arguments of every block are kept
from one forward pass of the dense model, and the inputs of each later block are computed by the pruned blocks before
it, as in the published methods. In a model of another structure each layer is a stage, and the whole model is run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from bbnet.sparsity.one_shot.calibration import Calibration
from bbnet.sparsity.slab import is_layer

Run = Callable[[], Any]


class Stages(Protocol):
    """The stages of a model in the order in which they are pruned.

    Attributes:
        layers: names of the layers to prune, by stage and in the order of their first calls.
        unused: those of the layers that no calibration input reaches.
    """

    layers: list[list[str]]
    unused: list[str]

    def runs(self, stage: int) -> Iterator[tuple[Any, Run]]:
        """Yields for each batch its valid positions and a function that runs the layers of a stage on it."""

    def finish(self, stage: int) -> None:
        """Computes the inputs of the next stage, after this one was pruned."""


class WithoutInputs:
    """A single stage, for algorithms that read no inputs."""

    def __init__(self, layers: Sequence[str]) -> None:
        self.layers = [list(layers)]
        self.unused: list[str] = []

    def runs(self, stage: int) -> Iterator[tuple[Any, Run]]:
        return iter(())

    def finish(self, stage: int) -> None:
        """Does nothing, since there is one stage."""


class WholeModel:
    """One stage for each layer, in the order of their first calls; every stage runs the whole model."""

    def __init__(self, model: nn.Module, layers: Sequence[str], calibration: Calibration) -> None:
        self.model = model
        self.calibration = calibration
        with called_layers(model, layers) as called:
            for _, run in self.runs(0):
                run()
        self.unused = [name for name in layers if name not in called]
        self.layers = [[name] for name in called]

    def runs(self, stage: int) -> Iterator[tuple[Any, Run]]:
        for batch in self.calibration.batches:
            yield self.calibration.valid(batch), partial(self.calibration.forward, self.model, batch)

    def finish(self, stage: int) -> None:
        """Does nothing: the next stage runs the pruned model."""


class Blocks:
    """One stage for each block of a stack; a stage runs its block alone.

    Args:
        names: names of the blocks.
        layers: names of the layers to prune, all of them inside blocks.
        device: where the inputs of blocks are kept; by default where they are computed.
    Raises: ValueError if a forward pass does not call every block once and in order.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        layers: Sequence[str],
        calibration: Calibration,
        device: torch.device | str | None = None,
    ) -> None:
        self.blocks = [model.get_submodule(name) for name in names]
        self.device = device
        self.valid = [calibration.valid(batch) for batch in calibration.batches]
        self.inputs: list[Tensor] = []
        self.others: list[list[_Arguments]] = [[] for _ in names]
        hooks = [
            block.register_forward_pre_hook(partial(self._keep, index), with_kwargs=True)
            for index, block in enumerate(self.blocks)
        ]
        with _until_removed(hooks), called_layers(model, layers) as called:
            for number, batch in enumerate(calibration.batches, start=1):
                with _stopped_after(self.blocks[-1]):
                    calibration.forward(model, batch)
                odd = [name for name, others in zip(names, self.others, strict=True) if len(others) != number]
                if odd:
                    raise ValueError(f"block {odd[0]} is not called once in each forward pass of the model")
        self.unused = [name for name in layers if name not in called]
        self.layers = [[layer for layer in called if is_inside(layer, name)] for name in names]

    def _keep(self, index: int, block: nn.Module, arguments: tuple, options: dict[str, Any]) -> None:
        given = _Arguments.of(arguments, options)
        if index == 0:
            self.inputs.append(self._stored(given.hidden))
        earlier = self.others[index][-1] if self.others[index] else None
        self.others[index].append(given.without_hidden(earlier))

    def runs(self, stage: int) -> Iterator[tuple[Any, Run]]:
        for batch, valid in enumerate(self.valid):
            yield valid, partial(self._run, stage, batch)

    def _run(self, stage: int, batch: int) -> Any:
        block, hidden = self.blocks[stage], self.inputs[batch]
        if self.device is not None:
            hidden = hidden.to(next(block.parameters()).device)
        return self.others[stage][batch].call(block, hidden)

    def finish(self, stage: int) -> None:
        if stage + 1 < len(self.blocks):
            for batch in range(len(self.inputs)):
                self.inputs[batch] = self._stored(_first(self._run(stage, batch)))

    def _stored(self, hidden: Tensor) -> Tensor:
        return hidden.detach() if self.device is None else hidden.detach().to(self.device)


class _Arguments(NamedTuple):
    """The arguments of a block, of which one is the hidden state: the first, or the one named `hidden_states`."""

    positional: tuple
    named: dict[str, Any]
    place: int | str

    @classmethod
    def of(cls, arguments: tuple, options: dict[str, Any]) -> "_Arguments":
        place = "hidden_states" if "hidden_states" in options else 0 if arguments else next(iter(options), 0)
        return cls(arguments, options, place)

    @property
    def hidden(self) -> Any:
        given = self.named if isinstance(self.place, str) else self.positional
        return given[self.place] if given else None

    def without_hidden(self, earlier: "_Arguments | None") -> "_Arguments":
        """Returns them without the hidden state; tensors that equal those of `earlier` arguments are kept once."""
        bare = self.replaced(None)
        return bare if earlier is None else _Arguments(*_shared(tuple(bare), tuple(earlier)))

    def replaced(self, hidden: Any) -> "_Arguments":
        if isinstance(self.place, str):
            return self._replace(named=self.named | {self.place: hidden})
        return self._replace(positional=(hidden, *self.positional[1:]))

    def call(self, block: nn.Module, hidden: Tensor) -> Any:
        given = self.replaced(hidden)
        return block(*given.positional, **given.named)


def _shared(value: Any, earlier: Any) -> Any:
    """Returns `value`, nested in tuples, lists and dicts, with each tensor that equals that of `earlier` replaced."""
    if isinstance(value, Tensor) and isinstance(earlier, Tensor):
        alike = (value.shape, value.dtype, value.device) == (earlier.shape, earlier.dtype, earlier.device)
        return earlier if alike and torch.equal(value, earlier) else value
    if type(value) in (tuple, list) and type(earlier) is type(value) and len(value) == len(earlier):
        return type(value)(_shared(*pair) for pair in zip(value, earlier, strict=True))
    if type(value) is dict and type(earlier) is dict:
        return {key: _shared(each, earlier.get(key)) for key, each in value.items()}
    return value


def _first(output: Any) -> Any:
    """Returns the hidden state among the outputs of a block."""
    return output[0] if isinstance(output, tuple | list) and output else output


def is_inside(name: str, container: str) -> bool:
    """Returns whether the module `name` is `container` or inside it."""
    return not container or name == container or name.startswith(f"{container}.")


def find_stacks(model: nn.Module, calibration: Calibration) -> list[list[str]]:
    """Returns the names of the blocks of each stack, those with the most blocks first.

    A stack is a ModuleList or Sequential whose members are called one after the other in the forward pass of the first
    batch, each with the output of the one before. Only members that contain layers count as blocks. Of stacks of equal
    length the one with more parameters comes first.
    """
    stacks = [_Stack(name, module) for name, module in model.named_modules() if isinstance(module, _CONTAINERS)]
    with _until_removed([hook for stack in stacks for hook in stack.hooks()]):
        calibration.forward(model, calibration.batches[0])
    fed = [stack for stack in stacks if stack.is_fed() and stack.size() > (0, 0)]
    return [stack.names for stack in sorted(fed, key=_Stack.size, reverse=True)]


_CONTAINERS = (nn.ModuleList, nn.Sequential)


class _Stack:
    """Notes whether the members of a container feed one another."""

    def __init__(self, name: str, container: nn.Module) -> None:
        self.members = list(container.children())
        self.names = block_names(name, container)
        self._called = 0
        self._broken = False
        self._output: Any = None

    def hooks(self) -> list[Any]:
        befores = [
            member.register_forward_pre_hook(partial(self._before, index), with_kwargs=True)
            for index, member in enumerate(self.members)
        ]
        return befores + [member.register_forward_hook(self._after) for member in self.members]

    def _before(self, index: int, member: nn.Module, arguments: tuple, options: dict[str, Any]) -> None:
        hidden = _Arguments.of(arguments, options).hidden
        fed = index == 0 or hidden is self._output
        self._broken |= index != self._called or not isinstance(hidden, Tensor) or not fed
        self._called += 1

    def _after(self, member: nn.Module, arguments: tuple, output: Any) -> None:
        self._output = _first(output)

    def is_fed(self) -> bool:
        return not self._broken and self._called == len(self.members)

    def size(self) -> tuple[int, int]:
        """Returns the numbers of members with layers and of their parameters."""
        blocks = [member for member in self.members if any(is_layer(module) for module in member.modules())]
        return len(blocks), sum(weight.numel() for member in blocks for weight in member.parameters())


def block_names(name: str, container: nn.Module) -> list[str]:
    """Returns the names of the members of a container of that name."""
    return [f"{name}.{child}" if name else child for child, _ in container.named_children()]


@contextmanager
def called_layers(model: nn.Module, layers: Iterable[str]) -> Iterator[Mapping[str, None]]:
    """Yields the names of the layers that are called within the context, in the order of their first calls."""
    called: dict[str, None] = {}

    def note(name: str, *_: Any) -> None:
        called.setdefault(name)

    hooks = [model.get_submodule(name).register_forward_pre_hook(partial(note, name)) for name in layers]
    with _until_removed(hooks):
        yield called


@contextmanager
def _until_removed(hooks: Iterable[Any]) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _StoppedError(Exception):
    """Ends a forward pass after the last block."""


@contextmanager
def _stopped_after(block: nn.Module) -> Iterator[None]:
    """Ends a forward pass of a model after one of its modules, since what follows is not needed."""

    def stop(*_: Any) -> None:
        raise _StoppedError

    with _until_removed([block.register_forward_hook(stop)]), suppress(_StoppedError):
        yield
