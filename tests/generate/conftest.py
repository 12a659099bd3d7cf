"""A small random model that says something else after every prompt, and engines around it."""

from collections.abc import Sequence

import pytest
import torch

from puna.config import ModelConfig, Sampling
from puna.generate.engine import Engine
from puna.generate.request import Request
from puna.generate.runners.pytorch import PlainRunner
from puna.model.llama import Llama
from puna.tokens.tokenizer import Tokenizer

CONFIG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=64, vocab_size=512, context=640)
GREEDY = Sampling(temperature=0)


def random_model(config: ModelConfig = CONFIG, seed: int = 3, compute: torch.dtype = torch.float32) -> Llama:
    model = Llama(config, compute)
    model.init_weights(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
            if parameter.ndim > 1:
                parameter.data = parameter.data.to(compute)
    return model


def generated(
    engine: Engine, prompt: str | Sequence[int], sampling: Sampling = GREEDY, max_tokens: int = 128
) -> str:
    """The continuation of a text, or of ids."""
    ids = engine.encode(prompt) if isinstance(prompt, str) else prompt
    return "".join(chunk.text for _, chunk in engine.answers([Request(tuple(ids), sampling, max_tokens)]))


@pytest.fixture(autouse=True)
def one_thread():
    """A model this small is slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(shards) -> Tokenizer:
    return Tokenizer(shards)


@pytest.fixture(scope="session")
def model() -> Llama:
    return random_model()


@pytest.fixture
def engine(model, tokenizer) -> Engine:
    return Engine(PlainRunner(model, 40), tokenizer)
