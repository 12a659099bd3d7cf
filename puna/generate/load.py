"""A model's files -> an engine that answers.

In:  a run directory, or one that `puna convert --to puna` wrote: configuration, weights, tokenizer.
Out: an Engine, with the runner that the weights' precision and the machine ask for.
"""

import logging
from pathlib import Path

import torch

from puna.config import read_config
from puna.devices import DeviceName, choose_device
from puna.formats.convert import open_source
from puna.generate.engine import Engine
from puna.generate.runners.base import DTYPES, CacheDtype, Runner, Weights
from puna.generate.runners.cache import BLOCK, block_bytes
from puna.generate.runners.packed import PackedRunner, library_for, plain_model
from puna.generate.runners.pytorch import PlainRunner
from puna.model.parts import Source
from puna.tokens.chat_template import ChatTemplate
from puna.tokens.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_CACHE_BYTES = 1 << 31  # of the cache, at most, when nobody says how many tokens


def load_engine(
    path: Path,
    *,
    weights: Weights | None = None,
    cache_tokens: int | None = None,
    cache_dtype: CacheDtype | None = None,
    max_batch: int = 16,
    device: DeviceName = "auto",
) -> Engine:
    """Load a run's newest weights, or a converted model, with its tokenizer.

    `weights`: their precision; as the run trained when not given. `cache_tokens`: places for keys and values;
    enough for `max_batch` full contexts when not given, or as many as fit into 2 GiB, one context at least.
    `cache_dtype`: that of the products when not given. `device`: a CUDA device where there is one, else the
    CPU, with `auto`.

    Raises:
        ValueError: when `path` holds no model, this machine no such device, or an option cannot be.
    """
    chosen_device = choose_device(device)
    config = read_config(path)
    if max_batch < 1:
        raise ValueError(f"max-batch is {max_batch}; it must be positive")
    tokenizer = Tokenizer(path)
    trained = config.train.precision  # "auto" only in a file that no run wrote: the masters are fp32
    chosen: Weights = weights or ("fp32" if trained == "auto" else trained)
    dtype = DTYPES[cache_dtype or ("fp32" if chosen == "fp32" else "bf16")]
    context = -(-config.model.context // BLOCK)
    if cache_tokens is None:
        n_blocks = min(max_batch * context, _CACHE_BYTES // block_bytes(config.model, dtype))
        n_blocks = max(n_blocks, context)
    elif cache_tokens < BLOCK:
        raise ValueError(f"cache-tokens is {cache_tokens}; it must be {BLOCK} or above")
    else:
        n_blocks = cache_tokens // BLOCK
    runner = load_runner(open_source(path)[1], chosen, n_blocks, dtype, chosen_device)
    return Engine(runner, tokenizer, max_batch, ChatTemplate.of(tokenizer))


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
