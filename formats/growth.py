"""Fine-tuning on a text with new characters: a vocabulary grows, and with it the token embedding and the head.

New characters get the ids behind the old ones, so that all that the base has learned stays where it is. With adapters
(lora.py), which leave the base as it is, the rows of new characters are trained all the same, and kept in the adapter's
file; so are those of `<unk>` and `<bos>`, which a base of one text has never seen.
"""

import dataclasses

import torch
from torch import Tensor, nn

from corpora.tokenizer_files import tokenizer_from_plain
from tiny_decoder import TinyGPT
from tokenizer import BOS, Tokenizer


def grown_tokenizer(base: Tokenizer, characters: str, start: str) -> Tokenizer:
    """The tokenizer with more characters behind its own; `start`: what a text without a prompt begins after.

    To a byte-level tokenizer no character is new. Raises ValueError if no tokenizer has these.
    """
    plain = base.to_plain() | {"start": start}
    return tokenizer_from_plain(plain | {"characters": plain.get("characters", "") + characters})


def tables(model: TinyGPT) -> dict[str, nn.Module]:
    """The modules whose weights have a row for each token: two, or one if the head is tied."""
    embedding = {"token_embedding": model.token_embedding}
    return embedding if model.config.tie_embeddings else embedding | {"head": model.head}


@torch.no_grad()
def grow_model(model: TinyGPT, count: int, special: int) -> None:
    """Give the model so many more tokens, in place. Their rows are the mean of all rows but the first `special`."""
    model.config = dataclasses.replace(model.config, vocab_size=model.config.vocab_size + count)
    for table in tables(model).values():
        new = table.weight[special:].mean(dim=0).expand(count, -1)
        table.weight = nn.Parameter(torch.cat([table.weight, new]), table.weight.requires_grad)
    model.token_embedding.num_embeddings = model.head.out_features = model.config.vocab_size
    model.tie()


def own_rows(tokenizer: Tokenizer, new: int) -> list[int]:
    """The ids whose rows an adapter has of its own, if the last `new` characters of the tokenizer are: these and the
    special tokens. No rows if there is no new character, and texts do not begin behind `<bos>`."""
    if not new and tokenizer.start != BOS:
        return []
    return [*tokenizer.special_ids, *range(tokenizer.vocab_size - new, tokenizer.vocab_size)]


def get_rows(model: TinyGPT, rows: list[int]) -> dict[str, Tensor]:
    """These rows of each table, by names like `head.rows`; empty if there are none."""
    return {f"{name}.rows": table.weight[rows].detach().cpu() for name, table in tables(model).items() if rows}


@torch.no_grad()
def set_rows(model: TinyGPT, rows: list[int], weights: dict[str, Tensor]) -> None:
    """The inverse of `get_rows`."""
    for name, table in tables(model).items() if rows else ():
        table.weight[rows] = weights[f"{name}.rows"].to(table.weight.device)


def train_rows(model: TinyGPT, rows: list[int]) -> None:
    """Train these rows of a model whose other weights are frozen: the gradient of all other rows is 0, and AdamW does
    not move what never had a gradient."""
    for table in tables(model).values() if rows else ():
        share = torch.zeros(len(table.weight), 1, device=table.weight.device)
        share[rows] = 1
        table.weight.requires_grad_(True)
        table.weight.register_hook(lambda gradient, share=share: gradient * share.to(gradient.device))
