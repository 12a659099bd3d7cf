"""How large a model is: parameters and floating-point operations, as formulas of its configuration.

7b ─> 6,738,415,616 parameters, 13.0 + 1.1 GFLOP per token forward at context 2,048
"""

from puna.config import ModelConfig

# Rows of a block of logits (loss.py). With few, the gradient of the projection is added to too often (at a
# vocabulary of 32,000 and 64 rows, that took 5 % of a 110M step); with many, the logits no longer fit into a
# CPU's cache. A GPU's products are so fast that the addition would take as long at 512 rows.
LOGITS_ROWS, LOGITS_ROWS_ON_GPU = 512, 4096


def matrix_parameters(config: ModelConfig) -> int:
    """Weights that multiply every token: the blocks' matrices and the output projection."""
    attention = config.dim * config.head_dim * (2 * config.n_heads + 2 * config.kv_heads)
    ffn = 3 * config.dim * config.ffn_dim
    return config.n_layers * (attention + ffn) + config.vocab_size * config.dim


def parameters(config: ModelConfig) -> int:
    """All parameters, tied embeddings counted once."""
    norms = (2 * config.n_layers + 1) * config.dim
    embedding = 0 if config.tied_embeddings else config.vocab_size * config.dim
    return matrix_parameters(config) + norms + embedding


def forward_flops_per_token(config: ModelConfig) -> float:
    """Multiplications and additions of the matrix products for one token of a full context.

    A weight costs 2; attention's two products cost 4 · heads · head dim per visible key, and with the
    causal mask a token sees half the context on average. Elementwise work is not counted.
    """
    visible = (config.context + 1) / 2
    attention = 4 * config.n_heads * config.head_dim * visible
    return 2 * matrix_parameters(config) + config.n_layers * attention


def train_flops_per_token(config: ModelConfig) -> float:
    """Forward and backward: the backward costs twice the forward. Recomputation is not counted (MFU)."""
    return 3 * forward_flops_per_token(config)


def saved_bytes_per_token_and_layer(config: ModelConfig, compute_bytes: int) -> int:
    """What the hand-written backward saves of a block, in bytes per token (paper section 2.4).

    x and h (dim each, of the fp32 residual stream); q, k, v, o and gate, up in the compute precision: with
    the paper's sizes 2 + 4 + 5.3 = 11.3 · dim elements. And the statistics, fp32: the reciprocal root mean
    square of two norms, log Σ exp of each head. PyTorch's attention, which runs where
    there is no C++ compiler, also saves a copy of o.
    """
    residual = 2 * config.dim * 4
    attention = config.head_dim * (2 * config.n_heads + 2 * config.kv_heads)
    statistics = (2 + config.n_heads) * 4
    return residual + (attention + 2 * config.ffn_dim) * compute_bytes + statistics
