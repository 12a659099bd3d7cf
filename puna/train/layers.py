"""Norms of the weights and of the last step's update, by parameter: what the report's heat map shows."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from puna.model.llama import Llama
from puna.model.weights import trained
from puna.train.ranks import ALONE, Ranks
from puna.train.shares import own, split_axis


@torch.no_grad()
def layer_norms(
    model: Llama, optimizer: torch.optim.Optimizer, ranks: Ranks = ALONE
) -> dict[str, dict[str, float]]:
    """{"norm": {name: ‖w‖}, "update": {name: ‖Δw‖ / ‖w‖}} of the parameters that train, after a step.

    The update follows from AdamW's moments, a parameter at a time: no copy of the weights before the step is
    kept. A collective of all ranks.
    """
    parameters = trained(model)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    squares = torch.stack(
        [_squares(each, optimizer.state[each], groups[id(each)]) for each in parameters.values()]
    )
    if ranks.mesh is not None:
        if ranks.mesh["tp"].get_local_rank() > 0:  # what every rank of a tp group holds whole counts once
            squares *= squares.new_tensor([[split_axis(name) is not None] for name in parameters])
        for axis in ("dp_shard", "tp"):
            if ranks.mesh[axis].size() > 1:
                dist.all_reduce(squares, group=ranks.mesh.get_group(axis))
    found = dict(zip(parameters, squares.sqrt().tolist(), strict=True))
    return {
        "norm": {name: norm for name, (norm, _) in found.items()},
        "update": {name: update / norm if norm else 0.0 for name, (norm, update) in found.items()},
    }


def _squares(parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    """Σ w² and Σ Δw² of the own share."""
    w = own(parameter)
    if not state:
        return torch.stack((w.square().sum(), w.new_zeros(())))
    beta1, beta2 = group["betas"]
    steps = state["step"]
    root = (own(state["exp_avg_sq"]) / (1 - beta2**steps)).sqrt_().add_(group["eps"])
    moved = (own(state["exp_avg"]) / (1 - beta1**steps)).div_(root)
    # AdamW decays the weights first: w = w' · (1 - lr · decay) - lr · moved, and w' - w is the update.
    rate, decay = group["lr"], group["weight_decay"]
    update = moved.mul_(rate).add_(w, alpha=rate * decay) / (1 - rate * decay)
    return torch.stack((w.square().sum(), update.square().sum()))
