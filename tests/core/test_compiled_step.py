"""The compiled loops against the network, the filters and the loop that they write out."""

import importlib.util
import random

import pytest
import torch

import sampler
from formats.checkpoint import save_model
from helpers import tiny_config
from sampler import Sampling, SlidingWindow, filter_stages, row_generators
from sampling import engine
from tiny_decoder import KVCache, TinyGPT, TinyGPTConfig
from tokenizer import CharTokenizer

pytest.importorskip("numba")

from sampling import kernels  # noqa: E402
from sampling.compiled_step import CompiledStep, filter_numbers, generate  # noqa: E402

SHAPES = {
    "defaults": {},
    "GPT-2": {"gelu": "tanh", "tie_embeddings": True},
    "nanoGPT": {"bias": False, "tie_embeddings": True},
    "odd widths": {"embed_dim": 21, "num_heads": 3, "vocab_size": 13, "num_layers": 3},
    "wide heads": {"embed_dim": 70, "num_heads": 1, "max_seq": 33},
    "one token": {"vocab_size": 1, "max_seq": 1, "embed_dim": 1, "num_heads": 1},
    "many tokens": {"vocab_size": 50_257},
}


def lively(model: TinyGPT, factor: float = 4.0) -> TinyGPT:
    """Weights far from zero, norms and biases included, so that every term counts."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * (factor / p.size(-1) ** 0.5 if p.ndim == 2 else 0.3)
    return model.eval()


def fed(step, model: TinyGPT, batch: int) -> torch.Tensor:
    """The logits (max_seq, B, V) after every token of the same random texts."""
    cache, texts = KVCache(model, batch), torch.Generator().manual_seed(2)
    ids = torch.randint(model.config.vocab_size, (model.config.max_seq, batch, 1), generator=texts)
    with torch.inference_mode():
        return torch.stack([step(column, cache).view(batch, -1).clone() for column in ids])


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_step_equals_the_model(shape, batch):
    model = lively(TinyGPT(tiny_config(**SHAPES[shape])), 1.0)
    torch.testing.assert_close(fed(CompiledStep(model), model, batch), fed(model, model, batch), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", ["defaults", "nanoGPT", "odd widths"])
def test_int8_is_the_model_with_rounded_matrices(shape):
    """Each row of a matrix is a whole number from -127 to 127 times its largest / 127."""
    model = lively(TinyGPT(tiny_config(**SHAPES[shape])), 1.0)
    step, rounded = CompiledStep(model, "int8"), TinyGPT(model.config).eval()
    rounded.load_state_dict(model.state_dict())
    with torch.no_grad():
        if model.config.tie_embeddings:  # the head is rounded, the embedding is not
            rounded.head.weight = torch.nn.Parameter(rounded.head.weight.clone())
        for name, p in rounded.named_parameters():
            if p.ndim == 2 and "embedding" not in name:
                scale = p.abs().amax(1, keepdim=True) / 127
                p.copy_((p / scale).round() * scale)
    found = fed(step, model, 2)
    torch.testing.assert_close(found, fed(rounded, rounded, 2), rtol=1e-5, atol=2e-5)
    assert not torch.allclose(found, fed(model, model, 2), atol=1e-4)


@pytest.fixture
def model() -> TinyGPT:
    return lively(TinyGPT(tiny_config(num_layers=2)))


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


def test_watcher_sees_the_filters(model):
    seen = []
    options = {"watch": lambda stages, chosen: seen.append(chosen)}
    assert texts(generate, model, [[1]], 5, Sampling(0.9), CompiledStep(model), **options) == seen


def test_window_can_be_left_and_taken_up_at_any_token(model):
    """Tokens are made ahead, and the window must not show it."""
    for count in range(1, 12):
        window = SlidingWindow(model, [[1]], step=CompiledStep(model))
        for number, _tokens in enumerate(generate(window, 50, row_generators(0, 1), Sampling(0.9)), start=1):
            if number == count:
                break
        fresh = SlidingWindow(model, window.rows)
        fresh.starts = list(window.starts)
        torch.testing.assert_close(window.next_logits(), fresh.next_logits(), rtol=1e-5, atol=2e-5)


def test_logits_that_stop_being_finite_stop_the_loop(model):
    with torch.no_grad():
        model.position_embedding.weight[3] = torch.nan
    made = []
    with pytest.raises(FloatingPointError, match="not finite"):
        for tokens in generate(
            SlidingWindow(model, [[1]], step=CompiledStep(model)), 9, row_generators(0, 1), Sampling(0.9)
        ):
            made.append(tokens)
    assert len(made) == 3  # after positions 0, 1 and 2


def test_large_logits_are_no_damage(model):
    """Their sum passes float32's largest number, and the loop once took that for damage, again and again."""
    with torch.no_grad():
        model.final_norm.weight.mul_(0.1)
        model.final_norm.bias.fill_(1.0)  # all logits are positive
        model.head.weight.abs_()
        model.head.weight.mul_(2e37 / model.head.weight.max())
    logits = SlidingWindow(model, [[1]]).next_logits()
    assert logits.isfinite().all() and not logits.sum().isfinite()
    expected = texts(sampler.generate, model, [[1], [2]], 30, Sampling(0.9))
    assert texts(generate, model, [[1], [2]], 30, Sampling(0.9), CompiledStep(model)) == expected


def test_threads_change_nothing(model, monkeypatch):
    """Each has a part of the rows. A row that reaches a damaged token stops them all, at the same place as in one."""
    with torch.no_grad():
        model.token_embedding.weight[8] = torch.nan
    found = []
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        step = CompiledStep(model)
        logits = fed(step, model, batch=5)
        window, made = SlidingWindow(model, [[1], [2], [3], [5], [6]], step=step), []
        with pytest.raises(FloatingPointError, match="not finite"):
            for tokens in generate(window, 1000, row_generators(0, 5), Sampling(2.0)):
                made.append(tokens)
        found.append((logits.nan_to_num(), made))
    assert 1 < len(found[0][1]) < 1000
    for logits, made in found[1:]:
        assert torch.equal(logits, found[0][0]) and made == found[0][1]


def random_sampling(chance: random.Random) -> Sampling:
    return Sampling(
        temperature=chance.choice([0, 1e-6, 0.3, 0.8, 1, 1.3, 5]),
        top_k=chance.choice([0, 1, 3, 20, 400]),
        top_p=chance.choice([1, 0.99, 0.9, 0.5, 0.25, 0.1, 1e-9]),
        min_p=chance.choice([0, 1e-9, 0.02, 0.1, 0.5, 1]),
        repetition_penalty=chance.choice([1, 1.1, 2, 0.5, 1e6]),
    )


def compare_choices(draws: int) -> None:
    """Random logits, ties and impossible tokens among them, through both sets of filters."""
    chance, rows = random.Random(0), 200
    torch.manual_seed(0)
    for _ in range(draws // rows):
        size, sampling = chance.choice([1, 2, 5, 11, 67, 300]), random_sampling(chance)
        logits = torch.randn(rows, size) * chance.choice([0.1, 1, 5, 30])
        if chance.random() < 0.3:
            logits = (logits * 4).round() / 4
        if chance.random() < 0.3 and size > 1:
            logits[:, 0] = -torch.inf
        seen, uniforms = torch.rand(rows, size) < 0.3, torch.rand(rows, 1, dtype=torch.float64)
        expected = sampler.sample(filter_stages(logits, seen, sampling)[-1][1].double().softmax(-1), uniforms)
        numbers = filter_numbers(sampling, size)
        found = [
            kernels.choose(*row, *numbers)
            for row in zip(logits.numpy(), seen.numpy(), uniforms[:, 0].tolist(), strict=True)
        ]
        assert found == expected, (sampling, size)


def test_filters_choose_the_tokens_of_the_textbooks():
    compare_choices(20_000)


@pytest.mark.slow
def test_filters_choose_the_same_million_tokens():
    compare_choices(1_000_000)


# --- The choice of an engine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "weights", "tokens", "before", "compiled"),
    [
        ("auto", "float32", 10**6, True, True),
        ("auto", "float32", 10**6, False, True),
        ("auto", "float32", 500, True, False),  # a short text does not wait
        ("auto", "float32", 5_000, False, False),  # nor for the compiler
        ("auto", "int8", 5, False, True),
        ("compiled", "float32", 5, False, True),
        ("torch", "float32", 10**6, True, False),
    ],
)
def test_engine_is_the_one_that_pays(monkeypatch, model, asked, weights, tokens, before, compiled):
    monkeypatch.setattr(engine, "compiled_before", lambda: before)
    step, loop = engine.pick_engine(asked, weights, model, tokens)
    assert isinstance(step, CompiledStep) == (loop is generate) == compiled


@pytest.fixture
def checkpoint(tmp_path):
    tokenizer = CharTokenizer.from_text("abcdefg")
    torch.manual_seed(0)
    config = TinyGPTConfig(tokenizer.vocab_size, max_seq=8, embed_dim=16, num_heads=2, num_layers=1)
    save_model(tmp_path / "model.pth", TinyGPT(config), tokenizer, {})
    return ("--checkpoint", tmp_path / "model.pth", "--seed", "1", "--max-new-tokens", "40", "--prompt", "ab")


def test_engines_write_the_same_text(in_process, checkpoint):
    made = [in_process("generate.py", *checkpoint, "--engine", name) for name in ("torch", "compiled")]
    assert made[0][:2] == made[1][:2] and made[0][0] == 0
    assert in_process("generate.py", *checkpoint, "--weights", "int8")[0] == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--engine", "compiled"], "--engine compiled needs numba: pip install numba"),
        (["--weights", "int8"], "--weights int8 needs numba: pip install numba"),
        (["--weights", "int8", "--engine", "torch"], "--weights int8 needs --engine compiled"),
    ],
)
def test_without_numba_the_package_is_named(monkeypatch, in_process, checkpoint, flags, words):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find(name))
    code, _text, errors = in_process("generate.py", *checkpoint, *flags)
    assert code == 2 and words in errors
    assert in_process("generate.py", *checkpoint, "--engine", "auto")[0] == 0
