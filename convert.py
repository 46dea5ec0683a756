"""Convert a model into another file.

examples:
  python convert.py checkpoints/tiny_decoder.pth merged.pth --lora checkpoints/my_lora.pth
  python convert.py old.pth new.pth                     # of format 1 into today's
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

from pathlib import Path

from formats.checkpoint import Checkpoint, load_model, save_model
from formats.format1 import is_format1, load_format1
from support.command import Parser, UserError, run
from training.lora import apply_adapter, merge_adapters


def load(source: Path, lora: Path | None) -> Checkpoint:
    """The model in a file, with an adapter merged into it if there is one."""
    loaded = load_format1(source) if is_format1(source) else load_model(source)
    if lora:
        loaded.origin = {**apply_adapter(loaded, lora), "merged_from": str(lora)}
        merge_adapters(loaded.model)
    return loaded


def main() -> None:
    """The command."""
    parser = Parser(__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a model: NAME.pth")
    parser.add_argument("target", type=Path, metavar="TARGET", help="the file to write: NAME.pth")
    parser.add_argument("--lora", type=Path, metavar="ADAPTER", help="an adapter to merge into it")
    paths = parser.parse_args()
    if paths.target.suffix != ".pth" or paths.target.exists():
        raise UserError(f"TARGET {paths.target} must be a new file that ends in .pth")
    loaded = load(paths.source, paths.lora)
    save_model(paths.target, loaded.model, loaded.tokenizer, loaded.origin)
    merged = f" with {paths.lora} merged into it" if paths.lora else ""
    print(f"{paths.target}: {paths.source}{merged}, {paths.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    run(main)
