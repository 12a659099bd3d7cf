"""PlainRunner: the model in PyTorch over a cache of blocks, for any device.

    Engine ──prefill(tokens, start, table)──────────> Runner ──> logits of the last token
           ──decode(tokens, positions, tables)──────>        ──> logits of each sequence

It is the reference that packed.py is tested against, what training's samples use, and what runs on GPUs.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.generate.runners import static_decode
from puna.generate.runners.base import Likelihoods, Span, joined, likelihoods
from puna.generate.runners.cache import BLOCK, ROWS, BlockCache
from puna.generate.runners.static_decode import StaticDecode
from puna.model import layers
from puna.model.llama import Llama


class PlainRunner:
    """PyTorch alone, on any device, in fp32 or bf16: the reference, what training's samples use, and GPUs.

    Each product has a multiple of ROWS rows, and a row's attention spans whole blocks up to its own, so a
    token's arithmetic is the same in any call. Whether this machine's matrix library keeps to that is tried
    on the model's own matrices before it is relied on; if not, sequences are decoded one at a time.

    With `static`, for GPUs, the decode step has fixed shapes and is compiled (static_decode.py), and
    attention in a prompt is a fused kernel.

    Logits come back in the CPU's memory, where tokens are drawn: a draw waits several times.
    """

    def __init__(
        self, model: Llama, n_blocks: int, dtype: torch.dtype | None = None, static: bool = False
    ) -> None:
        """`dtype` is that of the KV cache; None: the model's compute precision."""
        self.model, self.config, self.n_blocks = model, model.config, n_blocks
        self.device = model.embedding.device
        self.cache = BlockCache(model.config, n_blocks + static, dtype or model.compute, self.device)
        self.static_decode = StaticDecode(model, self.cache, n_blocks, compiled=True) if static else None

    @cached_property
    @torch.inference_mode()
    def prefill_is_decode(self) -> bool:
        """Measured on rows of the first block's matrices and the output's, alone and among others.

        Never with `static`, whose attention adds in another order than a prompt's.
        """
        if self.static_decode:
            return False
        first = self.model.blocks[0]
        for weight in (first.wq, first.wk, first.wo, first.w1, first.w2, self.model.output_VD):
            assert isinstance(weight, Tensor)
            weight = weight[: 1 << 15].to(self.model.compute)
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(BLOCK, weight.shape[1], generator=generator)
            x = x.to(self.device, self.model.compute)
            among = F.linear(x, weight)
            for rows in (ROWS, 2 * ROWS, 3 * ROWS, BLOCK // 2):
                if not torch.equal(F.linear(x[:rows].clone(), weight), among[:rows]):
                    return False
        return True

    @torch.inference_mode()
    def prefill(
        self, tokens: Sequence[int], start: int, table: Sequence[int], all_logits: bool = False
    ) -> Tensor:
        """See Runner."""
        hidden_TD = self._hidden(tokens, [(len(tokens), start, table)])
        return self._logits(hidden_TD) if all_logits else self._logits(hidden_TD[-1:])[0]

    @torch.inference_mode()
    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]
    ) -> Tensor:
        """See Runner."""
        if self.static_decode:
            calls = (
                slice(row, row + static_decode.ROWS) for row in range(0, len(tokens), static_decode.ROWS)
            )
            return torch.cat(
                [self.static_decode(tokens[rows], positions[rows], tables[rows]) for rows in calls]
            )
        if len(tokens) > ROWS and not self.prefill_is_decode:
            rows = zip(tokens, positions, tables, strict=True)
            return torch.cat([self.decode([token], [at], [table]) for token, at, table in rows])
        parts = [(1, at, table) for at, table in zip(positions, tables, strict=True)]
        return self._logits(self._hidden(tokens, parts))

    @torch.inference_mode()
    def score(self, spans: Sequence[Span]) -> Likelihoods:
        """See Runner. Where a token's bits depend on the call, each span is a call of its own."""
        if len(spans) > 1 and not self.prefill_is_decode:
            return joined([self.score([span]) for span in spans])
        parts = [(len(span.tokens), span.start, span.table) for span in spans]
        hidden_TD = self._hidden(np.concatenate([span.tokens for span in spans]).tolist(), parts)
        firsts = np.cumsum([0, *(count for count, _, _ in parts)])
        places = np.concatenate([span.places + first for span, first in zip(spans, firsts, strict=False)])
        if not len(places):
            return joined([])
        wanted, rows = np.unique(places, return_inverse=True)
        logits_NV = self._logits(hidden_TD[torch.from_numpy(wanted).to(hidden_TD.device)])
        return likelihoods(logits_NV.numpy(), rows, np.concatenate([span.targets for span in spans]))

    def copy_block(self, source: int, target: int) -> None:
        """See Runner."""
        self.cache.keys[:, target] = self.cache.keys[:, source]
        self.cache.values[:, target] = self.cache.values[:, source]

    def _hidden(self, tokens: Sequence[int], parts: Sequence[tuple[int, int, Sequence[int]]]) -> Tensor:
        """The residual stream after the last norm, (T, D). `parts` as BlockCache.attention has them."""
        padding = [0] * (-len(tokens) % ROWS)
        positions = [at for count, start, _ in parts for at in range(start, start + count)]
        is_fused = self.static_decode and len(parts) == 1
        attention = self.cache.fused_attention(*parts[0]) if is_fused else self.cache.attention(parts)
        hidden_BTD = self.model.hidden(
            torch.tensor([[*tokens, *padding]], device=self.device),
            torch.tensor([*positions, *padding], device=self.device),
            layers.with_cache(attention),
        )
        return hidden_BTD[0, : len(tokens)]

    def _logits(self, hidden_TD: Tensor) -> Tensor:
        rows = len(hidden_TD)
        padded_TD = F.pad(hidden_TD, (0, 0, 0, -rows % ROWS))
        return layers.linear(padded_TD, self.model.output_VD)[:rows].float().cpu()
