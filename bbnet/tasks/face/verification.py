"""Verification: whether a probe and an image of the gallery show the same person. Imports no torch.

The score of a pair is a cosine similarity, and the pair is accepted if its score is at least a threshold. FAR is the
accepted share of the impostor pairs, TAR that of the genuine pairs.
"""

import numpy as np

from bbnet.tasks.ratios import ratio

ROUNDING = 1e-12


def roc(scores: np.ndarray, genuine: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns FAR and TAR at the corners of the ROC curve: at and just above every distinct genuine score.

    The curve runs from (0, 0), no pair accepted, to (1, 1), all accepted. It is linear between two corners, also where
    genuine and impostor pairs have equal scores.

    Args:
        scores: [pairs].
        genuine: bool [pairs].
        weights: [..., pairs], how often each pair counts.
    Returns: two arrays [..., corners]; NaN if there are no pairs of that kind.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    falling = -np.unique(-scores[genuine])

    def accepted_share(kind: np.ndarray) -> np.ndarray:
        order = np.flatnonzero(kind)[np.argsort(-scores[kind], kind="stable")]
        above, at_least = (np.searchsorted(-scores[order], -falling, side) for side in ("left", "right"))
        corners = np.concatenate([[0], np.stack([above, at_least], axis=1).ravel(), [len(order)]])
        accepted = np.zeros((*weights.shape[:-1], len(order) + 1))
        np.cumsum(weights[..., order], axis=-1, out=accepted[..., 1:])
        return ratio(accepted[..., corners], accepted[..., -1:])

    return accepted_share(~genuine), accepted_share(genuine)


def auroc(far: np.ndarray, tar: np.ndarray) -> np.ndarray:
    """Returns the area under the ROC curve [..., points]; ties of a genuine and an impostor pair count half."""
    return (np.diff(far) * (tar[..., 1:] + tar[..., :-1])).sum(-1) / 2


def equal_error_rate(far: np.ndarray, tar: np.ndarray) -> np.ndarray:
    """Returns the FAR at which it equals 1 - TAR, by linear interpolation of the curve [..., points]."""
    excess = far + tar - 1
    after = np.argmax(excess >= 0, axis=-1)[..., None].clip(min=1)

    def at(values: np.ndarray, place: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, place, axis=-1)[..., 0]

    before, beyond = at(excess, after - 1), at(excess, after)
    step = -before / (beyond - before)
    return at(far, after - 1) + step * (at(far, after) - at(far, after - 1))


def tar_at_far(far: np.ndarray, tar: np.ndarray, levels: float | np.ndarray) -> np.ndarray:
    """Returns the largest TAR at a FAR of at most each of `levels`, [...] or [..., levels], without interpolation."""
    lead, points = far.shape[:-1], far.shape[-1]
    last = [np.searchsorted(row, np.asarray(levels) + ROUNDING, side="right") - 1 for row in far.reshape(-1, points)]
    rows = np.arange(len(last)).reshape(-1, *(1,) * np.ndim(levels))
    found = tar.reshape(-1, points)[rows, np.array(last)].reshape((*lead, *np.shape(levels)))
    undefined = np.isnan(far[..., -1])
    return np.where(undefined[..., None] if np.ndim(levels) else undefined, np.nan, found)


def balanced_accuracy(
    scores: np.ndarray, genuine: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Returns (TAR + 1 - FAR) / 2 at a threshold. The arguments are those of `roc`."""
    weights = np.ones(len(scores)) if weights is None else weights
    right = (scores >= threshold) == genuine
    rates = [ratio((weights * (right & kind)).sum(-1), (weights * kind).sum(-1)) for kind in (genuine, ~genuine)]
    return (rates[0] + rates[1]) / 2


def best_pair_threshold(scores: np.ndarray, genuine: np.ndarray) -> float:
    """Returns the lowest threshold of largest balanced accuracy, midway between two neighbouring scores."""
    return _best_threshold(scores, genuine / max(genuine.sum(), 1), ~genuine / max((~genuine).sum(), 1))


def best_identification_threshold(nearest: np.ndarray, right: np.ndarray, stranger: np.ndarray) -> float:
    """Returns the threshold with the most right answers, below which a probe is identified as nobody.

    Args:
        nearest: [probes], score of the nearest image in the gallery, -inf if it is empty.
        right: bool [probes], whether that image is of the probe's identity.
        stranger: bool [probes], whether the probe's person is not in the gallery.
    """
    return _best_threshold(nearest, (right & ~stranger).astype(float), stranger.astype(float))


def _best_threshold(scores: np.ndarray, gain_above: np.ndarray, gain_below: np.ndarray) -> float:
    """Returns the threshold with the largest sum of `gain_above` at or above it and `gain_below` below it."""
    values, groups = np.unique(scores, return_inverse=True)
    if not len(values):
        return np.inf
    accepted = np.bincount(groups, gain_above, len(values))[::-1].cumsum()[::-1]
    rejected = np.bincount(groups, gain_below, len(values)).cumsum()
    gains = np.append(accepted, 0) + np.append(0, rejected)
    best = int(np.argmax(gains.round(12)))
    if best == 0:
        return -np.inf
    if best == len(values):
        return np.inf
    below, at_least = values[best - 1], values[best]
    middle = below + (at_least - below) / 2
    return float(middle if below < middle else at_least)
