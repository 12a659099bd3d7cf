"""The keys and values of every token so far, in memory taken once."""

import torch
from torch import Tensor

from puna.config import ModelConfig


class KVCache:
    """A static cache for one sequence: `length` tokens are held of `capacity`.

    Memory: 2 · layers · kv heads · head dim · capacity elements of `dtype`.
    """

    def __init__(self, config: ModelConfig, capacity: int, dtype: torch.dtype) -> None:
        self.length, self.capacity = 0, capacity
        shape = (config.n_layers, 1, config.kv_heads, capacity, config.head_dim)
        self._keys = torch.zeros(shape, dtype=dtype)
        self._values = torch.zeros(shape, dtype=dtype)

    def update(self, layer: int, k_BKTE: Tensor, v_BKTE: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values behind those held; views of all, (1, K, S, E)."""
        end = self.length + k_BKTE.shape[2]
        assert end <= self.capacity, f"{end} tokens in a cache of {self.capacity}"
        self._keys[layer, :, :, self.length : end] = k_BKTE
        self._values[layer, :, :, self.length : end] = v_BKTE
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]
