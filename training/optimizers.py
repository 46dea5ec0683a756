"""Muon, which optimizer gets which parameter, and the moving average of the weights."""

import argparse
import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from formats.checkpoint import check_tensors
from support.device import pick_dtype
from tiny_decoder import TinyGPT


def orthogonalize(updates: Tensor, dtype: torch.dtype = torch.bfloat16, steps: int = 5) -> Tensor:
    """Push every singular value of a batch of matrices (N, rows, columns) towards 1, with products in dtype.

    A Newton-Schulz iteration with the coefficients of Muon (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/): five rounds bring the singular values into about 0.7 to 1.2.
    """
    x = updates.to(dtype)
    tall = x.size(-2) > x.size(-1)
    x = (x.mT if tall else x).contiguous()  # left transposed, it would slow down every product
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).to(updates.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each hidden matrix is made orthogonal (Jordan et al. 2024), with decoupled weight decay.

    `torch.optim.Muon` sees the packed q, k, v projection as one matrix and takes the matrices one by one; here the
    three are treated as three, and matrices of one shape are orthogonalized in one batch.
    """

    def __init__(
        self, params, lr: float, momentum: float, weight_decay: float = 0.0, dtype: torch.dtype = torch.bfloat16
    ):
        """params: groups of matrices; a group's "parts" says into how many each is cut, by rows (1 unless given).

        dtype: the precision of the iteration's products, which bears bfloat16 well where that is fast.
        """
        self.dtype = dtype
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """Update every matrix (rows, columns) that has a gradient."""
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is None:
                    continue
                if p not in self.state:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"]
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"])  # Nesterov's look ahead
                for part, change in zip(p.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                    by_shape.setdefault(part.shape, []).append((part, change))
            for (rows, columns), pairs in by_shape.items():
                changes = orthogonalize(torch.stack([change for _, change in pairs]), self.dtype)
                scale = group["lr"] * math.sqrt(max(1, rows / columns))
                for (part, _), change in zip(pairs, changes, strict=True):
                    part.mul_(1 - group["lr"] * group["weight_decay"])
                    part.sub_(change, alpha=scale)


def make_optimizers(model: TinyGPT, settings: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices and AdamW for embeddings, norms, biases and head; or AdamW for all that trains.

    Weight decay is for matrices only; beside Muon for the blocks' only, and adapters have none: they start at zero and
    stay small.
    """
    with_muon = settings.optimizer == "muon" and not settings.lora_rank
    matrices = {f"blocks.{name}": p for name, p in model.blocks.named_parameters() if p.ndim == 2}
    hidden = matrices if with_muon else {}
    rest = [p for name, p in model.named_parameters() if p.requires_grad and name not in hidden]
    decay = 0.0 if with_muon or settings.lora_rank else settings.weight_decay
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers = [torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.99), fused=True)]
    if with_muon:
        packed = [p for name, p in hidden.items() if name.endswith("in_proj_weight")]
        single = [p for name, p in hidden.items() if not name.endswith("in_proj_weight")]
        groups = [{"params": packed, "parts": 3}, {"params": single}]
        dtype = pick_dtype(settings.dtype, model.head.weight.device)
        optimizers.append(Muon(groups, settings.muon_lr, settings.muon_momentum, settings.weight_decay, dtype))
    return optimizers


def set_learning_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to its peak, which the first call keeps under "initial_lr", times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


# --- Saving and restoring ----------------------------------------------------------------------------------------

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


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that `update_parameters` moves towards its weights: an exponential moving average (Polyak &
    Juditsky 1992; for language models of small texts Merity et al. 2017, https://arxiv.org/abs/1708.02182).

    decay: the share of the average that a step leaves as it was. It never reaches back further than a tenth of the run.
    """

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        step = int(count) + 1
        torch._foreach_lerp_(averages, current, 1 - min(decay, step / (step + 10)))

    return AveragedModel(model, multi_avg_fn=update)
