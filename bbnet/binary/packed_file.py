"""The format of `pack`: one bit for every binary weight that is not 0, and all other tensors as they are.

A file is a safetensors file with five tensors, in which tensors stand in the order of their names:

- `signs`: a bit for every weight that is not 0, set if it is negative; of all layers together, padded at the end;
- `masks`: a bit for every kernel, or for every weight, set if it is not 0, for the layers that have weights of 0;
- `scales`: h of each binary layer, float64. A weight is -h, 0 or +h, with h rounded to the dtype of the layer;
- `rest`: the bytes of all other tensors;
- `index`: JSON, compressed by zlib: a list of name, dtype and shape of every tensor, and of a binary one also the
  number of weights per bit of its mask, 0 without a mask.

The metadata are `format`, `version`, and `crc32` of the five tensors. This module imports no torch.
"""

import json
import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bbnet.binary.raw_tensors import SIZES, RawTensor, from_bytes, size_of, to_bytes

FORMAT, VERSION = "bbnet-packed-weights", 1
PARTS = {"index": "U8", "signs": "U8", "masks": "U8", "scales": "F64", "rest": "U8"}
BITS = {"F64": "<u8", "F32": "<u4", "F16": "<u2", "BF16": "<u2"}  # dtypes of binary weights, and of their bits
# What a file can make a reader allocate is limited: by a bit of a mask stand at most this many weights of 0, and the
# index, before it is compressed, has at most this many bytes.
LARGEST_KERNEL = 64
LARGEST_INDEX = 1 << 22


class Entry(NamedTuple):
    """A tensor of the index. `per_bit` is the number of weights per bit of its mask, 0 without one, else None."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    per_bit: int | None


def weight_of(layer: str) -> str:
    """Returns the name of a layer's weight in a state; the name of the model itself is empty."""
    return f"{layer}.weight" if layer else "weight"


def to_packed(tensors: Mapping[str, RawTensor], half_ranges: Mapping[str, float]) -> bytes:
    """Returns the bytes of a file.

    Args:
        half_ranges: h of each binary layer, whose weight is the tensor `{layer}.weight`.
    Raises: ValueError naming a layer without such a tensor, or with values that are not -h, 0 or +h.
    """
    missing = sorted(layer for layer in half_ranges if weight_of(layer) not in tensors)
    if missing:
        raise ValueError(f"layer {missing[0]}: there is no tensor {weight_of(missing[0])}")
    scales = {weight_of(layer): float(h) for layer, h in half_ranges.items()}
    entries, signs, masks = [], [np.zeros(0, bool)], [np.zeros(0, bool)]
    for name in sorted(tensors):
        tensor, per_bit = tensors[name], None
        if name in scales:
            negative, live = _signs(name, tensor, scales[name])
            per_bit, mask = _mask(live, tensor.shape)
            signs.append(negative[live])
            masks.append(mask)
        entries.append(Entry(name, tensor.dtype, tensor.shape, per_bit))
    described = [[value for value in entry if value is not None] for entry in entries]
    index = json.dumps(described, separators=(",", ":")).encode()
    if len(index) > LARGEST_INDEX:
        raise ValueError(f"the names of {len(entries)} tensors take more than {LARGEST_INDEX} bytes")
    parts = {
        "index": zlib.compress(index, 9),
        "signs": np.packbits(np.concatenate(signs)).tobytes(),
        "masks": np.packbits(np.concatenate(masks)).tobytes(),
        "scales": np.array([scales[entry.name] for entry in entries if entry.name in scales], "<f8").tobytes(),
        "rest": b"".join(tensors[entry.name].data for entry in entries if entry.per_bit is None),
    }
    raw = {name: RawTensor(dtype, (len(parts[name]) // SIZES[dtype],), parts[name]) for name, dtype in PARTS.items()}
    return to_bytes(raw, {"format": FORMAT, "version": str(VERSION), "crc32": _checksum(parts)})


def _signs(name: str, tensor: RawTensor, h: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns which weights are negative, and which are not 0: bool [weights]."""
    if tensor.dtype not in BITS:
        raise ValueError(f"{name}: its dtype is {tensor.dtype}, binary weights are {', '.join(BITS)}")
    bits = np.frombuffer(tensor.data, BITS[tensor.dtype])
    magnitudes = bits & ~_sign_bit(bits)
    live = magnitudes != 0
    wrong = int(np.count_nonzero(magnitudes[live] != bits_of(name, h, tensor.dtype)))
    if wrong:
        raise ValueError(f"{name}: {wrong} of {bits.size} weights are not -h, 0 or +h, where h is {h!r}")
    return (bits & _sign_bit(bits)) != 0, live


def bits_of(name: str, h: float, dtype: str) -> np.unsignedinteger:
    """Returns the bits of h, rounded to float32 and then to `dtype` as torch does; raises ValueError if it is no scale.

    bfloat16, which numpy lacks, is the upper half of a float32, rounded to even.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = np.float64(h) if dtype == "F64" else np.float32(h)
        if dtype == "F16":
            rounded = rounded.astype(np.float16)
    bits = rounded.view(BITS[dtype] if dtype != "BF16" else BITS["F32"])
    if dtype == "BF16":
        whole = int(bits)
        bits = np.uint16((whole + 0x7FFF + (whole >> 16 & 1)) >> 16)
        rounded = np.uint32(int(bits) << 16).view(np.float32)
    if not 0 < rounded < math.inf:
        raise ValueError(f"{name}: h is {h!r}, which is not a positive number in {dtype}")
    return bits


def _mask(live: np.ndarray, shape: tuple[int, ...]) -> tuple[int, np.ndarray]:
    """Returns the number of weights per bit of the mask, 0 if all are live, and the mask."""
    if live.all():
        return 0, live[:0]
    kernel = math.prod(shape[2:])
    by_kernel = live.reshape(-1, kernel)
    if kernel <= LARGEST_KERNEL and (by_kernel == by_kernel[:, :1]).all():
        return kernel, by_kernel[:, 0]
    return 1, live


def _checksum(parts: Mapping[str, bytes | memoryview]) -> str:
    checksum = 0
    for name in PARTS:
        checksum = zlib.crc32(parts[name], checksum)
    return f"{checksum:08x}"


def read_packed(path: Path) -> dict[str, RawTensor]:
    """Reads a file; raises ValueError naming it if it is damaged, cut, of another format or of a later version."""
    try:
        # Mapped, so that a large file of another format is refused by its header, without reading it whole.
        return from_packed(memoryview(np.memmap(path, np.uint8, "r")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_packed(content: bytes | memoryview) -> dict[str, RawTensor]:
    """Returns all tensors of a file from its bytes; raises ValueError saying why it is not valid."""
    found, metadata = from_bytes(content)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"is not a file of packed weights: its metadata do not name the format {FORMAT}")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"has version {metadata.get('version', 'none')!r:.20} of the format, this bbnet reads version {VERSION}"
        )
    described = {name: (tensor.dtype, len(tensor.shape)) for name, tensor in found.items()}
    if described != {name: (dtype, 1) for name, dtype in PARTS.items()}:
        raise ValueError(f"its tensors are not {', '.join(PARTS)}, of one dimension")
    parts = {name: found[name].data for name in PARTS}
    if _checksum(parts) != metadata.get("crc32"):
        raise ValueError("is damaged: its checksum differs")
    return _unpacked(parts)


def _unpacked(parts: Mapping[str, memoryview]) -> dict[str, RawTensor]:
    """Returns the tensors, after checking that the parts have the sizes that the index says."""
    entries = _from_index(parts["index"])
    binary = [entry for entry in entries if entry.per_bit is not None]
    others = [entry for entry in entries if entry.per_bit is None]
    of_masks = [math.prod(entry.shape) // entry.per_bit if entry.per_bit else 0 for entry in binary]
    _check_length("rest", parts, sum(size_of(entry.dtype, list(entry.shape)) for entry in others))
    _check_length("scales", parts, 8 * len(binary))
    _check_length("masks", parts, -(-sum(of_masks) // 8))
    masks = _by_layer(parts["masks"], of_masks)
    of_signs = [
        int(np.count_nonzero(mask)) * entry.per_bit if entry.per_bit else math.prod(entry.shape)
        for entry, mask in zip(binary, masks, strict=True)
    ]
    _check_length("signs", parts, -(-sum(of_signs) // 8))
    signs = _by_layer(parts["signs"], of_signs)
    scales = np.frombuffer(parts["scales"], "<f8").tolist()
    tensors, place = {}, 0
    for entry, mask, negative, scale in zip(binary, masks, signs, scales, strict=True):
        h = bits_of(entry.name, scale, entry.dtype)
        values = np.zeros(math.prod(entry.shape), BITS[entry.dtype])
        live = np.repeat(mask, entry.per_bit) if entry.per_bit else slice(None)
        values[live] = np.where(negative, h | _sign_bit(values), h)
        tensors[entry.name] = RawTensor(entry.dtype, entry.shape, values.tobytes())
    for entry in others:
        end = place + size_of(entry.dtype, list(entry.shape))
        tensors[entry.name] = RawTensor(entry.dtype, entry.shape, bytes(parts["rest"][place:end]))
        place = end
    return tensors


def _by_layer(packed: memoryview, counts: list[int]) -> list[np.ndarray]:
    """Unpacks bits and splits them by layer."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=sum(counts)).view(bool)
    return np.split(bits, np.cumsum(counts)[:-1]) if counts else []


def _sign_bit(bits: np.ndarray) -> np.unsignedinteger:
    return bits.dtype.type(1 << (8 * bits.itemsize - 1))


def _check_length(name: str, parts: Mapping[str, memoryview], expected: int) -> None:
    if len(parts[name]) != expected:
        raise ValueError(f"is not valid: {name} has {len(parts[name])} bytes, by its index it would have {expected}")


def _from_index(compressed: memoryview) -> list[Entry]:
    """Returns the entries; raises ValueError if the index is not valid or larger than `LARGEST_INDEX`."""
    try:
        decompressor = zlib.decompressobj()
        index = decompressor.decompress(compressed, LARGEST_INDEX)
        if not decompressor.eof:
            raise ValueError(f"it is cut or larger than {LARGEST_INDEX} bytes")
        entries = [_entry(*entry) for entry in json.loads(index)]
    except (ValueError, RecursionError, TypeError, zlib.error) as error:
        raise ValueError(f"is not valid: its index cannot be read ({type(error).__name__}: {error!s:.100})") from None
    names = [entry.name for entry in entries]
    if names != sorted(set(names)):
        raise ValueError("is not valid: the names in its index are not in order")
    return entries


def _entry(name: Any, dtype: Any, shape: Any, per_bit: Any = None) -> Entry:
    size_of(dtype, shape)
    if not isinstance(name, str):
        raise ValueError(f"{name!r:.60} is no name")
    if per_bit is not None:
        kernel = math.prod(shape[2:])
        allowed = (0, 1, kernel) if kernel <= LARGEST_KERNEL else (0, 1)
        if dtype not in BITS or type(per_bit) is not int or per_bit not in allowed:
            raise ValueError(f"{name!r:.60} cannot be a binary weight")
    return Entry(name, dtype, tuple(shape), per_bit)
