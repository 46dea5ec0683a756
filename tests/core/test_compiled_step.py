"""The compiled loops against the network, the filters and the loop that they write out."""

import copy
import random
import signal
import sys
from dataclasses import astuple

import pytest
import torch
from torch import nn

import sampler
from formats.checkpoint import save_model
from helpers import NETWORK_CHANGES, assert_one_error_line, shaken_model, written
from sampler import Sampling, SlidingWindow, filter_stages, row_generators
from sampling import engine
from support.command import UserError
from tiny_decoder import KVCache, TinyGPT
from tokenizer import CharTokenizer

pytest.importorskip("numba")

from sampling import kernels  # noqa: E402
from sampling.compiled_step import CompiledStep, generate  # noqa: E402

SHAPES = {
    "defaults": {},
    "GPT-2": {"gelu": "tanh", "tie_embeddings": True},
    "nanoGPT": {"bias": False, "tie_embeddings": True},
    "odd widths": {"embed_dim": 21, "num_heads": 3, "vocab_size": 13, "num_layers": 3},
    "wide heads": {"embed_dim": 70, "num_heads": 1, "max_seq": 33},
    "one token": {"vocab_size": 1, "max_seq": 1, "embed_dim": 1, "num_heads": 1},
    "many tokens": {"vocab_size": 50_257},
}


def fed(step, model: TinyGPT, batch: int) -> torch.Tensor:
    """The logits (max_seq, B, V) after every token of the same random texts."""
    cache, texts = KVCache(model, batch), torch.Generator().manual_seed(2)
    ids = torch.randint(model.config.vocab_size, (model.config.max_seq, batch, 1), generator=texts)
    with torch.inference_mode():
        return torch.stack([step(column, cache).view(batch, -1).clone() for column in ids])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_step_equals_the_model(shape, batch):
    model = shaken_model(**SHAPES[shape])
    torch.testing.assert_close(fed(CompiledStep(model), model, batch), fed(model, model, batch), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_rows_of_unequal_length_go_through_the_loops(model, weights):
    """Each row gives the logits that it gives alone. PyTorch computed them before, in float32 whatever the weights."""
    step, prompts = CompiledStep(model, weights), [[1, 2], [3, 4, 5, 6], [7, 8, 9]]
    batch, *alone = [SlidingWindow(model, rows, step=step) for rows in (prompts, *([prompt] for prompt in prompts))]
    for tokens in ([7, 8, 9], [1, 2, 3], [5, 5, 5]):
        expected = torch.cat([window.next_logits() for window in alone])
        torch.testing.assert_close(batch.next_logits(), expected, rtol=1e-5, atol=2e-5)
        for window, row in zip([batch, *alone], [tokens, *([token] for token in tokens)], strict=True):
            window.append(row)


@pytest.mark.parametrize("shape", ["defaults", "nanoGPT", "odd widths"])
def test_int8_is_the_model_with_rounded_matrices(shape):
    """Each row of a matrix is a whole number from -127 to 127 times its largest / 127."""
    model = shaken_model(**SHAPES[shape])
    step, rounded = CompiledStep(model, "int8"), copy.deepcopy(model)
    rounded.head.weight = nn.Parameter(rounded.head.weight.clone())  # it is rounded, a tied embedding is not
    for name, p in rounded.named_parameters():
        if p.ndim == 2 and "embedding" not in name:
            scale = p.data.abs().amax(1, keepdim=True) / 127
            p.data = (p.data / scale).round() * scale
    found = fed(step, model, 2)
    torch.testing.assert_close(found, fed(rounded, rounded, 2), rtol=1e-5, atol=2e-5)
    assert not torch.allclose(found, fed(model, model, 2), atol=1e-4)


@pytest.fixture
def model() -> TinyGPT:
    return shaken_model(num_layers=2)


def texts(loop, model, prompts, count, sampling, step=None, **options) -> list[list[int]]:
    window = SlidingWindow(model, prompts, step=step)
    return list(loop(window, count, row_generators(3, len(prompts)), sampling, **options))


@pytest.mark.parametrize("prompts", [[[1]], [[1, 2, 3, 4, 5, 6, 7, 8]], [[1], [2], [3]], [[1], [2, 3, 4]]])
@pytest.mark.parametrize("sampling", [Sampling(0.9), Sampling(1.2, 5, 0.9, 0.01, 1.3), Sampling(0)])
def test_loop_makes_the_tokens_of_the_textbooks(model, prompts, sampling):
    """Several windows long, so that the cache is filled anew on the way; ragged prompts too."""
    options = {"suppress_tokens": (0, 5)}
    expected = texts(sampler.generate, model, prompts, 40, sampling, **options)
    assert texts(generate, model, prompts, 40, sampling, CompiledStep(model), **options) == expected


def test_threads_change_nothing(model, monkeypatch):
    """Each has a part of the rows. A row that reaches a damaged token stops them all, where the plain loop stops."""

    def tokens_before_damage(loop, step) -> list[list[int]]:
        made, window = [], SlidingWindow(model, [[1], [2, 4], [3], [5], [6]], step=step)
        with pytest.raises(FloatingPointError, match="not finite"):
            for tokens in loop(window, 1000, row_generators(0, 5), Sampling(2.0)):
                made.append(tokens)
        return made

    model.token_embedding.weight.data[8] = torch.nan
    logits, expected = fed(CompiledStep(model), model, batch=5), tokens_before_damage(sampler.generate, None)
    assert 1 < len(expected) < 1000
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        step = CompiledStep(model)
        assert torch.equal(fed(step, model, batch=5).nan_to_num(), logits.nan_to_num())
        assert tokens_before_damage(generate, step) == expected


def assert_same_choices(logits: torch.Tensor, seen: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> None:
    expected = sampler.sample(filter_stages(logits, seen, sampling)[-1][1].double().softmax(-1), uniforms)
    filters = tuple(map(float, astuple(sampling)))
    rows = zip(logits.clone().numpy(), seen.numpy(), uniforms[:, 0].tolist(), strict=True)
    assert [kernels.choose(*row, *filters) for row in rows] == expected, (logits.shape, sampling)


@pytest.mark.parametrize("batches", [100, pytest.param(5_000, marks=pytest.mark.slow)])
def test_filters_choose_the_tokens_of_the_textbooks(batches):
    """Random logits, ties and impossible tokens among them, 200 rows at a time."""
    chance = random.Random(0)
    torch.manual_seed(0)
    for _ in range(batches):
        sampling = Sampling(
            temperature=chance.choice([0, 1e-6, 0.3, 0.8, 1, 1.3, 5]),
            top_k=chance.choice([0, 1, 3, 20, 400]),
            top_p=chance.choice([1, 0.99, 0.9, 0.5, 0.25, 0.1, 1e-9]),
            min_p=chance.choice([0, 1e-9, 0.02, 0.1, 0.5, 1]),
            repetition_penalty=chance.choice([1, 1.1, 2, 0.5, 1e6]),
        )
        size = chance.choice([1, 2, 5, 11, 67, 300])
        logits = torch.randn(200, size) * chance.choice([0.1, 1, 5, 30])
        if chance.random() < 0.3:
            logits = (logits * 4).round() / 4
        if chance.random() < 0.3 and size > 1:
            logits[:, 0] = -torch.inf
        seen, uniforms = torch.rand(200, size) < 0.3, torch.rand(200, 1, dtype=torch.float64)
        assert_same_choices(logits, seen, uniforms, sampling)


@pytest.mark.parametrize("offset", [-1e-9, 1e-9])
def test_probabilities_are_float64(offset):
    """The error of a float32 probability is some 1e-8: beside a boundary between two tokens it chose the other one."""
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0)).sort(descending=True).values
    seen = torch.zeros(1, 50, dtype=torch.bool)
    for boundary in logits.double().softmax(-1).cumsum(-1)[0, :-1].tolist():
        uniforms = torch.tensor([[boundary + offset], [1 - 1e-12]], dtype=torch.float64)
        assert_same_choices(logits, seen, uniforms[:1], Sampling())
        assert_same_choices(logits, seen, uniforms[1:], Sampling(top_p=boundary + offset))


# --- The choice of an engine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "weights", "tokens", "rows", "compiled"),
    [
        ("auto", "float32", 1_000, 1, True),
        ("auto", "float32", 500, 1, False),  # a short text does not wait
        ("auto", "float32", 10**6, 24_576 // 8, True),
        ("auto", "float32", 10**6, 24_576 // 8 + 1, False),  # so many texts PyTorch computes faster
        ("auto", "int8", 5, 8, True),
        ("compiled", "float32", 5, 1, True),
        ("torch", "float32", 10**6, 1, False),
    ],
)
def test_engine_is_the_one_that_pays(model, asked, weights, tokens, rows, compiled):
    step, loop = engine.pick_engine(asked, weights, model, tokens, rows)
    assert isinstance(step, CompiledStep) == (loop is generate) == compiled


def test_int8_is_for_few_texts(model):
    with pytest.raises(UserError, match="slower than float32 for more than 8 texts"):
        engine.pick_engine("auto", "int8", model, 10**6, 9)


@pytest.mark.parametrize("change", [None, *NETWORK_CHANGES])
def test_changed_network_is_noticed(monkeypatch, capsys, change):
    """The loops would go on computing the old one. The comparison leaves torch's random generator alone."""
    if change:
        monkeypatch.setattr(*NETWORK_CHANGES[change])
    model, state = shaken_model(max_seq=32, num_layers=2), torch.get_rng_state()
    step, _loop = engine.pick_engine("auto", "float32", model, 10**6, 1)
    errors = capsys.readouterr().err
    if change is None:
        assert isinstance(engine.pick_engine("auto", "int8", model, 5, 1)[0], CompiledStep)
        assert isinstance(step, CompiledStep) and not errors and torch.equal(torch.get_rng_state(), state)
        return
    assert step is None and errors.count("\n") == 1 and "PyTorch" in errors
    for flags in [("compiled", "float32"), ("auto", "int8")]:
        with pytest.raises(UserError, match="cannot be used: this network.*; leave .* out"):
            engine.pick_engine(*flags, model, 5, 1)


def test_a_ctrl_c_while_the_loops_compile_comes_afterwards(monkeypatch, model):
    """Raised within LLVM, it was lost, or a segmentation fault."""
    monkeypatch.setattr("sampling.compiled_step.CompiledStep", lambda *_: compiled.append(signal.raise_signal(2)))
    compiled = []
    with pytest.raises(KeyboardInterrupt):
        engine.pick_engine("compiled", "float32", model, 5, 1)
    assert compiled


def test_without_a_folder_for_compiled_code_pytorch_makes_the_text(monkeypatch, capsys, model):
    """numba raises RuntimeError when neither the source's folder nor a home can be written."""

    def no_folder(*_):
        raise RuntimeError("cannot cache function 'linear': no locator available")

    monkeypatch.setattr("sampling.compiled_step.CompiledStep", no_folder)
    assert engine.pick_engine("auto", "float32", model, 10**6, 1)[0] is None
    assert "no locator available; PyTorch makes the text" in capsys.readouterr().err
    with pytest.raises(UserError, match="no locator available; leave --engine compiled out"):
        engine.pick_engine("compiled", "float32", model, 5, 1)


@pytest.fixture
def checkpoint(tmp_path):
    tokenizer = CharTokenizer.from_text("abcdefg")
    save_model(tmp_path / "model.pth", shaken_model(vocab_size=tokenizer.vocab_size), tokenizer, {})
    return ("--checkpoint", tmp_path / "model.pth", "--seed", "1", "--max-new-tokens", "40", "--prompt", "ab")


def test_engines_write_the_same_text(output_of, checkpoint):
    by_torch, compiled = (output_of("generate.py", *checkpoint, "--engine", name) for name in ("torch", "compiled"))
    assert by_torch == compiled


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "compiled"], ["--engine compiled needs", "pip install numba"]),
        (["--weights", "int8"], ["--weights int8 needs", "pip install numba"]),
        (["--weights", "int8", "--engine", "torch"], ["--weights int8 needs --engine compiled"]),
    ],
)
def test_without_numba_the_package_is_named(monkeypatch, output_of, checkpoint, tmp_path, flags, words):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert_one_error_line(output_of("generate.py", *checkpoint, *flags, code=2), *words)
    output_of("generate.py", *checkpoint, "--max-new-tokens", 1_000)
    written(tmp_path / "numba.py", "raise ImportError('it wants an older NumPy')")  # nor does a broken one stop a text
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numba")
    output_of("generate.py", *checkpoint, "--max-new-tokens", 1_000)
