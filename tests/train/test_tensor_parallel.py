"""The input gradient's collective runs beside the weight gradients (every mesh: tests/distributed)."""

import pytest
import torch
import torch.distributed as dist

from puna.train import tensor_parallel
from puna.train.tensor_parallel import NormLinear, Pending


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_the_reduction_of_the_input_gradient_is_waited_for_after_the_weight_gradients(group, monkeypatch):
    events = []

    class Recorded:
        def __init__(self, name):
            self.name = name
            events.append(f"{name} begins")

        def wait(self):
            events.append(f"{self.name} is waited for")

    monkeypatch.setattr(tensor_parallel, "gather", lambda x, group: Pending(x, Recorded("gather")))
    monkeypatch.setattr(tensor_parallel, "scatter", lambda x, group: Pending(x, Recorded("scatter")))
    products = tensor_parallel.weight_gradients

    def weight_gradients(*arguments):
        events.append("weight gradients")
        return products(*arguments)

    monkeypatch.setattr(tensor_parallel, "weight_gradients", weight_gradients)
    x = torch.randn(2, 4, 16, requires_grad=True)
    norm, weights = torch.ones(16, requires_grad=True), [torch.randn(8, 16, requires_grad=True) for _ in "ab"]
    y = NormLinear.apply(group, x, norm, 1e-6, torch.float32, *weights)
    events.clear()
    y.sum().backward()
    assert events == [
        "gather begins",
        "scatter begins",
        "gather is waited for",
        "weight gradients",
        "scatter is waited for",
    ]
