"""Many runs: what collects, compares, draws and tabulates them stays quick, small and linear in their number."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

HERE = Path(__file__).parent
specification = importlib.util.spec_from_file_location("synthetic_runs", HERE / "synthetic_runs.py")
synthetic = importlib.util.module_from_spec(specification)
specification.loader.exec_module(synthetic)

MOST_SECONDS, MOST_MIB = 60, 2048


def read(root: Path, name: str) -> pd.DataFrame:
    path = root / "results" / "summary" / name
    return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype={"budget": str})


@pytest.fixture(scope="module")
def sixty(tmp_path_factory) -> Path:
    """A project of 60 runs, collected and compared."""
    root = tmp_path_factory.mktemp("sixty")
    asked = synthetic.make_project(root, synthetic.SIZES[60])
    assert len(asked) == 60
    for script in ("collect", "compare"):
        synthetic.run_stage(root, script, synthetic.stages()[script])
    return root


def test_sixty_runs_are_collected(sixty):
    grid = read(sixty, "grid.csv")
    assert (len(grid), set(grid["status"])) == (60, {"done"})
    assert len(read(sixty, "timing.csv")) == 60
    assert len(read(sixty, "items.parquet")) == 60 * synthetic.IMAGES
    units = read(sixty, "units.parquet")
    assert units["phase"].value_counts().to_dict() == {"run": 60 * 300, "warm_up": 4 * 300}
    assert len(read(sixty, "history.parquet")) == 60 * synthetic.EPOCHS
    # Dense and topk have no refreshes.
    assert len(read(sixty, "refreshes.parquet")) == (60 - 4 - 8) * synthetic.REFRESHES * len(synthetic.SLABS)
    assert len(read(sixty, "slabs.csv")) == 60 * len(synthetic.SLABS)


def test_sixty_runs_are_compared(sixty):
    cells, contrasts, claims = (read(sixty, f"{name}.csv") for name in ("cells", "contrasts", "claims"))
    assert cells.groupby(["method", "budget"]).ngroups == 15
    assert (cells["n_seeds"] == 4).all()
    # At each of two budgets: seven with dense, sp_in with the six others, sp_out with five, all on the same slabs.
    methods = [name for name in synthetic.METHODS if name != "dense"][:7]
    assert {"sp_in", "sp_out"} <= set(methods)
    assert len(contrasts) == 2 * (7 + 6 + 5)
    assert contrasts[["low", "high", "p", "p_holm"]].notna().all(axis=None)
    assert (contrasts["p_holm"] >= contrasts["p"]).all()
    assert set(claims["method"]) == set(methods)


def test_the_fabricated_runs_give_means_worked_again_from_their_items(sixty):
    items = read(sixty, "items.parquet")
    sums = items.groupby(["method", "budget", "seed"])[["tp", "fp", "fn"]].sum()
    f1 = (2 * sums["tp"] / (2 * sums["tp"] + sums["fp"] + sums["fn"])).groupby(["method", "budget"]).mean()
    cells = read(sixty, "cells.csv")
    found = cells[cells["metric"] == "f1"].set_index(["method", "budget"])["mean"]
    assert found.sort_index().tolist() == pytest.approx(f1.sort_index().tolist())


@pytest.mark.parametrize("label", ["nan", "null"])
def test_a_method_is_compared_whatever_its_label(tmp_path, monkeypatch, label):
    methods = {name: synthetic.METHODS[name] for name in ("dense", "sp_in")} | {label: synthetic.METHODS["random"]}
    monkeypatch.setattr(synthetic, "METHODS", methods)
    synthetic.make_project(tmp_path, synthetic.Size(models=1, methods=2, budgets=1, seeds=1))
    for script in ("collect", "compare"):
        synthetic.run_stage(tmp_path, script, synthetic.stages()[script])
    cells = pd.read_csv(tmp_path / "results/summary/cells.csv", keep_default_na=False)
    assert set(cells["method"]) == set(methods)


@pytest.mark.slow
def test_time_and_memory_grow_about_linearly_up_to_a_thousand_runs(tmp_path):
    """Seconds are those of the processor, which other programs do not lengthen."""
    used = {}
    for count in (100, 400, 1000):
        root = tmp_path / str(count)
        assert len(synthetic.make_project(root, synthetic.SIZES[count])) == count
        used[count] = synthetic.measure(root)
        print(count, {name: tuple(round(number, 1) for number in one) for name, one in used[count].items()})
    for script in synthetic.stages():
        assert used[1000][script].processor < MOST_SECONDS, script
        assert used[1000][script].peak_mib < MOST_MIB, script
        of_one_run = {count: used[count][script].processor / count for count in (400, 1000)}
        assert of_one_run[1000] < 1.5 * of_one_run[400], script  # quadratic: 2.5
