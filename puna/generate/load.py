"""A model's files -> an engine that answers.

In:  a run directory, or one that `puna convert --to puna` wrote: configuration, weights, tokenizer.
Out: an Engine, with the runner that the weights' precision and the machine ask for.
"""

from pathlib import Path

from puna.config import read_config
from puna.devices import DeviceName, choose_device
from puna.generate.cache import BLOCK, block_bytes
from puna.generate.engine import Engine
from puna.generate.runner import DTYPES, CacheDtype, Weights, load_runner
from puna.generate.templates import ChatTemplate
from puna.tokens.tokenizer import Tokenizer

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
    runner = load_runner(path, chosen, n_blocks, dtype, chosen_device)
    return Engine(runner, tokenizer, max_batch, ChatTemplate.of(tokenizer))
