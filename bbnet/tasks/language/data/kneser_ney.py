"""An n-gram model with interpolated Kneser-Ney smoothing, the floor below which no network should fall.

Kneser and Ney (1995), in the interpolated form of Chen and Goodman (1999, section 4.1.6). With c(h w) the count of an
n-gram of history h and token w, and c(h) the sum of c(h w) over w,

    p(w | h) = max(c(h w) - D, 0) / c(h) + D N(h) / c(h) * p(w | h'),

where N(h) is the number of different tokens after h, and h' is h without its first token. A history that training lacks
gives p(w | h) = p(w | h'). For the largest order, c counts occurrences; for all lower ones it counts the different
tokens before the n-gram. p(w | h') of the order 1 is 1 / vocabulary. Each order has D = n1 / (n1 + 2 n2) of its own,
where n1 and n2 are the numbers of n-grams with c of 1 and 2; D is 0.5 where one of them is 0.
"""

from dataclasses import dataclass

import numpy as np

UNSEEN = -1
DEFAULT_DISCOUNT = 0.5


@dataclass(frozen=True)
class Order:
    """The n-grams of one order that training contains.

    Args:
        keys: sorted int64 [n-grams], number of the history among the n-grams of the order below * vocabulary + token.
        counts: c(h w) of each of them.
        history_counts, followers: c(h) and N(h), by number of the history.
        discount: D.
    """

    keys: np.ndarray
    counts: np.ndarray
    history_counts: np.ndarray
    followers: np.ndarray
    discount: float

    def interpolated(self, grams: np.ndarray, histories: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Returns p(w | h) of n-grams and their histories, by number or `UNSEEN`; `lower` is p(w | h')."""
        known = (histories != UNSEEN) & (histories < len(self.history_counts))
        totals, followers = (
            np.where(known, values[np.where(known, histories, 0)], 0)
            for values in (self.history_counts, self.followers)
        )
        counts = np.where(grams == UNSEEN, 0, self.counts[grams])
        own = np.maximum(counts - self.discount, 0) + self.discount * followers * lower
        return np.where(totals > 0, own / np.maximum(totals, 1), lower)


class KneserNey:
    """The model, trained on documents.

    Args:
        tokens: int [tokens] of 0 to vocabulary - 1, the documents one after another; each ends with the token `end`.
        end: the token behind every document; a document begins as if `order` - 1 of them stood before it.
    """

    def __init__(self, tokens: np.ndarray, vocabulary: int, end: int, order: int = 5) -> None:
        self.vocabulary, self.end = vocabulary, end
        padded, scored = padded_documents(tokens, end, order - 1)
        keys, ids = [], [np.zeros(len(padded), dtype=np.int64)]  # the number of the n-gram that ends at each position
        for _ in range(order):
            own, numbers = np.unique(self._keys(_shifted(ids[-1]), padded), return_inverse=True)
            keys.append(own)
            ids.append(numbers)
        at_scored = [numbers[scored] for numbers in ids[1:]]
        self.orders = [
            make_order(own, vocabulary, numbers, longer)
            for own, numbers, longer in zip(keys, at_scored, [*at_scored[1:], None], strict=True)
        ]

    def nll(self, tokens: np.ndarray) -> np.ndarray:
        """Returns the negative log-likelihood in nats of each token of documents, float64 [tokens]; see `__init__`."""
        padded, scored = padded_documents(tokens, self.end, len(self.orders) - 1)
        histories = np.zeros(len(padded), dtype=np.int64)
        found = np.full(len(tokens), 1 / self.vocabulary)
        for order in self.orders:
            before = _shifted(histories)
            histories = _places(order.keys, self._keys(before, padded))
            found = order.interpolated(histories[scored], before[scored], found)
        return -np.log(found)

    def _keys(self, histories: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Returns the key of the n-gram at each position, from the number of its history, or `UNSEEN` without one."""
        return np.where(histories == UNSEEN, UNSEEN, histories * self.vocabulary + tokens)


def make_order(keys: np.ndarray, vocabulary: int, ids: np.ndarray, longer: np.ndarray | None) -> Order:
    """Returns an order of n-grams.

    Args:
        keys: as in `Order`.
        ids: the number of the n-gram that ends at each scored position.
        longer: likewise of the n-grams with one more token; None for the largest order.
    """
    if longer is not None:  # each n-gram counts once for each different token before it
        ids = ids[np.unique(longer, return_index=True)[1]]
    counts, history = np.bincount(ids, minlength=len(keys)), keys // vocabulary
    once, twice = (int((counts == number).sum()) for number in (1, 2))
    return Order(
        keys,
        counts,
        np.bincount(history, weights=counts),
        np.bincount(history, weights=counts > 0),
        once / (once + 2 * twice) if once and twice else DEFAULT_DISCOUNT,
    )


def padded_documents(tokens: np.ndarray, end: int, before: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts `before` more tokens `end` before each document; returns all tokens, and the places of the given ones."""
    document = np.concatenate([[0], np.cumsum(tokens == end)[:-1]])
    places = np.arange(len(tokens)) + before * (document + 1)
    padded = np.full(len(tokens) + before * (document[-1] + 1), end, dtype=np.int64)
    padded[places] = tokens
    return padded, places


def _shifted(numbers: np.ndarray) -> np.ndarray:
    """Returns the number at the position before each; no scored n-gram reaches to what is before the first one."""
    return np.concatenate([[0], numbers[:-1]])


def _places(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the place of each of `wanted` in sorted `keys`, or `UNSEEN`."""
    places = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[places] == wanted, places, UNSEEN)
