"""Tiny models: one thread, because they are slower with more."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """One thread for the test; what a run configures is put back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
