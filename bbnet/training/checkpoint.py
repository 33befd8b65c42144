"""Saving and loading of weights, masks and training states. Loading executes no code from the file."""

import io
import json
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bbnet.data.store import whole_file
from bbnet.sparsity.masks import pack_masks, unpack_masks


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    with whole_file(path) as partial:
        partial.write_bytes(save({name: tensor.contiguous() for name, tensor in state.items()}))


def load_weights(path: Path, model: nn.Module) -> None:
    """Loads weights into `model`. Raises ValueError naming the file if its tensors are not those of `model`."""
    weights = read_weights(path)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path}: weights of another model: {' '.join(str(error).split())}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file of weights. Raises ValueError naming the file if it is damaged."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole file of weights ({error})") from None


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Saves the packed bits of each slab's mask, and in the metadata its shape [units, fan]."""
    packed, shapes = pack_masks(dict(masks))
    with whole_file(path) as partial:
        partial.write_bytes(_with_sorted_header(save(packed, metadata=shapes)))


def save_latent(path: Path, latent: Mapping[str, Tensor], half_ranges: Mapping[str, float]) -> None:
    """Saves the latent weights of binary layers, as `{layer}.weight`, and in the metadata h of each layer."""
    tensors = {f"{layer}.weight": weight.contiguous() for layer, weight in latent.items()}
    metadata = {layer: repr(half_range) for layer, half_range in half_ranges.items()}
    with whole_file(path) as partial:
        partial.write_bytes(_with_sorted_header(save(tensors, metadata=metadata)))


def load_latent(path: Path) -> dict[str, Tensor]:
    """Returns the latent weights, by the names of the parameters."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole file of latent weights ({error})") from None


def _with_sorted_header(content: bytes) -> bytes:
    """Returns the bytes of a safetensors file with a sorted header; the order of metadata differs between processes.

    A header is its length, 8 bytes little-endian, followed by JSON, padded with blanks.
    """
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    return struct.pack("<Q", length) + header.ljust(length) + content[8 + length :]


def load_masks(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return unpack_masks({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a whole file of masks ({error})") from None


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Saves a training state, which has only tensors and plain values. Equal states give equal bytes."""
    # Saved to memory first: torch's file writer stores the path in the file, and hides the cause of a disk error.
    content = io.BytesIO()
    torch.save(_as_values(state), content)
    with whole_file(path) as partial:
        partial.write_bytes(content.getbuffer())


def _as_values(state: Any) -> Any:
    """Returns an equal state without shared objects, since a pickle records which strings and containers are shared."""
    if isinstance(state, str):
        return sys.intern(state)
    if isinstance(state, Mapping):
        return {_as_values(key): _as_values(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_as_values(value) for value in state)
    return state


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Loads a training state. Raises ValueError naming the file if it is damaged, OSError if it cannot be read."""
    with path.open("rb") as file:
        try:
            # torch does not check the checksums that it writes.
            damaged = zipfile.ZipFile(file).testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # a damaged file may raise any exception
            raise ValueError(f"{path}: not a whole training state ({str(error).partition(chr(10))[0]})") from None
