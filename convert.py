"""Convert a model into another file, or say what is in one.

examples:
  python convert.py checkpoints/tiny_decoder.pth                          # what is in it
  python convert.py checkpoints/tiny_decoder.pth my_model/                # a Hugging Face folder
  python convert.py checkpoints/tiny_decoder.pth my_model.html            # a page that runs the model
  python convert.py checkpoints/tiny_decoder.pth my_model.gguf            # for llama.cpp, Ollama, LM Studio
  python convert.py checkpoints/tiny_decoder.pth merged.pth --lora checkpoints/my_lora.pth
  python convert.py gpt2/ checkpoints/gpt2.pth                            # a Hugging Face folder of GPT-2's kind
  python convert.py out-shakespeare-char/ckpt.pt nano.pth --data input.txt      # nanoGPT's
"""

import support.start  # noqa: F401  first: it answers a Ctrl-C while the others are imported

import argparse
from pathlib import Path

from formats.adapter import apply_adapter
from formats.checkpoint import Checkpoint, load_model, save_model
from formats.describe import describe_file, describe_model
from formats.excerpt import excerpt_of_corpus, excerpt_of_file
from formats.gguf import save_gguf
from formats.huggingface import load_huggingface, save_huggingface
from formats.nanogpt import load_nanogpt
from formats.write_page import save_page
from lora import merge_adapters
from support.command import Parser, UserError, one_line, one_of, path_name, run
from support.durable import check_overwrite


def load(settings: argparse.Namespace) -> Checkpoint:
    """The source's model, with an adapter merged into it if there is one."""
    source, lora = settings.source, settings.lora
    if not source.exists() and source.suffix != ".pth":
        raise UserError(f"{source}: no such file or folder; docs/formats.md says where to get GPT-2")
    if source.suffix == ".pt":
        loaded = load_nanogpt(source, settings.data, settings.tokenizer)
    elif source.is_dir():
        loaded = load_huggingface(source)
    else:
        loaded = load_model(source)
    if lora:
        loaded.origin = {**apply_adapter(loaded, lora), "merged_from": lora.name}
        merge_adapters(loaded.model)
    return loaded


def write(target: Path, ending: str, loaded: Checkpoint, settings: argparse.Namespace) -> None:
    """Write the target, and say how far it is from the model if it differs. Raises what the writers raise."""
    if ending == ".pth":
        check_overwrite(target, force=settings.force)
        save_model(target, loaded.model, loaded.tokenizer, loaded.origin)
    elif ending == ".html":
        beside, precision = (settings.lora or settings.source).absolute(), settings.precision or "int8"
        excerpt = excerpt_of_file(settings.excerpt) if settings.excerpt else excerpt_of_corpus(loaded.origin)
        deviation = save_page(target, loaded, beside, precision, excerpt, settings.force)
        print_deviation(target, deviation, f"rounded to {precision}; --precision float32 is exact")
        text = f"{len(excerpt['text']):,} characters of {excerpt['source']}" if excerpt else "no text; see --excerpt"
        print(f"{target}: holds {text}")
    elif ending == ".gguf":
        deviation = save_gguf(target, loaded, settings.force)
        print_deviation(target, deviation, "an estimate: llama.cpp rounds to float16, and has only the tanh GELU")
    else:
        save_huggingface(target, loaded, settings.force)


def print_deviation(target: Path, deviation: float, reason: str) -> None:
    """Say how far the target is from the model, if it differs; a little too much, because digits are cut off."""
    if deviation:
        print(f"{target}: log-probabilities differ from the model's by up to {1.05 * deviation:.2g} ({reason})")


def file(value: str) -> Path:
    """A flag type: a file's or folder's path."""
    return Path(path_name(value))


def make_parser() -> Parser:
    """Every flag of convert.py, with its one default."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("source", type=file, metavar="SOURCE", help="NAME.pth, a Hugging Face folder, or nanoGPT's ckpt.pt")
    add("target", type=path_name, nargs="?", metavar="TARGET", help="NAME.pth, .html, .gguf or FOLDER/; none: show it")
    add("--data", type=file, metavar="TEXT", help="of nanoGPT's ckpt.pt: the text that its characters come from")
    add("--tokenizer", type=file, metavar="FILE", help="of nanoGPT's ckpt.pt: the tokenizer.json of a byte-level BPE")
    add("--lora", type=file, metavar="ADAPTER", help="an adapter to merge into it")
    precision_help = "of the weights in a page; if not given, int8; float32: seeds give the text of generate.py"
    add("--precision", type=one_of("int8", "float16", "float32"), help=precision_help)
    add("--excerpt", type=file, metavar="TEXT", help="a text whose beginning goes with a page, for everyone to read")
    add("--force", action="store_true", help="overwrite TARGET")
    return parser


def show(settings: argparse.Namespace) -> None:
    """Print what is in the source."""
    whole = settings.lora or settings.source.suffix != ".pth"
    facts = describe_model(load(settings)) if whole else describe_file(settings.source)
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {one_line(value)}")


def main() -> None:
    """The command."""
    settings = make_parser().parse_args()
    if (settings.data or settings.tokenizer) and settings.source.suffix != ".pt":
        raise UserError("--data and --tokenizer are for nanoGPT's ckpt.pt: other sources have their vocabulary")
    name = settings.target or ""
    target = Path(name)
    ending = "/" if name.endswith("/") or target.is_dir() else target.suffix
    if (settings.precision or settings.excerpt) and ending != ".html":
        raise UserError("--precision and --excerpt are for a page: all others hold float32, and no text")
    if settings.target is None:
        return show(settings)
    if ending not in (".pth", ".html", ".gguf", "/"):
        raise UserError(f"TARGET {target} must end in .pth, .html or .gguf, or in / for a Hugging Face folder")
    loaded = load(settings)
    write(target, ending, loaded, settings)
    files = target.iterdir() if target.is_dir() else [target]
    print(f"{target}: {settings.source}, {sum(file.stat().st_size for file in files):,} bytes")


if __name__ == "__main__":
    run(main)
