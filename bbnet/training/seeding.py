"""Seeds of independent random streams, all derived from a run's one seed."""

import hashlib

import torch


def stream(*purpose: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose, such as ("order", seed, epoch): the same in every process and on every machine."""
    digest = hashlib.sha256("/".join(map(str, purpose)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
