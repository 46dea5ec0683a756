"""nanoGPT's `ckpt.pt`, in.

The file has no vocabulary: it is made anew from the training text, as nanoGPT makes it, or is a BPE's. Our two special
tokens, which nanoGPT does not have, get the weights of the text's rarest character: as unlikely as any, and never
sampled. An embedding that nanoGPT padded with unused rows loses them. Its GELU is the exact one, its head is tied.
"""

from pathlib import Path

from torch import Tensor

from corpora.tokenizer_files import load_bpe
from formats.checkpoint import Checkpoint, model_from_weights
from formats.container import read_container
from formats.huggingface import GPT2_NAMES, rename
from support.command import UserError, user_errors
from support.plain import check_fields
from tiny_decoder import TinyGPTConfig
from tokenizer import CharTokenizer, Tokenizer

TABLE = "token_embedding.weight"
SIZES = {"max_seq": "block_size", "embed_dim": "n_embd", "num_heads": "n_head", "num_layers": "n_layer"}


def load_nanogpt(path: Path, text: Path | None, bpe: Path | None) -> Checkpoint:
    """The model in a checkpoint of nanoGPT; text: what it was trained on, characters as tokens; bpe: or a
    `tokenizer.json`.

    Raises UserError if a file is damaged or does not fit; OSError if it cannot be read.
    """
    if (text is None) == (bpe is None):
        raise UserError("nanoGPT's file has no vocabulary: give its text (--data) or a tokenizer.json (--tokenizer)")
    content = read_container(path, "checkpoint of nanoGPT")
    tokenizer, rarest = (load_bpe(bpe), None) if bpe else characters_of(text)
    with user_errors(f"{path} cannot be used: "):
        check_fields(content, {"model": dict, "model_args": dict})
        shape = {"bias": True, "dropout": 0.0, **content["model_args"]}
        check_fields(shape, {**dict.fromkeys(SIZES.values(), int), "bias": bool, "dropout": (int, float)})
        sizes = {ours: shape[theirs] for ours, theirs in SIZES.items()}
        noise = dict.fromkeys(("dropout", "attention_dropout"), shape["dropout"])
        config = TinyGPTConfig(tokenizer.vocab_size, **sizes, **noise, bias=shape["bias"], tie_embeddings=True)
        weights = our_weights(content["model"])
        check_fields(weights, {TABLE: Tensor})
        weights[TABLE] = our_rows(weights[TABLE], tokenizer, rarest)
        return Checkpoint(model_from_weights(config, weights), tokenizer, {"converted_from": path.name})


def characters_of(path: Path) -> tuple[CharTokenizer, int]:
    """The characters of a text, and the id of the rarest. Raises UserError if it is not a text."""
    with user_errors(f"--data {path}: "):
        text = path.read_text(encoding="utf-8")
        tokenizer = CharTokenizer.from_text(text)
    return tokenizer, tokenizer.encode(min(tokenizer.characters, key=text.count))[0]


def our_weights(state: dict) -> dict[str, Tensor]:
    """nanoGPT's tensors under our names."""
    weights = {}
    for name, tensor in state.items():
        name = str(name).removeprefix("_orig_mod.").removeprefix("transformer.")
        if name != "lm_head.weight" and not name.endswith(".attn.bias"):  # the embedding once more, and a mask
            weights[rename(name, GPT2_NAMES, back=True)] = tensor
    return weights


def our_rows(embedding: Tensor, tokenizer: Tokenizer, rarest: int | None) -> Tensor:
    """The rows (V, C) of our tokens. Raises ValueError if nanoGPT has fewer, or other characters."""
    special = () if rarest is None else tokenizer.special_ids
    count, wanted = embedding.size(0) if embedding.ndim else 0, tokenizer.vocab_size - len(special)
    if count < wanted or (special and count > wanted):
        raise ValueError(f"it has {count} tokens, and the vocabulary {wanted}: give the text that it learned from")
    rows = [rarest - len(special)] * len(special) if special else []
    return embedding[[*rows, *range(wanted)]]
