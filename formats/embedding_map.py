"""Embeddings as points on a plane, for people to look at: which tokens to show, and where they lie."""

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenizer import REPLACEMENT, Tokenizer


def readable_tokens(tokenizer: Tokenizer, count: int) -> list[int]:
    """The first `count` ids of tokens that are whole characters and can be seen, white space included."""

    def readable(token: int) -> bool:
        text = tokenizer.decode([token])
        return bool(text) and text.strip(" \n\t").isprintable() and REPLACEMENT not in text

    ordinary = (token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids)
    return list(itertools.islice(filter(readable, ordinary), count))


def principal_components(vectors: Tensor, count: int = 2) -> tuple[Tensor, list[float]]:
    """The vectors (N, C), N > 0, on the `count` axes along which they differ most: points (N, count) in float64, and
    the share of the variance along each axis."""
    centred = (vectors - vectors.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    points = F.pad(u * s, (0, count))[:, :count]  # a single vector has one axis
    shares = (s**2 / (s**2).sum().clamp(min=1e-30))[:count]
    return points, shares.tolist()


def aligned(points: Tensor, earlier: Tensor) -> Tensor:
    """The points (N, 2), turned or mirrored so that they lie as near to the earlier ones (N, 2) as they can.

    Principal axes have no sign, and two of equal length no order: from one frame to the next a map may jump without
    any change in the model. The best rotation is that of the orthogonal Procrustes problem (Schönemann 1966).
    """
    u, _, v = torch.linalg.svd(points.T @ earlier)
    return points @ u @ v


def rounded(points: Tensor) -> list[list[float]]:
    """Points as plain numbers."""
    return [[round(x, 5) for x in point] for point in points.tolist()]
