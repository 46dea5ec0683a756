"""The one place that knows what a `.pth` holds, how it is written so that a crash loses nothing, how it is checked.

`NAME.pth` is a model: self-contained, all that sampling needs. `NAME.last.pth` is a training state: a model and what
else it takes to go on bit-exactly. Both are `torch.save` zips of plain data and tensors:

    format      1
    kind        "model" or "training"
    config      the fields of TinyGPTConfig
    tokenizer   `to_plain()` of the tokenizer
    weights     name -> float32 tensor
    origin      where it came from: corpus, step, loss, versions (plain data, for people)
    training    only in a training state: settings, step, optimizers … (main.py's)
"""

import contextlib
import dataclasses
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from tiny_decoder import TinyGPT, TinyGPTConfig, causal_mask
from tokenizer import CharTokenizer, tokenizer_from_plain

FORMAT = 1
MODEL, TRAINING = "model", "training"


@dataclass
class Checkpoint:
    """What a `.pth` holds, checked: a network on the CPU, its tokenizer, and the plain rest."""

    model: TinyGPT
    tokenizer: CharTokenizer
    origin: dict
    training: dict = field(default_factory=dict)


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill the file at `path`, which at every moment is either the old file or the whole new one.

    The bytes go to a temporary file in the same folder, reach the disk (fsync), take the name (rename), and the name
    reaches the disk (fsync of the folder). Raises OSError, with the old file untouched and the temporary one removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable. Windows has no such call, and does not need it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_checkpoint(path: Path, model: TinyGPT, tokenizer: CharTokenizer, origin: dict, training: dict | None) -> None:
    """Write a model (training=None) or a training state. Raises OSError if the file cannot be written."""
    content = {
        "format": FORMAT,
        "kind": MODEL if training is None else TRAINING,
        "config": dataclasses.asdict(model.config),
        "tokenizer": tokenizer.to_plain(),
        "weights": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "origin": origin,
    }
    if training is not None:
        content["training"] = training
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, kind: str = MODEL) -> Checkpoint:
    """Read and check a `.pth` of the given kind (MODEL or TRAINING).

    Raises ValueError, with what is wrong and what to do, if the file is missing, damaged, of another kind or does not
    fit together; OSError if it cannot be read. Nothing in the file is ever executed (`weights_only=True`).
    """
    content = read_content(path)
    if content["kind"] != kind:
        raise ValueError(f"{path} is a {content['kind']} checkpoint, and a {kind} checkpoint is needed")
    try:
        config = TinyGPTConfig(**content["config"])
        tokenizer = tokenizer_from_plain(content["tokenizer"])
        if tokenizer.vocab_size != config.vocab_size:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} tokens, the model {config.vocab_size}")
        model = model_from_weights(config, content["weights"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be used: {error}") from None
    return Checkpoint(model, tokenizer, content["origin"], content.get("training", {}))


def read_content(path: Path) -> dict:
    """The dictionary in a `.pth`, its container and outermost layer checked; raises like `load_checkpoint`."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; train a model first (python main.py) or name another one")
    check_container(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file makes the unpickler say
        raise ValueError(f"{path} is no TinyGPT checkpoint ({type(error).__name__} while reading it)") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError(f"{path} is no TinyGPT checkpoint: it has no format number")
    if content["format"] != FORMAT:
        raise ValueError(
            f"{path} has format {content['format']}, and this version reads format {FORMAT}: use the version it is from"
        )
    needed = {"kind": str, "config": dict, "tokenizer": dict, "weights": dict, "origin": dict}
    for key, kind in needed.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{path} is damaged: its entry {key!r} is missing or wrong")
    return content


def check_container(path: Path) -> None:
    """Raise ValueError unless the file is an uncompressed zip whose every byte agrees with its checksum.

    PyTorch does not check the checksums. Refusing compression keeps a small file from unpacking into a huge one.
    """
    try:
        with zipfile.ZipFile(path) as container:
            entries = container.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError(f"{path} is no TinyGPT checkpoint: it is compressed")
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError(f"{path} is damaged: it claims to hold more than it does")
            broken = container.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no TinyGPT checkpoint ({error})") from None
    if broken:
        raise ValueError(f"{path} is damaged: the checksum of {broken} does not fit; use another checkpoint")


def model_from_weights(config: TinyGPTConfig, weights: dict[str, Tensor]) -> TinyGPT:
    """The network with these weights, which are checked before any memory is taken.

    Raises ValueError that names the first tensor that is missing, unexpected, misshapen, not float32 or not finite.
    """
    with torch.device("meta"):  # shapes only
        model = TinyGPT(config)
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys(), key=str):
        tensor = weights.get(name)
        if name not in expected:
            raise ValueError(f"unexpected tensor {name!r}")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"tensor {name!r} is missing")
        if tensor.shape != expected[name].shape or tensor.dtype != torch.float32:
            found, wanted = tuple(tensor.shape), tuple(expected[name].shape)
            raise ValueError(f"tensor {name!r} is {found} {tensor.dtype}, expected {wanted} torch.float32")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name!r} holds numbers that are not finite")
    model.load_state_dict(weights, assign=True)
    model.causal_mask = causal_mask(config.max_seq)
    return model


def remove_leftovers(path: Path) -> None:
    """Delete the temporary files that a killed writer of `path` left in its folder."""
    for leftover in path.parent.glob(f"{path.name}.*.tmp"):
        with contextlib.suppress(OSError):
            leftover.unlink()
