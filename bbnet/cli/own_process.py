"""Calls a module that needs torch in a process of its own, because the command itself starts without it."""

import json
import subprocess
import sys
from typing import Any

from bbnet.study.config import Study


def call(module: str, study: Study, task: str, model: str, *arguments: str) -> Any:
    """Returns the JSON that `python -m module` prints for a model of a study, which it reads from its input.

    Raises: ValueError with the last line of its errors.
    """
    result = subprocess.run(
        [sys.executable, "-m", module, "--task", task, "--model", model, *arguments],
        input=study.model_dump_json(exclude_unset=True),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )
    if result.returncode:
        why = result.stderr.strip().splitlines()[-1:] or [f"ended by signal {-result.returncode}"]
        raise ValueError(why[0])
    return json.loads(result.stdout)
