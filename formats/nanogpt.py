"""nanoGPT's `ckpt.pt`, in.

The file has no vocabulary: it is made anew from the training text, as nanoGPT makes it, or is a BPE's. Our two special
tokens, which nanoGPT does not have, get the weights of the text's rarest character: as unlikely as any, and never
sampled. An embedding that nanoGPT padded with unused rows loses them. Its GELU is the exact one, its head is tied.
"""

import pickletools
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from corpora.tokenizer_files import load_bpe
from formats import container
from formats.checkpoint import Checkpoint, model_from_weights
from formats.huggingface import GPT2_NAMES, rename
from support.command import UserError, user_errors
from support.plain import check_fields, is_plain
from tiny_decoder import TinyGPTConfig
from tokenizer import CharTokenizer, Tokenizer

TABLE = "token_embedding.weight"
SIZES = {"max_seq": "block_size", "embed_dim": "n_embd", "num_heads": "n_head", "num_layers": "n_layer"}


def load_nanogpt(path: Path, text: Path | None, bpe: Path | None) -> Checkpoint:
    """The model in a checkpoint of nanoGPT; text: what it was trained on, characters as tokens; bpe: or a
    `tokenizer.json`. Raises UserError if a file is missing, damaged or does not fit; OSError if it cannot be read."""
    if (text is None) == (bpe is None):
        raise UserError("nanoGPT's file has no vocabulary: give its text (--data) or a tokenizer.json (--tokenizer)")
    content = read_checkpoint(path)
    tokenizer, rarest = (load_bpe(bpe), None) if bpe else characters_of(text)
    with user_errors(f"{path} cannot be used: "):
        check_fields(content, {"model": (dict, OrderedDict), "model_args": dict})
        shape = content["model_args"]
        check_fields(shape, dict.fromkeys(SIZES.values(), int))
        sizes = {ours: shape[theirs] for ours, theirs in SIZES.items()}
        noise = dict.fromkeys(("dropout", "attention_dropout"), shape.get("dropout", 0.0))
        bias = shape.get("bias", True)
        config = TinyGPTConfig(tokenizer.vocab_size, **sizes, **noise, bias=bias, tie_embeddings=True)
        weights = our_weights(content["model"], path.stat().st_size)
        check_fields(weights, {TABLE: Tensor})
        weights[TABLE] = our_rows(weights[TABLE], tokenizer, rarest)
        return Checkpoint(model_from_weights(config, weights), tokenizer, origin_of(path, content))


def read_checkpoint(path: Path) -> dict:
    """What `torch.save` wrote, mapped from the file. Raises UserError if that is damaged, or more than plain data."""
    with container.refused(path, "checkpoint of nanoGPT"):
        with container.open_zip(path) as (entries, _, name):
            check_names(entries.read(name))
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def check_names(pickle: bytes) -> None:
    """Raise ValueError if a pickle is too long, or names anything but tensors and ordered dictionaries."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        if count > container.MOST_OPCODES:
            raise ValueError("its pickle is too large")
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ") and argument not in container.NAMES:
            raise ValueError(f"its pickle names {str(argument)[:60]!r}, which no checkpoint needs")


def characters_of(path: Path) -> tuple[CharTokenizer, int]:
    """The characters of a text, and the id of the rarest. Raises UserError if there is no text."""
    if not path.is_file():
        raise UserError(f"--data {path}: no such file")
    with user_errors(f"--data {path}: "):
        text = path.read_text(encoding="utf-8")
        tokenizer = CharTokenizer.from_text(text)
    return tokenizer, tokenizer.encode(min(tokenizer.characters, key=text.count))[0]


def our_weights(state: dict, most_bytes: int) -> dict[str, Tensor]:
    """nanoGPT's tensors under our names. Raises ValueError if they are not plain, or have more bytes than the file."""
    weights = {}
    for name, tensor in state.items():
        name = str(name).removeprefix("_orig_mod.").removeprefix("transformer.")
        if name != "lm_head.weight" and not name.endswith(".attn.bias"):  # the embedding once more, and a mask
            weights[rename(name, GPT2_NAMES, back=True)] = tensor
    if any(type(tensor) is not Tensor for tensor in weights.values()):
        raise ValueError("one of its weights is no tensor")
    if sum(tensor.nbytes for tensor in weights.values()) > most_bytes:
        raise ValueError("its weights claim to be more than the file holds")
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in weights.items()}


def our_rows(embedding: Tensor, tokenizer: Tokenizer, rarest: int | None) -> Tensor:
    """The rows (V, C) of our tokens. Raises ValueError if nanoGPT has fewer, or other characters."""
    special = () if rarest is None else tokenizer.special_ids
    found, wanted = embedding.size(0) if embedding.ndim else 0, tokenizer.vocab_size - len(special)
    if found < wanted or (special and found > wanted):
        raise ValueError(f"it has {found} tokens, and the vocabulary {wanted}: give the text that it learned from")
    rows = [rarest - len(special)] * len(special) if special else []
    return embedding[[*rows, *range(wanted)]]


def origin_of(path: Path, content: dict) -> dict:
    """What the file tells about its training."""
    settings, loss = content.get("config"), content.get("best_val_loss")
    corpus = settings.get("dataset") if isinstance(settings, dict) else None
    loss = loss.item() if type(loss) is Tensor and loss.numel() == 1 else loss
    found = {"step": content.get("iter_num"), "val_loss": loss, "corpus": corpus}
    return {"converted_from": path.name, **{name: value for name, value in found.items() if is_plain(value)}}
