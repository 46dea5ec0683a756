"""What the page replays of a training run: the frames of `NAME.story.jsonl` (see training/story.py), checked.

The file may come from a stranger. A frame in which a field is missing or odd is left out.
"""

import base64
import math
from pathlib import Path

from formats.embedding_map import MAX_TOKENS
from support.plain import check_fields, read_lines
from tiny_decoder import TinyGPTConfig

STORY_TOKENS = 48  # whose attention maps are kept
MAX_MAPS = 24  # in a frame: 38 kB
MAX_POSITIONS = 64  # points on the map of positions
MAX_SAMPLE = 600  # characters
MAX_SHOWN = 60  # frames in a page
# Of a frame, besides tokens and positions.
FIELDS = ("step", "train_loss", "val_loss", "ids", "surprise", "heads", "maps", "sample", "sample_surprise")


def read_story(path: Path | None, config: TinyGPTConfig) -> list[dict]:
    """The frames of a story that fit the model, thinned to MAX_SHOWN, the first and the last among them; none if there
    is no such file."""
    frames = read_lines(path, lambda frame: checked_frame(frame, config))
    count = min(len(frames), MAX_SHOWN)
    return [frames[round(i * (len(frames) - 1) / max(1, count - 1))] for i in range(count)]


def checked_frame(frame: object, config: TinyGPTConfig) -> dict:
    """The fields of a frame that the page reads. Raises ValueError, TypeError, KeyError or OverflowError if one is not
    what training/story.py writes."""
    check_fields(frame, {"step": int, "ids": list, "heads": list, "maps": str, "sample": str, "tokens": dict})
    ids, heads = frame["ids"], frame["heads"]
    length, maps = len(ids), base64.b64decode(frame["maps"], validate=True)
    require(0 <= frame["step"] <= 10**9 and 1 <= length <= min(STORY_TOKENS, config.max_seq))
    require(all(is_index(id, config.vocab_size) for id in ids) and len(heads) <= MAX_MAPS)
    require(all(is_index(layer, config.num_layers) and is_index(head, config.num_heads) for layer, head in heads))
    require(len(maps) == len(heads) * length * (length + 1) // 2 and len(frame["sample"]) <= MAX_SAMPLE)
    frame["sample"].encode()  # ValueError if it is half a surrogate pair
    numbers([0 if frame[name] is None else frame[name] for name in ("train_loss", "val_loss")], 2)
    numbers(frame["surprise"], length - 1)
    numbers(frame["sample_surprise"], len(frame["sample_surprise"]))
    tokens, positions = checked_plane(frame["tokens"], MAX_TOKENS), checked_plane(frame["positions"], MAX_POSITIONS)
    labels = frame["tokens"]["ids"]
    require(len(labels) == len(tokens["points"]) and all(is_index(id, config.vocab_size) for id in labels))
    return {name: frame[name] for name in FIELDS} | {"tokens": {"ids": labels, **tokens}, "positions": positions}


def require(condition: bool) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError("a frame does not fit the model")


def is_index(value: object, stop: int) -> bool:
    """Whether it is a whole number from 0 to stop - 1."""
    return type(value) is int and 0 <= value < stop


def numbers(values: object, count: int) -> list[float]:
    """So many finite numbers of sensible size."""
    require(type(values) is list and len(values) == count <= MAX_SAMPLE * 4)
    require(all(type(value) in (int, float) and math.fabs(value) < 1e6 for value in values))
    return values


def checked_plane(plane: object, most: int) -> dict:
    """Points and shares of an embedding map."""
    require(1 <= len(plane["points"]) <= most)
    return {"points": [numbers(point, 2) for point in plane["points"]], "shares": numbers(plane["shares"], 2)}
