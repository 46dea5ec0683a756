"""The network once more, as every program that reads an exported file computes it: GPT-2's.

A page, a GGUF file and a Hugging Face folder hold weights. What is computed with them is fixed in the program that
reads them. Whoever changes the network in `tiny_decoder.py` would get another one there, without a word. So before such
a file is written, `check_twin` compares the model with `twin_logits`, which computes what those programs do.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from corpora.fast_bpe import splits_like_gpt2
from formats.checkpoint import Checkpoint
from support.command import UserError
from tiny_decoder import KVCache, TinyGPT, TinyGPTConfig
from tokenizer import CharTokenizer

TOLERANCE = 1e-4  # of the logits' range: float32 differs by less when sums are taken in another order
CHECK_TOKENS = 32  # that a page reads to check itself: a fraction of a second for a model of 2 million parameters


def twin_logits(
    weights: dict[str, Tensor], config: TinyGPTConfig, ids: Tensor, gelu: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Logits (B, T, V) of GPT-2's network (Radford et al. 2019) with these weights for ids (B, T).

    It shares no code with `tiny_decoder.py`, so that no change there reaches it. gelu stands in for the config's GELU,
    where a program has its own. Raises KeyError if a weight is missing.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}weight"].T + weights.get(f"{name}bias", 0.0)

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    gelu = gelu or partial(F.gelu, approximate="none" if config.gelu == "exact" else "tanh")
    x = weights["token_embedding.weight"][ids] + weights["position_embedding.weight"][: ids.size(1)]
    for block in (f"blocks.{layer}" for layer in range(config.num_layers)):
        qkv = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.in_proj_")  # (B, T, 3C)
        q, k, v = qkv.unflatten(-1, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # its scale is 1 / sqrt(hs)
        x = x + linear(h.transpose(1, 2).flatten(2), f"{block}.attention.out_proj.")
        x = x + linear(gelu(linear(norm(x, f"{block}.mlp_norm"), f"{block}.mlp.up.")), f"{block}.mlp.down.")
    return linear(norm(x, "final_norm"), "token_embedding." if config.tie_embeddings else "head.")


def random_windows(config: TinyGPTConfig, count: int) -> Tensor:
    """Full windows of random ids (count, max_seq), always the same; PyTorch's own random numbers are not touched."""
    return torch.randint(config.vocab_size, (count, config.max_seq), generator=torch.Generator().manual_seed(0))


def compared_positions(length: int) -> list[int]:
    """The last position of a window and three earlier ones; fewer in a window that is shorter."""
    return sorted({0, length // 3, 2 * length // 3, length - 1})


@torch.inference_mode()
def check_twin(loaded: Checkpoint, weights: dict[str, Tensor], program: str) -> None:
    """Raise UserError unless the model computes what GPT-2's network computes with these weights, in float32, and the
    tokenizer gives a character its own id, or cuts a text into GPT-2's words, as the program that reads the file does.

    Compared are the logits at the last and three earlier positions of a full window of random ids, and at the last one
    in a step with a cache. program: what reads the file, for the message. The model is in evaluation mode afterwards.
    """
    model, config, tokenizer = loaded.model, loaded.model.config, loaded.tokenizer
    changed = f"the network in tiny_decoder.py was changed, and {program} computes GPT-2's"
    advice = "undo the change, or keep the model as .pth"
    if {len(t) for name, t in weights.items() if name.endswith("mlp.up.weight")} != {4 * config.embed_dim}:
        raise UserError(f"{changed}: its hidden layers are four times as wide as the stream; {advice}")
    own_ids = [*range(2, tokenizer.vocab_size)] if tokenizer.kind == CharTokenizer.kind else None
    if not (tokenizer.encode(tokenizer.characters) == own_ids if own_ids else splits_like_gpt2()):
        raise UserError(f"tokenizer.py was changed, and {program} encodes a text as before; {advice}")
    ids = random_windows(config, 1)
    try:
        twin = twin_logits(weights, config, ids)[0, compared_positions(config.max_seq)]
    except KeyError as error:
        raise UserError(f"{changed}: it has no {error.args[0]}; {advice}") from None
    if not twin.isfinite().all():
        raise UserError("the model's logits are not finite: its weights are too large to compute with")
    cache, spread = KVCache(model.eval(), 1), float(twin.max() - twin.min())
    full = model(ids)[0, compared_positions(config.max_seq)]
    if config.max_seq > 1:
        model(ids[:, :-1], cache, last_only=True)
    for logits in (full, model(ids[:, -1:], cache)[0]):
        difference = float((logits - twin[-len(logits) :]).abs().max())
        if not difference <= TOLERANCE * spread:
            raise UserError(f"{changed}: logits differ by {difference:.2g} of {spread:.2g}; {advice}")


@torch.inference_mode()
def self_check(config: TinyGPTConfig, weights: dict[str, Tensor]) -> dict:
    """What a page compares itself with: ids, positions among them, at each of these positions the logits of all of
    the ids, and by how much they may differ."""
    ids = random_windows(config, 1)[:, :CHECK_TOKENS]
    positions = compared_positions(ids.size(1))
    logits = twin_logits(weights, config, ids)[0, positions]
    tolerance = TOLERANCE * float(logits.max() - logits.min())
    chosen = logits[:, ids[0]].tolist()
    return {"ids": ids[0].tolist(), "positions": positions, "logits": chosen, "tolerance": tolerance}


def half_precision(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights, rounded to float16."""
    return {name: tensor.half().float() for name, tensor in weights.items()}


@torch.inference_mode()
def deviation(model: TinyGPT, weights: dict[str, Tensor], gelu: Callable[[Tensor], Tensor] | None = None) -> float:
    """The largest difference in log-probability between the model and a program that computes with these weights.

    It is taken over at least two full windows, and 2,048 tokens, of random ids. gelu: as in `twin_logits`. Infinite if
    numbers overflow there. The model is in evaluation mode afterwards.
    """
    config, largest = model.eval().config, torch.tensor(0.0)
    for ids in random_windows(config, max(2, 2048 // config.max_seq)).split(1):
        ours, theirs = model(ids).log_softmax(-1), twin_logits(weights, config, ids, gelu).log_softmax(-1)
        largest = torch.maximum(largest, (ours - theirs).abs().max())
    return float(largest.nan_to_num(torch.inf, torch.inf))
