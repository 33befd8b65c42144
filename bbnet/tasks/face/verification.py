"""Pairs of a probe and an image of the gallery: are they of one person? Imports no torch.

A score is a cosine similarity; a pair is accepted where it is at least a threshold. FAR is the accepted share of the
impostor pairs, TAR that of the genuine ones.
"""

import numpy as np

ROUNDING = 1e-12


def roc(scores: np.ndarray, genuine: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """FAR and TAR at every distinct score as the threshold, from accepting none, (0, 0), to accepting all, (1, 1).

    Args:
        scores: [pairs].
        genuine: bool [pairs].
        weights: [..., pairs], how often each pair counts.
    Returns: two arrays [..., thresholds + 1]; NaN without pairs of a kind.
    """
    weights = np.ones(len(scores)) if weights is None else weights
    if not len(scores):
        nothing = np.full((*weights.shape[:-1], 2), np.nan)
        return nothing, nothing
    order = np.argsort(-scores, kind="stable")
    last_of_score = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    counted = weights[..., order]

    def accepted_share(kind: np.ndarray) -> np.ndarray:
        accepted = np.cumsum(counted * kind[order], axis=-1)[..., last_of_score]
        accepted = np.concatenate([np.zeros((*accepted.shape[:-1], 1)), accepted], axis=-1)
        total = accepted[..., -1:]
        return np.where(total == 0, np.nan, accepted / np.where(total == 0, 1, total))

    return accepted_share(~genuine), accepted_share(genuine)


def auroc(far: np.ndarray, tar: np.ndarray) -> np.ndarray:
    """Area under the ROC curve [..., points]: pairs of a genuine and an impostor in order, ties half."""
    return (np.diff(far) * (tar[..., 1:] + tar[..., :-1])).sum(-1) / 2


def equal_error_rate(far: np.ndarray, tar: np.ndarray) -> np.ndarray:
    """FAR where it equals 1 - TAR, on the curve [..., points] with straight lines between its points."""
    excess = far + tar - 1
    after = np.argmax(excess >= 0, axis=-1)[..., None].clip(min=1)

    def at(values: np.ndarray, place: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, place, axis=-1)[..., 0]

    before, beyond = at(excess, after - 1), at(excess, after)
    step = -before / (beyond - before)
    return at(far, after - 1) + step * (at(far, after) - at(far, after - 1))


def tar_at_far(far: np.ndarray, tar: np.ndarray, level: float) -> np.ndarray:
    """The largest TAR of all thresholds whose FAR is at most `level`; curves are [..., points]."""
    last = (far <= level + ROUNDING).sum(-1, keepdims=True).clip(min=1) - 1
    return np.where(np.isnan(far[..., -1]), np.nan, np.take_along_axis(tar, last, axis=-1)[..., 0])


def balanced_accuracy(
    scores: np.ndarray, genuine: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """(TAR + 1 - FAR) / 2 at a threshold: genuine and impostor pairs together weigh the same; as `roc` otherwise."""
    weights = np.ones(len(scores)) if weights is None else weights
    right = (scores >= threshold) == genuine
    rates = [_share((weights * (right & kind)).sum(-1), (weights * kind).sum(-1)) for kind in (genuine, ~genuine)]
    return (rates[0] + rates[1]) / 2


def best_pair_threshold(scores: np.ndarray, genuine: np.ndarray) -> float:
    """The threshold of largest balanced accuracy, half way to the next lower score; the lowest of equals."""
    return _best_threshold(scores, genuine / max(genuine.sum(), 1), ~genuine / max((~genuine).sum(), 1))


def best_identification_threshold(nearest: np.ndarray, right: np.ndarray, stranger: np.ndarray) -> float:
    """The threshold at which most probes are answered rightly: their nearest image's identity, or below it `nobody`.

    Args:
        nearest: [probes], score of the nearest image of the gallery, -inf for an empty one.
        right: bool [probes], whether it is of the probe's identity.
        stranger: bool [probes], whether the probe is of nobody in the gallery.
    """
    return _best_threshold(nearest, (right & ~stranger).astype(float), stranger.astype(float))


def _best_threshold(scores: np.ndarray, gain_above: np.ndarray, gain_below: np.ndarray) -> float:
    """Maximises the gain of what is at least, and what is below a threshold half way between neighbouring scores."""
    values, groups = np.unique(scores, return_inverse=True)
    if not len(values):
        return np.inf
    above = np.bincount(groups, gain_above, len(values))
    below = np.bincount(groups, gain_below, len(values))
    gains = np.append(above[::-1].cumsum()[::-1], 0) + np.append(0, below.cumsum())
    best = int(np.argmax(gains.round(12)))
    if best == 0:
        return -np.inf
    if best == len(values) or values[best - 1] == -np.inf:
        return np.inf if best == len(values) else float(values[best])
    return float((values[best - 1] + values[best]) / 2)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where the whole is 0."""
    return np.where(whole == 0, np.nan, part / np.where(whole == 0, 1, whole))
