"""A model as one HTML file that runs it: no network, no server, nothing to install.

The file holds page/page.html with the style sheet, the scripts and the data in it. The scripts of ENGINE run in the
page and make up its worker; those of INTERFACE only run in the page. The data are a block of JSON and the weights in
base64. Only these scripts may run: a Content-Security-Policy names their hashes and forbids every connection. The page
holds some logits, and shows nothing of the model unless it computes the same ones.
"""

import base64
import dataclasses
import hashlib
import html
import json
import math
import re
from pathlib import Path

import numpy as np
from torch import Tensor

from formats.checkpoint import Checkpoint, model_weights
from formats.embedding_map import embedding_maps
from formats.story import read_story
from formats.twin import check_twin, deviation, half_precision, self_check
from support.command import UserError
from support.durable import check_overwrite, write_atomically
from support.plain import finite, is_plain, read_lines

PARTS = Path(__file__).with_name("page")
ENGINE = ("layers.js", "model.js", "inspect.js", "sampler.js", "tokenizer.js", "train.js", "train_run.js", "worker.js")
CHAPTERS = ("guess", "write", "follow", "heads", "break", "learned", "train_page", "numbers")
INTERFACE = ("draw.js", "plots.js", "api.js", "book.js", *(f"{name}.js" for name in CHAPTERS), "main.js")
STRICT = '"use strict";\n'  # at the head of every script
GENERATOR = '<meta name="generator" content="TinyGPT">'
MAX_POSITIONS = 512  # points on the map of positions
# What the page shows of a checkpoint's origin.
ORIGIN_FIELDS = ("corpus", "preset", "step", "val_loss", "train_seconds", "seed", "bigram_entropy", "floor", "recipe")
CURVE_FIELDS = ("step", "train_seconds", "train_loss", "val_loss")  # what it shows of an evaluation


def save_page(
    path: Path, loaded: Checkpoint, beside: Path | None, precision: str, excerpt: dict | None, force: bool = False
) -> float:
    """Write a page that runs the model; returns how far it is from the model, because its weights are rounded: the
    largest difference of a log-probability, of random tokens.

    beside: the checkpoint beside which metrics and story lie, if there is one. precision: of the weights, "int8",
    "float16" or "float32". excerpt: text that goes with the page (formats/excerpt.py). Raises UserError if `path` is
    another file and not `force`, if a weight does not fit into the precision, or if the network is not GPT-2's
    (`check_twin`).
    """
    check_overwrite(path, is_page, force)
    weights = model_weights(loaded.model)
    check_twin(loaded, weights, "a page")
    encoded, layout, read = encode(weights, precision)
    data = page_data(loaded, read) | {"precision": precision, "layout": layout}
    data["curves"] = read_metrics(beside and beside.with_suffix(".metrics.jsonl"))
    data["story"] = read_story(beside and beside.with_suffix(".story.jsonl"), loaded.model.config)
    data["excerpt"] = excerpt
    text = fill_template(data, encoded)
    write_atomically(path, lambda file: file.write(text.encode()))
    return 0.0 if precision == "float32" else deviation(loaded.model, read)


def is_page(path: Path) -> bool:
    """Whether a file was written by `save_page`."""
    with open(path, "rb") as file:
        return GENERATOR.encode() in file.read(2000)


def encode(weights: dict[str, Tensor], precision: str) -> tuple[str, list, dict[str, Tensor]]:
    """All weights in base64, where each lies in it, and the weights as the page will read them.

    Numbers lie one after the other, little-endian. In int8 a matrix (rows, columns) has a float32 scale for each row
    and -127 to 127 for each weight; all float32 numbers, vectors and scales, come before all int8 ones. The layout says
    for each weight: name, how many numbers, and how many rows with a scale (0: it has none). Raises UserError if a
    weight is too large for the precision.
    """
    kind = "<f2" if precision == "float16" else "<f4"
    numbers, integers, layout, read = [], [], [], {}
    for name, weight in (half_precision(weights) if precision == "float16" else weights).items():
        rows = len(weight) if precision == "int8" and weight.dim() == 2 else 0
        layout.append([name, weight.numel(), rows])
        read[name] = weight
        if rows:
            scales = weight.abs().amax(1, keepdim=True) / 127
            levels = (weight / scales.where(scales > 0, 1.0)).round().clamp(-127, 127)
            read[name] = levels * scales
            integers.append(levels.flatten().numpy().astype(np.int8))
        numbers.append((scales if rows else weight).flatten().numpy().astype(kind))
    if not all(np.isfinite(part).all() for part in numbers):
        raise UserError(f"a weight is too large for {precision}: add --precision float32")
    return base64.b64encode(b"".join(part.tobytes() for part in numbers + integers)).decode(), layout, read


def page_data(loaded: Checkpoint, weights: dict[str, Tensor]) -> dict:
    """What the page tells of the model, as plain data; weights: as the page will compute with them."""
    origin = {name: value for name, value in loaded.origin.items() if name in ORIGIN_FIELDS and is_plain(value)}
    if "corpus" in origin:
        origin["corpus"] = Path(str(origin["corpus"])).name  # the folder is private
    tokenizer = loaded.tokenizer
    ids = {"startId": tokenizer.start_id, "endId": tokenizer.eos_id, "specialIds": list(tokenizer.special_ids)}
    return {
        "config": dataclasses.asdict(loaded.model.config),
        "tokenizer": tokenizer.to_plain() | ids,  # what page/tokenizer.js makes one from
        "origin": origin,
        "prompt": "ROMEO:" if origin.get("corpus") == "tinyshakespeare" else "",
        "parameters": loaded.model.num_parameters(),
        "check": self_check(loaded.model.config, weights),
        "maps": embedding_maps(loaded.model, tokenizer, MAX_POSITIONS),
    }


def read_metrics(path: Path | None) -> list[dict]:
    """The evaluations in a metrics file, at most 1,000 of them; none if there is no such file.

    A damaged line is left out: the curves are a picture beside the model, which is whole without them.
    """
    points = read_lines(path, lambda entry: {name: finite(entry[name]) for name in CURVE_FIELDS})
    return points[:: math.ceil(len(points) / 1000) or 1]


def fill_template(data: dict, weights: str) -> str:
    """The page's text: the template filled with style, scripts, their hashes and the data."""
    style = (PARTS / "page.css").read_text("utf-8")
    engine = [STRICT + (PARTS / file).read_text("utf-8") for file in ENGINE]
    interface = [STRICT + (PARTS / file).read_text("utf-8") for file in INTERFACE]
    # "<" would let a vocabulary end the block of data, or begin a comment.
    plain = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    scripts = " ".join(map(source_hash, (*engine, *interface)))
    policy = f"default-src 'none'; script-src {scripts}; style-src {source_hash(style)}; worker-src blob:; "
    policy += "base-uri 'none'; form-action 'none'"
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
