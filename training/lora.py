"""Low-rank adapters (LoRA, Hu et al. 2021): fine-tune a large matrix W by training two thin ones.

    W becomes W + B A · alpha / rank        W (out, in), A (rank, in), B (out, rank)

W stays frozen. B starts at zero, so at step 0 the adapted model is its base exactly. The sum is a parametrization
(`torch.nn.utils.parametrize`) of the weight itself: whoever reads the weight gets the adapted one. That reaches the
packed q, k, v projection, which is no module that an adapter could be wrapped around, and the fast one-token step.

    python main.py --init-from checkpoints/tiny_decoder.pth --lora-rank 8 --data my.txt --out checkpoints/my_lora.pth
    python generate.py --checkpoint checkpoints/tiny_decoder.pth --lora checkpoints/my_lora.pth
    python lora.py merge checkpoints/tiny_decoder.pth checkpoints/my_lora.pth checkpoints/merged.pth
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from support import command as cli
from tiny_decoder import TinyGPT

# The matrices of a block that can be adapted, by short names. q, k and v are one packed matrix.
TARGETS = {
    "qkv": "attention.in_proj_weight",
    "out": "attention.out_proj.weight",
    "up": "mlp.0.weight",
    "down": "mlp.2.weight",
}


@dataclass(frozen=True)
class LoRAConfig:
    """What is adapted and how. Raises ValueError that names the flag if a value is out of range."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float = 0.0  # while training; it is not part of what the adapter file says

    def __post_init__(self):
        if type(self.rank) is not int or not 1 <= self.rank <= 2**14:
            raise ValueError(f"--lora-rank must be a whole number from 1 to {2**14}, not {self.rank!r}")
        if type(self.alpha) not in (int, float) or not 0 < self.alpha < math.inf:
            raise ValueError(f"--lora-alpha must be a positive number, not {self.alpha!r}")
        if type(self.targets) is not tuple or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError("--lora-targets must name one matrix or more, each once")
        if unknown := [target for target in self.targets if target not in TARGETS]:
            raise ValueError(f"--lora-targets must be some of {','.join(TARGETS)}, not {unknown[0]!r}")
        if type(self.dropout) not in (int, float) or not 0 <= self.dropout < 1:
            raise ValueError(f"--lora-dropout must be a number from 0 up to, not including, 1, not {self.dropout!r}")


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


def adapter_shapes(model: TinyGPT, config: LoRAConfig) -> dict[str, torch.Size]:
    """The shapes of the tensors that `adapter_weights` gives once an unadapted model has these adapters.

    Raises ValueError if the rank is larger than the matrices.
    """
    if config.rank > model.config.embed_dim:
        raise ValueError(f"--lora-rank {config.rank} is larger than the matrices: at most {model.config.embed_dim}")
    shapes = {}
    for number, block in enumerate(model.blocks):
        for name in (TARGETS[target] for target in config.targets):
            out_features, in_features = block.get_parameter(name).shape
            shapes[f"blocks.{number}.{name}.A"] = torch.Size([config.rank, in_features])
            shapes[f"blocks.{number}.{name}.B"] = torch.Size([out_features, config.rank])
    return shapes


def add_adapters(model: TinyGPT, config: LoRAConfig) -> None:
    """Freeze an unadapted model and put a fresh adapter on each target of each block; raises like `adapter_shapes`."""
    adapter_shapes(model, config)
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


def base_weights(model: TinyGPT) -> dict[str, Tensor]:
    """The state dictionary that the model would have without its adapters; an unadapted model's own."""
    state = model.state_dict()
    for name, _, leaf, _ in adapted_places(model):
        owner = name.removesuffix(leaf)
        original = state.pop(f"{owner}parametrizations.{leaf}.original")
        state = {key: tensor for key, tensor in state.items() if not key.startswith(f"{owner}parametrizations.{leaf}.")}
        state[name] = original
    return state


def adapter_weights(model: TinyGPT) -> dict[str, Tensor]:
    """A and B of every adapter, named after the matrix: `blocks.0.mlp.0.weight.A`; empty for an unadapted model."""
    found = {}
    for name, _, _, adapter in adapted_places(model):
        found |= {f"{name}.A": adapter.A.detach(), f"{name}.B": adapter.B.detach()}
    return found


def load_adapter_weights(model: TinyGPT, weights: dict[str, Tensor]) -> None:
    """Put tensors named like those of `adapter_weights`, checked by the caller, into the adapters."""
    with torch.no_grad():
        for name, tensor in adapter_weights(model).items():
            tensor.copy_(weights[name])


def adapter_optimizer(model: TinyGPT, lr: float) -> torch.optim.Optimizer:
    """AdamW for the adapters alone, without decay: they start at zero effect and are small anyway."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    for group in optimizer.param_groups:
        group["peak_lr"] = lr
    return optimizer


def main() -> None:
    """The command: `merge`."""
    from formats.checkpoint import (  # above this module; only a command may
        apply_adapter,
        load_checkpoint,
        save_checkpoint,
    )

    parser = cli.Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="merge")
    merge = commands.add_parser("merge", description="Write an ordinary checkpoint of a base with its adapter.")
    merge.add_argument("base", type=Path, help="the model that the adapter was trained on")
    merge.add_argument("adapter", type=Path, help="what main.py --lora-rank wrote")
    merge.add_argument("out", type=Path, help="the checkpoint to write")
    paths = parser.parse_args()
    if paths.out.suffix != ".pth" or paths.out.exists():
        raise ValueError(f"OUT {paths.out} must be a new file that ends in .pth")
    base = load_checkpoint(paths.base)
    origin = apply_adapter(base, paths.adapter)
    merge_adapters(base.model)
    save_checkpoint(paths.out, base.model, base.tokenizer, {**origin, "merged_from": str(paths.adapter)}, training=None)
    print(f"{paths.out}: {paths.base} with {paths.adapter} merged into it")


if __name__ == "__main__":
    cli.run(main)
