"""Weights, masks and warm starts on disk. Loading any of them executes no code from the file."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bbnet.data.store import whole_file
from bbnet.sparsity.masks import pack_masks, unpack_masks


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    with whole_file(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial)


def load_weights(path: Path, model: nn.Module) -> None:
    """Raises ValueError naming the file if its tensors are not those of `model`."""
    try:
        model.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole file of weights ({error})") from None
    except RuntimeError as error:
        raise ValueError(f"{path}: weights of another model: {' '.join(str(error).split())}") from None


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Per slab its packed bits, and in the metadata its shape [units, fan]."""
    packed, shapes = pack_masks(dict(masks))
    with whole_file(path) as partial:
        save_file(packed, partial, metadata=shapes)


def load_masks(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return unpack_masks({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole file of masks ({error})") from None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """A training state: tensors and plain values only."""
    with whole_file(path) as partial:
        torch.save(dict(state), partial)


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a whole training state ({str(error).splitlines()[0]})") from None
