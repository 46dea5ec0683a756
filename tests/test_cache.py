"""The cache against the plain forward pass, the window against its definition, batches against single rows."""

import pytest
import torch
from sampling.decode import FastStep, Reader
from torch import nn
from torch.nn.utils import parametrize

from conftest import tiny_config
from tiny_decoder import KVCache, TinyGPT

LENGTHS = (1, 4, 3)  # of the rows of a ragged batch


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


@pytest.mark.parametrize("length", range(1, 13))
@pytest.mark.parametrize("batch", [1, 3])
def test_every_prompt_length_up_to_two_windows(model, length, batch):
    """Prompts from one token to 2 x max_seq, then on past the window: the logits of the plain forward pass."""
    prompts = random_ids(batch, length).tolist()
    reader = Reader(model, prompts)
    for step in range(8):
        expected = torch.stack([uncached(model, row) for row in reader.rows])
        assert_close(reader.next_logits(), expected)
        reader.append(random_ids(batch, seed=step).tolist())
    assert [row[:length] for row in reader.rows] == prompts


@pytest.mark.parametrize("hop", [1, 2, 5])
def test_ragged_batch_equals_single_rows(model, hop):
    """Rows whose windows fill at different steps: each gets the logits that it gets alone."""
    prompts = [random_ids(length).tolist() for length in (1, 5, 3, 9)]
    together = Reader(model, prompts, hop=hop)
    alone = [Reader(model, [prompt], hop=hop) for prompt in prompts]
    for step in range(10):
        assert_close(together.next_logits(), torch.cat([reader.next_logits() for reader in alone]))
        tokens = random_ids(4, seed=step).tolist()
        together.append(tokens)
        for reader, token in zip(alone, tokens, strict=True):
            reader.append([token])


def test_padding_is_harmless(model):
    """What stands behind a short row's tokens changes nothing, now or later."""
    ids = random_ids(3, 4)
    other = ids.clone()
    for row, length in enumerate(LENGTHS):
        other[row, length:] = 10 - other[row, length:]
    outcomes = []
    with torch.no_grad():
        for padded in (ids, other):
            cache = KVCache(model, 3)
            first = model.next_logits(padded, cache, list(LENGTHS))
            outcomes.append((first, model.next_logits(random_ids(3, 1, seed=5), cache)))
            assert cache.lengths == [length + 1 for length in LENGTHS]
    for found, expected in zip(*outcomes, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("hop", [1, 2, 4, 6])
def test_full_window_jumps_by_hop_tokens(model, hop):
    """The window as the words define it: when a token finds no room, the first `hop` tokens leave."""
    tokens = random_ids(2).tolist()
    reader, window = Reader(model, [tokens], hop=hop), list(tokens)
    for step in range(20):
        assert_close(reader.next_logits()[0], uncached(model, window))
        token = random_ids(1, seed=step).tolist()
        reader.append(token)
        window += token
        if len(window) > 6:
            del window[:hop]


@pytest.mark.parametrize("hop", [0, 7])
def test_hop_outside_the_window_is_an_error(model, hop):
    with pytest.raises(ValueError, match="--hop must be from 1 to .* 6"):
        Reader(model, [[1]], hop=hop)


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []]])
def test_prompt_without_tokens_is_an_error(model, prompts):
    with pytest.raises(ValueError, match="at least one token"):
        Reader(model, prompts)


def test_reordered_rows_go_on_as_the_rows_they_were(model):
    prompts = [random_ids(length, seed=length).tolist() for length in (2, 4, 3)]
    reader = Reader(model, prompts)
    reader.next_logits()
    reader.reorder([2, 2, 0])
    reader.append([7, 8, 9])
    rows = [[*prompts[2], 7], [*prompts[2], 8], [*prompts[0], 9]]
    assert reader.rows == rows
    assert_close(reader.next_logits(), torch.stack([uncached(model, row) for row in rows]))


def test_cache_is_allocated_once(model):
    reader = Reader(model, random_ids(2, 3).tolist())
    places = [tensor.data_ptr() for tensor in reader.cache.layers]
    assert reader.cache.layers[0].shape == (2, 2, 2, 6, 4)  # keys and values, B, nh, max_seq, hs
    for step in range(9):
        reader.next_logits()
        reader.append(random_ids(2, seed=step).tolist())
    assert places == [tensor.data_ptr() for tensor in reader.cache.layers]


def test_cache_that_is_too_short_is_an_error(model):
    cache = KVCache(model, 1)
    model.next_logits(random_ids(1, 4), cache)
    with pytest.raises(ValueError, match="do not fit"):
        model(random_ids(1, 3), cache)
    with pytest.raises(ValueError, match="do not fit"):
        model(random_ids(2, 1), cache)


@pytest.mark.parametrize("batch", [1, 3])
def test_fast_step_equals_the_module(model, batch):
    step, fast, slow = FastStep(model), KVCache(model, batch), KVCache(model, batch)
    with torch.no_grad():
        for tokens in random_ids(6, batch):
            assert_close(step(tokens, fast), model.next_logits(tokens[:, None], slow))
    assert fast.lengths == slow.lengths == [6] * batch
    for found, expected in zip(fast.layers, slow.layers, strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("width", [32, 12])  # the kernel runs beyond the end of 12 inputs; the MLP has 48
def test_int8_weights_are_close_and_differ(width):
    """Eight bits keep the logits to about a hundredth of their size; exactly equal ones would mean no rounding."""
    model = spread_weights(TinyGPT(tiny_config(embed_dim=width, num_layers=2))).eval()
    exact, rounded = (Reader(model, [[3]], step=FastStep(model, weights)) for weights in ("float32", "int8"))
    for token in (1, 2, 3):
        expected, found = exact.next_logits(), rounded.next_logits()
        for reader in (exact, rounded):
            reader.append([token])
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05


def test_cache_sees_parametrized_weights(model):
    """An adapter on the attention's weights must not be bypassed by the cache's own use of them."""

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    attention = model.blocks[0].attention
    parametrize.register_parametrization(attention, "in_proj_weight", Doubled())
    parametrize.register_parametrization(attention.out_proj, "weight", Doubled())
    reader = Reader(model, [[3, 1]])
    for token in (4, 5):
        assert_close(reader.next_logits()[0], uncached(model, reader.rows[0]))
        reader.append([token])


def test_only_the_last_positions_reach_the_head(model):
    shapes = []
    model.head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    model.next_logits(random_ids(2, 5), KVCache(model, 2))
    assert shapes == [(2, 1, 8)]
