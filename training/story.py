"""The frames of `NAME.story.jsonl`, from which the page replays how a model learned.

A frame is one line of JSON, at most 60 kB: at step 0, and at each evaluation. It holds

    step, train_loss, val_loss     as the metrics have them; the losses are null at step 0
    ids, surprise                  48 tokens, always the same, and -ln p in nats of each after the first
    heads, maps                    [layer, head] of each map, and the maps: bytes in base64
    sample, sample_surprise        what the model wrote, and -ln p of each of its tokens
    tokens, positions              embeddings on a plane: ids (tokens only), points, shares of the variance

A map holds the rows of the attention weights up to the diagonal, one after the other; a byte is 255 times a weight.
Nothing here takes a random number from PyTorch, so a run with a story is the run without.
"""

import base64
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from corpora.documents import NAMES
from formats.embedding_map import embedding_maps
from formats.story import MAX_MAPS, MAX_POSITIONS, MAX_SAMPLE, STORY_TOKENS
from sampling.inspect import attention_maps
from sampling.score import token_losses
from support.durable import append_line, write_atomically
from support.plain import parse_json
from tiny_decoder import TinyGPT
from tokenizer import Tokenizer
from training.run import Run

MAX_FRAMES = 120  # in the file; then every second one is dropped, so that it stays below 8 MB however long the run


def story_frame(run: Run, sample: str, val_loss: float | None) -> dict:
    """What the model does now; sample: what it writes; val_loss: None before the first step."""
    model, tokenizer, state = run.model_to_keep.eval(), run.tokenizer, run.state
    ids, heads, earlier = fixed_tokens(run), shown_heads(run), last_frame(run.files.story)
    all_maps = attention_maps(model, ids).cpu().numpy()
    below = np.tril_indices(len(ids))
    maps = np.concatenate([all_maps[layer, head][below] for layer, head in heads])
    sample = sample[:MAX_SAMPLE]
    return {
        "step": state.step,
        "train_loss": state.loss_sum / state.loss_steps if state.loss_steps else None,
        "val_loss": val_loss,
        "ids": ids,
        "surprise": surprises(model, ids),
        "heads": heads,
        "maps": base64.b64encode((255 * maps).round().astype(np.uint8)).decode(),
        "sample": sample,
        "sample_surprise": surprises(model, sample_ids(tokenizer, sample)),
        **embedding_maps(model, tokenizer, MAX_POSITIONS, earlier),
    }


def sample_ids(tokenizer: Tokenizer, sample: str) -> np.ndarray:
    """The start token and the ids of a sample. A line end that is not in the vocabulary ends a document."""
    ids = np.concatenate([[tokenizer.start_id], *tokenizer.encode_blocks([sample])])
    return ids if tokenizer.eos_id is None else np.where(ids == tokenizer.unk_id, tokenizer.eos_id, ids)


def fixed_tokens(run: Run) -> list[int]:
    """The tokens whose maps are shown, the same in every frame.

    They go with the page to other people. So only of a public corpus are they the beginning of the validation split.
    Of a person's own text they are a chain: each token is followed by one that follows it in the text, too.
    """
    length = min(STORY_TOKENS, run.settings.max_seq)
    if run.corpus.name in NAMES:  # whose text may go with a page to anybody
        return run.val_tokens[:length].tolist()
    tokens, random = np.array(run.train_set.tokens[: 2**18]), np.random.default_rng(0)
    chain = [int(np.bincount(tokens).argmax())]
    while len(chain) < length:
        followers = tokens[1:][tokens[:-1] == chain[-1]]
        chain.append(int(random.choice(followers if len(followers) else tokens)))
    return chain


def shown_heads(run: Run) -> list[tuple[int, int]]:
    """[layer, head] of at most MAX_MAPS heads: of all layers, or as many as fit, the first heads."""
    config = run.model.config
    layers = np.unique(np.linspace(0, config.num_layers - 1, min(config.num_layers, MAX_MAPS)).round().astype(int))
    heads = min(config.num_heads, MAX_MAPS // len(layers))
    return [(layer, head) for layer in layers.tolist() for head in range(heads)]


def surprises(model: TinyGPT, ids: Sequence[int]) -> list[float]:
    """-ln p of every token after the first, in nats."""
    return [round(loss, 3) for loss in token_losses(model, np.array(ids)).tolist()]


def last_frame(path: Path) -> dict:
    """The last frame in the file; empty if there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return dict(parse_json(path.read_bytes().splitlines()[-1].decode()))
    return {}


def append_frame(path: Path, frame: dict) -> None:
    """Add a frame, unless the last one is of this step; a long file first loses every second frame."""
    if last_frame(path).get("step") == frame["step"]:
        return
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if len(lines) >= MAX_FRAMES:
        write_atomically(path, lambda file: file.writelines(lines[::2]))
    append_line(path, json.dumps(frame, allow_nan=False))
