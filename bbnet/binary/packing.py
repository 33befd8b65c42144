"""Saves the weights of a binary network in one bit each, and loads them without bbnet's hooks."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bbnet.binary.packed_file import read_packed, to_packed
from bbnet.binary.raw_tensors import RawTensor
from bbnet.data.store import whole_file

DTYPES = {
    "BOOL": torch.bool,
    **{"U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
    **{"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64},
    **{"F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F32": torch.float32, "F64": torch.float64, "C64": torch.complex64},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def pack(state: Mapping[str, Tensor], half_ranges: Mapping[str, float], path: str | Path) -> None:
    """Saves a state with one bit for every binary weight, and one for its mask if weights of its layer are 0.

    `pack(model.state_dict(), binarizer.half_ranges, path)` saves a model that `bbnet.binarize` trains. All other
    tensors, such as biases and the statistics of batch norm, are saved as they are. Equal states give equal bytes; the
    format is described in `bbnet.binary.packed_file`.

    Args:
        state: the `state_dict` of a model.
        half_ranges: h of each binary layer by name: its weight is the tensor `{layer}.weight` of the state, in float16,
            bfloat16, float32 or float64, with the values -h, 0 and +h in its dtype.
    Raises: ValueError naming a layer that the state lacks or whose weights have other values, or a tensor that cannot
        be saved. Nothing is written then.
    """
    packed = to_packed({name: _to_raw(name, tensor) for name, tensor in state.items()}, half_ranges)
    with whole_file(Path(path)) as partial:
        partial.write_bytes(packed)


def unpack(path: str | Path) -> dict[str, Tensor]:
    """Returns the state that `pack` has saved, on the CPU and with equal bits: `model.load_state_dict(unpack(path))`.

    Raises: ValueError naming the file if it is damaged, cut, of another format or of a later version, before memory is
        allocated for more than 512 weights per byte of the file.
    """
    return {name: _from_raw(raw) for name, raw in read_packed(Path(path)).items()}


def _to_raw(name: str, tensor: Tensor) -> RawTensor:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in NAMES:
        kind = f"{tensor.dtype}, {tensor.layout}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: only dense tensors of numbers can be packed, this is {kind}")
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return RawTensor(NAMES[tensor.dtype], tuple(tensor.shape), data)


def _from_raw(raw: RawTensor) -> Tensor:
    dtype = DTYPES[raw.dtype]
    if not raw.data:
        return torch.empty(raw.shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw.data), dtype=dtype).reshape(raw.shape)
