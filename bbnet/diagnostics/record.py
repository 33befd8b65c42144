"""What a watch has recorded: figures per parameter, verdicts, tables and files, and states that can be joined."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bbnet.data.store import whole_file
from bbnet.diagnostics import checks, thresholds
from bbnet.diagnostics.series import Series

if TYPE_CHECKING:
    import pandas

COUNTS = (
    "observations",
    "missing",
    "finite",
    "flowing",
    "non_finite",
    "weight_non_finite",
    "vanishing",
    "vanishing_rms",
    "low",
    "high",
    "measured",
    "compared",
    "slow",
    "fast",
    "updates",
    "moves",
    "no_update",
    "stuck",
)
SUMS = ("norm", "rms", "mean", "zero_share", "update_norm", "update_rms", "update_ratio")
MAXIMA = ("norm_largest", "largest", "update_largest", "update_ratio_largest")
LAST = ("live", "weight_norm", "change_norm", "change_largest")
SERIES = ("gradient_norm", "gradient_rms", "update_ratio")
FORMAT = 1


@dataclass(frozen=True)
class Watchable:
    """A parameter of the watched model: its dotted name, its number of entries, and its number of units or 0.

    Only weights of linear layers and convolutions have units, the outputs of the layer.
    """

    name: str
    entries: int
    units: int

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]


class Record:
    """Figures of the parameters of a model, gathered in sampled steps. Its size does not grow with their number.

    Attributes:
        parameters: the parameters, in the model's order.
        every: number of steps per sampled step.
        steps: number of steps so far.
        observations: number of steps that were observed.
    """

    def __init__(self, parameters: Iterable[Watchable], every: int) -> None:
        self.parameters = list(parameters)
        self.every = every
        self.steps = 0
        self.observations = 0
        count = len(self.parameters)
        self._figures = {name: np.zeros(count, dtype=np.int64) for name in COUNTS}
        self._figures |= {name: np.zeros(count) for name in (*SUMS, *MAXIMA)}
        self._figures |= {name: np.full(count, np.nan) for name in LAST}
        self._held = np.zeros(count, dtype=bool)
        self._series = Series(SERIES, count)
        # The places of each layer's units among all units, by number of its weight.
        ends = np.cumsum([each.units for each in self.parameters]).tolist()
        self._units = {
            number: slice(end - each.units, end)
            for number, (each, end) in enumerate(zip(self.parameters, ends, strict=True))
            if each.units
        }
        # In how many of the last observations in a row each unit had no gradient.
        self._silent = np.zeros(ends[-1] if ends else 0, dtype=np.int32)

    def observe(self, step: int, values: Mapping[str, np.ndarray], held: np.ndarray, trained: np.ndarray) -> None:
        """Adds an observation.

        Args:
            values: of all parameters, NaN where there is none: live; norm, mean, largest, zero_share of the gradient,
                which is missing where zero_share is NaN; update_norm, update_largest; weight_norm. Of all units: flows,
                1 where a unit has a gradient, 0 where all entries are 0, NaN where it is missing; pruned, 1 where all
                weights are.
            held: bool, whether the optimizer holds a parameter.
            trained: bool, whether it requires a gradient and has live entries; others are not observed.
        """
        figures = self._figures
        seen = held & trained
        live = np.maximum(values["live"], 1)
        norm, largest = values["norm"], values["update_largest"]
        has_gradient = seen & ~np.isnan(values["zero_share"])
        finite = has_gradient & np.isfinite(norm)
        flowing = finite & (norm > 0)
        measured = seen & np.isfinite(largest)
        rms, update_rms = norm / np.sqrt(live), values["update_norm"] / np.sqrt(live)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = values["update_norm"] / values["weight_norm"]
        ratio = np.where(measured & np.isfinite(ratio), ratio, np.nan)
        compared = ~np.isnan(ratio)
        found = {
            "observations": seen,
            "missing": seen & ~has_gradient,
            "finite": finite,
            "flowing": flowing,
            "non_finite": has_gradient & ~finite,
            "weight_non_finite": seen & ~np.isfinite(largest),
            "vanishing": finite & (norm < thresholds.VANISHING_NORM),
            "vanishing_rms": finite & (rms < thresholds.VANISHING_RMS),
            "low": finite & (norm >= thresholds.VANISHING_NORM) & (norm < thresholds.LOW_NORM),
            "high": finite & (norm > thresholds.HIGH_NORM),
            "measured": measured,
            "compared": compared,
            "slow": compared & (ratio > 0) & (ratio < thresholds.SLOW_RATIO),
            "fast": compared & (ratio > thresholds.FAST_RATIO),
            "updates": measured & (largest > thresholds.UPDATED),
            "moves": measured & (largest > 0),
            "no_update": flowing & measured & (largest <= thresholds.UPDATED),
            "stuck": flowing & measured & (largest == 0),
        }
        for name, which in found.items():
            figures[name] += which
        sums = {"norm": norm, "rms": rms, "mean": values["mean"], "zero_share": values["zero_share"]}
        for name, value in sums.items():
            figures[name][finite] += value[finite]
        for name, value in {"update_norm": values["update_norm"], "update_rms": update_rms}.items():
            figures[name][measured] += value[measured]
        figures["update_ratio"][compared] += ratio[compared]
        largest_of = {
            "norm_largest": (norm, finite),
            "largest": (values["largest"], finite),
            "update_largest": (largest, measured),
            "update_ratio_largest": (ratio, compared),
        }
        for name, (value, where) in largest_of.items():
            figures[name][where] = np.maximum(figures[name][where], value[where])
        for name in ("live", "weight_norm"):
            figures[name] = np.where(np.isnan(values[name]), figures[name], values[name])
        no_gradient = np.where(values["flows"] == 0, self._silent + 1, np.where(values["flows"] > 0, 0, self._silent))
        self._silent = np.where(values["pruned"] > 0, 0, no_gradient).astype(np.int32)
        self._held |= held
        series = {"gradient_norm": (norm, finite), "gradient_rms": (rms, finite), "update_ratio": (ratio, compared)}
        self._series.add(step, {name: np.where(where, value, np.nan) for name, (value, where) in series.items()})
        self.observations += 1

    def note_change(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets the change of live weights since the start: change_norm and change_largest of all parameters."""
        for name in ("change_norm", "change_largest"):
            self._figures[name] = values[name]

    # --- What was found ---------------------------------------------------------------------------------------------

    def rows(self) -> list[dict[str, Any]]:
        """Returns the figures of each parameter, as docs/diagnostics.md describes them; None for what is not known."""
        return [self._row(index) for index in range(len(self.parameters))]

    def _row(self, index: int) -> dict[str, Any]:
        parameter = self.parameters[index]
        one = {name: values[index].item() for name, values in self._figures.items()}

        def mean(name: str, count: str) -> float:
            return one[name] / one[count] if one[count] else math.nan

        live, weight = max(one["live"], 1), one["weight_norm"]
        some = one["finite"] > 0
        row = {
            "parameter": parameter.name,
            "module": parameter.module,
            "status": (status := self._status(index)),
            "entries": parameter.entries,
            "live": one["live"],
            "observations": one["observations"],
            "gradient_missing": one["missing"],
            "gradient_non_finite": one["non_finite"],
            "gradient_norm": mean("norm", "finite"),
            "gradient_norm_largest": one["norm_largest"] if some else math.nan,
            "gradient_rms": mean("rms", "finite"),
            "gradient_mean": mean("mean", "finite"),
            "gradient_largest": one["largest"] if some else math.nan,
            "gradient_zero_share": mean("zero_share", "finite"),
            "gradients_above_zero": one["flowing"],
            "vanishing_share": mean("vanishing", "finite"),
            "vanishing_rms_share": mean("vanishing_rms", "finite"),
            "low_share": mean("low", "finite"),
            "high_share": mean("high", "finite"),
            "updates_compared": one["compared"],
            "updates": one["updates"],
            "moves": one["moves"],
            "no_update": one["no_update"],
            "stuck": one["stuck"],
            "update_norm": mean("update_norm", "measured"),
            "update_rms": mean("update_rms", "measured"),
            "update_largest": one["update_largest"] if one["measured"] else math.nan,
            "update_ratio": mean("update_ratio", "compared"),
            "update_ratio_largest": one["update_ratio_largest"] if one["compared"] else math.nan,
            "slow_share": mean("slow", "compared"),
            "fast_share": mean("fast", "compared"),
            "weight_rms": weight / live**0.5,
            "weight_non_finite": one["weight_non_finite"],
            "change_norm": one["change_norm"],
            "change_rms": one["change_norm"] / live**0.5,
            "change_largest": one["change_largest"],
            "change_ratio": one["change_norm"] / weight if weight > 0 else math.nan,
            "units": parameter.units or None,
            "dead_units": self._dead_units(index),
        }
        if not math.isnan(row["live"]):
            row["live"] = int(row["live"])
        row = {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        found = checks.of(row) if status == "watched" else []
        row["verdicts"] = "; ".join(verdict.check for verdict in found)
        row["healthy_published"] = checks.is_healthy_as_published(row) if status == "watched" else None
        return row

    def _status(self, index: int) -> str:
        if not self.parameters[index].entries:
            return "empty"
        if self._figures["live"][index] == 0:
            return "pruned"
        if self._figures["observations"][index]:
            return "watched"
        if not self.observations:
            return "not observed"
        return "frozen" if self._held[index] else "not in the optimizer"

    def _dead_units(self, index: int) -> int | None:
        if index not in self._units or not self.observations:
            return None
        return int((self._silent[self._units[index]] >= thresholds.DEAD_OBSERVATIONS).sum())

    def verdicts(self) -> list[dict[str, Any]]:
        """Returns a row for each finding of a check, the worst first: parameter, module, check, kind, share,
        observations, evidence."""
        found = [(verdict, row) for row in self.rows() if row["status"] == "watched" for verdict in checks.of(row)]
        found.sort(key=lambda pair: (checks.ORDER.index(pair[0].check), -pair[0].share))
        return [{"parameter": row["parameter"], "module": row["module"], **asdict(verdict)} for verdict, row in found]

    def series(self) -> list[dict[str, Any]]:
        """Returns means over training in at most 64 bins: parameter, depth (its place in the model, from 0),
        first_step, last_step, gradient_norm, gradient_rms, update_ratio."""
        return [
            {"parameter": self.parameters[index].name, "depth": index, "first_step": first, "last_step": last}
            | {name: None if math.isnan(value) else value for name, value in values.items()}
            for index, first, last, values in self._series.rows()
        ]

    def text(self) -> str:
        """Returns the table of `report`."""
        rows, found = self.rows(), self.verdicts()
        ill = {verdict["parameter"] for verdict in found}
        watched = [row for row in rows if row["status"] == "watched"]
        head = (
            f"Gradient flow in {self.observations} of {self.steps} steps: {_tensors(len(watched))} watched, "
            f"{len(watched) - len(ill)} healthy, {len(ill)} with findings"
        )
        lines = [[_name(row["module"]), row["parameter"], row["check"], f"{100 * row['share']:.0f} %", row["evidence"]]
                 for row in _by_module(found)]  # fmt: skip
        parts = [head]
        if lines:
            parts.append(_table(["module", "tensor", "finding", "share", "evidence"], lines))
        healthy = [row for row in watched if row["parameter"] not in ill]
        modules = {row["module"] for row in healthy}.difference(row["module"] for row in found)
        if healthy:
            parts.append(f"healthy: {_tensors(len(healthy))}; {len(modules)} modules have no findings")
        for status in ("not observed", "frozen", "not in the optimizer", "pruned", "empty"):
            names = [row["parameter"] for row in rows if row["status"] == status]
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                parts.append(f"{status}: {_tensors(len(names))}: {', '.join(names[:5])}{more}")
        return "\n".join(parts)

    def report(self) -> None:
        """Prints the findings by module, the worst first, and the number of healthy tensors."""
        print(self.text())

    def to_frame(self) -> "pandas.DataFrame":
        """Returns `rows` as a pandas.DataFrame; raises ImportError if pandas is not installed."""
        return frame(self.rows())

    def to_csv(self, path: str | Path) -> None:
        """Writes `rows` as CSV."""
        write_csv(path, self.rows())

    def to_json(self, path: str | Path) -> None:
        """Writes steps, observations, `rows` as "parameters", `verdicts` and `series` as JSON."""
        content = {
            "steps": self.steps,
            "every": self.every,
            "observations": self.observations,
            "parameters": self.rows(),
            "verdicts": self.verdicts(),
            "series": self.series(),
        }
        write_json(path, content)

    # --- States -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns all that was recorded, without weights, for `torch.save` and `Record.of_state`."""
        return {
            "format": FORMAT,
            "parameters": [[each.name, each.entries, each.units] for each in self.parameters],
            "every": self.every,
            "steps": self.steps,
            "observations": self.observations,
            "figures": {name: torch.from_numpy(values.copy()) for name, values in self._figures.items()},
            "held": torch.from_numpy(self._held.copy()),
            "series": self._series.state_dict(),
            "silent": torch.from_numpy(self._silent.copy()),
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> "Record":
        """Returns the record of a `state_dict`; raises ValueError if it is none."""
        if state.get("format") != FORMAT or "figures" not in state:
            keys = ", ".join(map(str, list(state)[:5]))
            raise ValueError(f"this is not a state of bbnet.watch, of format {FORMAT}: its keys are {keys} ...")
        record = Record([Watchable(*each) for each in state["parameters"]], state["every"])
        record.steps, record.observations = state["steps"], state["observations"]
        record._figures = {name: values.numpy().copy() for name, values in state["figures"].items()}
        record._held = state["held"].numpy().copy()
        record._series = Series.of_state(state["series"])
        record._silent = state["silent"].numpy().copy()
        return record

    @classmethod
    def merged(cls, states: Iterable[Mapping[str, Any]]) -> "Record":
        """Returns one record of the states of several ranks of the same training.

        Means are over the observations of all ranks, and largest values are the largest of any. What is known of the
        last observation is the largest of any rank. A unit is dead if it is on all of them.

        Raises: ValueError if there is no state, or the states differ in their parameters or in `every`.
        """
        first, *others = [cls.of_state(state) for state in states] or [None]
        if first is None:
            raise ValueError("no states to merge")
        for other in others:
            first._merge(other)
        return first

    def _merge(self, other: "Record") -> None:
        mine, theirs = ({each.name: each for each in record.parameters} for record in (self, other))
        if self.parameters != other.parameters:
            differing = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
            where = differing[0] if differing else "the order of the parameters"
            raise ValueError(f"states of different models cannot be merged: they differ in {where}")
        if self.every != other.every:
            raise ValueError(f"states with every={self.every} and every={other.every} cannot be merged")
        for name in (*COUNTS, *SUMS):
            self._figures[name] = self._figures[name] + other._figures[name]
        for name in (*MAXIMA, *LAST):
            self._figures[name] = np.fmax(self._figures[name], other._figures[name])
        self.steps = max(self.steps, other.steps)
        self.observations = max(self.observations, other.observations)
        self._held |= other._held
        self._series.merge(other._series)
        self._silent = np.minimum(self._silent, other._silent)


def _by_module(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns findings grouped by module, in the order of the worst finding of each."""
    order = {row["module"]: None for row in found}
    return [row for module in order for row in found if row["module"] == module]


def _tensors(count: int) -> str:
    return f"{count} tensor" if count == 1 else f"{count} tensors"


def _name(module: str) -> str:
    return module or "(model)"


def _table(headers: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [headers, *rows]) for column in range(len(headers))]
    lines = [headers, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def frame(rows: list[dict[str, Any]]) -> "pandas.DataFrame":
    """Returns rows as a pandas.DataFrame; raises ImportError if pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise ImportError("to_frame needs pandas: install it, or use rows(), to_csv or to_json") from None
    return pandas.DataFrame(rows)


def write_csv(path: str | Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows of equal keys as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with whole_file(Path(path)) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    with whole_file(Path(path)) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
