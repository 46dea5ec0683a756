"""GGUF files, run by llama.cpp itself (package xllamacpp): the same ids, greedy text and probabilities."""

import json
import re
import urllib.request

import numpy as np
import pytest
import torch

from formats.checkpoint import Checkpoint, save_model
from formats.gguf import save_gguf
from helpers import sampled_ids, shaken
from support.command import UserError
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import BPETokenizer, CharTokenizer

gguf = pytest.importorskip("gguf")

TEXT = "Hello wörld,  €5 and 12 345 !\n\n  don't  n't , . \U0001d11e\t\u00a0日本\x00語 <bos> of it's\n" * 2


def a_model(kind="char", tied=False, bias=True, gelu="tanh", window=64) -> Checkpoint:
    characters = "".join(sorted(set(TEXT), reverse=True))  # not in order, as after fine-tuning
    tokenizer = CharTokenizer(characters, "\n") if kind == "char" else BPETokenizer.train([TEXT], 330)
    torch.manual_seed(0)
    config = TinyGPTConfig(tokenizer.vocab_size, window, 24, 3, 2, bias=bias, gelu=gelu, tie_embeddings=tied)
    model = shaken(TinyGPT(config), 0.2).eval()
    model.position_embedding.weight.data *= 5  # or a tied model repeats the last token for ever
    return Checkpoint(model, tokenizer, {})


class LlamaServer:
    """llama.cpp on a free port of this machine."""

    def __init__(self, path, window=64):
        xllamacpp = pytest.importorskip("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.n_parallel, params.verbosity = str(path), window, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self.server = xllamacpp.Server(params)

    def __call__(self, command: str, **body) -> dict:
        address = f"{self.server.listening_address}/{command}"
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


SHAPES = [("char", False, True, "exact", 64), ("char", True, True, "tanh", 512), ("bpe", True, False, "exact", 64)]


@pytest.mark.slow
@pytest.mark.parametrize("kind, tied, bias, gelu, window", SHAPES)
def test_llama_cpp_has_the_same_ids_text_and_probabilities(tmp_path, kind, tied, bias, gelu, window):
    """The probabilities of a text that fills its window differ by no more than `save_gguf` says."""
    loaded = a_model(kind, tied, bias, gelu, window)
    model, tokenizer = loaded.model, loaded.tokenizer
    deviation = save_gguf(tmp_path / "model.gguf", loaded)
    llama = LlamaServer(tmp_path / "model.gguf", window)
    ids = tokenizer.encode(TEXT)
    assert llama("tokenize", content=TEXT, add_special=False, parse_special=False)["tokens"] == ids
    assert llama("detokenize", tokens=ids)["content"] == TEXT
    # Its answer leaves out the tokens that end within a character: they are not sampled here.
    cut = [token for token in range(tokenizer.vocab_size) if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([token])]
    suppressed = tuple({*cut, *tokenizer.special_ids})
    start = tokenizer.encode("Hello w")
    length = window - len(start) - 1
    options = {"n_predict": length, "temperature": 0, "n_probs": 5, "return_tokens": True}
    biases = [[token, False] for token in suppressed]
    answer = llama("completion", prompt="Hello w", logit_bias=biases, **options)
    made, steps = answer["tokens"], answer["completion_probabilities"]
    assert made[:30] == sampled_ids(model, list(start), 30, suppressed=suppressed) and len(set(made)) > 2
    assert answer["content"] == tokenizer.decode(made) and len(made) == len(steps) == length
    logs = model(torch.tensor([start + made])).detach().log_softmax(-1)[0, len(start) - 1 :]
    assert deviation < 0.1
    for t, step in enumerate(steps):
        for candidate in step["top_logprobs"]:
            if candidate["logprob"] > -30:  # not one that is suppressed
                assert candidate["logprob"] == pytest.approx(float(logs[t, candidate["id"]]), abs=deviation)


def test_the_special_token_ends_a_text_and_no_character_does(tmp_path):
    """Without an end token of its own, llama.cpp would end the text at id 11: a character."""
    loaded = a_model()
    tokenizer = loaded.tokenizer
    with torch.no_grad():
        loaded.model.final_norm.weight.zero_()
        loaded.model.final_norm.bias.copy_(9 * loaded.model.head.weight[11])
    save_gguf(tmp_path / "model.gguf", loaded)
    answer = LlamaServer(tmp_path / "model.gguf")("completion", prompt="H", n_predict=9, temperature=0)
    assert answer["content"] == tokenizer.decode([11] * 9)
    with torch.no_grad():
        loaded.model.final_norm.bias.copy_(9 * loaded.model.head.weight[tokenizer.bos_id])
    save_gguf(tmp_path / "ends.gguf", loaded)
    answer = LlamaServer(tmp_path / "ends.gguf")("completion", prompt="H", n_predict=9, temperature=0)
    assert answer["content"] == ""


def test_the_weights_are_exact(tmp_path):
    loaded = a_model(bias=False)
    save_gguf(tmp_path / "model.gguf", loaded)
    tensors = {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    np.testing.assert_array_equal(tensors["output.weight"], loaded.model.head.weight.detach())
    np.testing.assert_array_equal(tensors["blk.1.attn_qkv.bias"], np.zeros(72, np.float32))


def test_the_deviation_is_printed_and_never_rounded_down(tmp_path, output_of):
    loaded = a_model(gelu="exact")
    deviation = save_gguf(tmp_path / "a.gguf", loaded)
    assert 1e-4 < deviation < 0.1
    save_model(tmp_path / "a.pth", loaded.model, loaded.tokenizer, {})
    printed = float(re.search(r"up to (\S+)", output_of("convert.py", "a.pth", "b.gguf"))[1])
    assert deviation <= printed < 2 * deviation


def test_the_modelfile_for_ollama_and_neither_file_is_overwritten(tmp_path):
    loaded = a_model()
    for name in ("model.gguf", "model.Modelfile"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match="--force"):
            save_gguf(tmp_path / "model.gguf", loaded)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        save_gguf(tmp_path / "model.gguf", loaded, force=True)
        lines = (tmp_path / "model.Modelfile").read_text().splitlines()
        assert lines[:3] == ["FROM ./model.gguf", 'TEMPLATE """{{ .Prompt }}"""', "PARAMETER num_ctx 64"]
        for path in tmp_path.iterdir():
            path.unlink()
