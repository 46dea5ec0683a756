"""Adapters (lora.py) in files of their own: a checkpoint without the model that it adapts."""

import re
from pathlib import Path

import torch
from torch import Tensor

from formats import checkpoint
from formats.growth import get_rows, grow_model, grown_tokenizer, own_rows, set_rows, tables
from lora import LoRAConfig, adapted_places, add_adapters
from support.command import UserError, user_errors
from support.plain import check_fields
from tiny_decoder import TinyGPT
from tokenizer import Tokenizer


def base_weights(model: TinyGPT) -> dict[str, Tensor]:
    """What `model_weights` would be without the model's adapters; an unadapted model's own."""
    weights = {}
    for name, tensor in checkpoint.model_weights(model).items():
        weights[re.sub(r"parametrizations\.(\w+)\.original$", r"\1", name)] = tensor
    return {name: tensor for name, tensor in weights.items() if ".parametrizations." not in name}


def adapter_weights(model: TinyGPT) -> dict[str, Tensor]:
    """A and B of every adapter, named after the matrix: `blocks.0.mlp.up.weight.A`; empty for an unadapted model."""
    weights = {}
    for name, _, _, adapter in adapted_places(model):
        weights |= {f"{name}.{part}": tensor.cpu() for part, tensor in adapter.state_dict().items()}
    return weights


def adapt(model: TinyGPT, config: LoRAConfig, weights: dict[str, Tensor]) -> None:
    """Add adapters with these tensors, named as by `adapter_weights`. Raises ValueError if they do not fit."""
    add_adapters(model, config)
    checkpoint.check_tensors(weights, {name: tensor.shape for name, tensor in adapter_weights(model).items()})
    for name, _, _, adapter in adapted_places(model):
        adapter.load_state_dict({part: weights[f"{name}.{part}"] for part in ("A", "B")})


def save_adapter(
    path: Path, model: TinyGPT, tokenizer: Tokenizer, config: LoRAConfig, origin: dict, base: str = "", new: int = 0
) -> None:
    """Write the adapters of a model, without the model. Raises like `write_checkpoint`.

    base: the `model_digest` of the base before its vocabulary grew by the last `new` characters; not needed if it did
    not.
    """
    header = {
        "kind": checkpoint.ADAPTER,
        "config": {"rank": config.rank, "alpha": config.alpha, "targets": list(config.targets)},
        "base": base or checkpoint.model_digest(model.config, tokenizer, base_weights(model)),
        "characters": tokenizer.characters[-new:] if new else "",
        "start": tokenizer.start,
        "origin": origin,
    }
    checkpoint.write_checkpoint(path, header, adapter_weights(model) | get_rows(model, own_rows(tokenizer, new)))


def apply_adapter(base: checkpoint.Checkpoint, path: Path) -> dict:
    """Adapt a loaded base with the adapter in a file, its vocabulary too; returns the adapter's origin.

    Raises UserError if the file is damaged, no adapter, or for another base; OSError if it cannot be read.
    """
    header, tensors = checkpoint.read_checkpoint(path, checkpoint.ADAPTER)
    weights = checkpoint.model_weights(base.model)
    if header.get("base") != checkpoint.model_digest(base.model.config, base.tokenizer, weights):
        raise UserError(f"{path} is for another base: name the checkpoint that it was trained on (--init-from)")
    with user_errors(f"{path} cannot be used: "):
        check_fields(header, {"characters": str, "start": str})
        config, model, new = config_from_plain(header["config"]), base.model, len(header["characters"])
        tokenizer = grown_tokenizer(base.tokenizer, header["characters"], header["start"])
        if tokenizer.vocab_size != model.config.vocab_size + new:
            raise ValueError("its base has no characters that others could stand behind")
        rows = own_rows(tokenizer, new)
        shapes = {f"{name}.rows": torch.Size([len(rows), model.config.embed_dim]) for name in tables(model) if rows}
        added = {name: tensors.pop(name, None) for name in shapes}
        checkpoint.check_tensors(added, shapes)
        adapt(model, config, tensors)
    grow_model(model, new, len(tokenizer.special_ids))
    set_rows(model, rows, added)
    base.tokenizer = tokenizer
    return header["origin"]


def config_from_plain(fields: dict) -> LoRAConfig:
    """The config with these fields. Raises ValueError if one is unknown, missing or out of range."""
    check_fields(fields, {"rank": int, "alpha": (int, float), "targets": list})
    if len(fields) > 3:
        raise ValueError("its config has entries that this version does not know")
    return LoRAConfig(fields["rank"], fields["alpha"], tuple(fields["targets"]))
