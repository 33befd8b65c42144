"""Independent random streams, all derived from the one seed of a run."""

import hashlib

import torch


def stream(*purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a generator for one purpose, e.g. ("order", seed, epoch); it is the same in every process and machine."""
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
