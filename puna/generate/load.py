"""A model's files -> an engine that answers.

In:  a run directory, or a model in another format: Hugging Face, Meta, GGUF.
Out: an Engine, with the runner for the precision of the weights and for this machine.

    files ──open_source──> Source ─┬─ weights, a matrix at a time ─> Runner ─┐
                                   └─ vocabulary, chat template ───> Tokenizer ──> Engine

Other formats are read as they are: each matrix goes from the file's precision to that of the runner in one
step, and nothing is written.
"""

import logging
from pathlib import Path

import torch

from puna.config import ModelConfig, read_config
from puna.devices import DeviceName, choose_device, limit_threads
from puna.formats.convert import Format, open_source
from puna.generate.engine import Engine
from puna.generate.runners.base import DTYPES, CacheDtype, Runner, Weights
from puna.generate.runners.cache import BLOCK, block_bytes
from puna.generate.runners.packed import PackedRunner, library_for, plain_model
from puna.generate.runners.pytorch import PlainRunner
from puna.model.parts import Source, parts
from puna.tokens.chat_template import ChatTemplate
from puna.tokens.model_files import tokenizer_of

_log = logging.getLogger(__name__)

MAX_CONTEXT = 1 << 24  # its rotations are in a table
_CACHE_BYTES = 1 << 31  # maximum size of the KV cache, unless a number of tokens is given


def load_engine(
    path: Path,
    *,
    weights: Weights | None = None,
    cache_tokens: int | None = None,
    cache_dtype: CacheDtype | None = None,
    max_batch: int = 16,
    device: DeviceName = "auto",
) -> Engine:
    """Load a model in any format, with its tokenizer; of a run, the newest weights.

    Args:
        path: a run directory, a Hugging Face or Meta directory, or a .gguf file.
        weights: precision of the weights in memory. None: a run's training precision; bf16 for a .gguf
            file; for other formats fp32 if stored in fp32, else bf16.
        cache_tokens: size of the KV cache in tokens. None: max_batch times the context, at most 2 GiB.
        cache_dtype: precision of the KV cache. None: fp32 with fp32 weights, else bf16.
        max_batch: maximum number of requests that are answered concurrently.
        device: device that computes; `auto` is a CUDA device if there is one, else the CPU.

    Raises:
        ValueError: no model at `path`, invalid files, a missing device, or an invalid option.
    """
    chosen_device = choose_device(device)
    limit_threads()
    if max_batch < 1:
        raise ValueError(f"max-batch is {max_batch}; it must be positive")
    kind, source = open_source(path)
    tokenizer = tokenizer_of(path, source.tokenizer)
    if source.config.context > MAX_CONTEXT:
        raise ValueError(
            f"{path} has a context of {source.config.context:,} tokens; the maximum is {MAX_CONTEXT:,}: "
            "convert it with --context"
        )
    chosen = weights or _default_weights(path, kind, source)
    dtype = DTYPES[cache_dtype or ("fp32" if chosen == "fp32" else "bf16")]
    n_blocks = _n_blocks(source.config, dtype, max_batch, cache_tokens)
    runner = load_runner(source, chosen, n_blocks, dtype, chosen_device)
    return Engine(runner, tokenizer, max_batch, ChatTemplate.of(tokenizer))


def _default_weights(path: Path, kind: Format, source: Source) -> Weights:
    if kind == "puna":
        trained = read_config(path).compute.precision
        return "fp32" if trained == "auto" else trained
    embedding = next(parts(source.config))
    return "fp32" if kind != "gguf" and source.dtype(embedding) == torch.float32 else "bf16"


def _n_blocks(config: ModelConfig, dtype: torch.dtype, max_batch: int, cache_tokens: int | None) -> int:
    """The number of KV-cache blocks."""
    if cache_tokens is not None:
        if cache_tokens < BLOCK:
            raise ValueError(f"cache-tokens is {cache_tokens}; it must be at least {BLOCK}")
        return cache_tokens // BLOCK
    one_context = -(-config.context // BLOCK)
    return max(one_context, min(max_batch * one_context, _CACHE_BYTES // block_bytes(config, dtype)))


def load_runner(
    source: Source,
    weights: Weights,
    n_blocks: int,
    cache_dtype: torch.dtype = torch.bfloat16,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Runner:
    """The runner for an opened model in any format: packed on a CPU, PyTorch alone on other devices.

    The packed runner holds its cache in fp32 or bf16; with fp16, or without a C++ compiler, PyTorch computes
    on a CPU too. PyTorch's runner holds int8 and int4 weights as bf16.

    Raises:
        ValueError: a corrupt file, or int8 and int4 with an fp16 cache on a CPU.
    """
    is_integer = weights in ("int8", "int4")
    if device.type == "cpu":
        if is_integer and cache_dtype == torch.float16:
            raise ValueError(f"{weights} weights need a cache in fp32 or bf16 on a CPU; got fp16")
        library = None if cache_dtype == torch.float16 else library_for(source.config)
        if library is not None:
            return PackedRunner(source, library, weights, n_blocks, cache_dtype)
        if cache_dtype != torch.float16:
            held = f"{weights}, held as bf16" if is_integer else weights
            _log.warning("weights in %s: fallback to PyTorch, slower", held)
    elif is_integer:
        _log.warning("%s weights are dequantised to bf16 on %s: no smaller, no faster", weights, device.type)
    model = plain_model(source, weights).to(device).eval()
    return PlainRunner(model, n_blocks, cache_dtype, static=device.type == "cuda")
