"""Low-rank adapters (LoRA, Hu et al. 2021): fine-tune a large matrix W by training two thin ones.

    W becomes W + B A · alpha / rank        W (out, in), A (rank, in), B (out, rank)

W stays frozen. B starts at zero, so at step 0 the adapted model is its base exactly. The sum is a parametrization
(`torch.nn.utils.parametrize`) of the weight itself: whoever reads the weight gets the adapted one. That reaches the
packed q, k, v projection, which is no module that an adapter could be wrapped around, and whatever else reads it.

    python main.py --init-from checkpoints/tiny_decoder.pth --lora-rank 8 --data my.txt --out checkpoints/my_lora.pth
    python generate.py --checkpoint checkpoints/tiny_decoder.pth --lora checkpoints/my_lora.pth
    python convert.py checkpoints/tiny_decoder.pth checkpoints/merged.pth --lora checkpoints/my_lora.pth
"""

import math
import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from formats import checkpoint
from support.command import UserError, user_errors
from support.plain import check_fields
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
    """The adapters that the settings of a run ask for; UserError if they make no sense."""
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
    """What `model_weights` would be without the model's adapters; an unadapted model's own."""
    weights = {}
    for name, tensor in checkpoint.model_weights(model).items():
        weights[re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name)] = tensor
    return {name: tensor for name, tensor in weights.items() if ".parametrizations." not in name}


def adapter_weights(model: TinyGPT) -> dict[str, Tensor]:
    """A and B of every adapter, named after the matrix: `blocks.0.mlp.0.weight.A`; empty for an unadapted model."""
    found = {}
    for name, _, _, adapter in adapted_places(model):
        found |= {f"{name}.{part}": tensor.cpu() for part, tensor in adapter.state_dict().items()}
    return found


def adapt(model: TinyGPT, config: LoRAConfig, weights: dict[str, Tensor]) -> None:
    """Add adapters with these tensors, named as by `adapter_weights`.

    Raises ValueError, with the model as it was, if they do not fit.
    """
    checkpoint.check_tensors(weights, adapter_shapes(model, config))
    add_adapters(model, config)
    for name, _, _, adapter in adapted_places(model):
        adapter.load_state_dict({part: weights[f"{name}.{part}"] for part in ("A", "B")})


# --- Files -------------------------------------------------------------------------------------------------------


def save_adapter(path: Path, model: TinyGPT, tokenizer: checkpoint.Tokenizer, config: LoRAConfig, origin: dict) -> None:
    """Write the adapters of a model, without the model. Raises like `write_checkpoint`."""
    header = {
        "kind": checkpoint.ADAPTER,
        "config": {"rank": config.rank, "alpha": config.alpha, "targets": list(config.targets)},
        "base": checkpoint.model_digest(model.config, tokenizer, base_weights(model)),
        "origin": origin,
    }
    checkpoint.write_checkpoint(path, header, adapter_weights(model))


def apply_adapter(base: checkpoint.Checkpoint, path: Path) -> dict:
    """Adapt a loaded base with the adapter in a file; returns the adapter's origin.

    Raises UserError, with the base as it was, if the file is damaged, no adapter, or for another base; OSError if it
    cannot be read.
    """
    header, tensors = checkpoint.read_checkpoint(path, checkpoint.ADAPTER)
    weights = checkpoint.model_weights(base.model)
    if header.get("base") != checkpoint.model_digest(base.model.config, base.tokenizer, weights):
        raise UserError(f"{path} is for another base: name the checkpoint that it was trained on (--init-from)")
    with user_errors(f"{path} cannot be used: "):
        saved = header["config"]
        check_fields(saved, {"rank": int, "alpha": (int, float), "targets": list})
        if len(saved) > 3:
            raise ValueError("its config has entries that this version does not know")
        config = LoRAConfig(saved["rank"], saved["alpha"], tuple(saved["targets"]))
        adapt(base.model, config, tensors)
    return header["origin"]
