"""Timing of a training step, for `bbnet plan` and `make bench`; run as `python -m bbnet.training.step_time`."""

import argparse
import json
import sys
import time
from typing import Any

import torch

from bbnet.data.packs import pack_of
from bbnet.study.config import Study
from bbnet.tasks import task as tasks
from bbnet.training.devices import choose_device
from bbnet.training.step import optimiser_step, resolve_precision
from bbnet.training.trainer import make_optimizer

STEPS = 20
MOST_SECONDS = 60
UNTIMED_STEPS = 2


def measure(study: Study, task_name: str, label: str, device: torch.device) -> dict[str, Any]:
    """Measures the mean time of a dense training step of a study's model, on a random batch on the device.

    Of a training on several devices it is the step of one of them with its share of the batch, without the others.
    Up to 20 steps are timed, fewer if they take more than a minute. Returns `step_seconds`, `steps` and `weights`.
    """
    torch.set_num_threads(study.cpu_threads)
    torch.manual_seed(0)
    task, settings = tasks.load(task_name), study.task_settings()[task_name]
    settings = settings.model_copy(update={"training": settings.training.on_one_device()})
    index, batch = task.random_batch(settings, pack_of(settings.data), device)
    model = task.build_model(settings.models[label], index, device)
    optimizer = make_optimizer(model, settings.training)
    augmentation = torch.Generator(device=device).manual_seed(0)
    precision = resolve_precision(study.precision, device)
    times: list[float] = []
    while len(times) < UNTIMED_STEPS + STEPS and sum(times) < MOST_SECONDS:
        began = time.perf_counter()
        optimiser_step(task, model, optimizer, settings.training, batch, augmentation, precision)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    timed = times[UNTIMED_STEPS:] or times[-1:]
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {"step_seconds": sum(timed) / len(timed), "steps": len(timed), "weights": weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", required=True, choices=["auto", "cpu", "cuda"])
    options = parser.parse_args()
    study = Study.model_validate(json.load(sys.stdin.buffer))
    print(json.dumps(measure(study, options.task, options.model, choose_device(options.device))))


if __name__ == "__main__":
    main()
