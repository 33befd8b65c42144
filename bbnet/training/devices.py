"""Which device a job computes on."""

import torch


def choose_device(wanted: str) -> torch.device:
    """`auto` takes a GPU where there is one; raises ValueError for a GPU that is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: torch sees no GPU; allowed here: auto, cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
