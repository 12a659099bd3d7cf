"""What a block saves for its backward: four interchangeable modes, equal to rounding.

manual      the hand-written backward of layers.py: saves outputs of linear layers, recomputes the rest
selective   PyTorch's checkpointing of each block, with the results of matrix products saved
full        PyTorch's checkpointing of each block: saves its input only
none        all that autograd saves
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from puna.config import Activations

_aten = torch.ops.aten
_SAVED = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_efficient_attention.default,
}


def _save_products(context: Any, operator: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _SAVED else CheckpointPolicy.PREFER_RECOMPUTE


def recomputed(block: Callable[[Tensor], Tensor], x_BTD: Tensor, activations: Activations) -> Tensor:
    """block(x), saving for the backward what the mode `activations` saves."""
    if activations == "full" and torch.is_grad_enabled():
        return checkpoint(block, x_BTD, use_reentrant=False)
    if activations == "selective" and torch.is_grad_enabled():
        contexts = partial(create_selective_checkpoint_contexts, _save_products)
        return checkpoint(block, x_BTD, use_reentrant=False, context_fn=contexts)
    return block(x_BTD)
