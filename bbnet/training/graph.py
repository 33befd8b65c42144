"""The layers of a network of a study and its graph for TensorBoard, for `bbnet graph`; nothing is trained.

Run as `python -m bbnet.training.graph`.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from bbnet.data.packs import pack_of
from bbnet.sparsity.cost import flops_by_module
from bbnet.sparsity.slab import choose_slabs, layer_shape
from bbnet.study.config import Study
from bbnet.tasks import task as tasks

EVENTS = "events.out.tfevents.*"


def built(study: Study, task: str, label: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """Returns a model of a study in evaluation mode, with random weights, and the inputs of one sample.

    The data need not be prepared: what the network depends on is estimated from the settings, as by `random_batch`.
    """
    module, settings = tasks.load(task), study.task_settings()[task]
    torch.manual_seed(0)
    index, _ = module.random_batch(settings, pack_of(settings.data), torch.device("cpu"))
    model = module.build_model(settings.models[label], index, torch.device("cpu"))
    return model.eval(), module.example_inputs(index, torch.device("cpu"))


def layer_rows(
    task: ModuleType, model: nn.Module, inputs: tuple[Any, ...], which: str, smallest_budget: Decimal
) -> list[dict[str, Any]]:
    """Returns one row per module that has parameters of its own, in the order of their names, and the total as `(all)`.

    A row has the module's type, the shape of its output for `inputs` (of its last call), its parameters, the
    multiply-adds (MACs, half of the FLOPs) of its calls, and for each side of slabs `units x fan`, or why it stays
    dense, if it is a candidate. Multiply-adds outside of such modules, as in attention, are in the total alone.

    Args:
        which: the setting `slabs` of the task.
        smallest_budget: of the study; a slab that cannot meet it stays dense.
    """
    shapes: dict[str, list[int]] = {}

    def note(name: str):
        def hook(module: nn.Module, arguments: tuple, output: Any) -> None:
            shapes[name] = list(output.shape) if torch.is_tensor(output) else []

        return hook

    own = {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    handles = [module.register_forward_hook(note(name)) for name, module in own.items()]
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    flops = flops_by_module(model, inputs)
    sides = {side: _slabs(task, model, which, side, smallest_budget) for side in ("in", "out")}
    rows = [
        {
            "layer": name,
            "type": type(module).__name__,
            "output": " x ".join(map(str, shapes.get(name, []))),
            "parameters": sum(each.numel() for each in module.parameters(recurse=False)),
            "macs": flops[name] // 2,
            **{f"side_{side}": found.get(name, "") for side, found in sides.items()},
        }
        for name, module in own.items()
    ]
    total = {"parameters": sum(each.numel() for each in model.parameters()), "macs": flops[""] // 2}
    counts = {f"side_{side}": f"{sum(' x ' in each for each in found.values())} slabs" for side, found in sides.items()}
    return [*rows, {"layer": "(all)", "type": type(model).__name__, "output": "", **total, **counts}]


def _slabs(task: ModuleType, model: nn.Module, which: str, side: str, smallest_budget: Decimal) -> dict[str, str]:
    """Returns of each candidate `units x fan`, or why it stays dense."""
    chosen, dense = choose_slabs(model, task.slabs(model, which, side), smallest_budget)
    shapes = {slab.name: layer_shape(model.get_submodule(slab.name), slab.side) for slab in chosen}
    return {name: f"{units} x {fan}" for name, (units, fan) in shapes.items()} | {
        name: f"dense: {why}" for name, why in dense.items()
    }


def write_graph(model: nn.Module, inputs: tuple[Any, ...], folder: Path) -> None:
    """Writes the graph of the model to an event file of TensorBoard in `folder`, in place of an earlier one.

    Raises: ValueError if tensorboard is not installed, or if the model cannot be traced.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed (pip install 'bbnet[tensorboard]'); with --layers it is not needed"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of conditions that depend on shapes, which are fixed here
        try:
            with SummaryWriter(partial) as writer:
                writer.add_graph(model, inputs)
        except RuntimeError as error:
            raise ValueError(f"the model cannot be traced ({str(error).splitlines()[0]})") from None
        for earlier in folder.glob(EVENTS):
            earlier.unlink()
        for file in Path(partial).glob(EVENTS):
            file.rename(folder / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    content: Mapping[str, Any] = json.load(sys.stdin.buffer)
    study = Study.model_validate(content)
    model, inputs = built(study, options.task, options.model)
    settings, budget = study.task_settings()[options.task], min(map(Decimal, study.budgets))
    rows = layer_rows(tasks.load(options.task), model, inputs, settings.slabs, budget)
    if options.folder is not None:
        try:
            write_graph(model, inputs, options.folder)
        except ValueError as error:
            sys.exit(str(error))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
