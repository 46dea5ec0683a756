"""The same weights in other libraries, to compare results and speed with: both read our Hugging Face folder.

Development only.
"""

import tempfile
from pathlib import Path

from formats.checkpoint import Checkpoint
from formats.huggingface import save_huggingface
from tiny_decoder import TinyGPT
from tokenizer import CharTokenizer

FIRST = 0x10000  # a code point with enough characters behind it for any vocabulary


def token_name(number: int) -> str:
    """What the token with this id, which is not a special one, is called in CTranslate2."""
    return chr(FIRST + number - len(CharTokenizer.special_ids))


def write_folder(model: TinyGPT, folder: Path) -> None:
    """The model with made-up characters as vocabulary."""
    characters = "".join(map(chr, range(FIRST, ord(token_name(model.config.vocab_size - 1)) + 1)))
    save_huggingface(folder, Checkpoint(model, CharTokenizer(characters, characters[0]), {}))


def gpt2_twin(model: TinyGPT):
    """transformers' GPT2LMHeadModel with these weights, for any config; biases that the model lacks are 0 there."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        write_folder(model, Path(folder) / "twin")
        twin = transformers.GPT2LMHeadModel.from_pretrained(Path(folder) / "twin").eval()
    twin.generation_config = transformers.GenerationConfig()  # no token is suppressed
    return twin


def save_for_ctranslate2(model: TinyGPT, folder: Path) -> None:
    """Write these weights as a CTranslate2 decoder, by its own converter."""
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as between:
        write_folder(model, Path(between) / "twin")
        TransformersConverter(str(Path(between) / "twin")).convert(str(folder), force=True)
