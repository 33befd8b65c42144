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
