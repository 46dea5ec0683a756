"""A folder as Hugging Face's `transformers` keeps a model of GPT-2's architecture: out and in.

Written are `config.json`, `generation_config.json`, `model.safetensors`, `tokenizer.json` and `tokenizer_config.json`.
A model without biases gets zeros there, and comes back with them: it computes the same.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from corpora.tokenizer_files import bpe_from_json, bpe_to_json, checked_characters
from formats.checkpoint import Checkpoint, model_from_weights, model_weights
from formats.twin import check_twin
from support.command import UserError, optional_package, user_errors
from support.durable import leftovers, write_folder_atomically
from support.plain import MAX_JSON, check_fields, parse_json
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import BOS, SYMBOLS, UNK, BPETokenizer, CharTokenizer, Tokenizer

PURPOSE = "a Hugging Face folder"
WEIGHTS = "model.safetensors"
PICKLED = "; pytorch_model.bin may hold any program: save it as safetensors, with save_pretrained of transformers"
SIZES = {"max_seq": "n_positions", "embed_dim": "n_embd", "num_heads": "n_head", "num_layers": "n_layer"}
NO_TEXT = SYMBOLS[0xFF]  # the token of a byte that no UTF-8 text holds serves as padding
# Parts of a tensor's name: ours, GPT-2's.
GPT2_NAMES = (
    *(("token_embedding.", "wte."), ("position_embedding.", "wpe."), ("final_norm.", "ln_f."), ("head.", "lm_head.")),
    *(("blocks.", "h."), ("attention_norm.", "ln_1."), ("mlp_norm.", "ln_2.")),
    *(("attention.in_proj_", "attn.c_attn."), ("attention.out_proj.", "attn.c_proj.")),
    *(("mlp.up.", "mlp.c_fc."), ("mlp.down.", "mlp.c_proj.")),
)
# What the network cannot express otherwise: fields of config.json, and what they may be; the first is their default.
FIXED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
}

# --- Out ---------------------------------------------------------------------------------------------------------


def save_huggingface(folder: Path, loaded: Checkpoint, force: bool = False) -> None:
    """Write the folder, whole or not at all; killed while it replaces an earlier one, files are missing, none is mixed.

    force: replace an earlier folder. Raises UserError if there is one otherwise, if it holds other files, or if the
    network is not GPT-2's (`check_twin`).
    """
    save = optional_package("safetensors.torch", PURPOSE).save
    model, tokenizer = loaded.model, loaded.tokenizer
    contents = {
        "config.json": config_json(model.config, tokenizer),
        "generation_config.json": generation_json(tokenizer),
        "tokenizer.json": tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_config_json(model.config, tokenizer),
    }
    check_target(folder, {*contents, WEIGHTS}, force)
    weights = weights_with_biases(model)
    check_twin(loaded, weights, "transformers")
    files = {name: json.dumps(text, indent=2, ensure_ascii=False).encode() + b"\n" for name, text in contents.items()}
    write_folder_atomically(folder, files | {WEIGHTS: save(gpt2_weights(weights), {"format": "pt"})})


def check_target(folder: Path, names: set[str], force: bool) -> None:
    """Raise UserError unless the folder is new, or empty, or may be replaced: it holds only files of these names."""
    files = {path.name for path in folder.glob("*")} - {path.name for path in leftovers(folder / "new")}
    if files and not force:
        raise UserError(f"{folder} exists: give another name, or --force to overwrite it")
    if other := sorted(files - names):
        raise UserError(f"{folder} holds {other[0]!r}, which is not from this command: give another name")


def rename(name: str, pairs: tuple[tuple[str, str], ...], back: bool = False) -> str:
    """A tensor's name in another program's words, or back."""
    for ours, theirs in pairs:
        name = name.replace(theirs, ours) if back else name.replace(ours, theirs)
    return name


def weights_with_biases(model: TinyGPT) -> dict[str, Tensor]:
    """`model_weights`, and zeros where other programs have a bias and the model has none."""
    weights = model_weights(model)
    for name, tensor in list(weights.items()):
        if name.endswith("weight") and name.startswith(("blocks.", "final_norm.")):
            weights.setdefault(name.removesuffix("weight") + "bias", torch.zeros(len(tensor)))
    return weights


def gpt2_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under transformers' names; its matrices in the blocks are (in, out), ours (out, in)."""
    renamed = {}
    for name, tensor in weights.items():
        name = rename(name, GPT2_NAMES)
        tensor = tensor.T.contiguous() if ".c_" in name and tensor.ndim == 2 else tensor
        renamed[name if name.startswith("lm_head.") else f"transformer.{name}"] = tensor
    return renamed


def config_json(config: TinyGPTConfig, tokenizer: Tokenizer) -> dict:
    """The content of config.json; texts without a prompt begin after bos_token_id."""
    kind = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "torch_dtype": "float32"}
    sizes = {"vocab_size": config.vocab_size, **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()}}
    gelu = "gelu" if config.gelu == "exact" else "gelu_new"
    network = {"activation_function": gelu, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": config.tie_embeddings}
    noise = {"embd_pdrop": config.dropout, "resid_pdrop": config.dropout, "attn_pdrop": config.attention_dropout}
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.eos_id}
    return {**kind, **sizes, **network, **noise, **ids}


def generation_json(tokenizer: Tokenizer) -> dict:
    """The content of generation_config.json: special tokens are not sampled, as generate.py does not.

    Without a mask, transformers ignores every token of the prompt that is pad_token_id: it must not be the start token.
    """
    padding = tokenizer.tokens.index(NO_TEXT) if isinstance(tokenizer, BPETokenizer) else tokenizer.unk_id
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": padding}
    suppressed = [token for token in tokenizer.special_ids if token != tokenizer.eos_id]
    return {**ids, "suppress_tokens": suppressed or None}


def tokenizer_json(tokenizer: Tokenizer) -> dict:
    """The content of tokenizer.json. Characters are a BPE whose tokens are never merged."""
    if isinstance(tokenizer, BPETokenizer):
        content, special = json.loads(bpe_to_json(tokenizer)), (tokenizer.bos,)
    else:
        vocabulary = {token: number for number, token in enumerate((UNK, BOS, *tokenizer.characters))}
        model = {"type": "BPE", "unk_token": UNK, "fuse_unk": False, "vocab": vocabulary, "merges": []}
        empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))
        content, special = {"version": "1.0", **empty, "decoder": {"type": "Fuse"}, "model": model}, (UNK, BOS)
    options = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), "special": True}
    added = [{"id": content["model"]["vocab"][token], "content": token, **options} for token in special]
    return {**content, "added_tokens": added}


def tokenizer_config_json(config: TinyGPTConfig, tokenizer: Tokenizer) -> dict:
    """The content of tokenizer_config.json, for versions 4 and 5 and other readers.

    A text that spells a special token, "<bos>", is read as characters.
    """
    unknown, padding = (tokenizer.bos, NO_TEXT) if isinstance(tokenizer, BPETokenizer) else (UNK, UNK)
    tokens = {"bos_token": tokenizer.bos, "eos_token": tokenizer.bos, "unk_token": unknown, "pad_token": padding}
    # What is written goes on from the right end. Version 4 would add token types, and their embeddings, if not told.
    options = {"padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
    options |= {"model_max_length": config.max_seq, "clean_up_tokenization_spaces": False, "split_special_tokens": True}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **options}


# --- In ----------------------------------------------------------------------------------------------------------


def load_huggingface(folder: Path) -> Checkpoint:
    """The model in a folder of GPT-2's architecture, with float16 and bfloat16 widened to float32.

    Raises UserError if a file is missing or damaged, or the network cannot express the model; OSError if a file cannot
    be read. Warns if the model has more tokens than its tokenizer: these are left out.
    """
    with user_errors(f"{folder} cannot be used: "):
        settings = read_json(folder / "config.json")
        check_expressible(settings)
        tokenizer = read_tokenizer(folder, settings.get("bos_token_id"))
        config = config_from(settings, tokenizer.vocab_size)
        weights = read_weights(folder, config, settings["vocab_size"])
        origin = {"converted_from": folder.absolute().name}
        return Checkpoint(model_from_weights(config, weights), tokenizer, origin)


def read_json(path: Path) -> dict:
    """The dictionary in a JSON file. Raises UserError if there is none, or too much of it."""
    if not path.is_file():
        raise UserError(f"{path.parent} is not a Hugging Face folder: it has no {path.name}")
    with user_errors(f"{path}: "), open(path, encoding="utf-8") as file:
        content = parse_json(file.read(MAX_JSON + 1))
        check_fields(content, {})
    return content


def check_expressible(settings: dict) -> None:
    """Raise ValueError that names a field of config.json that asks for what the network cannot do."""
    check_fields(settings, dict.fromkeys(("vocab_size", *SIZES.values()), int))
    for name, allowed in {**FIXED, "n_inner": (None, 4 * settings["n_embd"])}.items():
        value = settings.get(name, allowed[0])
        if value not in allowed:
            raise ValueError(f"its {name} is {str(value)[:60]!r}, and this network has only {allowed[0]!r}")


def config_from(settings: dict, vocab_size: int) -> TinyGPTConfig:
    """The config that a checked config.json describes. Raises ValueError if a value is out of range."""
    sizes = {ours: settings[theirs] for ours, theirs in SIZES.items()}
    noise = {"dropout": settings.get("resid_pdrop", 0.1), "attention_dropout": settings.get("attn_pdrop", 0.1)}
    gelu = "exact" if settings.get("activation_function") == "gelu" else "tanh"
    tied = settings.get("tie_word_embeddings", True)
    return TinyGPTConfig(vocab_size, **sizes, **noise, gelu=gelu, tie_embeddings=tied)


def read_tokenizer(folder: Path, start_id: object) -> Tokenizer:
    """The tokenizer of a folder; start_id: what texts without a prompt begin after, if it is a newline or, among
    characters, any. Raises ValueError if it is no byte-level BPE and no character vocabulary of ours."""
    content = read_json(folder / "tokenizer.json")
    check_fields(content, {"model": dict, "decoder": dict})
    model, kind = content["model"], content["decoder"].get("type")
    check_fields(model, {"vocab": dict, "merges": list})
    if content.get("normalizer"):
        raise ValueError("its tokenizer changes the text before it reads it (normalizer)")
    if kind == "Fuse" and not model["merges"]:
        return characters_from(model["vocab"], start_id)
    words = json.dumps(content.get("pre_tokenizer"))
    if kind != "ByteLevel" or '"add_prefix_space": true' in words or '"use_regex": false' in words:
        raise ValueError("its tokenizer is neither GPT-2's byte-level BPE nor a character vocabulary")
    newline = model["vocab"].get(SYMBOLS[ord("\n")])
    return bpe_from_json(json.dumps({"model": model}), "\n" if start_id == newline else BOS)


def characters_from(vocabulary: dict, start_id: object) -> CharTokenizer:
    """The character tokenizer with this vocabulary. Raises ValueError if it is not one of ours."""
    token_of = {number: token for token, number in vocabulary.items() if type(number) is int}
    unk, bos, *characters = (token_of.get(number, "") for number in range(max(2, len(vocabulary))))
    if (unk, bos) != (UNK, BOS) or any(len(character) != 1 for character in characters):
        raise ValueError("its vocabulary is not <unk>, <bos> and single characters")
    known = type(start_id) is int and 2 <= start_id < len(vocabulary)
    return checked_characters("".join(characters), characters[start_id - 2] if known else BOS)


def read_weights(folder: Path, config: TinyGPTConfig, rows: int) -> dict[str, Tensor]:
    """The weights under our names in float32. rows: how many tokens the embedding has there."""
    if rows < config.vocab_size:
        raise ValueError(f"its tokenizer has {config.vocab_size} tokens, the model {rows}")
    weights = {}
    for name, tensor in stored_tensors(folder):
        name = name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")) or (name == "lm_head.weight" and config.tie_embeddings):
            continue  # a mask, or the embedding once more
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"tensor {name[:60]!r} is {tensor.dtype}; float32, float16 and bfloat16 are read")
        if ".c_" in name and tensor.ndim == 2:
            tensor = tensor.T
        if name in ("wte.weight", "lm_head.weight"):
            if tensor.shape[:1] != (rows,):
                raise ValueError(f"tensor {name!r} has not the {rows} rows that config.json promises (vocab_size)")
            tensor = tensor[: config.vocab_size]
        weights[rename(name, GPT2_NAMES, back=True)] = torch.empty(tensor.shape).copy_(tensor)
    if rows > config.vocab_size:
        message = f"{folder}: {rows - config.vocab_size} tokens of the model that its tokenizer lacks are left out"
        warnings.warn(message, stacklevel=2)
    return weights


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in a folder's safetensors file, one after the other."""
    safetensors = optional_package("safetensors", PURPOSE)
    file = folder / WEIGHTS
    if not file.is_file():
        raise ValueError(f"it has no {WEIGHTS}{PICKLED if (folder / 'pytorch_model.bin').exists() else ''}")
    with open(file, "rb") as content:  # before the library reads a header of any size
        header_size = int.from_bytes(content.read(8), "little")
    if header_size > MAX_JSON:
        raise ValueError(f"{WEIGHTS} is damaged: its header claims {header_size:,} bytes")
    try:
        with safetensors.safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  it is not a dictionary
                yield name, stored.get_tensor(name)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{WEIGHTS} is damaged ({error})") from None
