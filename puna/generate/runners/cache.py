"""The keys and values of every token so far, in memory taken once and lent out in blocks.

block     0       1       2       3       4      …
        ┌───────┬───────┬───────┬───────┬───────┐     a sequence's table: its blocks in order, say 3, 0;
layer 0 │ 64 k,v│       │       │       │       │     position p lies in block table[p // 64], row p % 64
layer 1 │       │       │       │       │       │
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.config import ModelConfig
from puna.model.layers import CachedAttention

BLOCK = 64  # tokens in a cache block
# Rows of every matrix product are filled up to a multiple of this. From 4 rows on, MKL's and oneDNN's
# products give a row the same bits whatever their number; fewer take other kernels (docs/lab-notes.md).
ROWS = 4


def block_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Memory of one block: 2 · layers · kv heads · head dim · BLOCK elements."""
    return 2 * config.n_layers * config.kv_heads * config.head_dim * BLOCK * dtype.itemsize


@dataclass(frozen=True)
class _Span:
    """Rows of a call that belong to one sequence and write into one block."""

    rows: slice
    block: int
    blocks: Tensor  # the sequence's, up to this one, (n,)
    first: int  # of the rows, within that block
    seen: Tensor  # which of the block's places each row, filled up to ROWS, may look at, (t, BLOCK)


class BlockCache:
    """Keys and values in blocks, each (layers, blocks, BLOCK, K, E)."""

    def __init__(
        self, config: ModelConfig, n_blocks: int, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> None:
        shape = (config.n_layers, n_blocks, BLOCK, config.kv_heads, config.head_dim)
        # Not cleared, so that memory is taken when it is used; what was not written is never looked at.
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)

    def attention(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> CachedAttention:
        """Attention for the rows of several sequences laid end to end, (1, H, T, E) -> (1, T, H, E).

        `parts` are the sequences: how many rows, the first one's position, the table. Rows after them are
        padding. A row is computed over whole blocks up to its own, in fp32, so its sums run over the same
        places in the same order in any call.
        """
        spans = list(self._spans(parts))

        def attend(layer: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
            o_BTHE = torch.zeros_like(q_BHTE.transpose(1, 2))
            for span in spans:
                self._write(layer, span, k_BKTE[0], v_BKTE[0])
                o_BTHE[0, span.rows] = self._attend(layer, span, q_BHTE[0]).to(o_BTHE.dtype)
            return o_BTHE

        return attend

    def fused_attention(self, count: int, start: int, table: Sequence[int]) -> CachedAttention:
        """The same for rows of one sequence by PyTorch's fused kernels, for GPUs: sums in another order."""
        device, end = self.keys.device, start + count
        blocks = torch.tensor(table[: -(-end // BLOCK)], device=device)
        positions = torch.arange(start, end, device=device)
        place = blocks[positions // BLOCK], positions % BLOCK
        seen = torch.arange(end, device=device) <= positions[:, None] if start else None

        def attend(layer: int, q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor) -> Tensor:
            groups = q_BHTE.shape[1] // k_BKTE.shape[1]
            known: list[Tensor] = []
            for cached, new_BKTE in ((self.keys[layer], k_BKTE), (self.values[layer], v_BKTE)):
                cached.index_put_(place, new_BKTE[0, :, :count].transpose(0, 1).to(cached.dtype))
                all_KSE = cached[blocks].flatten(0, 1)[:end].transpose(0, 1).to(q_BHTE.dtype)
                known.append(all_KSE.repeat_interleave(groups, 0)[None])
            k_BHSE, v_BHSE = known
            o_BHTE = F.scaled_dot_product_attention(
                q_BHTE[:, :, :count], k_BHSE, v_BHSE, attn_mask=seen, is_causal=seen is None
            )
            return F.pad(o_BHTE, (0, 0, 0, q_BHTE.shape[2] - count)).transpose(1, 2)

        return attend

    def _spans(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> Iterator[_Span]:
        device, row = self.keys.device, 0
        places = torch.arange(BLOCK, device=device)
        for count, start, table in parts:
            position, end = start, start + count
            while position < end:
                block, first = divmod(position, BLOCK)
                t = min(end - position, BLOCK - first)
                own = torch.arange(first, first + t + -t % ROWS, device=device)
                blocks = torch.tensor(table[: block + 1], device=device)
                yield _Span(slice(row, row + t), table[block], blocks, first, places <= own[:, None])
                row, position = row + t, position + t

    def _write(self, layer: int, span: _Span, k_KTE: Tensor, v_KTE: Tensor) -> None:
        last = span.first + span.rows.stop - span.rows.start
        self.keys[layer, span.block, span.first : last] = k_KTE[:, span.rows].transpose(0, 1)
        self.values[layer, span.block, span.first : last] = v_KTE[:, span.rows].transpose(0, 1)

    def _attend(self, layer: int, span: _Span, q_HTE: Tensor) -> Tensor:
        """Softmax attention of a span's rows, (t, H, E), fp32."""
        t = span.rows.stop - span.rows.start
        H, _, E = q_HTE.shape
        k_KSE = self.keys[layer, span.blocks].flatten(0, 1).transpose(0, 1).float()
        v_KSE = self.values[layer, span.blocks].flatten(0, 1).transpose(0, 1).float()
        # What another sequence left behind the rows is never seen, but 0 · inf would be.
        v_KSE[:, v_KSE.shape[1] - BLOCK + span.first + t :] = 0
        K = len(k_KSE)
        q_HtE = F.pad(q_HTE[:, span.rows].float(), (0, 0, 0, -t % ROWS))
        # Heads that share keys become further rows of one product.
        scores = q_HtE.reshape(K, -1, E) @ k_KSE.transpose(1, 2) * E**-0.5
        last_block = scores.unflatten(1, (H // K, -1))[..., -BLOCK:]
        last_block.masked_fill_(~span.seen, float("-inf"))
        o_HtE = (scores.softmax(-1) @ v_KSE).view(H, -1, E)
        return o_HtE[:, :t].transpose(0, 1)
