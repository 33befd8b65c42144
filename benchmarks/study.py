"""Share of a study's time spent in training loops, from its logs: `python benchmarks/study.py results/demo SECONDS`.

SECONDS is the wall time of the call of snakemake that ran the study. The time of an epoch includes its scoring on dev.
"""

import argparse
import os
import re
from pathlib import Path

from tabulate import tabulate

EPOCH = re.compile(r"epoch \d+ of \d+ \(.*?, ([\d.]+) s, about")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()
    rows = []
    for kind in ("warm_up", "train"):
        by_task: dict[str, list[float]] = {}
        for log in sorted((options.results / "logs" / kind).glob("*.log")):
            epochs = sum(map(float, EPOCH.findall(log.read_text(encoding="utf-8"))))
            by_task.setdefault(log.name.partition("-")[0], []).append(epochs)
        rows += [(kind, task, len(loops), sum(loops)) for task, loops in by_task.items()]
    total = sum(row[-1] for row in rows)
    print(tabulate(rows, headers=("rule", "task", "jobs", "seconds in loops"), floatfmt=".0f"))
    cores = os.cpu_count() or 1
    print(f"\n{total:.0f} s of {cores} x {options.seconds:.0f} s: {total / cores / options.seconds:.3f}")


if __name__ == "__main__":
    main()
