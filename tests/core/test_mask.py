"""The mask buffer decides what is seen: in every precision, in training and sampling, at every length.

Whoever changes the buffer must see the change everywhere. Once, the mask was an argument that one kernel of three read.
"""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from helpers import random_ids, shaken_model
from tiny_decoder import PLAIN_LIMIT, CausalSelfAttention, KVCache, causal_mask

DTYPES = [torch.float32, torch.bfloat16]


def window_mask(time: int, width: int = 3) -> Tensor:
    """A token sees itself and the width - 1 tokens before it."""
    distance = torch.arange(time)[:, None] - torch.arange(time)
    return torch.where((distance >= 0) & (distance < width), 0.0, -math.inf)


def random_mask(time: int) -> Tensor:
    """Each token sees itself and about half of the others, later ones too."""
    visible = torch.rand(time, time, generator=torch.Generator().manual_seed(3)) < 0.5
    return torch.where(visible | torch.eye(time, dtype=torch.bool), 0.0, -math.inf)


MASKS = [causal_mask, window_mask, random_mask, lambda time: torch.zeros(time, time)]


def random_attention(**options) -> CausalSelfAttention:
    torch.manual_seed(0)
    attention = CausalSelfAttention(8, 2, batch_first=True, **options)
    if attention.in_proj_bias is not None:
        nn.init.normal_(attention.in_proj_bias)
    return attention


def precision(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)


def test_the_mask_is_a_buffer_but_not_in_checkpoints(tiny_model):
    expected = [[0, -math.inf, -math.inf], [0, 0, -math.inf], [0, 0, 0]]
    assert torch.equal(dict(tiny_model.named_buffers())["causal_mask"][:3, :3], torch.tensor(expected))
    assert tiny_model.causal_mask.shape == (6, 6) and "causal_mask" not in tiny_model.state_dict()


def test_boolean_masks_mean_the_opposite_of_tril():
    """Why the mask is additive: to nn.MultiheadAttention a boolean True means "may NOT look"."""
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(1, 4, 8)
    may_look = torch.tril(torch.ones(4, 4)).bool()
    additive, _ = attention(x, x, x, attn_mask=causal_mask(4))
    inverted, _ = attention(x, x, x, attn_mask=~may_look)
    _, weights = attention(x, x, x, attn_mask=may_look)
    torch.testing.assert_close(additive, inverted)
    assert torch.isnan(weights[0, -1]).all(), "tril itself as a mask blocks all that the last position may see"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("time, bias", [(1, True), (7, True), (7, False), (PLAIN_LIMIT, True), (PLAIN_LIMIT + 1, True)])
def test_attention_is_that_of_its_parent_under_any_mask(dtype, mask, time, bias):
    """nn.MultiheadAttention's own forward, called with attn_mask, is the oracle."""
    attention = random_attention(bias=bias)
    x, additive = torch.randn(2, time, 8), mask(time)
    expected, _ = nn.MultiheadAttention.forward(attention, x, x, x, attn_mask=additive)
    with precision(dtype):
        result = attention(x, additive)
    exact = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 0.03}
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, **exact)
    assert attention.state_dict().keys() == nn.MultiheadAttention(8, 2, bias=bias).state_dict().keys()


@pytest.mark.parametrize("mask", MASKS)
def test_the_products_written_out_are_the_fused_kernel(mask):
    q, k, v = torch.randn(3, 2, 2, 40, 4)
    expected = scaled_dot_product_attention(q, k, v, attn_mask=mask(40))
    torch.testing.assert_close(random_attention().weigh(q, k, v, mask(40)), expected)


CHANGED = {
    "nothing": CausalSelfAttention.weigh,
    "the last 40": lambda self, q, k, v, mask, dropout=0.0: (q @ k.mT + mask).triu(-39).softmax(-1) @ v,
    "a scale for each head": lambda self, q, k, v, mask, dropout=0.0: v * torch.arange(1, 3).view(2, 1, 1),
}


@pytest.mark.parametrize("weigh", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_changed_formula_is_what_runs(dtype, weigh, monkeypatch):
    monkeypatch.setattr(CausalSelfAttention, "weigh", weigh)
    attention, x = random_attention(), torch.randn(1, 50, 8)
    attention.compare()
    assert attention.fused == (weigh is CHANGED["nothing"])
    with precision(dtype):
        h = weigh(attention, *attention.project(x), causal_mask(50))
        torch.testing.assert_close(attention(x, causal_mask(50)), attention.out_proj(h.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_weights_are_dropped_in_training_only(dtype):
    """With values of 1 a result is the sum of the weights that were kept: 1 in all, or, dropped, not always 1."""
    attention = random_attention(dropout=0.5)
    with torch.no_grad(), precision(dtype):
        attention.in_proj_weight[16:], attention.in_proj_bias[16:] = 0, 1
        attention.out_proj.weight.copy_(torch.eye(8))
        x, mask = torch.randn(1, 256, 8), causal_mask(256)
        sums = attention(x, mask)[0].float().view(256, 2, 4)  # a head's four results are the same sum
        torch.testing.assert_close(sums, sums[:, :, :1].expand_as(sums))
        assert set(sums[0].unique().tolist()) <= {0.0, 2.0}, "the first token's only weight is dropped or doubled"
        assert sums.std() > 0.01 and sums[64:].mean().item() == pytest.approx(1, abs=0.05)
        torch.testing.assert_close(attention.eval()(x, mask).float(), torch.ones(1, 256, 8), rtol=0, atol=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", [8, 600])
@pytest.mark.parametrize("where", ["training", "evaluation", "prefill"])
def test_a_later_token_changes_no_earlier_logit_unless_the_mask_is_zeroed(dtype, time, where):
    model, ids = shaken_model(max_seq=time, num_layers=2).train(where == "training"), random_ids(1, time)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 11

    def change() -> list[bool]:
        """Which positions' logits depend on the last token."""
        logits = []
        for one in (ids, changed):
            with torch.set_grad_enabled(where == "training"), precision(dtype):
                logits.append(model(one, KVCache(model, 1) if where == "prefill" else None))
        return (logits[0] != logits[1]).any(-1)[0].tolist()

    assert change() == [False] * (time - 1) + [True]
    model.causal_mask.zero_()
    assert change()[0]


@pytest.mark.parametrize("padding", [[0, 0], [0, 2]])
def test_with_a_window_mask_decoding_token_by_token_is_the_full_forward(padding):
    model = shaken_model(max_seq=12, num_layers=2)
    model.causal_mask.copy_(window_mask(12, 4))
    ids, cache = random_ids(2, 12), KVCache(model, 2)
    cache.clear(padding)
    with torch.no_grad():
        steps = torch.cat([model(ids[:, t : t + 1], cache) for t in range(12)], dim=1)
        for row, width in enumerate(padding):
            torch.testing.assert_close(steps[row, width:], model(ids[row : row + 1, width:])[0], rtol=0, atol=1e-5)
