"""Budgeted Broadcast: traffic-based pruning with exact budgets, its rivals, and a reproducible study.

The names below are imported on first use, so that `import bbnet.study` does not import torch.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Binarizer": "bbnet.binary.binarizer",
    "Slab": "bbnet.sparsity.slab",
    "Sparsifier": "bbnet.sparsity.sparsifier",
    "allocate_degrees": "bbnet.sparsity.degrees",
    "binarize": "bbnet.binary.binarizer",
    "export": "bbnet.sparsity.plain.export",
    "find_slabs": "bbnet.sparsity.plain.structure",
    "probe": "bbnet.diagnostics.probe",
    "prune_one_shot": "bbnet.sparsity.one_shot.prune",
    "sparsify": "bbnet.sparsity.sparsifier",
    "watch": "bbnet.diagnostics.watch",
}

__all__ = list(_HOMES)


def __dir__() -> list[str]:
    return sorted(["__version__", *_HOMES])


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'bbnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
