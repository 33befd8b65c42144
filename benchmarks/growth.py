"""Time and memory of an epoch against data and width, each in a process of its own."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cases import ROOT, Case
from pydantic import BaseModel

from bbnet.study.config import read_study
from bbnet.study.record import peak_memory_mib
from bbnet.training.devices import choose_device

FACTORS = (1, 2, 4)
WIDTHS = {"asr": ("width", "hidden"), "change": ("widths",), "face": ("widths",)}


def growth(device: torch.device) -> dict[str, dict[str, list[dict[str, float]]]]:
    """By task, `data` and `width`: for each of `FACTORS` the seconds of an epoch, and the peak memory in MiB."""
    return {
        name: {
            "data": [_point(name, device, data=factor) for factor in FACTORS],
            "width": [_point(name, device, width=factor) for factor in FACTORS],
        }
        for name in WIDTHS
    }


def _point(name: str, device: torch.device, data: int = 1, width: int = 1) -> dict[str, float]:
    command = [sys.executable, __file__, "--task", name, "--device", device.type]
    with tempfile.TemporaryDirectory() as folder:
        # Made in a process of its own, whose memory is not that of training.
        for work in ("prepare", "train"):
            done = subprocess.run(
                [*command, "--data", str(data), "--width", str(width), "--folder", folder, "--work", work],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
    return json.loads(done.stdout)


def _settings(name: str, data: int, width: int) -> BaseModel:
    settings = read_study("demo", ROOT / "studies").task_settings()[name]
    content: dict[str, Any] = settings.model_dump(exclude_unset=True)
    content["data"]["train"] *= data
    for model in content["models"].values():
        for key in WIDTHS[name]:
            value = model[key]
            model[key] = [width * each for each in value] if isinstance(value, list) else width * value
    return type(settings).model_validate(content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True, choices=list(WIDTHS))
    parser.add_argument("--device", required=True)
    parser.add_argument("--data", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--work", required=True, choices=["prepare", "train"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings, device = _settings(options.task, options.data, options.width), choose_device(options.device)
    case = Case("", options.task, settings, 1, 1, device, options.folder)
    if options.work == "prepare":
        case.make()
        return
    trainer = case.trainer()
    trainer.run_epoch("warm_up")
    began = time.monotonic()
    trainer.run_epoch("warm_up")
    took = time.monotonic() - began
    peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_memory_mib()
    print(json.dumps({"seconds": took, "peak_mib": peak}))


if __name__ == "__main__":
    main()
