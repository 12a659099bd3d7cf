"""A decode step whose shapes never change, so that a GPU can replay it as a CUDA graph.

    tokens, positions, tables of at most ROWS sequences ─> (ROWS, 2 + blocks) ─> a compiled program ─> logits

A GPU computes a token in less time than Python takes to launch the step's kernels one by one. Rows that are
not needed are padding, and write into a cache block that no table names. The number of blocks is that of the
longest sequence, rounded up to a power of two: one program for each such width.

Attention goes over the blocks SPAN at a time and rescales what it has (Milakov & Gimelshein 2018), so that
blocks beyond a row's own position add exactly nothing: a row's logits are the same bits at any width and
whatever the other rows are.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from puna.devices import to_device
from puna.generate.runners.cache import BLOCK, BlockCache
from puna.model import layers
from puna.model.llama import Llama

_log = logging.getLogger(__name__)

ROWS = 16  # sequences of a call, always
SPAN = 4  # cache blocks that attention takes together

Step = Callable[[Tensor], Tensor]


class StaticDecode:
    """Decodes one token of each of at most ROWS sequences. `padding` is a cache block that no table names."""

    def __init__(self, model: Llama, cache: BlockCache, padding: int, compiled: bool) -> None:
        self.model, self.cache, self.padding = model, cache, padding
        self._step: Step = self.step
        if compiled:
            for tensor in (cache.keys, cache.values):  # a graph may then write to them
                torch._dynamo.mark_static_address(tensor)
            program = torch.compile(self.step, mode="reduce-overhead", fullgraph=True, dynamic=False)
            self._step = or_eager(program, self.step)

    @torch.inference_mode()
    def __call__(
        self, tokens: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits of each sequence, (n, V), fp32, on the CPU."""
        assert len(tokens) <= ROWS
        needed = max(positions) // BLOCK + 1
        width = SPAN
        while width < needed:
            width *= 2
        batch = np.full((ROWS, 2 + width), self.padding)
        batch[:, :2] = 0
        for row, (token, position, table) in enumerate(zip(tokens, positions, tables, strict=True)):
            own = table[: position // BLOCK + 1]
            batch[row, :2] = token, position
            batch[row, 2 : 2 + len(own)] = own
        logits_NV = self._step(to_device(batch, self.model.embedding.device))
        return logits_NV[
            : len(tokens)
        ].cpu()  # a copy: the graph's own output is overwritten by the next step

    def step(self, batch_NX: Tensor) -> Tensor:
        """(ROWS, 2 + blocks) of token, position, table -> logits (ROWS, V). Waits for no value."""
        tokens_N, positions_N, tables_NB = batch_NX[:, 0], batch_NX[:, 1], batch_NX[:, 2:]
        blocks_N = tables_NB.gather(1, (positions_N // BLOCK)[:, None])[:, 0]
        K = self.model.config.kv_heads

        def attend(layer: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
            keys, values = self.cache.keys[layer], self.cache.values[layer]
            place = blocks_N, positions_N % BLOCK
            keys.index_put_(place, k_BKTE[0].transpose(0, 1).to(keys.dtype))
            values.index_put_(place, v_BKTE[0].transpose(0, 1).to(values.dtype))
            # Heads that share keys become rows of one product.
            q_NKGE = q_BHTE[0].transpose(0, 1).unflatten(1, (K, -1)).float()
            o_NKGE = _attention(q_NKGE, keys, values, tables_NB, positions_N)
            return o_NKGE.flatten(1, 2)[None].to(q_BHTE.dtype)

        hidden_BTD = self.model.hidden(tokens_N[None], positions_N, layers.with_cache(attend))
        return layers.linear(hidden_BTD[0], self.model.output_VD).float()


def _attention(
    q_NKGE: Tensor, keys: Tensor, values: Tensor, tables_NB: Tensor, positions_N: Tensor
) -> Tensor:
    """Softmax attention of a row each to its own blocks, up to its position; fp32."""
    top = torch.full_like(q_NKGE[..., :1], float("-inf"))
    total, o_NKGE = torch.zeros_like(top), torch.zeros_like(q_NKGE)
    within = torch.arange(SPAN * BLOCK, device=q_NKGE.device)
    for first in range(0, tables_NB.shape[1], SPAN):
        blocks = tables_NB[:, first : first + SPAN]
        k_NKSE, v_NKSE = (x[blocks].flatten(1, 2).transpose(1, 2).float() for x in (keys, values))
        seen_N1S = (first * BLOCK + within <= positions_N[:, None])[:, None]
        scores = q_NKGE @ k_NKSE.transpose(2, 3) * q_NKGE.shape[-1] ** -0.5
        scores = scores.masked_fill(~seen_N1S[:, :, None], float("-inf"))
        # What another sequence left there has no weight, but 0 · inf would be NaN.
        v_NKSE = v_NKSE.masked_fill(~seen_N1S[..., None], 0)
        new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
        p, scale = torch.exp(scores - new_top), torch.exp(top - new_top)
        total = total * scale + p.sum(-1, keepdim=True)
        o_NKGE = o_NKGE * scale + p @ v_NKSE
        top = new_top
    return o_NKGE / total


def or_eager(
    compiled: Callable[[Tensor], Tensor], eager: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """`compiled`, until it fails: then `eager` from there on, with one warning that names the cause."""
    run = compiled

    def call(x: Tensor) -> Tensor:
        nonlocal run
        if run is compiled:
            try:
                return compiled(x)
            except Exception as error:
                cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
                _log.warning("decoding could not be compiled (%s); it runs uncompiled, slower", cause)
                run = eager
        return run(x)

    return call
