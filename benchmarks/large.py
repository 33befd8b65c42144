"""Training of two Transformers of the usual sizes, by our methods and other libraries: time and memory of a step.

The models are a GPT of 98 million parameters and a ViT-S, and both matrices of their feed-forward blocks are slabs.
Batches are small, so that the work on weights, which a sparsifier adds to, is a large share of a step.

`python benchmarks/large.py MODEL METHOD` measures the memory of one method, which needs a process of its own.
"""

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.pruning import WeightNormSparsifier
from torch.nn import functional
from torch.nn.utils import prune

from bbnet.sparsity.plain.structure import find_slabs
from bbnet.sparsity.sparsifier import sparsify

BUDGET = 0.5
EVERY = 20  # steps from one refresh to the next, of which the first interval is warm-up
EVERY_FOR_MEMORY = 6
OURS = ("budgeted_broadcast", "magnitude", "rigl")
PEERS = ("torch.prune", "torch.ao.pruning", *(["sparsimony"] if find_spec("sparsimony") else []))


class Block(nn.Module):
    """A Transformer layer with its norms first."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.act, self.narrow = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.mixed(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.joined(attended.transpose(1, 2).flatten(2))
        return x + self.narrow(self.act(self.wide(self.norm2(x))))


class GPT(nn.Module):
    """12 layers of width 768, 16,384 tokens, 98 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(16_384, 768), nn.Parameter(torch.zeros(64, 768))
        self.blocks = nn.Sequential(*(Block(768, 12, causal=True) for _ in range(12)))
        self.norm = nn.LayerNorm(768)

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.linear(self.norm(self.blocks(self.embedding(tokens) + self.positions)), self.embedding.weight)

    @staticmethod
    def batch() -> tuple[Tensor, Tensor]:
        return torch.randint(16_384, (2, 64)), torch.randint(16_384, (2, 64))


class ViT(nn.Module):
    """ViT-S/16 for images of 224 pixels: 12 layers of width 384, 22 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 384, 16, 16), nn.Parameter(torch.zeros(196, 384))
        self.blocks = nn.Sequential(*(Block(384, 6, causal=False) for _ in range(12)))
        self.norm, self.head = nn.LayerNorm(384), nn.Linear(384, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(images).flatten(2).mT + self.positions)).mean(1))

    @staticmethod
    def batch() -> tuple[Tensor, Tensor]:
        return torch.randn(2, 3, 224, 224), torch.randint(1000, (2,))


MODELS: dict[str, Callable[[], Any]] = {"ViT-S": ViT, "GPT, 98 M": GPT}


class LargeArm:
    """One model in training, by one of `OURS`, by one of `PEERS`, or dense."""

    def __init__(self, model: str, method: str, device: torch.device, every: int = EVERY) -> None:
        torch.manual_seed(0)
        self.device = device
        self.model = MODELS[model]().to(device)
        self.inputs, self.targets = (each.to(device) for each in self.model.batch())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.after_step: Callable[[], Any] | None = None
        self.slabs = find_slabs(self.model, "both")
        layers = [slab.name for slab in self.slabs]
        if method in OURS:
            settings = {"total_steps": 10**6, "ramp_end": 0.0, "every": every}
            both = {"algorithm": method, "side": "both"}
            self.sparsifier = sparsify(self.model, self.optimizer, self.slabs, both, BUDGET, **settings)
        elif method == "torch.prune":
            for name in layers:
                layer = self.model.get_submodule(name)
                prune.custom_from_mask(layer, "weight", (torch.rand_like(layer.weight) < BUDGET).to(layer.weight))
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        elif method == "torch.ao.pruning":
            peer = WeightNormSparsifier(sparsity_level=BUDGET, sparse_block_shape=(1, 1))
            peer.prepare(self.model, [{"tensor_fqn": f"{name}.weight"} for name in layers])
            peer.step()
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        elif method == "sparsimony":
            self.after_step = self._sparsimony(layers, every)

    def _sparsimony(self, layers: list[str], every: int) -> Callable[[], Any]:
        from sparsimony.distributions.base import UniformDistribution
        from sparsimony.dst.set import SET
        from sparsimony.schedulers.base import ConstantScheduler

        schedule = ConstantScheduler(0.3, 10**6, every)
        peer = SET(schedule, UniformDistribution(), self.optimizer, BUDGET, init_method=None)
        peer.prepare(self.model, [{"tensor_fqn": f"{name}.weight"} for name in layers])
        return peer.step

    def step(self) -> float:
        """Trains for one step; returns its seconds."""
        began = self._now()
        self.optimizer.zero_grad()
        logits = self.model(self.inputs)
        functional.cross_entropy(logits.flatten(0, -2), self.targets.flatten()).backward()
        self.optimizer.step()
        if self.after_step is not None:
            self.after_step()
        return self._now() - began

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def measure_large(model: str, device: torch.device) -> dict[str, Any]:
    """Returns `step_ms`, the time of a dense step, and the figures of each method.

    These are `ratio`, the median over the steps between refreshes of the time relative to the dense step before it;
    `refresh_ms`; and on a CPU `bytes_per_weight`, the memory beyond that of dense training per weight of the slabs, and
    `refresh_bytes`, the additional peak at a refresh, see `memory`.
    """
    methods: dict[str, dict[str, float]] = {}
    names = ["dense", *OURS, *PEERS]
    for group in (names[:4], names[4:]):  # a few at a time, since each takes gigabytes
        print(f"  {', '.join(group)} ...", file=sys.stderr, flush=True)
        arms = {"reference": LargeArm(model, "dense", device)} | {name: LargeArm(model, name, device) for name in group}
        times: dict[str, list[float]] = {name: [] for name in arms}
        for _ in range(2 * EVERY):
            for name, arm in arms.items():
                times[name].append(arm.step())
        steps = range(EVERY, 2 * EVERY)
        reference = [times["reference"][step] for step in steps]
        for name in group:
            ratios = [times[name][step] / times["reference"][step] for step in steps if (step + 1) % EVERY]
            methods[name] = {"ratio": median(ratios)}
            if name in OURS:
                refreshes = [times[name][step] for step in steps if (step + 1) % EVERY == 0]
                methods[name]["refresh_ms"] = 1e3 * (min(refreshes) - median(reference))
        arms.clear()
        gc.collect()
    if device.type == "cpu":
        of = {name: _memory_in_process(model, name) for name in names}
        for name in names[1:]:
            weights = of[name]["slab_weights"]
            methods[name]["bytes_per_weight"] = (of[name]["steady"] - of["dense"]["steady"]) / weights
            methods[name]["refresh_bytes"] = max(0, of[name]["refresh"] - of[name]["steady"]) / weights
    return {"step_ms": 1e3 * median(reference), "methods": methods}


def memory(model: str, method: str) -> dict[str, int]:
    """Returns the peak of the process's resident bytes in the steps between refreshes, `steady`, and in the step of a
    refresh, `refresh`, and the number of `slab_weights`."""
    arm = LargeArm(model, method, torch.device("cpu"), EVERY_FOR_MEMORY)
    for _ in range(EVERY_FOR_MEMORY + 1):  # until memory for the first refresh has been claimed and given back
        arm.step()
    found = {"slab_weights": sum(arm.model.get_submodule(slab.name).weight.numel() for slab in arm.slabs)}
    for name, steps in (("steady", EVERY_FOR_MEMORY - 2), ("refresh", 1)):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak
        for _ in range(steps):
            arm.step()
        (peak,) = (
            line
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            if line.startswith("VmHWM")
        )
        found[name] = 1024 * int(peak.split()[1])
    return found


def _memory_in_process(model: str, method: str) -> dict[str, int]:
    command = [sys.executable, __file__, model, method]
    # Large blocks are given back at once, so that the peak is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return json.loads(
        subprocess.run(command, env=environment, check=True, capture_output=True, encoding="utf-8").stdout
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(memory(*sys.argv[1:])))
