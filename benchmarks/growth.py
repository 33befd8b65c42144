"""Time and memory of an epoch by amount of data and width of the model, each measured in a separate process."""

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
    """Returns, by task and `data` or `width`, the seconds and peak memory in MiB of an epoch for each of `FACTORS`."""
    found = {}
    for name in WIDTHS:
        points = {}
        for data in FACTORS:
            with tempfile.TemporaryDirectory() as folder:
                # Data are generated in another process, whose memory does not count towards that of training.
                _run_in_process("prepare", name, device, folder, data)
                for width in FACTORS if data == 1 else (1,):
                    points[data, width] = json.loads(_run_in_process("train", name, device, folder, data, width))
        found[name] = {
            "data": [points[factor, 1] for factor in FACTORS],
            "width": [points[1, factor] for factor in FACTORS],
        }
    return found


def _run_in_process(work: str, name: str, device: torch.device, folder: str, data: int, width: int = 1) -> str:
    options = {"task": name, "device": device.type, "folder": folder, "data": data, "width": width, "work": work}
    command = [sys.executable, __file__, *(f"--{key}={value}" for key, value in options.items())]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout


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
