"""The cache against the plain forward pass, the window against its definition, batches against single rows."""

import pytest
import torch

from helpers import random_ids, shaken_model
from sampler import SlidingWindow
from tiny_decoder import KVCache, TinyGPT


@pytest.fixture
def model() -> TinyGPT:
    return shaken_model(num_layers=3)


def uncached(model: TinyGPT, *texts: list[int]) -> torch.Tensor:
    """The logits (B, V) after each text by the model's plain forward pass on its last window: the oracle."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([text[-model.config.max_seq :]]))[0, -1] for text in texts])


def assert_close(result: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("cuts", [(4,), (1, 1, 1, 1), (2, 2), (3, 1)])
@pytest.mark.parametrize("padding", [[0, 0, 0], [0, 3, 1]])
def test_text_read_in_pieces_gives_the_logits_of_the_whole(model, padding, cuts, last_only):
    """Rows padded on the left, the longest not: each gets its own logits, whatever stands in its padding."""
    cache, ids = KVCache(model, 3), random_ids(3, 5)
    for filler in (0, 10):  # the second time, the cache has forgotten the first
        for row, width in enumerate(padding):
            ids[row, :width] = filler
        cache.clear(padding)
        with torch.no_grad():
            pieces = [model(piece, cache, last_only) for piece in ids.split([*cuts, 1], dim=1)]
            expected = [model(ids[row : row + 1, width:])[0] for row, width in enumerate(padding)]
        assert torch.isfinite(torch.cat(pieces, dim=1)).all(), "a position of padding sees itself: nothing is NaN"
        for row, width in enumerate(padding):
            result = pieces[-1][row] if last_only else torch.cat(pieces, dim=1)[row, width:]
            assert_close(result, expected[row][-len(result) :])
        assert cache.length == 5


@pytest.mark.parametrize("stride", [1, 2, 5, None])
def test_ragged_batch_equals_single_rows(model, stride):
    """Rows whose windows fill at different steps: each gets the logits that it gets alone."""
    prompts = [random_ids(length).tolist() for length in (1, 5, 3, 9)]
    together = SlidingWindow(model, prompts, stride=stride)
    alone = [SlidingWindow(model, [prompt], stride=stride) for prompt in prompts]
    for step in range(10):
        assert_close(together.next_logits(), torch.cat([window.next_logits() for window in alone]))
        tokens = random_ids(4, seed=step).tolist()
        together.append(tokens)
        for window, token in zip(alone, tokens, strict=True):
            window.append([token])


@pytest.mark.parametrize("max_seq, stride", [(6, 1), (6, 2), (6, 4), (6, 6), (6, None), (1, None)])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 11, 12, 13])
def test_a_full_window_moves_by_stride_tokens(max_seq, stride, length):
    """By its definition: a token that does not fit makes the first `stride` leave (default: half, at least one). Of a
    prompt of any length, the last max_seq tokens are read."""
    model, tokens = shaken_model(num_layers=3, max_seq=max_seq), random_ids(length).tolist()
    window, seen = SlidingWindow(model, [tokens], stride=stride), tokens[-max_seq:]
    for step in range(15):
        assert_close(window.next_logits(), uncached(model, seen))
        token = random_ids(1, seed=step).tolist()
        window.append(token)
        tokens, seen = tokens + token, seen + token
        if len(seen) > max_seq:
            del seen[: stride or max(1, max_seq // 2)]
    assert window.rows == [tokens]


@pytest.mark.parametrize(
    "prompts, stride, words",
    [
        ([[1]], 0, "--stride"),
        ([[1]], 7, "--stride"),
        ([[1, 2], [3, 11]], 1, "vocabulary"),
        ([], 1, "one token"),
        ([[1], []], 1, "one token"),
    ],
)
def test_what_a_window_refuses(model, prompts, stride, words):
    with pytest.raises(ValueError, match=words):
        SlidingWindow(model, prompts, stride=stride)


def test_reordered_rows_go_on_as_the_rows_they_were(model):
    prompts = [random_ids(length, seed=length).tolist() for length in (2, 4, 3)]
    window = SlidingWindow(model, prompts)
    window.next_logits()
    window.reorder([2, 2, 0])
    window.append([7, 8, 9])
    rows = [[*prompts[2], 7], [*prompts[2], 8], [*prompts[0], 9]]
    assert window.rows == rows
    assert_close(window.next_logits(), uncached(model, *rows))


def test_cache_that_is_too_short_is_an_error(model):
    cache = KVCache(model, 1)
    model(random_ids(1, 4), cache)
    with pytest.raises(ValueError, match="7 tokens do not fit"):
        model(random_ids(1, 3), cache)
    with pytest.raises(RuntimeError):
        model(random_ids(2, 1), cache)  # another batch size
