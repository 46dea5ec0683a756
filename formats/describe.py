"""What is in a model, in a few lines for people."""

from pathlib import Path

from corpora.bpe import tokenizer_from_plain
from formats.checkpoint import ADAPTER, Checkpoint, Tokenizer, config_from_plain, read_any
from support.command import user_errors
from support.plain import check_fields
from tiny_decoder import TinyGPTConfig

ORIGIN = ("corpus", "step", "val_loss", "merged_from", "converted_from")  # what of a checkpoint's origin is shown


def facts(config: TinyGPTConfig, tokenizer: Tokenizer, origin: dict) -> dict[str, str]:
    """What there is to say about a model, in the order in which it is shown."""
    biases, heads = "biases" if config.bias else "no biases", "tied" if config.tie_embeddings else "untied"
    start = "the start token" if tokenizer.start_id == tokenizer.bos_id else repr(tokenizer.start)
    shape = f"{config.num_layers} layers, width {config.embed_dim}, {config.num_heads} heads, window {config.max_seq}"
    return {
        "shape": f"{shape}; {biases}, {config.gelu} GELU, {heads} head",
        "tokenizer": f"{tokenizer.kind}, {tokenizer.vocab_size:,} tokens; a text starts after {start}",
        **origin_facts(origin),
    }


def origin_facts(origin: dict) -> dict[str, str]:
    """Where a model came from, as far as it is known."""
    shown = {int: lambda value: f"{value:,}", str: lambda value: value[:200], float: lambda value: f"{value:.4f} nats"}
    known = {name.replace("_", " "): origin.get(name) for name in ORIGIN}
    return {name: shown[type(value)](value) for name, value in known.items() if type(value) in shown}


def describe_file(path: Path) -> dict[str, str]:
    """What a `.pth` holds: a model, a training state or an adapter. Raises like `read_any`."""
    header, tensors = read_any(path)
    numbers = sum(tensor.numel() for name, tensor in tensors.items() if "/" not in name)
    found = {"kind": header["kind"]}
    with user_errors(f"{path} cannot be used: "):
        if header["kind"] == ADAPTER:
            check_fields(header["config"], {"rank": int, "alpha": (int, float), "targets": list})
            rank, alpha = header["config"]["rank"], header["config"]["alpha"]
            found["adapter"] = f"rank {rank}, alpha {alpha:g}, on {', '.join(map(str, header['config']['targets']))}"
            found["base"] = f"the model with digest {str(header.get('base'))[:12]}…"
            found |= origin_facts(header["origin"])
        else:
            config = config_from_plain(header["config"])
            found |= facts(config, tokenizer_from_plain(header.get("tokenizer")), header["origin"])
    return {**found, "parameters": f"{numbers:,}", "size": f"{path.stat().st_size:,} bytes"}


def describe_model(loaded: Checkpoint) -> dict[str, str]:
    """What a model from another program's files is."""
    known = facts(loaded.model.config, loaded.tokenizer, loaded.origin)
    return {"kind": "model", **known, "parameters": f"{loaded.model.num_parameters():,}"}
