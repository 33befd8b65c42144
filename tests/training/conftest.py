"""A tiny change-detection study: nets of two levels of eight channels, 32 x 32 tiles, a dozen samples."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bbnet.tasks.change import task as change
from bbnet.training.checkpoint import load_state, save_latent, save_masks, save_state, save_weights
from bbnet.training.runs import Job, train, warm_up

SIZES = {"train": 13, "val": 4, "test": 5}
METHODS = {
    "dense": {"algorithm": "dense"},
    "sp_in": {"algorithm": "budgeted_broadcast", "side": "in"},
    "sp_out": {"algorithm": "budgeted_broadcast", "side": "out"},
    "both": {"algorithm": "budgeted_broadcast", "side": "both"},
    "magnitude": {"algorithm": "magnitude", "side": "in"},
    "rigl": {"algorithm": "rigl", "side": "in"},
    "wanda": {"algorithm": "wanda", "side": "out"},
    "topk": {"algorithm": "topk"},
    "binary": {"algorithm": "dense", "weights": "binary", "latent_decay": True},
    "ternary": {"algorithm": "magnitude", "side": "in", "weights": "binary", "binary_layers": "all"},
    "stochastic": {"algorithm": "rigl", "side": "in", "weights": "stochastic_binary", "binary_scale": "one"},
}
SPEECH_MODEL = {
    "width": 16,
    "hidden": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "heads": 2,
    "stem_channels": 2,
    "dropout": 0.1,
}
TRAINING = {"epochs": 5, "warm_up_epochs": 1, "batch_size": 3, "learning_rate": 0.01, "weight_decay": 0.1}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> SimpleNamespace:
    """Prepared arrays: a bright square appears where the label says so; the last test image has two tiles."""
    folder = tmp_path_factory.mktemp("prepared")
    generator = np.random.default_rng(0)
    index = {"tile": 32, "mean": [100.0] * 3, "sd": [40.0] * 3, "splits": {}}
    for split, count in SIZES.items():
        images = generator.integers(60, 140, (count, 2, 3, 32, 32), dtype=np.uint8)
        labels = np.zeros((count, 32, 32), dtype=np.uint8)
        for number, (y, x) in enumerate(generator.integers(0, 20, (count, 2))):
            labels[number, y : y + 12, x : x + 12] = 1
        images[:, 1] += 100 * labels[:, None]
        np.save(folder / f"{split}_images.npy", images)
        np.save(folder / f"{split}_labels.npy", labels)
        starts = [*range(count - 1), count] if split == "test" else list(range(count + 1))
        names = [f"{split}_{number}" for number in range(len(starts) - 1)]
        index["splits"][split] = {"images": names, "starts": starts}
    return SimpleNamespace(folder=folder, index=index, task=change)


@pytest.fixture(scope="session")
def job(prepared):
    """A job of one of `METHODS`, and of any other training, slabs or seed."""

    def make(method: str = "dense", *, budget: str | None = None, seed: int = 0, **training) -> Job:
        config = {
            "task": "change",
            "model": {"widths": [8, 8]},
            "training": TRAINING | training,
            "slabs": "wide",
            "seed": seed,
            "device": "cpu",
            "cpu_threads": 1,
            "deterministic": False,
            "precision": "auto",
            "compile": "auto",
            "method": METHODS[method],
            "budget": budget or ("1.00" if METHODS[method]["algorithm"] == "dense" else "0.37"),
            "smallest_budget": "0.37",
            "sparsity": {"rescale": "none", "ramp_end": 0.4, "freeze": 0.75, "every": 2},
        }
        return Job(config, prepared.folder, prepared.index)

    return make


@pytest.fixture(scope="session")
def warm_start(job, tmp_path_factory):
    """The state after the warm-up of a seed, as it comes back from disk."""
    made = {}

    def make(seed: int = 0, **training):
        key = (seed, *sorted(training.items()))
        if key not in made:
            path = tmp_path_factory.mktemp("warm_up") / "checkpoint.pt"
            save_state(path, warm_up(job(seed=seed, **training))[0])
            made[key] = path
        return load_state(made[key], torch.device("cpu"))

    return make


@pytest.fixture(scope="session")
def finished(job, warm_start, tmp_path_factory):
    """A finished run of a method, its job, and its folder with weights and masks."""
    made = {}

    def make(method: str) -> SimpleNamespace:
        if method not in made:
            folder = tmp_path_factory.mktemp("run")
            its_job = job(method)
            run = train(its_job, warm_start())
            save_weights(Path(folder) / "model.safetensors", run.weights)
            save_masks(Path(folder) / "masks.safetensors", run.masks)
            if run.latent:
                save_latent(Path(folder) / "latent.safetensors", run.latent, run.half_ranges)
            made[method] = SimpleNamespace(job=its_job, run=run, folder=folder)
        return made[method]

    return make


@pytest.fixture
def batches_seen(monkeypatch):
    """Every augmented training batch, as bytes, in the order in which the loss saw it."""
    seen = []
    original = change.loss

    def loss(model, batch):
        seen.append(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes())
        return original(model, batch)

    monkeypatch.setattr(change, "loss", loss)
    return seen
