"""Which documents are shown, and which passage of them."""

import numpy as np

from bbnet.tasks.language import panels
from tests.tasks.language.conftest import PIECES


def test_documents_are_ranked_by_their_loss_per_token_against_dense():
    tokens = np.array([10, 100, 10, 10, 20])
    dense = {"nll": np.array([20.0, 300, 30, 25, 60]), "tokens": tokens}
    other = {"nll": np.array([25.0, 310, 10, 25, 50]), "tokens": tokens}
    assert panels.choose(dense, other) == {"best": 2, "median": 3, "worst": 0}
    one = {"nll": np.array([1.0]), "tokens": np.array([1])}
    assert panels.choose(one, one) == {"only": 0}


def test_a_passage_is_around_the_token_whose_loss_rises_most(prepared, folder):
    pack = prepared(PIECES)
    starts = np.load(pack.folder / "test_starts.npy")
    losses = np.zeros(starts[-1] - 1, dtype=np.float16)
    risen = losses.copy()
    first, end = starts[2] - 1, starts[3] - 1
    risen[end - 5], risen[first - 1] = 3, 9  # the latter is of the document before it
    found = panels.case(pack.folder, pack.index, 2, {"dense": {"nll": losses}, "other": {"nll": risen}})
    assert len(found["tokens"]) == len(found["dense"]) == len(found["other"]) <= 121
    assert found["other"].max() == 3 and found["other"][-5] == 3
    whole = (folder / "test" / "2.txt").read_text()
    assert whole.endswith("".join(found["tokens"].tolist()))
    row = {"document": "test/2.txt", "tokens": 4, "nll": 6.0}
    assert panels.describe(row, row | {"nll": 7.0}) == {
        "document": "test/2.txt",
        "tokens": 4,
        "dense": 1.5,
        "other": 1.75,
    }
