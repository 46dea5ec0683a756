"""A `.gguf` file, which llama.cpp, Ollama and LM Studio run, and beside it a `Modelfile` for Ollama.

llama.cpp knows the network as architecture "gpt2", with biases and the tanh GELU. Its tokenizer model "gpt2" writes
bytes as GPT-2's symbols. Characters become such tokens: a character of several bytes gets merges that join them.
"""

from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from formats.checkpoint import Checkpoint
from formats.huggingface import rename, weights_with_biases
from formats.twin import check_twin, deviation, half_precision
from support.command import one_line, optional_package
from support.durable import check_overwrite, write_atomically
from tokenizer import BOS, SYMBOLS, UNK, BPETokenizer, CharTokenizer, Tokenizer

# Parts of a tensor's name: ours, llama.cpp's.
GGUF_NAMES = (
    *(("token_embedding.", "token_embd."), ("position_embedding.", "position_embd."), ("blocks.", "blk.")),
    *(("final_norm.", "output_norm."), ("head.", "output."), ("attention_norm.", "attn_norm.")),
    *(("attention.in_proj_", "attn_qkv."), ("attention.out_proj.", "attn_output."), ("mlp_norm.", "ffn_norm.")),
    *(("mlp.up.", "ffn_up."), ("mlp.down.", "ffn_down.")),
)
# How llama.cpp splits a text into words before it merges. It calls GPT-2's rule by many names; unlike "gpt-2", these
# two leave the spaces of the text that they make as they are.
PRE_TOKENIZERS = {"char": "smollm", "bpe": "trillion"}


def save_gguf(path: Path, loaded: Checkpoint, force: bool = False) -> float:
    """Write the model in float32, and the Modelfile beside it; returns how far llama.cpp's log-probabilities are off.

    That is an estimate. Measured is what float16 weights and llama.cpp's GELU change. What llama.cpp itself changes,
    with keys, values and sums of its attention in float16, grows with the window: on 54 models, it was 0.2 to 0.8
    times the measured change for 64 tokens, 1.0 to 3.1 times for 512, 5.8 times for 1,024. Hence the factor.

    Raises UserError if a file exists and not `force`, or if the network is not GPT-2's (`check_twin`).
    """
    gguf = optional_package("gguf", "a GGUF file")
    modelfile = path.with_suffix(".Modelfile")
    for file in (path, modelfile):
        check_overwrite(file, force=force)
    model, config = loaded.model, loaded.model.config
    weights = weights_with_biases(model)
    check_twin(loaded, weights, "llama.cpp")
    writer = gguf.GGUFWriter(None, "gpt2")
    # A field is named as the writer's method that adds it, without `add_`.
    fields = {"name": one_line(path.stem), "file_type": gguf.LlamaFileType.ALL_F32, "layer_norm_eps": 1e-5}
    fields |= {"context_length": config.max_seq, "block_count": config.num_layers, "head_count": config.num_heads}
    fields |= {"embedding_length": config.embed_dim, "feed_forward_length": 4 * config.embed_dim}
    for name, value in {**fields, **tokenizer_fields(loaded.tokenizer, gguf.TokenType)}.items():
        getattr(writer, f"add_{name}")(value)
    for name, tensor in weights.items():
        writer.add_tensor(rename(name, GGUF_NAMES), tensor.numpy().view(Written))
    write_atomically(path, lambda file: write_sections(writer, Path(file.name)))
    write_atomically(modelfile, lambda file: file.write(modelfile_bytes(path, config.max_seq)))
    return (1 + config.max_seq / 128) * deviation(model, half_precision(weights), llama_gelu)


class Written(np.ndarray):
    """An array that says if it cannot be written whole: where the disk is full, numpy's own `tofile` can lose that."""

    def tofile(self, file: BinaryIO) -> None:
        file.write(self.data)


def tokenizer_fields(tokenizer: Tokenizer, types: type[IntEnum]) -> dict[str, object]:
    """What says how text becomes ids. The special token ends a text: without one, llama.cpp takes id 11."""
    if isinstance(tokenizer, BPETokenizer):
        tokens, merges = tokenizer.tokens, [" ".join(merge) for merge in tokenizer.merges]
    else:
        tokens, merges = character_tokens(tokenizer)
    kinds = [types.CONTROL if i in tokenizer.special_ids else types.NORMAL for i in range(len(tokens))]
    # An empty list of merges would not be written, and there must be one: this merge has no token, and never fires.
    merges = merges or [f"{SYMBOLS[0]} {SYMBOLS[0]}"]
    words = {"token_list": tokens, "token_types": kinds, "token_merges": merges}
    ids = {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.bos_id, "add_bos_token": False}
    return {"tokenizer_model": "gpt2", "tokenizer_pre": PRE_TOKENIZERS[tokenizer.kind], **words, **ids}


def character_tokens(tokenizer: CharTokenizer) -> tuple[list[str], list[str]]:
    """Tokens by id in byte symbols, and the merges that make a character of several bytes, from the left.

    Bytes of UTF-8 that begin a character cannot continue one, so no merge ever joins two characters.
    """
    tokens, merges = [UNK, BOS], {}
    for character in tokenizer.characters:
        symbols = "".join(SYMBOLS[byte] for byte in character.encode("utf-8"))
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


def modelfile_bytes(path: Path, window: int) -> bytes:
    """What `ollama create NAME -f FILE` needs: the prompt goes in as it is, and repetition is not punished. A name that
    is no UTF-8 keeps its bytes."""
    lines = (f"FROM ./{path.name}", 'TEMPLATE """{{ .Prompt }}"""', f"PARAMETER num_ctx {window}")
    return "\n".join((*lines, "PARAMETER repeat_penalty 1\n")).encode("utf-8", "surrogateescape")


def llama_gelu(x: Tensor) -> Tensor:
    """llama.cpp's GELU on a CPU: the tanh one, from a table of float16 numbers."""
    return F.gelu(x.half().float(), approximate="tanh").half().float()
