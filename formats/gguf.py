"""A `.gguf` file, which llama.cpp, Ollama and LM Studio run, and beside it a `Modelfile` for Ollama.

llama.cpp knows the network as architecture "gpt2", with biases and the tanh GELU. Its tokenizer model "gpt2" writes
bytes as GPT-2's symbols. Characters become such tokens: a character of several bytes gets merges that join them.
"""

import dataclasses
from enum import IntEnum
from pathlib import Path

import torch
from torch import Tensor

from corpora.bpe import BYTE_OF, BPETokenizer
from formats.checkpoint import Checkpoint, Tokenizer, model_from_weights
from formats.huggingface import rename, weights_with_biases
from support.command import UserError, optional_package
from support.durable import check_overwrite, write_atomically
from tiny_decoder import TinyGPT
from tokenizer import BOS, UNK, CharTokenizer

# Parts of a tensor's name: ours, llama.cpp's.
GGUF_NAMES = (
    *(("token_embedding.", "token_embd."), ("position_embedding.", "position_embd."), ("blocks.", "blk.")),
    *(("final_norm.", "output_norm."), ("head.", "output."), ("attention_norm.", "attn_norm.")),
    *(("attention.in_proj_", "attn_qkv."), ("attention.out_proj.", "attn_output."), ("mlp_norm.", "ffn_norm.")),
    *(("mlp.up.", "ffn_up."), ("mlp.down.", "ffn_down.")),
)
SYMBOL_OF = {byte: symbol for symbol, byte in BYTE_OF.items()}
# How llama.cpp splits a text into words before it merges. It calls GPT-2's rule by many names; unlike "gpt-2", these
# two leave the spaces of the text that they make as they are.
PRE_TOKENIZERS = {"char": "smollm", "bpe": "trillion"}


def save_gguf(path: Path, loaded: Checkpoint, precision: str = "float32", force: bool = False) -> float:
    """Write the model, and the Modelfile beside it; returns how far llama.cpp's logarithms of probabilities may be off.

    precision: of the matrices, "float32" or "float16". Raises UserError if a file exists and not `force`, or if a
    number is too large for float16.
    """
    gguf = optional_package("gguf", "a GGUF file")
    modelfile = path.with_suffix(".Modelfile")
    for file in (path, modelfile):
        check_overwrite(file, force=force)
    model, config, half = loaded.model, loaded.model.config, precision == "float16"
    weights = {name: rounded(name, tensor, half) for name, tensor in weights_with_biases(model).items()}
    writer = gguf.GGUFWriter(None, "gpt2")
    kind = gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32
    # A field is named as the writer's method that adds it, without `add_`.
    fields = {"name": path.stem, "file_type": kind, "context_length": config.max_seq, "block_count": config.num_layers}
    fields |= {"embedding_length": config.embed_dim, "feed_forward_length": 4 * config.embed_dim}
    fields |= {"head_count": config.num_heads, "layer_norm_eps": 1e-5}
    for name, value in {**fields, **tokenizer_fields(loaded.tokenizer, gguf.TokenType)}.items():
        getattr(writer, f"add_{name}")(value)
    for name, tensor in weights.items():
        writer.add_tensor(rename(name, GGUF_NAMES), tensor.numpy())
    write_atomically(path, lambda file: write_sections(writer, Path(file.name)))
    write_atomically(modelfile, lambda file: file.write(modelfile_text(path, config.max_seq).encode()))
    return deviation(model, weights)


def rounded(name: str, tensor: Tensor, half: bool) -> Tensor:
    """The tensor as it is stored. llama.cpp wants norms, biases and positions in float32 always."""
    if not half or tensor.ndim < 2 or name.startswith("position_embedding."):
        return tensor
    if not torch.isfinite(tensor.half()).all():
        raise UserError(f"a number in {name} is too large for float16: leave --precision float16 out")
    return tensor.half()


def tokenizer_fields(tokenizer: Tokenizer, types: type[IntEnum]) -> dict[str, object]:
    """What says how text becomes ids. The special token ends a text: without one, llama.cpp takes id 11."""
    if isinstance(tokenizer, BPETokenizer):
        tokens, merges = tokenizer.tokens, [" ".join(merge) for merge in tokenizer.merges]
    else:
        tokens, merges = character_tokens(tokenizer)
    kinds = [types.CONTROL if i in tokenizer.special_ids else types.NORMAL for i in range(len(tokens))]
    # An empty list of merges would not be written, and there must be one: this merge has no token, and never fires.
    merges = merges or [f"{SYMBOL_OF[0]} {SYMBOL_OF[0]}"]
    words = {"token_list": tokens, "token_types": kinds, "token_merges": merges}
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.bos_id, "add_bos_token": False}
    return {"tokenizer_model": "gpt2", "tokenizer_pre": PRE_TOKENIZERS[tokenizer.kind], **words, **ids}


def character_tokens(tokenizer: CharTokenizer) -> tuple[list[str], list[str]]:
    """Tokens by id in byte symbols, and the merges that make a character of several bytes, from the left.

    Bytes of UTF-8 that begin a character cannot continue one, so no merge ever joins two characters.
    """
    tokens, merges = [UNK, BOS], {}
    for character in tokenizer.characters:
        symbols = "".join(SYMBOL_OF[byte] for byte in character.encode("utf-8"))
        tokens.append(symbols)
        for end in range(1, len(symbols)):
            merges[f"{symbols[:end]} {symbols[end]}"] = None
    return tokens, list(merges)


def write_sections(writer, path: Path) -> None:
    """Fill the file at `path`."""
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def modelfile_text(path: Path, window: int) -> str:
    """What `ollama create NAME -f FILE` needs: the prompt goes in as it is, and repetition is not punished."""
    lines = (f"FROM ./{path.name}", 'TEMPLATE """{{ .Prompt }}"""', f"PARAMETER num_ctx {window}")
    return "\n".join((*lines, "PARAMETER repeat_penalty 1\n"))


@torch.inference_mode()
def deviation(model: TinyGPT, weights: dict[str, Tensor]) -> float:
    """The largest difference in log-probability between the model and the same with these weights and the tanh GELU,
    over a few random tokens: what a file that cannot hold the model exactly costs."""
    if model.config.gelu == "tanh" and all(tensor.dtype == torch.float32 for tensor in weights.values()):
        return 0.0
    config = dataclasses.replace(model.config, gelu="tanh", bias=True)
    twin = model_from_weights(config, {name: tensor.float() for name, tensor in weights.items()}, large_window=True)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, min(model.config.max_seq, 64)), generator=generator)
    ours, theirs = (one.eval()(ids).log_softmax(-1) for one in (model, twin))
    return float((ours - theirs).abs().max())
