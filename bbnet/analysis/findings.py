"""States in sentences what the contrasts of a task show, and what the study could have shown."""

from collections.abc import Callable, Iterable, Mapping

import pandas as pd

from bbnet.analysis.metric import WITHOUT_UNIT, Metric
from bbnet.analysis.power import POWER, Components, components_of, detectable_difference

LEVEL_OF = "p < .05 after Holm's method over all contrasts of the task"


def findings(cells: pd.DataFrame, contrasts: pd.DataFrame, metrics: Mapping[str, Metric], family: int) -> list[str]:
    """Returns a paragraph for each metric that is compared.

    Args:
        cells, contrasts: `cells.csv` and `contrasts.csv` of one task and model.
        metrics: the primary metrics of the task by name.
        family: number of contrasts that Holm's method covers.
    """
    return [
        " ".join(_sentences(cells[cells["metric"] == name], rows, metric, family))
        for name, metric in metrics.items()
        if len(rows := contrasts[contrasts["metric"] == name])
    ]


def model_findings(contrasts: pd.DataFrame, metrics: Mapping[str, Metric], baseline: str, family: int) -> list[str]:
    """Returns a paragraph for each metric in which models are compared: with the baseline, others, and at equal cost.

    Args:
        contrasts: `model_contrasts.csv` of one task.
        metrics: the primary metrics of the task by name.
        family: number of contrasts that Holm's method covers.
    """
    paragraphs = []
    for name, metric in metrics.items():
        rows = contrasts[contrasts["metric"] == name].dropna(subset="effect")
        of_same_cell, with_baseline = rows["reference"] == rows["method"], rows["reference_model"] == baseline
        reference = f"{baseline} with the same method and budget"
        sentences = [
            *_with_reference(
                rows[of_same_cell & with_baseline], metric, "cells of other models", reference, _place_of_model
            ),
            *_beside(rows[of_same_cell & ~with_baseline], metric, "{model} with the same method and budget"),
            *_beside(rows[~of_same_cell], metric, "the dense network {model} of as many FLOPs"),
        ]
        if len(rows):
            paragraphs.append(f"{metric.title}: {' '.join([*sentences, *_limits(rows, metric, family)])}")
    return paragraphs


def _sentences(cells: pd.DataFrame, contrasts: pd.DataFrame, metric: Metric, family: int) -> Iterable[str]:
    dense = cells[cells["method"] == "dense"]
    if len(dense):
        row = dense.iloc[0]
        unit = "" if metric.unit in WITHOUT_UNIT else f" {metric.unit}"
        interval = f"[{metric.shown_value(row['low'])}, {metric.shown_value(row['high'])}]"
        yield f"{metric.title} of dense is {metric.shown_value(row['mean'])} {interval}{unit}."
    contrasts = contrasts.dropna(subset="effect")
    with_dense = contrasts["reference"] == "dense"
    yield from _with_reference(contrasts[with_dense], metric, "other cells", "it", _place)
    yield from _between_methods(contrasts[~with_dense], metric)
    yield from _limits(contrasts, metric, family)


def _limits(contrasts: pd.DataFrame, metric: Metric, family: int) -> Iterable[str]:
    """Yields what the intervals do not account for, if anything, and which difference would have been detected."""
    several = contrasts[contrasts["n_seeds"] > 1]
    if len(several) < len(contrasts):
        which = "some" if len(several) else "all"
        yield f"The intervals of {which} differences are from one seed and account only for the choice of test items."
    components = components_of(several)
    if components is not None:
        yield _detectable(components, int(several["n_seeds"].min()), metric, family)


def _with_reference(
    contrasts: pd.DataFrame, metric: Metric, cells: str, reference: str, place: Callable[[pd.Series], str]
) -> Iterable[str]:
    """Yields one sentence on the contrasts with dense or with another model, if there are any.

    Args:
        cells, reference: what the sentence calls the cells and what they are compared with.
        place: returns what it calls the cell of a contrast.
    """
    if not len(contrasts):
        return
    told, from_it = contrasts[contrasts["verdict"] != "none"], f"significantly from {reference} ({LEVEL_OF})"
    listed = "; ".join(f"{place(row)} is {row['verdict']} ({_interval(row, metric)})" for _, row in told.iterrows())
    if len(told):
        differ = "differs" if len(told) == 1 else "differ"
        yield f"Of {len(contrasts)} {cells}, {len(told)} {differ} {from_it}: {listed}."
    elif len(contrasts) == 1:
        only = contrasts.iloc[0]
        yield f"{place(only)} does not differ {from_it}: {_interval(only, metric)}."
    else:
        lowest, highest = (contrasts.loc[contrasts["effect"].idxmin()], contrasts.loc[contrasts["effect"].idxmax()])
        yield (
            f"None of the {len(contrasts)} {cells} differs {from_it}. The differences lie "
            f"between {_difference(lowest, metric)} ({place(lowest)}) and {_difference(highest, metric)} "
            f"({place(highest)})."
        )


def _beside(contrasts: pd.DataFrame, metric: Metric, other: str) -> Iterable[str]:
    """Yields one sentence on each network beside one of another model, which the sentence calls `other`."""
    for _, row in contrasts.iterrows():
        verdict = "does not differ significantly from" if row["verdict"] == "none" else f"is {row['verdict']} than"
        reference = other.format(model=row["reference_model"])
        yield f"{_place_of_model(row)} {verdict} {reference}: {_interval(row, metric)}."


def _between_methods(contrasts: pd.DataFrame, metric: Metric) -> Iterable[str]:
    """Yields one sentence on the contrasts between methods, if there are any."""
    told = contrasts[contrasts["verdict"] != "none"]
    listed = "; ".join(
        f"{_place(row)} is {row['verdict']} than {row['reference']} ({_interval(row, metric)})"
        for _, row in told.iterrows()
    )
    if len(told):
        are = "is" if len(told) == 1 else "are"
        yield f"Between methods, {len(told)} of {len(contrasts)} differences {are} significant: {listed}."
    elif len(contrasts):
        yield f"Between methods, none of {len(contrasts)} differences is significant."


def _detectable(found: Components, seeds: int, metric: Metric, family: int) -> str:
    difference = detectable_difference(found, seeds, family)
    with_these = f"With {seeds} seeds and {found.items} test items"
    if difference > metric.largest_difference:
        return f"{with_these}, no difference would be significant with a probability of {100 * POWER:.0f} %."
    amount = f"{metric.shown_value(difference)}{metric.difference_unit}"
    return f"{with_these}, a difference of {amount} would be significant with a probability of {100 * POWER:.0f} %."


def _place(row: pd.Series) -> str:
    return f"{row['method']} at budget {str(row['budget']).lstrip('0')}"


def _place_of_model(row: pd.Series) -> str:
    return f"{row['model']}, {_place(row)}"


def _interval(row: pd.Series, metric: Metric) -> str:
    return f"{_difference(row, metric)} [{metric.signed(row['low'])}, {metric.signed(row['high'])}]"


def _difference(row: pd.Series, metric: Metric) -> str:
    return f"{metric.signed(row['effect'])}{metric.difference_unit}"
