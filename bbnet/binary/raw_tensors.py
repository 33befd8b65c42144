"""Tensors as bytes, in files of the safetensors format. Imports neither torch nor the package `safetensors`.

Such a file is the length of its header (8 bytes, little-endian), the header (JSON: dtype, shape and place of every
tensor), and the bytes of the tensors.
"""

import json
import math
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

SIZES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2},
    **{"I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8},
}
LARGEST_HEADER = 100_000_000  # that of the package `safetensors`
MOST_DIMENSIONS = 64  # of a tensor of torch
METADATA = "__metadata__"


class RawTensor(NamedTuple):
    """A tensor: its dtype by the name that safetensors has for it, its shape, and its bytes, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


def size_of(dtype: Any, shape: Any) -> int:
    """Returns the number of bytes of a tensor. Raises ValueError if `dtype` or `shape`, read from a file, is none."""
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise ValueError(f"unknown dtype {_shortened(dtype)}")
    is_list = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS
    if not is_list or not all(type(length) is int and 0 <= length < 1 << 63 for length in shape):
        raise ValueError(f"shape {_shortened(shape)} is not a list of lengths")
    return SIZES[dtype] * math.prod(shape)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def to_bytes(tensors: Mapping[str, RawTensor], metadata: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """Returns the bytes of a file, the same for equal tensors and metadata.

    Without metadata they are those of the package `safetensors`, which orders tensors by dtype and name but metadata
    anew in every process.
    """
    order = {dtype: place for place, dtype in enumerate(reversed(SIZES))}
    names = sorted(tensors, key=lambda name: (order[tensors[name].dtype], name.encode()))
    header: dict[str, Any] = {METADATA: dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in names:
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[name].data for name in names)])


def from_bytes(content: bytes | memoryview) -> tuple[dict[str, RawTensor], dict[str, str]]:
    """Returns tensors, whose data are views of `content`, and metadata. Raises ValueError if it is no such file."""
    content = memoryview(content).cast("B")
    header, data = _header(content)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not texts")
    tensors, places = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {_shortened(name)}: its entry in the header lacks dtype, shape or data_offsets")
        size, offsets = size_of(entry["dtype"], entry["shape"]), entry["data_offsets"]
        if not isinstance(offsets, list) or len(offsets) != 2 or any(type(offset) is not int for offset in offsets):
            raise ValueError(f"tensor {_shortened(name)}: data_offsets {_shortened(offsets)} are not two places")
        begin, end = offsets
        if not 0 <= begin <= end <= len(data) or end - begin != size:
            raise ValueError(
                f"tensor {_shortened(name)}: has {size} bytes by its shape, but lies at {begin} to {end} of {len(data)}"
            )
        places.append((begin, end))
        tensors[name] = RawTensor(entry["dtype"], tuple(entry["shape"]), data[begin:end])
    covered = 0
    for begin, end in sorted(places):
        if begin != covered:
            raise ValueError("its tensors overlap, or there are gaps between them")
        covered = end
    if covered != len(data):
        raise ValueError(f"its tensors have {covered} bytes, and {len(data)} follow the header")
    return tensors, metadata


def _header(content: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Returns the header and what follows it."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(LARGEST_HEADER, len(content) - 8):
        raise ValueError("is not a whole safetensors file: it is shorter than its header would be")
    try:
        header = json.loads(bytes(content[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise ValueError("is not a safetensors file: its header is not JSON") from None
    if not isinstance(header, dict):
        raise ValueError("is not a safetensors file: its header is not a map of tensors")
    return header, content[8 + length :]
