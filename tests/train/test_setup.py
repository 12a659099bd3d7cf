"""What a process of several is given: its share of the cores, and only meshes that divide the model."""

import pytest
import torch

from puna.config import MeshConfig, ModelConfig
from puna.train import setup
from puna.train.setup import open_run
from tests.conftest import changed
from tests.train.test_precision import tiny


def test_threads_are_the_cores_by_the_local_ranks_whatever_torchrun_sets(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(setup, "cores", lambda: 6)
    before = torch.get_num_threads()
    try:
        open_run(changed(tiny(shards), compute={"threads": 0}), tmp_path / "run", "cpu")
        assert torch.get_num_threads() == 3
        open_run(changed(tiny(shards), compute={"threads": 2}), tmp_path / "other", "cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_tp_that_does_not_divide_the_kv_heads_is_refused():
    model = ModelConfig(dim=72, n_heads=9, n_kv_heads=3, n_layers=1, ffn_dim=96, vocab_size=64, context=96)
    MeshConfig(tp=3).divide(model, 8)
    with pytest.raises(ValueError, match=r"--parallel\.tp is 2"):
        MeshConfig(tp=2).divide(model, 8)
