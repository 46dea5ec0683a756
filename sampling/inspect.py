"""What a model does inside, for one text: where each head looks, and what each layer would predict."""

import torch
from torch import Tensor

from tiny_decoder import TinyGPT


@torch.inference_mode()
def residual_stream(model: TinyGPT, ids: list[int]) -> Tensor:
    """The stream (L + 1, T, C) after the embeddings, and after each of the L blocks, of the ids (T).

    Raises ValueError if there are no ids, or more than max_seq.
    """
    if not 1 <= len(ids) <= model.config.max_seq:
        raise ValueError(f"needs 1 to {model.config.max_seq} tokens, not {len(ids)}")
    model.eval()
    tokens = torch.tensor(ids, device=model.token_embedding.weight.device)
    mask = model.causal_mask[: len(ids), : len(ids)]
    stream = [(model.token_embedding(tokens) + model.position_embedding.weight[: len(ids)])[None]]  # (1, T, C) each
    for block in model.blocks:
        stream.append(block(stream[-1], mask))
    return torch.cat(stream)


@torch.inference_mode()
def attention_maps(model: TinyGPT, ids: list[int]) -> Tensor:
    """The attention weights (L, nh, T, T) of the ids (T): row t says how much token t takes from each token.

    Every row sums to 1, and is 0 to the right of the diagonal. Raises like `residual_stream`.
    """
    mask = model.causal_mask[: len(ids), : len(ids)]
    each = torch.eye(len(ids), device=mask.device)  # the mean of these values is the weights themselves
    maps = []
    for block, x in zip(model.blocks, residual_stream(model, ids), strict=False):
        q, k, _ = block.attention.project(block.attention_norm(x[None]))  # (1, nh, T, hs)
        maps.append(block.attention.weigh(q, k, each.expand(*q.shape[:2], -1, -1), mask)[0])
    return torch.stack(maps)


@torch.inference_mode()
def logit_lens(model: TinyGPT, ids: list[int]) -> Tensor:
    """Logits (L + 1, T, V) that the head reads from the residual stream after the embeddings and after each block.

    The last are the model's own. nostalgebraist 2020, "interpreting GPT: the logit lens". Raises like
    `residual_stream`.
    """
    return model.head(model.final_norm(residual_stream(model, ids)))
