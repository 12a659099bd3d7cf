"""Small random models in every format, for the tests of conversion."""

import io
import random
from dataclasses import replace
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor

from puna.config import ComputeConfig, ModelConfig, RopeScaling, RunConfig, read_config, to_dict
from puna.files import write_json
from puna.model.llama import Llama
from puna.model.weights import load_weights, save_weights

PLAIN = ModelConfig(dim=64, n_layers=2, n_heads=4, ffn_dim=96, vocab_size=320, context=48)
GROUPED = replace(PLAIN, n_kv_heads=2, rope_base=500_000.0, norm_eps=1e-5)
TIED = replace(GROUPED, tied_embeddings=True)
# An original context of 32 makes all three ranges of the rule matter within the test's 48 tokens.
SCALED = replace(GROUPED, rope_scaling=RopeScaling(8.0, original_context=32), rope_base=10_000.0)
CONFIGS = {"llama": PLAIN, "grouped-query": GROUPED, "tied": TIED, "llama3 scaling": SCALED}


def random_model(config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 1) -> Llama:
    """Weights large enough that attention is not uniform, norms away from 1."""
    model = Llama(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.12)
    return model.to(dtype)


def tokenizer_model(vocab_size: int = 320) -> bytes:
    """A SentencePiece model as puna trains them: byte fallback, digits apart, a leading space."""
    draw = random.Random(1)
    words = ["llama", "puna", "the", "wind", "salt", "river", "seven", "stones", "carries", "12"]
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(draw.choices(words, k=12)) for _ in range(200)),
        model_writer=buffer,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=True,
        minloglevel=2,
    )
    return buffer.getvalue()


def write_native_model(
    folder: Path, config: ModelConfig, dtype: torch.dtype = torch.float32, seed: int = 1
) -> Path:
    """A directory in puna's own format."""
    folder.mkdir(parents=True)
    save_weights(random_model(config, dtype, seed), folder)
    run = RunConfig(model=config, compute=ComputeConfig(precision="fp32"))
    write_json(folder / "config.json", to_dict(run))
    (folder / "tokenizer.model").write_bytes(tokenizer_model(min(config.vocab_size, 320)))
    return folder


def weights_of(folder: Path) -> dict[str, Tensor]:
    """A native directory's tensors."""
    return load_file(folder / "weights.safetensors")


def load(folder: Path) -> Llama:
    """A native directory as a model, fp32."""
    model = Llama(read_config(folder).model)
    load_weights(folder, model)
    return model.eval()


def some_tokens(config: ModelConfig) -> Tensor:
    """Two sequences that fill the context."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, config.vocab_size, (2, config.context), generator=generator)
