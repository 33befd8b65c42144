"""Calibration inputs: how a model is called with them, which positions are valid, and what a record says of them."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], Any]
Valid = Callable[[Any], Tensor | Mapping[str, Tensor] | None]


def call(model: nn.Module, batch: Any) -> Any:
    """Calls a model with a batch: a mapping of keyword arguments, a sequence of arguments, or the only argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def unpadded(batch: Any) -> Tensor | None:
    """Returns where the `attention_mask` [batch, positions] of a mapping is not 0, None if there is no such mask."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask != 0 if isinstance(mask, Tensor) and mask.dim() == 2 else None


@dataclass(frozen=True)
class Calibration:
    """Batches in a fixed order, with the functions that read them.

    Attributes:
        forward: calls the model with a batch.
        valid: returns the valid positions of a batch, as `Sparsifier.valid` takes them; None if all are valid.
    """

    batches: Sequence[Any]
    forward: Forward = call
    valid: Valid = unpadded

    def description(self) -> dict[str, Any]:
        """Returns the numbers of batches, of sequences and of valid positions, and a hash of all tensors in order.

        A sequence is a row of the first tensor of a batch. Positions are those of the masks of valid positions, by part
        of the model if there are several, and None if no batch has one.
        """
        digest, sequences, positions = hashlib.sha256(), 0, {}
        for batch in self.batches:
            tensors = list(_tensors(batch))
            sequences += len(tensors[0]) if tensors and tensors[0].dim() else 0
            for tensor in tensors:
                plain = tensor.detach().cpu().contiguous()
                digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
            valid = self.valid(batch)
            parts = valid if isinstance(valid, Mapping) else {} if valid is None else {"": valid}
            for part, mask in parts.items():
                positions[part] = positions.get(part, 0) + int(mask.sum())
        return {
            "batches": len(self.batches),
            "sequences": sequences,
            "positions": positions or None,
            "sha256": digest.hexdigest(),
        }


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in nested mappings, sequences and dataclasses, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
