"""The one place that knows what a `.pth` holds and how a file from anywhere is checked before it is used.

`NAME.pth` is a model: self-contained, all that sampling needs. `NAME.last.pth` is a training state: a model and what
else it takes to go on bit-exactly. A run that trains adapters (lora.py) writes these alone into `NAME.pth`. All are
`torch.save` zips of plain data and tensors:

    format      1
    kind        "model", "training" or "adapter"
    config      the fields of TinyGPTConfig; in an adapter, of LoRAConfig
    tokenizer   `to_plain()` of the tokenizer
    vocabulary  the tokenizer's fingerprint: the weights mean nothing with another one
    weights     name -> float32 tensor
    origin      where it came from: corpus, step, loss, versions (plain data, for people)
    base        only in an adapter, which has no tokenizer: `model_digest` of the model that it adapts
    training    only in a training state: settings, step, optimizers … (TRAINING_FIELDS)
"""

import dataclasses
import hashlib
import json
import math
import os
import pickletools
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from support.durable import write_atomically
from tiny_decoder import TinyGPT, TinyGPTConfig, causal_mask
from tokenizer import Tokenizer, tokenizer_from_plain
from training.lora import LoRAConfig, adapter_shapes, adapter_weights, add_adapters, base_weights, load_adapter_weights

FORMAT = 1
MODEL, TRAINING, ADAPTER = "model", "training", "adapter"
ADAPTER_FIELDS = {"kind": str, "config": dict, "base": str, "weights": dict, "origin": dict}
FIELDS = {"kind": str, "config": dict, "tokenizer": dict, "vocabulary": str, "weights": dict, "origin": dict}
TRAINING_FIELDS = {
    "settings": dict,
    "corpus_sha256": str,
    "step": int,
    "train_seconds": float,
    "best_loss": float,  # infinite before the first evaluation
    "best_step": int,
    "threads": int,
    "processes": int,
    "launch": str,
    "optimizers": list,  # one dictionary per optimizer: parameter's index -> name -> tensor
}
# All that the pickle inside may name; PyTorch's own list is longer, and some of it takes memory without limit.
PICKLED_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"} | {
    f"torch {kind}Storage" for kind in ("Float", "Double", "Half", "BFloat16", "Int", "Long")
}
MOST_ENTRIES, MOST_PICKLE_BYTES = 2**17, 2**26


@dataclass
class Checkpoint:
    """What a `.pth` holds, checked: a network on the CPU, its tokenizer, and the plain rest."""

    model: TinyGPT
    tokenizer: Tokenizer
    origin: dict
    training: dict = field(default_factory=dict)


# --- Writing -----------------------------------------------------------------------------------------------------


def save_checkpoint(
    path: Path,
    model: TinyGPT,
    tokenizer: Tokenizer,
    origin: dict,
    training: dict | None,
    previous: Path | None = None,
) -> None:
    """Write a model (training=None) or a training state; the file that was at `path` becomes `previous`, if given.

    Raises OSError if the file cannot be written, FloatingPointError, and writes nothing, if a number is not finite.
    """
    content = {
        "format": FORMAT,
        "kind": MODEL if training is None else TRAINING,
        "config": dataclasses.asdict(model.config),
        "tokenizer": tokenizer.to_plain(),
        "vocabulary": fingerprint(tokenizer.to_plain()),
        "weights": {name: tensor.detach().cpu() for name, tensor in base_weights(model).items()},
        "origin": origin,
    }
    if training is not None:
        content["training"] = training
    write_finite(path, content, previous)


def save_adapter(path: Path, model: TinyGPT, tokenizer: Tokenizer, config: LoRAConfig, origin: dict) -> None:
    """Write the adapters of a model, without the model. Raises like `save_checkpoint`."""
    content = {
        "format": FORMAT,
        "kind": ADAPTER,
        "config": {"rank": config.rank, "alpha": config.alpha, "targets": config.targets},
        "base": model_digest(model, tokenizer),
        "weights": {name: tensor.cpu() for name, tensor in adapter_weights(model).items()},
        "origin": origin,
    }
    write_finite(path, content)


def model_digest(model: TinyGPT, tokenizer: Tokenizer) -> str:
    """The sha256 of what makes a model this one: shape, vocabulary and weights, those of its adapters left out."""
    shape = {**dataclasses.asdict(model.config), "dropout": None}  # dropout is for training, not for the model
    del shape["attention_dropout"]  # the same; gone altogether, because the first adapters did not know it
    digest = hashlib.sha256(json.dumps([shape, fingerprint(tokenizer.to_plain())]).encode())
    for name, tensor in sorted(base_weights(model).items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()


def write_finite(path: Path, content: dict, previous: Path | None = None) -> None:
    """Write a checkpoint's content, unless a number in it is not finite: then raise FloatingPointError."""
    for name, tensor in all_tensors(content).items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name} holds numbers that are not finite: the training has diverged")
    write_atomically(path, lambda file: torch.save(content, file), previous)


def fingerprint(plain_tokenizer: dict) -> str:
    """The sha256 of a tokenizer's plain form."""
    return hashlib.sha256(json.dumps(plain_tokenizer, sort_keys=True).encode()).hexdigest()


def all_tensors(content: dict) -> dict[str, Tensor]:
    """Every tensor of a checkpoint's content under a name for people: the weights and what the optimizers keep."""
    training = content.get("training", {})
    tensors = {f"tensor {name!r}": tensor for name, tensor in content["weights"].items()}
    tensors |= {f"tensor {name!r}": tensor for name, tensor in training.get("adapter", {}).items()}
    tensors |= {f"average {name!r}": tensor for name, tensor in training.get("average", {}).items()}
    for number, optimizer in enumerate(training.get("optimizers", [])):
        for index, entry in optimizer.items():
            tensors.update({f"tensor {name!r} of optimizer {number}, {index}": t for name, t in entry.items()})
    return tensors


# --- Reading -----------------------------------------------------------------------------------------------------


def load_checkpoint(path: Path, kind: str = MODEL) -> Checkpoint:
    """Read and check a `.pth` of the given kind (MODEL or TRAINING).

    Raises ValueError, with what is wrong and what to do, if the file is missing, damaged, of another kind or does not
    fit together; OSError if it cannot be read. Nothing in the file is ever executed (`weights_only=True`).
    """
    content = read_content(path)
    if content["kind"] == ADAPTER:
        raise ValueError(f"{path} is an adapter: name its base here, and the adapter with --lora")
    if content["kind"] != kind:
        hint = {MODEL: "give NAME.pth, not NAME.last.pth", TRAINING: "it lies in NAME.last.pth"}[kind]
        raise ValueError(f"{path} is a {content['kind']} checkpoint, and a {kind} checkpoint is needed: {hint}")
    try:
        config = TinyGPTConfig(**content["config"])
        tokenizer = tokenizer_from_plain(content["tokenizer"])
        if tokenizer.vocab_size != config.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
        if fingerprint(tokenizer.to_plain()) != content["vocabulary"]:
            raise ValueError("the vocabulary is not the one that the weights were trained with")
        model = model_from_weights(config, content["weights"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    return Checkpoint(model, tokenizer, content["origin"], content.get("training", {}))


def apply_adapter(base: Checkpoint, path: Path) -> dict:
    """Adapt a loaded base with the adapter in a file; returns the adapter's origin.

    Raises ValueError, with the base as it was, if the file is damaged, no adapter, or for another base; OSError if it
    cannot be read.
    """
    content = read_content(path)
    if content["kind"] != ADAPTER:
        raise ValueError(f"{path} is a {content['kind']} checkpoint, and an adapter (main.py --lora-rank) is needed")
    if content["base"] != model_digest(base.model, base.tokenizer):
        raise ValueError(f"{path} is for another base: name the checkpoint that it was trained on (--init-from)")
    try:
        adapt(base.model, LoRAConfig(**content["config"]), content["weights"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    return content["origin"]


def adapt(model: TinyGPT, config: LoRAConfig, weights: object) -> None:
    """Add adapters with these tensors, named as by `adapter_weights`.

    Raises ValueError, with the model as it was, if they do not fit.
    """
    if not isinstance(weights, dict):
        raise ValueError("its adapters are missing")
    check_tensors(weights, adapter_shapes(model, config))
    add_adapters(model, config)
    load_adapter_weights(model, weights)


def read_content(path: Path) -> dict:
    """The dictionary in a `.pth`, its container and outermost layer checked; raises like `load_checkpoint`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; train a model first (python main.py) or name another one")
    with open(path, "rb") as file:  # opened once: what is checked is what is read, whoever replaces the file meanwhile
        check_container(file, path)
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # whatever a damaged file makes the unpickler say
            raise ValueError(f"{path} is no TinyGPT checkpoint ({type(error).__name__} while reading it)") from None
    if not isinstance(content, dict) or type(content.get("format")) is not int:
        raise ValueError(f"{path} is no TinyGPT checkpoint: it has no format number")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {content['format']}, and only {FORMAT} is read here: use the version it is from"
        )
    try:
        check_fields(content, ADAPTER_FIELDS if content.get("kind") == ADAPTER else FIELDS)
        check_plain(content["config"])
        check_plain(content["origin"])
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return content


def check_container(file: BinaryIO, path: Path) -> None:
    """Raise ValueError unless the file is an uncompressed zip, whole, whose pickle names nothing but tensors.

    PyTorch does not check the checksums. Refusing compression and foreign names keeps a small file from unpacking
    into a huge one.
    """
    try:
        fault = container_fault(file)
    except Exception as error:  # whatever a damaged file makes the zip reader say
        fault = f"damaged or no TinyGPT checkpoint ({error})"
    if fault:
        raise ValueError(f"{path} is {fault}; use another checkpoint")


def container_fault(file: BinaryIO) -> str | None:
    """What is wrong with the zip that a checkpoint should be, or None."""
    if not file.read(4) == b"PK\x03\x04":  # Python's reader would skip what stands before, PyTorch's would not
        return "damaged or no TinyGPT checkpoint (it is no zip file)"
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as container:
        entries = container.infolist()
        names = [entry.filename for entry in entries]
        if len(set(names)) < len(names) or len(names) > MOST_ENTRIES:
            return "no TinyGPT checkpoint: its zip entries repeat or are too many"
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            return "no TinyGPT checkpoint: it is compressed"
        if sum(entry.file_size for entry in entries) > size:
            return "damaged: it claims to hold more than it does"
        if broken := container.testzip():
            return f"damaged: the checksum of {broken} does not fit"
        pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > MOST_PICKLE_BYTES:
            return "no TinyGPT checkpoint: it holds no data.pkl, several, or a huge one"
        return pickle_fault(container.read(pickles[0]))


def pickle_fault(pickle: bytes) -> str | None:
    """What in a pickle no checkpoint needs, or None; the pickle is read, not run.

    A name outside PICKLED_NAMES may be a call that takes memory without limit. A value used twice, unless it is a name
    or a string, lets a kilobyte stand for a structure that no computer can walk through.
    """
    shareable, before = set(), ""
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "GLOBAL" and argument not in PICKLED_NAMES:
            return f"no TinyGPT checkpoint: it names {argument!r}, which none needs"
        if opcode.name in ("BINPUT", "LONG_BINPUT"):
            (shareable.add if before in ("GLOBAL", "BINUNICODE") else shareable.discard)(argument)
        if opcode.name in ("BINGET", "LONG_BINGET") and argument not in shareable:
            return "no TinyGPT checkpoint: it uses a value twice"
        before = opcode.name
    return None


def check_fields(found: object, kinds: dict[str, type]) -> None:
    """Raise ValueError unless `found` is a dictionary in which each of these fields is exactly of its kind."""
    if not isinstance(found, dict):
        raise ValueError("a part of it is no dictionary")
    for name, kind in kinds.items():
        if type(found.get(name)) is not kind:
            raise ValueError(f"its entry {name!r} is missing or wrong")


def check_plain(found: dict) -> None:
    """Raise ValueError unless `found` maps strings to numbers, strings, None and tuples of these."""
    for name, value in found.items():
        items = value if isinstance(value, tuple) else (value,)
        if not isinstance(name, str) or not all(isinstance(item, int | float | str | None) for item in items):
            raise ValueError("it holds a value that is no number and no text")


def check_training(state: object) -> None:
    """Raise ValueError unless `state` has every field of a training state, each of its kind and in its range.

    The settings and the tensors are checked where they are used: TrainSettings, `restore_optimizer` and `WeightAverage`
    in recipe.py.
    """
    check_fields(state, TRAINING_FIELDS)
    check_plain(state["settings"])
    for name in ("step", "best_step", "threads", "processes"):
        if not 0 <= state[name] <= 10**9:
            raise ValueError(f"its entry {name!r} is out of range")
    if not 0 <= state["train_seconds"] < math.inf or math.isnan(state["best_loss"]):
        raise ValueError("its entry 'train_seconds' or 'best_loss' is no sensible number")


class ShapesOnly(TorchFunctionMode):
    """Leaves out what changes values but no shape, where it is slow: on the meta device these four load PyTorch's
    compiler, which takes longer than `import torch` itself."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.__name__ in ("normal_", "tril", "__invert__", "masked_fill"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def model_from_weights(config: TinyGPTConfig, weights: dict[str, Tensor]) -> TinyGPT:
    """The network with these weights, which are checked before any memory is taken.

    Raises ValueError that names the first tensor that is missing, unexpected, misshapen, not float32 or not finite.
    """
    with torch.device("meta"), ShapesOnly():
        model = TinyGPT(config)
    check_tensors(weights, {name: tensor.shape for name, tensor in model.state_dict().items()})
    model.load_state_dict(weights, assign=True)
    model.causal_mask = causal_mask(config.max_seq)
    return model


def check_tensors(found: dict, shapes: dict) -> None:
    """Raise ValueError that names the first of `found` that is missing, unexpected, or not usable as a float32 tensor.

    Each must have its own whole storage: otherwise a few bytes could pose as terabytes (expanded, or shared by many).
    """
    storages = set()
    for name in sorted(shapes.keys() | found.keys(), key=str):
        tensor = found.get(name)
        if name not in shapes:
            raise ValueError(f"unexpected tensor {name!r}")
        if type(tensor) is not Tensor:
            raise ValueError(f"tensor {name!r} is missing")
        if tensor.shape != shapes[name] or tensor.dtype != torch.float32:
            have, wanted = f"{tuple(tensor.shape)} {tensor.dtype}", f"{tuple(shapes[name])} torch.float32"
            raise ValueError(f"tensor {name!r} is {have}, expected {wanted}")
        storage = tensor.untyped_storage()
        if not tensor.is_contiguous() or storage.nbytes() != tensor.nbytes or storage.data_ptr() in storages:
            raise ValueError(f"tensor {name!r} does not have a memory of its own")
        storages.add(storage.data_ptr())
        if not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name!r} holds numbers that are not finite")
