"""Convert a model into another file.

examples:
  python convert.py checkpoints/tiny_decoder.pth tiny_decoder.html      # a page that runs the model
  python convert.py checkpoints/tiny_decoder.pth merged.pth --lora checkpoints/my_lora.pth
  python convert.py old.pth new.pth                     # of format 1 into today's
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

import argparse
from pathlib import Path

from formats.checkpoint import Checkpoint, load_model, save_model
from formats.format1 import is_format1, load_format1
from formats.page import save_page
from support.command import Parser, UserError, run
from training.lora import apply_adapter, merge_adapters


def load(source: Path, lora: Path | None) -> Checkpoint:
    """The model in a file, with an adapter merged into it if there is one."""
    loaded = load_format1(source) if is_format1(source) else load_model(source)
    if lora:
        loaded.origin = {**apply_adapter(loaded, lora), "merged_from": str(lora)}
        merge_adapters(loaded.model)
    return loaded


def write_pth(settings: argparse.Namespace, loaded: Checkpoint) -> None:
    if settings.target.exists() and not settings.force:
        raise UserError(f"TARGET {settings.target} exists: give another name, or --force to overwrite it")
    save_model(settings.target, loaded.model, loaded.tokenizer, loaded.origin)


def write_html(settings: argparse.Namespace, loaded: Checkpoint) -> None:
    metrics = (settings.lora or settings.source).with_suffix(".metrics.jsonl")
    save_page(settings.target, loaded, metrics, settings.precision, settings.force)


WRITERS = {".pth": write_pth, ".html": write_html}  # by the ending of TARGET


def main() -> None:
    """The command."""
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a model: NAME.pth")
    parser.add_argument("target", type=Path, metavar="TARGET", help="the file to write: NAME.pth or NAME.html")
    parser.add_argument("--lora", type=Path, metavar="ADAPTER", help="an adapter to merge into it")
    precision = "of the weights in a page (default: %(default)s)"
    parser.add_argument("--precision", choices=("float16", "float32"), default="float16", help=precision)
    parser.add_argument("--force", action="store_true", help="overwrite TARGET; write a page of more than 50 MB")
    settings = parser.parse_args()
    if settings.target.suffix not in WRITERS:
        raise UserError(f"TARGET {settings.target} must end in one of {', '.join(WRITERS)}")
    loaded = load(settings.source, settings.lora)
    WRITERS[settings.target.suffix](settings, loaded)
    merged = f" with {settings.lora} merged into it" if settings.lora else ""
    print(f"{settings.target}: {settings.source}{merged}, {settings.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    run(main)
