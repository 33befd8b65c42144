"""Beside the model, one-shot pruning needs memory for two of its blocks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("peak_memory.py")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
@pytest.mark.thorough
@pytest.mark.parametrize("method", ["sparsegpt", "wanda"])
def test_the_peak_is_at_most_the_model_and_two_blocks(method):
    # Freed tensors are given back at once, so that the peak is that of tensors in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), method, "384", "6"]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    growth, block = map(int, printed.split())
    assert 0 < growth <= 2 * block
