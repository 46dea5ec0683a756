"""The cache against the plain forward pass, the window against its definition, batches against single rows."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from helpers import tiny_config
from sampler import SlidingWindow
from tiny_decoder import KVCache, TinyGPT


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(seed))


def uncached(model: TinyGPT, tokens: list[int]) -> torch.Tensor:
    """The logits (V,) after a text by the model's plain forward pass on its last window: the oracle of this file."""
    with torch.no_grad():
        return model(torch.tensor([tokens[-model.config.max_seq :]]))[0, -1]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def spread_weights(model: TinyGPT) -> TinyGPT:
    """Larger random weights, biases and norms included, so that every term of the network matters."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=generator)
    return model


@pytest.fixture
def model() -> TinyGPT:
    return spread_weights(TinyGPT(tiny_config(num_layers=3))).eval()


@pytest.mark.parametrize("cuts", [(6,), (1, 1, 1, 1, 1, 1), (3, 3), (1, 4, 1), (2, 1, 3)])
def test_text_read_in_pieces_gives_the_logits_of_the_whole(model, cuts):
    ids = random_ids(2, 6)
    cache = KVCache(model, 2)
    with torch.no_grad():
        pieces = [model(piece, cache) for piece in ids.split(cuts, dim=1)]
        assert_close(torch.cat(pieces, dim=1), model(ids))


@pytest.mark.parametrize("cuts", [(4,), (1, 1, 1, 1), (2, 2), (3, 1)])
def test_rows_padded_on_the_left_give_the_logits_of_single_rows(model, cuts):
    """Rows of 4, 1 and 3 tokens: whatever stands in the padding, and however the text is cut."""
    padding, ids = [0, 3, 1], random_ids(3, 4)
    for filler in (0, 10):
        for row, width in enumerate(padding):
            ids[row, :width] = filler
        cache = KVCache(model, 3)
        cache.clear(padding)
        with torch.no_grad():
            found = torch.cat([model(piece, cache) for piece in ids.split(cuts, dim=1)], dim=1)
            more = model(torch.tensor([[5], [6], [7]]), cache)
        assert torch.isfinite(found).all(), "a position of padding sees itself: nothing would be NaN"
        for row, width in enumerate(padding):
            text = torch.cat([ids[row, width:], torch.tensor([5 + row])])[None]
            with torch.no_grad():
                assert_close(torch.cat([found[row, width:], more[row]]), model(text)[0])


def test_a_cleared_cache_has_forgotten(model):
    cache, ids = KVCache(model, 2), random_ids(2, 5)
    with torch.no_grad():
        cache.clear([0, 2])
        model(random_ids(2, 6, seed=3), cache)
        cache.clear([0, 0])
        assert_close(model(ids, cache), model(ids))
    assert cache.length == 5


@pytest.mark.parametrize("padding", [None, [0, 2, 4]])
def test_last_only_is_the_last_of_all(model, padding):
    """With a cache, padded or not, and without one."""
    ids, logits = random_ids(3, 5), []
    for last_only in (False, True):
        cache = None
        if padding is not None:
            cache = KVCache(model, 3)
            cache.clear(padding)
        with torch.no_grad():
            logits.append(model(ids, cache, last_only))
    assert logits[1].shape == (3, 1, 11)
    assert_close(logits[1], logits[0][:, -1:])


@pytest.mark.parametrize("length", range(1, 13))
@pytest.mark.parametrize("batch", [1, 3])
def test_every_prompt_length_up_to_two_windows(model, length, batch):
    """Prompts from one token to 2 x max_seq, then on past the window: with stride 1 the logits of the plain forward
    pass on the last max_seq tokens."""
    prompts = random_ids(batch, length).tolist()
    window = SlidingWindow(model, prompts, stride=1)
    for step in range(8):
        expected = torch.stack([uncached(model, row) for row in window.rows])
        assert_close(window.next_logits(), expected)
        window.append(random_ids(batch, seed=step).tolist())
    assert [row[:length] for row in window.rows] == prompts


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


@pytest.mark.parametrize("stride", [1, 2, 4, 6, None])
def test_full_window_moves_by_stride_tokens(model, stride):
    """The window as the words define it: a token that finds no room makes the first `stride` leave (default: half)."""
    tokens = random_ids(2).tolist()
    window, seen = SlidingWindow(model, [tokens], stride=stride), list(tokens)
    for step in range(20):
        assert_close(window.next_logits()[0], uncached(model, seen))
        token = random_ids(1, seed=step).tolist()
        window.append(token)
        seen += token
        if len(seen) > 6:
            del seen[: stride or 3]


@pytest.mark.parametrize("stride", [0, 7])
def test_stride_outside_the_window_is_an_error(model, stride):
    with pytest.raises(ValueError, match="--stride must be from 1 to .* 6"):
        SlidingWindow(model, [[1]], stride=stride)


def test_a_window_of_one_token_works():
    model = spread_weights(TinyGPT(tiny_config(max_seq=1))).eval()
    window = SlidingWindow(model, [[3, 4]])
    for token in (5, 6):
        assert_close(window.next_logits()[0], uncached(model, window.rows[0]))
        window.append([token])


@pytest.mark.parametrize("token", [11, -1])
def test_ids_outside_the_vocabulary_are_refused(model, token):
    with pytest.raises(ValueError, match="outside the vocabulary of 11"):
        SlidingWindow(model, [[1, 2], [3, token]])


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_prompt_without_tokens_is_an_error(model, prompts):
    with pytest.raises(ValueError, match="at least one token"):
        SlidingWindow(model, prompts)


def test_reordered_rows_go_on_as_the_rows_they_were(model):
    prompts = [random_ids(length, seed=length).tolist() for length in (2, 4, 3)]
    window = SlidingWindow(model, prompts)
    window.next_logits()
    window.reorder([2, 2, 0])
    window.append([7, 8, 9])
    rows = [[*prompts[2], 7], [*prompts[2], 8], [*prompts[0], 9]]
    assert window.rows == rows
    assert_close(window.next_logits(), torch.stack([uncached(model, row) for row in rows]))


def test_cache_that_is_too_short_is_an_error(model):
    cache = KVCache(model, 1)
    model(random_ids(1, 4), cache)
    with pytest.raises(ValueError, match="7 tokens do not fit"):
        model(random_ids(1, 3), cache)
    with pytest.raises(RuntimeError):
        model(random_ids(2, 1), cache)  # another batch size


def test_cache_sees_parametrized_weights(model):
    """An adapter on the attention's weights must not be bypassed by the cache's own use of them."""

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    attention = model.blocks[0].attention
    parametrize.register_parametrization(attention, "in_proj_weight", Doubled())
    parametrize.register_parametrization(attention.out_proj, "weight", Doubled())
    window = SlidingWindow(model, [[3, 1]])
    for token in (4, 5, 6):
        assert_close(window.next_logits()[0], uncached(model, window.rows[0]))
        window.append([token])
