"""Every test computes alike: one thread, one seed."""

import importlib.util
import signal

import pytest
import torch

# A shell that runs the tests in the background has Ctrl-C ignored, which the processes that tests start would inherit.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# These tests need packages that only the environment of `make test-clients` has.
if not all(map(importlib.util.find_spec, ("accelerate", "lightning", "timm", "transformers"))):
    collect_ignore = ["clients"]


@pytest.fixture(autouse=True)
def one_thread_and_a_fixed_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def same():
    """Whether two nested states are equal to the bit."""

    def equal(mine, other):
        if torch.is_tensor(mine):
            return torch.is_tensor(other) and mine.dtype == other.dtype and torch.equal(mine, other)
        if isinstance(mine, dict):
            return mine.keys() == other.keys() and all(equal(mine[key], other[key]) for key in mine)
        if isinstance(mine, list | tuple):
            return len(mine) == len(other) and all(equal(a, b) for a, b in zip(mine, other, strict=True))
        return mine == other

    return equal
