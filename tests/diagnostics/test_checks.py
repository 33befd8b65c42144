"""Each check on a case that has its finding and on one that misses it narrowly; tables and files of the report."""

import csv
import json
import math

import pytest
import torch
from torch import nn

import bbnet
from bbnet.diagnostics import checks


class Shift(torch.optim.Optimizer):
    """Adds to each weight what the test has set for this step, whatever the gradient is."""

    def __init__(self, weight):
        super().__init__([weight], {})
        self.weight, self.shift = weight, 0.0

    @torch.no_grad()
    def step(self, closure=None):
        self.weight += self.shift


def verdicts(gradients, shifts, entries=1, start=1.0, dtype=torch.float64):
    """The findings on a weight of equal entries, whose gradients and updates per entry are given step by step."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.full((entries,), start, dtype=dtype))
    optimizer = Shift(model.weight)
    shifts = shifts if isinstance(shifts, list) else [shifts] * len(gradients)
    with bbnet.watch(model, optimizer, every=1) as watched:
        for gradient, optimizer.shift in zip(gradients, shifts, strict=True):
            model.weight.grad = None if gradient is None else torch.full_like(model.weight, gradient)
            optimizer.step()
    return {row["check"]: row for row in watched.verdicts()}


HEALTHY = [1e-2] * 20
CASES = {
    "vanishing: in more than half": (
        "vanishing",
        ([0.9e-7] * 11 + [1e-2] * 9, 1e-3),
        ([0.9e-7] * 10 + [1e-2] * 10, 1e-3),
    ),
    "vanishing: below 1e-7": ("vanishing", ([0.99e-7] * 20, 1e-3), ([1.01e-7] * 20, 1e-3)),
    "low: below 1e-5": ("low", ([0.99e-5] * 20, 1e-3), ([1.01e-5] * 20, 1e-3)),
    "low: from 1e-7": ("low", ([1.01e-7] * 20, 1e-3), ([0.99e-7] * 20, 1e-3)),
    "high: above 10": ("high", ([10.1] * 20, 1e-3), ([9.9] * 20, 1e-3)),
    "high: in more than a tenth": ("high", ([11.0] * 3 + [1.0] * 17, 1e-3), ([11.0] * 2 + [1.0] * 18, 1e-3)),
    "never updated": ("never updated", (HEALTHY, 0.9e-8), (HEALTHY, [0.0] * 19 + [1.1e-8])),
    "no update despite gradient: more than 5": (
        "no update despite gradient",
        (HEALTHY, [0.0] * 6 + [1e-3] * 14),
        (HEALTHY, [0.0] * 5 + [1e-3] * 15),
    ),
    "no update without a gradient is none": (
        "no update despite gradient",
        (HEALTHY, [0.9e-8] * 20),
        ([0.0] * 15 + [1e-2] * 5, [0.0] * 20),
    ),
    "stuck: not a bit": ("stuck", (HEALTHY, [0.0] * 6 + [1e-3] * 14), (HEALTHY, [1e-12] * 6 + [1e-3] * 14)),
    "unchanged: by 1e-6": (
        "unchanged",
        (HEALTHY, [1e-3, -1e-3] * 9 + [0.4e-6, 0.5e-6]),
        (HEALTHY, [1e-3, -1e-3] * 9 + [0.5e-6, 0.6e-6]),
    ),
    "unchanged: more than 10 gradients": ("unchanged", ([1e-2] * 11, 0.0), ([1e-2] * 10, 0.0)),
    "unchanged (relative)": ("unchanged (relative)", (HEALTHY, 4e-8), (HEALTHY, 6e-8)),
    "slow": ("slow", (HEALTHY, 0.9e-6), (HEALTHY, 1.1e-6)),
    "fast": ("fast", (HEALTHY, [0.2, 0.2, -0.2] + [0.0] * 17), (HEALTHY, [0.2, -0.2] + [1e-3] * 18)),
    "no gradient": ("no gradient", ([None] * 11 + [1e-2] * 9, 1e-3), ([None] * 10 + [1e-2] * 10, 1e-3)),
    "non-finite gradient": ("non-finite", ([1e-2] * 19 + [math.nan], 1e-3), (HEALTHY, 1e-3)),
    "non-finite weight": ("non-finite", (HEALTHY, [1e-3] * 19 + [math.inf]), (HEALTHY, [1e-3] * 19 + [1e30])),
}


@pytest.mark.parametrize("case", CASES)
def test_a_check_finds_what_it_is_for_and_nothing_that_misses_it_narrowly(case):
    check, ill, narrow = CASES[case]
    found = verdicts(*ill)
    assert check in found
    assert 0 < found[check]["share"] <= 1 and found[check]["evidence"]
    assert check not in verdicts(*narrow)


def test_a_healthy_tensor_has_no_findings():
    assert verdicts(HEALTHY, 1e-3) == {}


def test_the_published_thresholds_depend_on_the_size_and_the_others_do_not():
    """The same gradient and the same relative update per entry, in 1 entry and in 40,000."""
    small, large = (verdicts([0.9e-7] * 20, 1e-3, entries) for entries in (1, 40_000))
    assert "vanishing" in small and "vanishing" not in large
    assert "high" not in verdicts([0.1] * 20, 1e-3, 1) and "high" in verdicts([0.1] * 20, 1e-3, 40_000)
    for gradients, shift, check in (([0.9e-8] * 20, 1e-3, "vanishing (RMS)"), (HEALTHY, 0.9e-6, "slow")):
        assert all(check in verdicts(gradients, shift, entries) for entries in (1, 40_000))
    assert all("vanishing (RMS)" not in verdicts([1.1e-8] * 20, 1e-3, entries) for entries in (1, 40_000))


def test_updates_that_bfloat16_rounds_away_are_found():
    assert "stuck" in verdicts(HEALTHY, 1e-3, dtype=torch.bfloat16)
    assert "stuck" not in verdicts(HEALTHY, 1e-2, dtype=torch.bfloat16)


@pytest.mark.parametrize("quiet, dead", [(10, 1), (9, 0)])
def test_a_unit_is_dead_after_ten_observations_without_a_gradient(quiet, dead):
    """Of a transposed convolution units are on axis 1; a unit whose inputs are pruned is not dead."""
    model = nn.ModuleDict({"layer": nn.Linear(6, 4, bias=False), "up": nn.ConvTranspose2d(3, 5, 2, bias=False)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bbnet.watch(model, optimizer, every=1) as watched:
        for step in range(1, 31):
            for name, weight in model.named_parameters():
                weight.grad = torch.ones_like(weight)
                if step > 30 - quiet:
                    weight.grad[2 if name.startswith("layer") else (slice(None), 4)] = 0.0
            optimizer.step()
    rows = watched.rows()
    assert [row["units"] for row in rows] == [4, 5]
    assert [row["dead_units"] for row in rows] == [dead, dead]
    shares = [row["share"] for row in watched.verdicts() if row["check"] == "dead units"]
    assert shares == ([1 / 4, 1 / 5] if dead else [])


def test_units_without_connections_are_pruned_not_dead():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    with torch.no_grad():
        model[0].weight[:8] *= 1e-3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = {"algorithm": "magnitude", "side": "in", "distribution": "global"}
    sparsifier = bbnet.sparsify(
        model, optimizer, [bbnet.Slab("0", "in", "0")], method, 0.4, total_steps=60, ramp_end=0, every=1
    )
    with bbnet.watch(model, optimizer, every=1) as watched:
        for _ in range(30):
            model(torch.randn(32, 16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert (sparsifier.masks()["0"].sum(1) == 0).any(), "no unit is without connections: the case shows nothing"
    assert watched.rows()[0]["dead_units"] == 0


@pytest.fixture
def ill():
    """A watch of a model with a tensor that is never updated, one that explodes, and healthy ones."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("sound", "still", "wild")})
    groups = [
        {"params": model["sound"].parameters()},
        {"params": model["still"].parameters(), "lr": 0.0},
        {"params": model["wild"].parameters()},
    ]
    optimizer = torch.optim.SGD(groups, lr=1e-3)
    with bbnet.watch(model, optimizer, every=1) as watched:
        for _ in range(20):
            for name, weight in model.named_parameters():
                weight.grad = torch.full_like(weight, 100.0 if name.startswith("wild") else 0.1)
            optimizer.step()
    return watched


def test_the_report_lists_the_worst_module_first_and_counts_the_healthy(ill, capsys):
    ill.report()
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    assert lines[0] == "Gradient flow in 20 of 20 steps: 6 tensors watched, 2 healthy, 4 with findings"
    assert lines[3].split()[:2] == ["still", "still.weight"] and "never updated" in lines[3]
    order = [line.split()[0] for line in lines[3:] if line.split()[0] in ("still", "wild")]
    assert order == sorted(order), "modules are not mixed, and the worse one is first"
    assert "healthy: 2 tensors; 1 modules have no findings" in shown
    assert checks.ORDER.index("never updated") < checks.ORDER.index("high")


def test_files_and_frames_hold_the_same_figures(ill, tmp_path):
    ill.to_csv(tmp_path / "flow.csv")
    ill.to_json(tmp_path / "flow.json")
    with (tmp_path / "flow.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    content = json.loads((tmp_path / "flow.json").read_text(encoding="utf-8"))
    assert content["parameters"] == ill.rows() and content["verdicts"] == ill.verdicts()
    assert content["series"] == ill.series() and content["steps"] == 20
    for read, row in zip(table, ill.rows(), strict=True):
        assert read == {key: "" if value is None else str(value) for key, value in row.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow.csv", "flow.json"]
    pandas = pytest.importorskip("pandas")
    frame = ill.to_frame()
    assert isinstance(frame, pandas.DataFrame) and list(frame.parameter) == [row["parameter"] for row in ill.rows()]


def test_health_as_published_is_beside_our_verdicts(ill):
    healthy = {row["parameter"]: row["healthy_published"] for row in ill.rows()}
    assert healthy["sound.weight"] and healthy["wild.weight"] and not healthy["still.weight"]
