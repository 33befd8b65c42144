"""The effect of each factor in a study that varies one at a time around its reference.

A factor is a parameter of the reference method, or a setting of its sparse phase, in which another method of its
algorithm differs; or a setting of the baseline in which another model differs. What differs in several is left out.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from bbnet.analysis.summary import Summary, baselines_of

SHOWN = ["effect", "low", "high", "n_seeds", "differences", "p", "p_holm", "verdict"]
COLUMNS = ["factor", "value", "default", "model", "method", "side", "budget", "metric", "against", *SHOWN]
DEFAULT = "default"  # in the column `against`: the reference method on the baseline model


class Condition(NamedTuple):
    """A value of a factor, and the model and method that have it."""

    factor: str
    value: Any
    default: bool
    model: str
    method: str

    @property
    def text(self) -> str:
        """The value as text. An interval between refreshes that is not given is automatic."""
        value = self.value
        return "automatic" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def sensitivity_table(summary: Summary) -> pd.DataFrame:
    """Returns one row per value of a factor, budget, metric, and what it is compared with, in the order of the factors.

    `against` is `DEFAULT` where the effect is the difference from the reference, or the label of a rival where it is
    the difference from that rival, both with this value of the factor. The rows of a value that is the `default` are
    those of the reference itself. `value` is text. The other columns are those of `contrasts.csv`.

    Args:
        summary: of one task of a study that names a reference.
    """
    study, task = summary.study, summary.task
    reference, base = study["reference"], _base_model(study, task)
    contrasts = summary.read("contrasts")
    of_models = summary.read("model_contrasts") if task in baselines_of(study) else contrasts[:0]
    rows = []
    for condition in conditions(study, task):
        own = contrasts[(contrasts["model"] == condition.model) & (contrasts["method"] == condition.method)]
        if condition.model == base:
            with_default = own[own["reference"] == reference]
        else:
            mine = (of_models["model"] == condition.model) & (of_models["method"] == reference)
            same = (of_models["reference_model"] == base) & (of_models["reference"] == reference)
            with_default = of_models[mine & same]
        parts = [(DEFAULT, with_default), *_with_rivals(own, study)]
        described = condition._asdict() | {"value": condition.text}
        rows += [
            part[["side", "budget", "metric", *SHOWN]].assign(**described, against=against)
            for against, part in parts
            if len(part)
        ]
    return pd.concat(rows, ignore_index=True)[COLUMNS] if rows else pd.DataFrame(columns=COLUMNS)


def conditions(study: Mapping[str, Any], task: str) -> list[Condition]:
    """Returns the values of each factor, the default among them, ordered by factor and value.

    Args:
        study: `Summary.study` of a study that names a reference.
    """
    reference, base, methods = study["reference"], _base_model(study, task), study["methods"]
    same = [label for label in methods if methods[label]["algorithm"] == methods[reference]["algorithm"]]
    models = [label for label in study["tasks"][task]["models"] if task in baselines_of(study)]
    default, of_base = _of_method(study, reference), _of_model(study, task, base)
    varied = [(base, label, default, _of_method(study, label)) for label in same]
    varied += [(label, reference, of_base, _of_model(study, task, label)) for label in models]
    found: dict[str, list[Condition]] = {}
    for model, method, usual, own in varied:
        differ = [key for key in {**usual, **own} if own.get(key) != usual.get(key)]
        if len(differ) == 1:
            (factor,) = differ
            of_factor = found.setdefault(factor, [Condition(factor, usual.get(factor), True, base, reference)])
            of_factor.append(Condition(factor, own.get(factor), False, model, method))
    return [condition for of_factor in found.values() for condition in sorted(of_factor, key=_by_number)]


def _base_model(study: Mapping[str, Any], task: str) -> str:
    """Returns the model on which methods are varied: the baseline or, without one, the first of the task."""
    return baselines_of(study).get(task) or next(iter(study["tasks"][task]["models"]))


def _of_method(study: Mapping[str, Any], label: str) -> dict[str, Any]:
    """Returns all parameters of a method, with the settings of its sparse phase beside them."""
    method = study["methods"][label]
    own = {key: value for key, value in (method.get("sparsity") or {}).items() if value is not None}
    return {key: value for key, value in method.items() if key != "sparsity"} | study["sparsity"] | own


def _of_model(study: Mapping[str, Any], task: str, label: str) -> dict[str, Any]:
    """Returns all settings of a model; those that it leaves to the training are the training's."""
    settings = study["tasks"][task]
    return {
        key: settings["training"].get(key) if value is None else value
        for key, value in settings["models"][label].items()
    }


def _with_rivals(contrasts: pd.DataFrame, study: Mapping[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yields the contrasts with each rival, by its label or, if it has settings of its own, by that of it without."""
    methods = study["methods"]
    algorithm = methods[study["reference"]]["algorithm"]
    for rival, rows in contrasts.groupby("reference", sort=False):
        if methods[rival]["algorithm"] not in ("dense", algorithm):
            plain = methods[rival] | {"sparsity": None}
            yield next((label for label in methods if methods[label] == plain), rival), rows


def _by_number(condition: Condition) -> float:
    """Orders numbers by size; other values keep their order, the default first."""
    return condition.value if isinstance(condition.value, int | float) else float("-inf")
