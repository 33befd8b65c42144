"""What the tests with other libraries share: nothing is downloaded, and counts and states are compared exactly."""

import math
import os
from decimal import Decimal

import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@pytest.fixture
def check_exact():
    """Checks that each slab keeps floor(b U n + 1/2) connections, and that the others are 0 in the model itself."""

    def check(model, sparsifier, slabs, budget):
        for slab in slabs:
            mask, weight = sparsifier.masks()[slab.name], model.get_submodule(slab.name).weight
            assert int(mask.sum()) == math.floor(Decimal(str(budget)) * mask.numel() + Decimal("0.5"))
            live = (weight != 0).reshape(*weight.shape[:2], -1).any(2)
            transposed = type(model.get_submodule(slab.name)).__name__ == "Conv1D"
            live = live if (slab.side == "in") != transposed else live.T
            assert live.shape == mask.shape
            assert not (live & ~mask).any()
            assert 0 < live.sum() <= mask.sum()

    return check
