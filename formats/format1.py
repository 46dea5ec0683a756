"""Checkpoints of format 1, which had a head with a bias: read once, to be written anew."""

from pathlib import Path

import torch
from torch import Tensor

from formats.checkpoint import MODEL, Checkpoint, checked_model
from support.command import user_errors
from support.plain import check_fields, is_plain


def model_of_format1(path: Path, content: dict) -> Checkpoint:
    """The model in a checkpoint of format 1; content: what `read_container` gave.

    Raises UserError if it is none or needs its head's bias.
    """
    with user_errors(f"{path} cannot be used: "):
        check_fields(content, {"kind": str, "config": dict, "tokenizer": dict, "weights": dict, "origin": dict})
        if content["kind"] != MODEL:
            raise ValueError("it is of format 1 and holds no model: only models are converted (NAME.pth)")
        origin = {str(name): value for name, value in content["origin"].items() if is_plain(value)}
        return checked_model({**content, "origin": origin}, fold_head_bias(content["weights"]))


def fold_head_bias(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the head's bias b (V,), which moves into the final norm's bias: W d = b has an exact solution
    d if the rows of the head W (V, C) are independent.

    Raises ValueError if there is none: with more tokens than C, as a rule.
    """
    names = ("head.weight", "head.bias", "final_norm.bias")
    if any(type(weights.get(name)) is not Tensor for name in names):
        raise ValueError("it lacks a tensor")
    weight, bias, shift = (weights[name].double() for name in names)
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or shift.shape != weight.shape[1:]:
        raise ValueError("its head has a wrong shape")
    found = torch.linalg.lstsq(weight, bias[:, None], driver="gelsd").solution[:, 0]
    rest = float((weight @ found - bias).abs().max())
    if not rest <= 1e-6 * max(1.0, float(bias.abs().max())):
        raise ValueError(f"its head's bias cannot move into the final norm: off by {rest:.3g}; train it anew")
    kept = {name: tensor for name, tensor in weights.items() if name != "head.bias"}
    return {**kept, "final_norm.bias": (shift + found).float()}
