"""Embeddings as points on a plane, for people to look at: which tokens to show, and where they lie."""

import contextlib
import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_decoder import TinyGPT
from tokenizer import REPLACEMENT, Tokenizer

MAX_TOKENS = 150  # points on the map of tokens


def embedding_maps(model: TinyGPT, tokenizer: Tokenizer, max_positions: int, earlier: dict | None = None) -> dict:
    """Where the embeddings of tokens and of positions lie, as plain data; earlier: such maps, to lie near to."""
    labels, earlier = readable_tokens(tokenizer, MAX_TOKENS), earlier or {}
    positions = model.position_embedding.weight
    positions = positions[:: math.ceil(len(positions) / max_positions)]
    tokens = plane(model.token_embedding.weight[labels], earlier.get("tokens"))
    return {"tokens": {"ids": labels, **tokens}, "positions": plane(positions, earlier.get("positions"))}


def plane(vectors: Tensor, earlier: dict | None) -> dict:
    """Points of these vectors (N, C), as near as they can be to those of an earlier plane, with what share of the
    variance each axis shows."""
    points, shares = principal_components(vectors.detach().cpu().float())
    with contextlib.suppress(ValueError, TypeError, KeyError, RuntimeError):  # none, or of other vectors
        points = aligned(points, torch.tensor(earlier["points"], dtype=torch.float64))
    rounded = [[round(x, 5) for x in point] for point in points.tolist()]
    return {"points": rounded, "shares": [round(share, 5) for share in shares]}


def readable_tokens(tokenizer: Tokenizer, count: int) -> list[int]:
    """The first `count` ids of tokens that are whole characters and can be seen, white space included."""

    def readable(token: int) -> bool:
        text = tokenizer.decode([token])
        return bool(text) and text.strip(" \n\t").isprintable() and REPLACEMENT not in text

    ordinary = (token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids)
    return list(itertools.islice(filter(readable, ordinary), count))


def principal_components(vectors: Tensor) -> tuple[Tensor, list[float]]:
    """The vectors (N, C), N > 0, on the two axes along which they differ most: points (N, 2) in float64, and the share
    of the variance along each axis."""
    centred = (vectors - vectors.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    points = F.pad(u * s, (0, 2))[:, :2]  # a single vector has one axis
    shares = F.pad(s**2 / (s**2).sum().clamp(min=1e-30), (0, 2))[:2]
    return points, shares.tolist()


def aligned(points: Tensor, earlier: Tensor) -> Tensor:
    """The points (N, 2), turned or mirrored so that they lie as near to the earlier ones (N, 2) as they can.

    Principal axes have no sign, and two of equal length no order: from one frame to the next a map may jump without
    any change in the model. The best rotation is that of the orthogonal Procrustes problem (Schönemann 1966).
    """
    u, _, v = torch.linalg.svd(points.T @ earlier)
    return points @ u @ v
