"""Kneser-Ney smoothing against a case worked by hand, against dictionaries of n-grams, and as a distribution."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from bbnet.tasks.language.data.kneser_ney import KneserNey, padded_documents

END = 0


def documents(*texts: list[int]) -> np.ndarray:
    return np.array([token for text in texts for token in (*text, END)])


def by_dictionaries(train: np.ndarray, test: np.ndarray, vocabulary: int, order: int) -> list[float]:
    """The probability of each token of test, by the recursion over dictionaries of n-grams as tuples."""

    def grams(tokens: np.ndarray) -> list[tuple[int, ...]]:
        found, history = [], [END] * (order - 1)
        for token in tokens.tolist():
            found.append((*history, token))
            history = [END] * (order - 1) if token == END else [*history[1:], token]
        return found

    counts = {order: Counter(grams(train))}
    for size in range(order - 1, 0, -1):
        longer = {gram[-size - 1 :] for gram in counts[order]}
        counts[size] = Counter(gram[1:] for gram in longer)
    discounts, totals, followers = {}, defaultdict(int), defaultdict(int)
    for size, of_size in counts.items():
        once, twice = (sum(count == number for count in of_size.values()) for number in (1, 2))
        discounts[size] = once / (once + 2 * twice) if once and twice else 0.5
        for gram, count in of_size.items():
            totals[gram[:-1], size] += count
            followers[gram[:-1], size] += 1

    def probability(gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / vocabulary
        size, history = len(gram), gram[:-1]
        lower = probability(gram[1:])
        if not totals[history, size]:
            return lower
        own = max(counts[size][gram] - discounts[size], 0)
        return (own + discounts[size] * followers[history, size] * lower) / totals[history, size]

    return [probability(gram) for gram in grams(test)]


def test_bigrams_worked_by_hand():
    """Training is "1 1 2" and "1 2", and END is 0. Bigrams: 01 twice, 11 once, 12 twice, 20 twice; so D = 1 / 7.

    Tokens before each token: of 1 two (0 and 1), of 2 one, of 0 one; n1 = 2 and n2 = 1 give D = 1/2, the sum is 4, and
    three tokens have been seen, of a vocabulary of four:
    p(1) = (1.5 + .5 * 3 / 4) / 4 = .46875, p(2) = p(0) = (.5 + .375) / 4 = .21875, p(3) = .375 / 4 = .09375.
    """
    model = KneserNey(documents([1, 1, 2], [1, 2]), vocabulary=4, end=END, order=2)
    assert [order.discount for order in model.orders] == [1 / 2, 1 / 7]
    one_after_end = (2 - 1 / 7) / 2 + 1 / 7 * 1 / 2 * 0.46875
    two_after_one = (2 - 1 / 7) / 3 + 1 / 7 * 2 / 3 * 0.21875
    three_after_two = 1 / 7 * 1 / 2 * 0.09375
    end_after_three = 0.21875
    found = np.exp(-model.nll(documents([1, 2, 3])))
    assert found == pytest.approx([one_after_end, two_after_one, three_after_two, end_after_three])


@pytest.mark.parametrize("order", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_any_text_has_the_probabilities_of_the_recursion(order, seed):
    rng = np.random.default_rng(seed)
    vocabulary = 7

    def random_documents(count: int) -> np.ndarray:
        draw = rng.zipf(1.5, size=(count, 30)).clip(max=vocabulary - 1)
        return documents(*(row[: rng.integers(0, 30)].tolist() for row in draw))

    train, test = random_documents(12), random_documents(5)
    model = KneserNey(train, vocabulary, END, order)
    assert np.exp(-model.nll(test)) == pytest.approx(by_dictionaries(train, test, vocabulary, order), rel=1e-12)


@pytest.mark.parametrize("order", [2, 4])
def test_probabilities_of_all_tokens_sum_to_one_after_any_history(order):
    rng = np.random.default_rng(0)
    vocabulary = 6
    train = documents(*rng.integers(1, 5, size=(6, 20)).tolist())
    model = KneserNey(train, vocabulary, END, order)
    for history in ([], [1], [2, 3, 1], [5, 5, 5, 5], [1, 2, 5]):
        each = [model.nll(documents([*history, token]))[len(history)] for token in range(1, vocabulary)]
        each.append(model.nll(documents(history))[-1])
        assert np.exp(-np.array(each)).sum() == pytest.approx(1)


def test_a_text_of_one_token_and_an_empty_document_have_finite_losses():
    model = KneserNey(documents([1]), 3, END, 5)
    assert np.isfinite(model.nll(documents([2, 2], [], [1]))).all()
    padded, scored = padded_documents(documents([5], [], [6, 7]), END, 2)
    assert padded.tolist() == [0, 0, 5, 0, 0, 0, 0, 0, 0, 6, 7, 0]
    assert scored.tolist() == [2, 3, 6, 9, 10, 11]
