"""What is in a model, in a few lines for people."""

from pathlib import Path

from corpora.tokenizer_files import tokenizer_from_plain
from formats import adapter
from formats.checkpoint import ADAPTER, MODEL, Checkpoint, config_from_plain, read_checkpoint
from support.command import user_errors
from support.plain import check_fields, is_plain
from tiny_decoder import TinyGPTConfig
from tokenizer import Tokenizer

# What of a checkpoint's origin is shown.
ORIGIN = ("corpus", "documents", "glob", "step", "val_loss", "merged_from", "converted_from")


def facts(config: TinyGPTConfig, tokenizer: Tokenizer) -> dict[str, str]:
    """Shape and tokenizer of a model."""
    biases, heads = "biases" if config.bias else "no biases", "tied" if config.tie_embeddings else "untied"
    start = "the start token" if tokenizer.start_id == tokenizer.bos_id else repr(tokenizer.start)
    shape = f"{config.num_layers} layers, width {config.embed_dim}, {config.num_heads} heads, window {config.max_seq}"
    tokens = f"{tokenizer.kind}, {tokenizer.vocab_size:,} tokens; a text starts after {start}"
    return {"shape": f"{shape}; {biases}, {config.gelu} GELU, {heads} head", "tokenizer": tokens}


def origin_facts(origin: dict) -> dict[str, str]:
    """Where a model came from, as far as it is known."""
    known = {name.replace("_", " "): origin[name] for name in ORIGIN if is_plain(origin.get(name))}
    return {name: f"{value:.4f}" if type(value) is float else str(value)[:200] for name, value in known.items()}


def describe_file(path: Path) -> dict[str, str]:
    """What a `.pth` holds: a model, a training state or an adapter. Raises like `read_checkpoint`."""
    header, tensors = read_checkpoint(path)
    with user_errors(f"{path} cannot be used: "):
        if header["kind"] == ADAPTER:
            lora = adapter.config_from_plain(header["config"])
            check_fields(header, {"characters": str})
            known = {"adapter": f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}"}
            known["new characters"] = f"{len(header['characters']):,}"
        else:
            known = facts(config_from_plain(header["config"]), tokenizer_from_plain(header.get("tokenizer")))
    numbers = sum(tensor.numel() for name, tensor in tensors.items() if "/" not in name)
    sizes = {"parameters": f"{numbers:,}", "size": f"{path.stat().st_size:,} bytes"}
    return {"kind": header["kind"], **known, **origin_facts(header["origin"]), **sizes}


def describe_model(loaded: Checkpoint) -> dict[str, str]:
    """What a model from another program's files is."""
    known = facts(loaded.model.config, loaded.tokenizer) | origin_facts(loaded.origin)
    return {"kind": MODEL, **known, "parameters": f"{loaded.model.num_parameters():,}"}
