"""What the optimizers keep between steps, as tensors to save and to restore."""

import torch
from torch import Tensor, nn

from formats.checkpoint import check_tensors
from optimizers import Muon

# What each optimizer keeps for a parameter; "step" is a single number, the others have the parameter's shape.
KEPT = {torch.optim.AdamW: ("exp_avg", "exp_avg_sq", "step"), Muon: ("momentum",)}


def optimizer_tensors(optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Everything that the optimizers keep, by names like "0/12/exp_avg": optimizer, parameter's index, what."""
    return {
        f"{number}/{index}/{name}": tensor
        for number, optimizer in enumerate(optimizers)
        for index, entry in optimizer.state_dict()["state"].items()
        for name, tensor in entry.items()
    }


def restore_optimizers(optimizers: list[torch.optim.Optimizer], saved: dict[str, Tensor], step: int) -> None:
    """Give fresh optimizers the tensors, named as by `optimizer_tensors`, that saved ones kept after `step` steps.

    The learning rates and other settings stay the fresh ones'. Raises ValueError if the tensors do not fit.
    """
    shapes, states = {}, [{} for _ in optimizers]
    for number, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, p in enumerate(parameters if step else []):  # before the first step there is nothing to keep
            for name in KEPT[type(optimizer)]:
                shapes[f"{number}/{index}/{name}"] = torch.Size() if name == "step" else p.shape
                states[number].setdefault(index, {})[name] = saved.get(f"{number}/{index}/{name}")
    check_tensors(saved, shapes)
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training adjusts, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
