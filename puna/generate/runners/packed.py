"""A model whose weights are packed to be read once per step: what serving on CPUs runs.

In:  a model in any format (`Source`); fp32, bf16, int8 or int4.
Out: a Runner whose step is one call of packed.cpp, for prompts and single tokens alike, so that a token's
     logits are bitwise identical in any batch and for any chunking of its prompt.

    Source ─> a matrix at a time ─> quantize ─> pack ─> one allocation, in reading order

Without a C++ compiler PyTorch computes with the same weights (load.py falls back to PlainRunner), integers
held as bf16: slower, and larger. There is no packed counterpart on CUDA devices yet.
"""

import ctypes
import logging
import mmap
from collections.abc import Iterator, Sequence
from itertools import groupby
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puna.config import ModelConfig
from puna.generate.runners.base import Likelihoods, Span, joined, likelihoods
from puna.generate.runners.cache import BLOCK
from puna.generate.runners.quantize import GROUP, Int4, Int8, Weights
from puna.kernels import build
from puna.model.layers import rope_table
from puna.model.llama import Llama
from puna.model.parts import Part, Source, parts

_log = logging.getLogger(__name__)

PANEL = 32  # outputs that are computed together
CHUNK = 256  # rows of a call, at most: what a step needs in memory grows with them
READ = 4096  # rows of a matrix that are converted at a time
FORMATS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
# Bytes of a panel before its groups, and of a group of 32 columns.
HEAD_BYTES = {"fp32": 0, "bf16": 0, "int8": 0, "int4": 128}
GROUP_BYTES = {"fp32": 4096, "bf16": 2048, "int8": 64 + 1024, "int4": 64 + 512}
LARGEST_HEAD = 512
# Parameters that packed.cpp reads as one matrix; the others by their own names.
FUSED = {"wq": "wqkv", "wk": "wqkv", "wv": "wqkv", "w1": "w13", "w3": "w13"}


class _Matrix(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("rows", ctypes.c_long), ("groups", ctypes.c_long))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attention_norm", "ffn_norm")),
        *((name, _Matrix) for name in ("wqkv", "wo", "w13", "w2")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_long)
            for name in ("dim", "n_layers", "n_heads", "kv_heads", "head_dim", "ffn_dim")
        ),
        *(("eps", ctypes.c_float), ("weights", ctypes.c_int), ("cache_is_fp32", ctypes.c_int)),
        ("layers", ctypes.POINTER(_Layer)),
        *(("embedding", _Matrix), ("output", _Matrix)),
        *((name, ctypes.c_void_p) for name in ("norm", "cos", "sin", "cache")),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_long) for name in ("rows", "wanted", "table_length")),
        *(
            (name, ctypes.c_void_p)
            for name in ("tokens", "positions", "sequences", "tables", "want", "logits")
        ),
    )


def precision(part: Part, weights: Weights) -> Weights:
    """What a matrix is stored in: never 4 bits for embedding and output, which would ruin the text."""
    return "int8" if weights == "int4" and not part.in_block else weights


def packed_bytes(rows: int, columns: int, weights: Weights) -> int:
    """Memory of a packed matrix."""
    return ceil(rows / PANEL) * (HEAD_BYTES[weights] + ceil(columns / GROUP) * GROUP_BYTES[weights])


def pack(weight_OI: Tensor, weights: Weights) -> Tensor:
    """A matrix as packed.cpp reads it: (panels, bytes), uint8. Filled up with zeros."""
    rows, columns = weight_OI.shape
    weight_OI = F.pad(weight_OI, (0, -columns % GROUP, 0, -rows % PANEL))
    if weights in ("fp32", "bf16"):
        return _panels(weight_OI.to(torch.float32 if weights == "fp32" else torch.bfloat16)).flatten(1)
    if weights == "int8":
        int8 = Int8.of(weight_OI)
        data = _panels((int8.q_OI.to(torch.int16) + 128).to(torch.uint8))
        return torch.cat((_outputs(int8.scale_OG), data), dim=-1).flatten(1)
    int4 = Int4.of(weight_OI)
    # Two steps of 128 bytes become the low and the high halves of one.
    low, high = _panels(int4.q_OI).unflatten(-1, (-1, 2, 4 * PANEL)).unbind(-2)
    groups = torch.cat((_outputs(int4.scale_OG), _outputs(int4.zero_OG), (low | high << 4).flatten(-2)), -1)
    return torch.cat((int4.step_O.view(-1, PANEL).view(torch.uint8), groups.flatten(1)), dim=-1)


def multiply(x_TI: Tensor, weight_OI: Tensor, weights: Weights) -> Tensor:
    """x · weightᵀ as a step of the PackedRunner computes it, (T, O): what tests compare with fp64.

    Both are fp32. A C++ compiler is required.
    """
    library = build.load(Path(__file__).with_name("packed.cpp"))
    assert library is not None, "no C++ compiler"
    packed = pack(weight_OI, weights)
    x_TI = F.pad(x_TI, (0, -x_TI.shape[1] % GROUP)).contiguous()
    matrix = _Matrix(packed.data_ptr(), len(weight_OI), x_TI.shape[1] // GROUP)
    out = torch.empty(len(x_TI), len(weight_OI))
    pointers = (ctypes.c_void_p(x_TI.data_ptr()), ctypes.c_long(len(x_TI)), ctypes.c_void_p(out.data_ptr()))
    library.multiply(FORMATS[weights], ctypes.byref(matrix), *pointers)
    return out


def _outputs(numbers_OG: Tensor) -> Tensor:
    """What each output has for a group -> (panels, groups, bytes)."""
    return numbers_OG.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous().view(torch.uint8)


def _panels(matrix_OI: Tensor) -> Tensor:
    """Any precision -> (panels, groups, steps · 128 bytes): for each 4 bytes of columns the 32 outputs."""
    units = matrix_OI.contiguous().view(torch.int32)  # 4 bytes
    units = units.unflatten(0, (-1, PANEL)).unflatten(-1, (matrix_OI.shape[1] // GROUP, -1))
    panels = units.permute(0, 2, 3, 1).contiguous()  # panels, groups, steps, outputs
    return panels.view(torch.uint8).flatten(2)


def _interleave(w13: Tensor) -> Tensor:
    """Gate and up rows -> 16 gates, their 16 ups, the next 16: a panel holds what is multiplied."""
    gate, up = (F.pad(half, (0, 0, 0, -len(half) % 16)).unflatten(0, (-1, 16)) for half in w13.chunk(2))
    return torch.stack((gate, up), dim=1).flatten(0, 2)


class _Memory:
    """One allocation for all weights, in huge pages where the system has them."""

    def __init__(self, size: int) -> None:
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._map = mmap.mmap(-1, size, **flags)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        self._used = 0

    def take(self, size: int) -> Tensor:
        """The next bytes; sizes are multiples of 64, so that vectors never straddle cache lines."""
        self._used += size
        return self._bytes[self._used - size : self._used]


def library_for(config: ModelConfig) -> ctypes.CDLL | None:
    """The compiled packed.cpp; None without a compiler, or when it does not take heads this large."""
    if config.head_dim > LARGEST_HEAD:
        return None
    return build.load(Path(__file__).with_name("packed.cpp"))


class PackedRunner:
    """See Runner. Not for two threads at once: the cache is one."""

    prefill_is_decode = True

    def __init__(
        self,
        source: Source,
        library: ctypes.CDLL,
        weights: Weights,
        n_blocks: int,
        cache_dtype: torch.dtype,
    ) -> None:
        self.config, self.n_blocks = source.config, n_blocks
        self._library = library
        config = source.config
        E = config.head_dim + -config.head_dim % 16
        shape = (n_blocks, config.n_layers, 2, config.kv_heads, E * BLOCK)
        # What C++ has pointers to. NumPy's zeros are the system's: memory is taken when it is used.
        zeros = torch.from_numpy(np.zeros(prod(shape) * cache_dtype.itemsize, np.uint8))
        self._kept = [zeros.view(cache_dtype).view(shape)]
        self._model = self._packed(source, weights)
        self._model.cache = self._kept[0].data_ptr()
        self._model.cache_is_fp32 = cache_dtype == torch.float32

    def _packed(self, source: Source, weights: Weights) -> Any:
        """Fill in what packed.cpp reads."""
        config = source.config
        groups = groupby(parts(config), key=lambda part: (part.layer, _field(part)))
        matrices = [list(members) for _, members in groups]
        sizes = [
            packed_bytes(*_shape(m), precision(m[0], weights)) if m[0].is_matrix else 0 for m in matrices
        ]
        self.weight_bytes = sum(sizes)
        """Memory of the packed weights."""
        memory = _Memory(self.weight_bytes)
        cos, sin = rope_table(config.head_dim, config.context, config.rope_base, config.rope_scaling)
        layers = (_Layer * config.n_layers)()
        model = _Model(
            *(config.dim, config.n_layers, config.n_heads, config.kv_heads, config.head_dim, config.ffn_dim),
            *(config.norm_eps, FORMATS[weights], 0, layers),
        )
        model.cos, model.sin = self._pointer(cos), self._pointer(sin)
        for members, size in zip(matrices, sizes, strict=True):
            first, field = members[0], _field(members[0])
            owner = layers[first.layer] if first.in_block else model
            if not first.is_matrix:
                norm = source.read(first).float()
                setattr(owner, field, self._pointer(F.pad(norm, (0, -len(norm) % GROUP))))
                continue
            packed = memory.take(size)
            at = 0
            for rows in _rows(source, members):
                rows = _interleave(rows) if field == "w13" else rows
                data = pack(rows, precision(first, weights)).flatten()
                packed[at : at + len(data)] = data
                at += len(data)
            assert at == size, f"{first.parameter} was packed to {at} bytes, not {size}"
            self._kept.append(packed)
            count, columns = _shape(members)
            setattr(owner, field, _Matrix(packed.data_ptr(), count, ceil(columns / GROUP)))
        if config.tied_embeddings:
            model.output = model.embedding
        return model

    def _pointer(self, tensor: Tensor) -> int:
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()

    def prefill(
        self, tokens: Sequence[int], start: int, table: Sequence[int], all_logits: bool = False
    ) -> Tensor:
        """See Runner."""
        logits = []
        for at in range(0, len(tokens), CHUNK):
            chunk = tokens[at : at + CHUNK]
            last = at + CHUNK >= len(tokens)
            want = list(range(len(chunk))) if all_logits else [len(chunk) - 1] if last else []
            positions = list(range(start + at, start + at + len(chunk)))
            logits.append(self._forward(chunk, positions, [0] * len(chunk), [table], want))
        return torch.cat(logits) if all_logits else logits[-1][0]

    def decode(
        self, tokens: Sequence[int], positions: Sequence[int], tables: Sequence[Sequence[int]]
    ) -> Tensor:
        """See Runner."""
        rows = list(range(len(tokens)))
        return self._forward(tokens, positions, rows, tables, rows)

    def score(self, spans: Sequence[Span]) -> Likelihoods:
        """See Runner. The spans' tokens are laid end to end and divided into calls of CHUNK rows."""
        counts = [len(span.tokens) for span in spans]
        firsts = np.cumsum([0, *counts])
        tokens = np.concatenate([span.tokens for span in spans])
        positions = np.concatenate(
            [np.arange(s.start, s.start + n) for s, n in zip(spans, counts, strict=True)]
        )
        sequences = np.repeat(np.arange(len(spans)), counts)
        places = np.concatenate([span.places + first for span, first in zip(spans, firsts, strict=False)])
        targets = np.concatenate([span.targets for span in spans])
        found = []
        for begin in range(0, len(tokens), CHUNK):
            end = min(begin + CHUNK, len(tokens))
            wanted, rows = np.unique(places[(places >= begin) & (places < end)], return_inverse=True)
            own = slice(*np.searchsorted(places, (begin, end)).tolist())
            # Only the tables of sequences with rows in this call.
            used, names = np.unique(sequences[begin:end], return_inverse=True)
            logits = self._forward(
                tokens[begin:end].tolist(),
                positions[begin:end].tolist(),
                names.tolist(),
                [spans[index].table for index in used.tolist()],
                (wanted - begin).tolist(),
            )
            if len(wanted):
                found.append(likelihoods(logits.numpy(), rows, targets[own]))
        return joined(found)

    def copy_block(self, source: int, target: int) -> None:
        """See Runner."""
        self._kept[0][target] = self._kept[0][source]

    def _forward(
        self,
        tokens: Sequence[int],
        positions: Sequence[int],
        sequences: Sequence[int],
        tables: Sequence[Sequence[int]],
        want: Sequence[int],
    ) -> Tensor:
        """One call of packed.cpp, which does not check its arguments: they are checked here."""
        n, longest = len(tokens), max(map(len, tables))
        assert n == len(positions) and 0 <= min(tokens) <= max(tokens) < self.config.vocab_size
        assert 0 <= min(positions) <= max(positions) < self.config.context
        for position, sequence in zip(positions, sequences, strict=True):
            assert position < BLOCK * len(tables[sequence]), f"no cache block for position {position}"
        assert all(0 <= block < self.n_blocks for table in tables for block in table)
        padded = [list(table) + [0] * (longest - len(table)) for table in tables]
        arrays = [torch.tensor(x, dtype=torch.int32) for x in (tokens, positions, sequences, padded, want)]
        logits = torch.empty(len(want), self.config.vocab_size)
        pointers = (x.data_ptr() for x in (*arrays, logits))
        self._library.forward(
            ctypes.byref(self._model), ctypes.byref(_Batch(n, len(want), longest, *pointers))
        )
        return logits


def _field(part: Part) -> str:
    return FUSED.get(part.role, part.role)


def _shape(members: Sequence[Part]) -> tuple[int, int]:
    """Rows and columns of the matrix that packed.cpp reads: gate and up are each filled up to 16 rows."""
    rows, columns = sum(part.shape[0] for part in members), members[0].shape[1]
    return (2 * 16 * ceil(rows / 32), columns) if members[0].role == "w1" else (rows, columns)


def _rows(source: Source, members: Sequence[Part]) -> Iterator[Tensor]:
    """A matrix's rows in fp32: fused parameters together, a large one some thousand rows at a time."""
    if len(members) > 1:
        yield torch.cat([source.read(part).float() for part in members])
    else:
        yield from (rows.float() for rows in source.read(members[0]).split(READ))


@torch.no_grad()
def plain_model(source: Source, weights: Weights) -> Llama:
    """The same weights, dequantised, for PyTorch to compute with."""
    dtype = torch.float32 if weights == "fp32" else torch.bfloat16
    model = Llama(source.config, dtype)
    parameters = dict(model.named_parameters())
    for part in parts(source.config):
        parameter = parameters[part.parameter]
        if not part.is_matrix:
            parameter.copy_(source.read(part))
            continue
        parameter.data = torch.empty(part.shape, dtype=dtype)
        for into, rows in zip(parameter.split(READ), _rows(source, [part]), strict=True):
            into.copy_(rounded(rows, precision(part, weights)))
    return model


def rounded(weight_OI: Tensor, weights: Weights) -> Tensor:
    """The values that a matrix has once it is held in so many bits, fp32."""
    if weights in ("fp32", "bf16"):
        return weight_OI.to(torch.float32 if weights == "fp32" else torch.bfloat16).float()
    columns = weight_OI.shape[1]
    filled = F.pad(weight_OI, (0, -columns % GROUP))
    return (Int8 if weights == "int8" else Int4).of(filled).weights()[:, :columns]
