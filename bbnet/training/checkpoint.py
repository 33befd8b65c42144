"""Weights, masks and warm starts on disk. Loading any of them executes no code from the file."""

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
        partial.write_bytes(_with_sorted_header(save(packed, metadata=shapes)))


def _with_sorted_header(content: bytes) -> bytes:
    """The bytes of a safetensors file with a sorted header: each process writes metadata in an order of its own.

    A header is its length, 8 bytes little-endian, and JSON, padded with blanks.
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
    """A training state: tensors and plain values only. Equal states give equal bytes."""
    # Into memory first: torch's own writer puts the path into the file, and does not say what the disk refused.
    content = io.BytesIO()
    torch.save(_as_values(state), content)
    with whole_file(path) as partial:
        partial.write_bytes(content.getbuffer())


def _as_values(state: Any) -> Any:
    """The same without identities: a pickle says which of its texts and containers were one object."""
    if isinstance(state, str):
        return sys.intern(state)
    if isinstance(state, Mapping):
        return {_as_values(key): _as_values(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_as_values(value) for value in state)
    return state


def load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Raises ValueError naming the file if a byte of it is not as it was written; OSError if there is none to read."""
    with path.open("rb") as file:
        try:
            # torch does not compare the checksums that it writes.
            damaged = zipfile.ZipFile(file).testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            file.seek(0)
            return torch.load(file, map_location=device, weights_only=True)
        except Exception as error:  # of whatever kind: a damaged file may say anything to its reader
            raise ValueError(f"{path}: not a whole training state ({str(error).partition(chr(10))[0]})") from None
