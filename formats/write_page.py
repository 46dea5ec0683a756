"""A model as one HTML file that runs it: no network, no server, nothing to install.

The file holds page/page.html with the style sheet, the scripts and the data in it. The scripts of ENGINE run in the
page and make up its worker; those of INTERFACE only run in the page. The data are a block of JSON and the weights in
base64. Only these scripts may run: a Content-Security-Policy names their hashes and forbids every connection. The page
holds some logits, and shows nothing of the model unless it computes the same ones.
"""

import base64
import contextlib
import dataclasses
import hashlib
import html
import json
import math
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from formats.checkpoint import Checkpoint, model_weights
from formats.twin import check_twin, deviation, half_precision, self_check
from support.command import UserError
from support.durable import check_overwrite, write_atomically
from support.plain import finite, is_plain, parse_json
from tokenizer import REPLACEMENT, Tokenizer

PARTS = Path(__file__).with_name("page")
ENGINE = ("layers.js", "model.js", "inspect.js", "sampler.js", "tokenizer.js", "worker.js")
CHAPTERS = ("guess.js", "write.js", "follow.js", "heads.js", "break.js", "maps.js", "learned.js", "numbers.js")
INTERFACE = ("api.js", "draw.js", "book.js", *CHAPTERS, "main.js")
GENERATOR = '<meta name="generator" content="TinyGPT">'
MAX_POINTS, MAX_LABELS = 512, 150  # on the maps of positions and of tokens
# What the page shows of a checkpoint's origin.
ORIGIN_FIELDS = ("corpus", "preset", "step", "val_loss", "train_seconds", "seed", "bigram_entropy", "floor", "recipe")
CURVE_FIELDS = ("step", "train_seconds", "train_loss", "val_loss")  # what it shows of an evaluation


def save_page(path: Path, loaded: Checkpoint, metrics: Path | None, precision: str, force: bool = False) -> float:
    """Write a page that runs the model; returns how far its log-probabilities are off because of rounded weights.

    metrics: the file with the curves, if there is one. precision: of the weights, "float16" or "float32". Raises
    UserError if `path` is another file and not `force`, if a weight does not fit into float16, or if the network is not
    GPT-2's (`check_twin`).
    """
    check_overwrite(path, is_page, force)
    weights = model_weights(loaded.model)
    check_twin(loaded.model, weights, "a page")
    rounded = half_precision(weights) if precision == "float16" else weights
    text = fill_template(page_data(loaded, rounded, read_metrics(metrics), precision), encode(rounded, precision))
    write_atomically(path, lambda file: file.write(text.encode()))
    return deviation(loaded.model, rounded)


def is_page(path: Path) -> bool:
    """Whether a file was written by `save_page`."""
    with open(path, "rb") as file:
        return GENERATOR.encode() in file.read(2000)


def encode(weights: dict[str, Tensor], precision: str) -> str:
    """All weights one after the other, little-endian, in base64. UserError if one was too large for the precision."""
    numbers = torch.cat([tensor.flatten() for tensor in weights.values()])
    if not numbers.isfinite().all():
        raise UserError("a weight is too large for float16: add --precision float32")
    return base64.b64encode(numbers.numpy().astype("<f2" if precision == "float16" else "<f4")).decode()


def page_data(loaded: Checkpoint, weights: dict[str, Tensor], curves: list[dict], precision: str) -> dict:
    """Everything that the page needs except the weights, as plain data; weights: as the page will compute with them."""
    origin = {name: value for name, value in loaded.origin.items() if name in ORIGIN_FIELDS and is_plain(value)}
    if "corpus" in origin:
        origin["corpus"] = Path(str(origin["corpus"])).name  # the folder is private
    positions = loaded.model.position_embedding.weight.detach()
    labels = readable_tokens(loaded.tokenizer)[:MAX_LABELS]
    return {
        "config": dataclasses.asdict(loaded.model.config),
        "tokenizer": plain_tokenizer(loaded.tokenizer),
        "origin": origin,
        "prompt": "ROMEO:" if origin.get("corpus") == "tinyshakespeare" else "",
        "curves": curves,
        "parameters": loaded.model.num_parameters(),
        "precision": precision,
        "layout": [[name, tensor.numel()] for name, tensor in weights.items()],
        "check": self_check(loaded.model.config, weights),
        "maps": {
            "tokens": {"ids": labels, **principal_components(loaded.model.token_embedding.weight.detach()[labels])},
            "positions": principal_components(positions[:: math.ceil(len(positions) / MAX_POINTS)]),
        },
    }


def plain_tokenizer(tokenizer: Tokenizer) -> dict:
    """What page/tokenizer.js makes a tokenizer from."""
    plain = {"kind": tokenizer.kind, "startId": tokenizer.start_id, "endId": tokenizer.eos_id}
    plain["specialIds"] = list(tokenizer.special_ids)
    if tokenizer.kind == "char":
        return {**plain, "characters": tokenizer.characters}
    return {**plain, "tokens": tokenizer.tokens, "merges": tokenizer.merges}


def readable_tokens(tokenizer: Tokenizer) -> list[int]:
    """The ids of the tokens that are whole characters and can be seen, white space included."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    visible = [text.strip(" \n\t").isprintable() and REPLACEMENT not in text for text in texts]
    return [token for token, text in enumerate(texts) if text and visible[token] and token not in tokenizer.special_ids]


def principal_components(vectors: Tensor, count: int = 2) -> dict:
    """The vectors (N, C), N > 0, on the `count` axes along which they differ most: points (N, count), and the share of
    the variance along each axis."""
    centred = (vectors - vectors.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    points = F.pad(u * s, (0, count))[:, :count]  # a single vector has one axis
    shares = (s**2 / (s**2).sum().clamp(min=1e-30))[:count]
    return {"points": [[round(x, 5) for x in point] for point in points.tolist()], "shares": shares.tolist()}


def read_metrics(path: Path | None) -> list[dict]:
    """The evaluations in a metrics file, at most 1,000 of them; none if there is no such file.

    A damaged line is left out: the curves are a picture beside the model, which is whole without them.
    """
    if path is None or not path.is_file():
        return []
    points = []
    for line in path.read_text("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError, OverflowError):
            entry = parse_json(line)
            points.append({name: finite(entry[name]) for name in CURVE_FIELDS})
    return points[:: math.ceil(len(points) / 1000) or 1]


def fill_template(data: dict, weights: str) -> str:
    """The page's text: the template filled with style, scripts, their hashes and the data."""
    style = (PARTS / "page.css").read_text("utf-8")
    engine, interface = ([(PARTS / name).read_text("utf-8") for name in names] for names in (ENGINE, INTERFACE))
    # "<" would let a vocabulary end the block of data, or begin a comment.
    plain = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    scripts = " ".join(map(source_hash, (*engine, *interface)))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {source_hash(style)}; worker-src blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    contents = {
        "generator": GENERATOR,
        "policy": policy,
        "summary": html.escape(summary(data)),
        "style": f"<style>{style}</style>",
        "data": f'<script type="application/json" id="model">{plain}</script>',
        "weights": f'<script type="text/plain" id="weights">{weights}</script>',
        "engine": "\n".join(f'<script class="engine">{text}</script>' for text in engine),
        "interface": "\n".join(f"<script>{text}</script>" for text in interface),
    }
    template = (PARTS / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: contents[match[1]], template)


def summary(data: dict) -> str:
    """The model in one sentence, for the top of the page."""
    config, corpus = data["config"], data["origin"].get("corpus")
    shape = f"{data['parameters']:,} parameters in {config['num_layers']} layers of {config['num_heads']} heads"
    trained = f", trained on {corpus}" if corpus else ""
    return f"{shape}{trained}. It runs here, in your browser, on your machine."


def source_hash(text: str) -> str:
    """How a Content-Security-Policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
