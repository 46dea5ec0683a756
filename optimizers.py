"""How the weights are updated: Muon for the matrices of the blocks, AdamW for the rest, and a moving average.

Backpropagation gives each weight a gradient: how the loss grows if the weight grows a little. A step moves every
weight the other way, w = w - lr · gradient (Robbins & Monro 1951). What an optimizer adds is how far, and along which
mean of recent gradients.

AdamW (Loshchilov & Hutter 2017) divides each weight's gradient by the size that it usually has, so that all weights
move about as fast. Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) looks at a matrix as a whole.
The update of a matrix is often dominated by a few directions: a few large singular values and many small ones. Muon
keeps the directions, the singular vectors, and makes their sizes about equal, so that the rare directions, which AdamW
hardly follows, are learned too. docs/training.md shows what this does to one update.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from support.device import pick_dtype
from tiny_decoder import TinyGPT


def orthogonalize(updates: Tensor, dtype: torch.dtype = torch.bfloat16, rounds: int = 5) -> Tensor:
    """Bring the singular values of a batch of matrices (N, rows, columns) towards 1, with products in dtype.

    For a matrix X with singular values s, X Xᵀ X has the same singular vectors and values s³. So an odd polynomial
    a X + b (X Xᵀ) X + c (X Xᵀ)² X changes each s to a s + b s³ + c s⁵ and needs no decomposition, only products. Muon's
    coefficients are chosen so that small values grow as fast as possible (3.4 times a round); the values do not
    converge to 1 but end somewhere from about 0.7 to 1.2. Five rounds are not enough for values that begin below about
    1/650 of the norm: these stay small.
    """
    x = updates.to(dtype)
    tall = x.size(-2) > x.size(-1)
    x = (x.mT if tall else x).contiguous()  # left transposed, it would slow down every product
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # now no singular value is above 1
    for _ in range(rounds):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)  # b X Xᵀ + c (X Xᵀ)²
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return (x.mT if tall else x).to(updates.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is made orthogonal, all its singular values near 1 (Jordan et al. 2024), and
    then its rows equally long.

    Momentum (Polyak 1964): the gradient of one batch is noisy, so the update follows a running mean of the gradients.
    Weight decay (Krogh & Hertz 1991): every step also shrinks the weights a little, so that only what the gradients
    keep asking for stays. It is decoupled: it does not pass through the momentum (Loshchilov & Hutter 2017).

    A row of a matrix makes one output, a neuron. An orthogonal matrix with more rows than columns has short rows, of
    different lengths, so some neurons would learn faster than others. Here every row of an update has length 1 (Zhang
    et al. 2026, https://arxiv.org/abs/2602.21545; with a running mean Li et al. 2025, https://arxiv.org/abs/2510.05491).

    `torch.optim.Muon` has no such step, sees the packed q, k, v projection as one matrix and takes the matrices one by
    one; here the three are treated as three, and a group's matrices of one shape are orthogonalized in one batch.
    """

    def __init__(
        self, params, lr: float, momentum: float, weight_decay: float = 0.0, dtype: torch.dtype = torch.bfloat16
    ):
        """params: groups of matrices; a group's "parts" says into how many each is cut, by rows (1 unless given).

        dtype: the precision of the iteration's products, for which bfloat16 is precise enough.
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
                m = group["momentum"]
                momentum.lerp_(p.grad, 1 - m)  # momentum = m · momentum + (1 - m) · gradient
                update = p.grad.lerp(momentum, m)  # the same once more: Nesterov's look ahead to the next momentum
                for part, change in zip(p.chunk(group["parts"]), update.chunk(group["parts"]), strict=True):
                    by_shape.setdefault(part.shape, []).append((part, change))
            for pairs in by_shape.values():
                changes = orthogonalize(torch.stack([change for _, change in pairs]), self.dtype)
                # each row (..., columns) gets the length 1
                for (part, _), change in zip(pairs, F.normalize(changes, dim=-1), strict=True):
                    part.mul_(1 - group["lr"] * group["weight_decay"])  # a part is a view: p itself changes
                    part.sub_(change, alpha=group["lr"])


def make_optimizers(model: TinyGPT, settings: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices and AdamW for the rest, or AdamW for all that trains.

    Muon is for the matrices of the blocks, which map whole vectors to vectors. A bias or a norm's weight has no
    singular values. Embeddings and head are tables with a row per token: a token that is not in the batch has no
    gradient in its row, and an update made orthogonal would still move it. Weight decay is for matrices only. With
    Muon, the tables have none: between two occurrences of a rare token, its row would shrink. Adapters have none
    either: their product starts at zero and stays small.
    """
    with_muon = settings.optimizer == "muon" and not settings.lora_rank
    matrices = {f"blocks.{name}": p for name, p in model.blocks.named_parameters() if p.ndim == 2}
    for_muon = matrices if with_muon else {}
    rest = [p for name, p in model.named_parameters() if p.requires_grad and name not in for_muon]
    decay = 0.0 if with_muon or settings.lora_rank else settings.weight_decay
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers = [torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.99), fused=True)]
    if with_muon:
        packed = [p for name, p in for_muon.items() if name.endswith("in_proj_weight")]
        single = [p for name, p in for_muon.items() if not name.endswith("in_proj_weight")]
        groups = [{"params": packed, "parts": 3}, {"params": single}]
        dtype = pick_dtype(settings.dtype, model.head.weight.device)
        optimizers.append(Muon(groups, settings.muon_lr, settings.muon_momentum, settings.weight_decay, dtype))
    return optimizers


def set_learning_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Set every group's learning rate to `factor` times its peak, which the first call stores as "initial_lr"."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def averaged_model(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that `update_parameters` moves towards its weights: an exponential moving average (Polyak &
    Juditsky 1992; for language models of small texts Merity et al. 2017, https://arxiv.org/abs/1708.02182).

    decay: the share of the average that a step leaves as it was. The average reaches back over about a tenth of the
    steps so far at most.
    """

    def update(averages: list[Tensor], current: list[Tensor], count: Tensor) -> None:
        step = int(count) + 1
        get_ema_multi_avg_fn(min(decay, step / (step + 10)))(averages, current, count)

    return AveragedModel(model, multi_avg_fn=update)


def distillation_loss(logits: Tensor, teacher: Tensor) -> Tensor:
    """Mean cross-entropy per token, in nats, against the probabilities of a teacher's logits: both (B, T, V).

    The text says which token came next. A teacher says how likely it finds each of them, and so what else could have
    come: more to learn from the same token (Hinton et al. 2015, https://arxiv.org/abs/1503.02531). Here the teacher is
    the moving average of the network's own weights (Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780).
    """
    return F.cross_entropy(logits.flatten(0, 1).float(), teacher.flatten(0, 1).float().softmax(-1))
