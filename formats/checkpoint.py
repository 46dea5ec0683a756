"""The one place that knows what a `.pth` of ours holds.

`NAME.pth` is a model: self-contained, all that sampling needs. `NAME.last.pth` is a training state: a model and what
else it takes to go on bit-exactly. A run that trains adapters (lora.py) writes these alone into `NAME.pth`.
All are written by `torch.save` as

    {"header": one JSON string, "tensors": {name: float32 tensor}}

and the header holds

    format      3
    kind        "model", "training" or "adapter"
    config      the fields of TinyGPTConfig; in an adapter, of LoRAConfig
    tokenizer   `to_plain()` of the tokenizer; an adapter has none
    origin      where it came from: corpus, step, loss (for people)
    base        only in an adapter: `model_digest` of the model that it adapts
    settings    only in a training state: those of the run
    training    only in a training state: TrainState (training/state.py)

The tensors are the model's weights, a tied one once; a training state's others begin with "optimizer/", "average/" or
"adapter/".
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from corpora.tokenizer_files import tokenizer_from_plain
from formats.container import read_container
from support import start
from support.command import UserError, user_errors
from support.durable import write_atomically
from support.plain import check_fields, parse_json
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import Tokenizer

FORMAT = 3
# Upper bounds, which keep a damaged or hostile checkpoint from asking for more memory than any machine has.
# For a window of 7,000 tokens, the mask takes 245 MB while it is made; a file's size grows only with the window itself.
LIMITS = {"vocab_size": 2**24, "max_seq": 7000, "embed_dim": 2**14, "num_heads": 2**10, "num_layers": 2**10}
MODEL, TRAINING, ADAPTER = "model", "training", "adapter"
HINTS = {  # which file is of which kind
    MODEL: "give NAME.pth; an adapter goes to generate.py or convert.py, with --lora, beside its base",
    TRAINING: "it lies in NAME.last.pth",
    ADAPTER: "main.py --lora-rank makes one",
}


@dataclass
class Checkpoint:
    """A model from a file: the network on the CPU, its tokenizer, and where it came from."""

    model: TinyGPT
    tokenizer: Tokenizer
    origin: dict


def usual_path() -> str:
    """What every command writes or reads unless it is told otherwise."""
    return start.beside_scripts("checkpoints", "tiny_decoder.pth")


# --- Writing -----------------------------------------------------------------------------------------------------


def model_weights(model: TinyGPT) -> dict[str, Tensor]:
    """The tensors that a checkpoint keeps of an unadapted model, on the CPU; a tied weight once."""
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del state["head.weight"]
    return state


def model_header(config: TinyGPTConfig, tokenizer: Tokenizer, origin: dict, kind: str = MODEL) -> dict:
    """The header of a model's checkpoint, `format` left out."""
    return {"kind": kind, "config": dataclasses.asdict(config), "tokenizer": tokenizer.to_plain(), "origin": origin}


def save_model(path: Path, model: TinyGPT, tokenizer: Tokenizer, origin: dict) -> None:
    """Write an unadapted model. Raises like `write_checkpoint`."""
    write_checkpoint(path, model_header(model.config, tokenizer, origin), model_weights(model))


def write_checkpoint(path: Path, header: dict, tensors: dict[str, Tensor], previous: Path | None = None) -> None:
    """Write a header and tensors; the file that was at `path` becomes `previous`, if given.

    Raises OSError if the file cannot be written; FloatingPointError, and writes nothing, if a number is not finite.
    """
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise FloatingPointError(f"tensor {name!r} holds numbers that are not finite: the training has diverged")
    text = json.dumps({"format": FORMAT, **header}, allow_nan=False)
    parse_json(text)  # what could not be read is not written
    # Cloned, because a view would bring all of the memory that it looks into.
    tensors = {name: t if t.untyped_storage().nbytes() == t.nbytes else t.clone() for name, t in tensors.items()}
    write_atomically(path, lambda file: torch.save({"header": text, "tensors": tensors}, file), previous)


def model_digest(config: TinyGPTConfig, tokenizer: Tokenizer, weights: dict[str, Tensor]) -> str:
    """The sha256 of what makes a model this one: shape, vocabulary and weights. Dropout is for training only."""
    shape = {**dataclasses.asdict(config), "dropout": None, "attention_dropout": None}
    digest = hashlib.sha256(json.dumps([shape, tokenizer.to_plain()], sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


# --- Reading -----------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, kind: str | None = None) -> tuple[dict, dict[str, Tensor]]:
    """Header and tensors of a `.pth` of this kind (MODEL, TRAINING or ADAPTER; None: any), its outermost layer checked.
    Nothing in the file is ever executed.

    Raises UserError, with what is wrong and what to do, if the file is missing, damaged or of another kind; OSError if
    it cannot be read.
    """
    content = read_container(path)
    with user_errors(f"{path} is not a TinyGPT checkpoint: "):
        check_fields(content, {"header": str, "tensors": dict})
        header, tensors = parse_json(content["header"]), content["tensors"]
        check_fields(header, {"format": int, "kind": str, "config": dict, "origin": dict})
        for name, tensor in tensors.items():
            if type(name) is not str or type(tensor) is not Tensor:
                raise ValueError(f"{str(name)[:60]!r} is not a tensor")
    if header["format"] != FORMAT:
        raise UserError(f"{path} was made by another version of TinyGPT (format {header['format']}): train again")
    if kind not in (None, header["kind"]):
        actual = header["kind"][:60]
        raise UserError(f"{path} is of kind {actual!r}, and one of kind {kind!r} is needed: {HINTS[kind]}")
    return header, tensors


def load_model(path: Path) -> Checkpoint:
    """The model in a `.pth`.

    Raises like `read_checkpoint`, and UserError if its parts do not fit together.
    """
    header, tensors = read_checkpoint(path, MODEL)
    with user_errors(f"{path} cannot be used: "):
        return checked_model(header, tensors)


def checked_model(header: dict, tensors: dict[str, Tensor]) -> Checkpoint:
    """The model that a header and its weights describe. Raises ValueError if they do not fit together."""
    config = config_from_plain(header["config"])
    tokenizer = tokenizer_from_plain(header.get("tokenizer"))
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
    return Checkpoint(model_from_weights(config, tensors), tokenizer, header["origin"])


def config_from_plain(fields: dict) -> TinyGPTConfig:
    """The config with these fields. Raises ValueError if one is unknown, missing or out of range."""
    try:
        return TinyGPTConfig(**fields)
    except TypeError:
        raise ValueError("its config has a field that this version does not know, or lacks one") from None


def model_from_weights(config: TinyGPTConfig, weights: dict[str, Tensor]) -> TinyGPT:
    """The network with these weights (as `model_weights` names them), checked before any memory is taken.

    Raises ValueError that names the first tensor that is missing, unexpected, misshapen, not float32 or not finite, or
    says that the network is too large.
    """
    for name, limit in LIMITS.items():
        if getattr(config, name) > limit:
            raise ValueError(f"{name} must be at most {limit}, not {getattr(config, name)}")
    with torch.device("meta"):  # shapes without memory
        model = TinyGPT(config, init=None)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if config.tie_embeddings:
        del shapes["head.weight"]
    check_tensors(weights, shapes)
    model.load_state_dict(weights, assign=True, strict=False)  # strict by `check_tensors`; a tied head has no entry
    model.tie()
    return model


def check_tensors(tensors: dict, shapes: dict) -> None:
    """Raise ValueError that names the first of `tensors` that is missing, unexpected, or not a float32 tensor of its
    shape, contiguous and finite."""
    for name in sorted(shapes.keys() | tensors.keys(), key=str):
        tensor, short = tensors.get(name), str(name)[:60]
        if name not in shapes:
            raise ValueError(f"unexpected tensor {short!r}")
        if type(tensor) is not Tensor:
            raise ValueError(f"tensor {short!r} is missing")
        if tensor.shape != shapes[name] or tensor.dtype != torch.float32:
            actual, expected = f"{tuple(tensor.shape)} {tensor.dtype}", f"{tuple(shapes[name])} torch.float32"
            raise ValueError(f"tensor {short!r} is {actual}, expected {expected}")
        if not tensor.is_contiguous() or not is_finite(tensor):
            raise ValueError(f"tensor {short!r} holds numbers that are not finite, or is not contiguous")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite. (`torch.isfinite` takes twice the tensor's memory.)"""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())
