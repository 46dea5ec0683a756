"""Low-rank adapters (LoRA, Hu et al. 2021): fine-tune a large matrix W by training two thin ones.

    W becomes W + B A · alpha / rank        W (out, in), A (rank, in), B (out, rank)

The change that fine-tuning makes to a large matrix can often be written with few directions, so two thin matrices hold
it with a few percent of the numbers. alpha scales it, so that a learning rate found for one rank serves others too.

W stays frozen. B starts at zero, so at step 0 the adapted model is its base exactly. The sum is a parametrization
(`torch.nn.utils.parametrize`) of the weight itself: whoever reads the weight gets the adapted one. That reaches the
packed q, k, v projection too: in_proj_weight is a bare parameter, so no module is there that could be wrapped.

    python main.py --init-from checkpoints/tiny_decoder.pth --lora-rank 8 --data my.txt --out checkpoints/my_lora.pth
    python generate.py --checkpoint checkpoints/tiny_decoder.pth --lora checkpoints/my_lora.pth
    python convert.py checkpoints/tiny_decoder.pth checkpoints/merged.pth --lora checkpoints/my_lora.pth
"""

import math
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from support.command import user_errors
from tiny_decoder import TinyGPT

# The matrices of a block that can be adapted, by short names. q, k and v are one packed matrix.
TARGETS = {
    "qkv": "attention.in_proj_weight",
    "out": "attention.out_proj.weight",
    "up": "mlp.up.weight",
    "down": "mlp.down.weight",
}


@dataclass(frozen=True)
class LoRAConfig:
    """What is adapted and how. Raises ValueError that names the flag if rank, alpha or targets are out of range."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0  # from 0 to 1, while training; it is not part of what the adapter file says

    def __post_init__(self):
        if not 1 <= self.rank <= 2**14:
            raise ValueError(f"--lora-rank must be from 1 to {2**14}, not {str(self.rank)[:40]}")
        if not 0 < self.alpha <= 1e6:
            raise ValueError(f"--lora-alpha must be a positive number up to 1e6, not {str(self.alpha)[:40]}")
        known = [name for name in TARGETS if name in self.targets]
        if not known or len(known) < len(self.targets):
            raise ValueError(f"--lora-targets must be some of {','.join(TARGETS)}, each once, not {self.targets!r:.60}")


def lora_config(settings: Namespace) -> LoRAConfig | None:
    """The adapters that the settings of a run ask for, if any; UserError if they make no sense."""
    if not settings.lora_rank:
        return None
    targets = tuple(settings.lora_targets.split(","))
    with user_errors():
        return LoRAConfig(settings.lora_rank, settings.lora_alpha, targets, settings.lora_dropout)


class LowRank(nn.Module):
    """weight (out, in) -> weight + B A · alpha / rank."""

    def __init__(self, out_features: int, in_features: int, config: LoRAConfig):
        super().__init__()
        self.A = nn.Parameter(torch.empty(config.rank, in_features))
        self.B = nn.Parameter(torch.zeros(out_features, config.rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as the paper's own code does
        self.scale = config.alpha / config.rank
        self.dropout = config.dropout

    def forward(self, weight: Tensor) -> Tensor:
        """In float32 whatever the autocast, so that the trained model and the merged one are the same."""
        with torch.autocast(weight.device.type, enabled=False):
            # Dropping a column of A drops that input of the adapter: one mask for the whole batch.
            kept = F.dropout(torch.ones_like(self.A[0]), self.dropout, self.training)
            return weight + self.B @ (self.A * kept) * self.scale


def adapted_places(model: TinyGPT) -> Iterator[tuple[str, nn.Module, str, LowRank]]:
    """Every adapted matrix: its name in an unadapted model, the module that owns it, its name there, the adapter."""
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name, steps in module.parametrizations.items():
                yield f"{prefix}.{name}", module, name, steps[0]


def add_adapters(model: TinyGPT, config: LoRAConfig) -> None:
    """Freeze an unadapted model and put a fresh adapter on each target of each block.

    Raises ValueError if the rank is larger than the matrices.
    """
    if config.rank > model.config.embed_dim:
        raise ValueError(f"--lora-rank {config.rank} is larger than the matrices: at most {model.config.embed_dim}")
    model.requires_grad_(False)
    for block in model.blocks:
        for target in config.targets:
            *path, name = TARGETS[target].split(".")
            module = block.get_submodule(".".join(path))
            weight = getattr(module, name)
            adapter = LowRank(*weight.shape, config).to(weight.device)
            parametrize.register_parametrization(module, name, adapter)


def merge_adapters(model: TinyGPT) -> None:
    """Make every adapted matrix an ordinary one of the same value; the model is unadapted from then on."""
    for _, module, name, _ in list(adapted_places(model)):
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    model.requires_grad_(True)
