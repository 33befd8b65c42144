"""Every test computes alike: one thread, one seed."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread_and_a_fixed_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
