"""Prepare streams: its memory does not grow with the corpus."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

FOLDERS = ("train-clean-100", "dev-clean", "test-clean", "test-other")
SCRIPT = """
import json, resource, sys
from pathlib import Path
from bbnet.tasks.asr.task import fetch, prepare
from bbnet.tasks.asr.settings import Faults
root, target = Path(sys.argv[1]), Path(sys.argv[2])
manifest = fetch({"pack": "librispeech", "path": str(root), "complete": False}, target)
settings = {"faults": Faults().model_dump(), "tokens": {"kind": "characters"}}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
index = prepare(manifest, settings, target)
own, worker = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({"before": before, "own": own, "worker": worker, "kept": len(index["splits"]["train"]["utterances"])}))
"""


def write_corpus(root: Path, utterances: int, seconds: float) -> None:
    """Most files are links to a few, since their content does not matter here."""
    random = np.random.default_rng(0)
    noise = [root / f"noise-{number}.flac" for number in range(4)]
    root.mkdir()
    for path in noise:
        soundfile.write(path, random.normal(0, 0.05, round(16_000 * seconds)), 16_000)
    for folder in FOLDERS:
        count = utterances if folder == FOLDERS[0] else 4
        for first in range(0, count, 100):
            chapter = root / folder / str(first) / "1"
            chapter.mkdir(parents=True)
            keys = [f"{first}-1-{number:04d}" for number in range(min(100, count - first))]
            for number, key in enumerate(keys):
                os.link(noise[number % 4], chapter / f"{key}.flac")
            (chapter / f"{first}-1.trans.txt").write_text("".join(f"{key} A SHORT TEXT\n" for key in keys))


def peaks(tmp_path: Path, utterances: int, seconds: float) -> dict[str, int]:
    """Peak memory in KiB: of the process before and after `prepare`, and of its largest worker."""
    root, target = tmp_path / f"corpus-{utterances}-{seconds}", tmp_path / f"target-{utterances}-{seconds}"
    write_corpus(root, utterances, seconds)
    target.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, root, target],
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["kept"] == utterances
    print(utterances, seconds, found)
    return found


@pytest.mark.slow
def test_memory_stays_below_2_gib_and_does_not_grow_with_the_number_of_utterances(tmp_path):
    few, many = peaks(tmp_path, 2_000, 1.0), peaks(tmp_path, 20_000, 1.0)
    per_utterance = (many["own"] - few["own"]) * 1024 / 18_000
    features = 98 * 80 * 4
    assert per_utterance < features / 4
    assert many["worker"] - few["worker"] < 64 * 1024
    for processes in (few, many):
        assert processes["own"] + 2 * processes["worker"] < 2 * 1024**2


@pytest.mark.slow
def test_shards_of_long_utterances_stay_below_2_gib_too(tmp_path):
    long = peaks(tmp_path, 512, 25.0)
    assert long["own"] + 2 * long["worker"] < 2 * 1024**2
