"""How many images of each class belong to which split. Imports neither numpy nor torch."""

from collections.abc import Mapping, Sequence


def dev_count(images: int, share: float) -> int:
    """Returns how many of a class's training images form dev: `share` of them, rounded, and at least one."""
    return max(1, round(share * images))


def dev_rows(labels: Sequence[int], counts: Mapping[int, int]) -> list[bool]:
    """Returns which rows form dev: of each class the last `counts[class]`, in the order of rows, whatever the seed."""
    left = dict(counts)
    rows = [False] * len(labels)
    for row in range(len(labels) - 1, -1, -1):
        if left[labels[row]]:
            left[labels[row]] -= 1
            rows[row] = True
    return rows


def long_tail_counts(images: int, classes: int, imbalance: float) -> list[int]:
    """Returns the number of images of each class, which sum to `images` and never rise with the label.

    They fall exponentially with the label, n ~ imbalance^(-label / (classes - 1)), so that the first class has
    `imbalance` times as many as the last: the long-tailed CIFAR of Cui et al., Class-balanced loss (CVPR 2019). They
    are rounded by largest remainder.
    """
    weights = [imbalance ** (-label / (classes - 1)) for label in range(classes)]
    exact = [images * weight / sum(weights) for weight in weights]
    counts = list(map(int, exact))
    by_remainder = sorted(range(classes), key=lambda label: counts[label] - exact[label])
    for label in by_remainder[: images - sum(counts)]:
        counts[label] += 1
    return counts
