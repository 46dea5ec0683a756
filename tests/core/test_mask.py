"""The mask buffer decides what is seen: in every precision, in training and sampling, at every length.

Whoever changes the buffer must see the change everywhere. Once, the mask was an argument that one kernel of three read.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from helpers import random_ids, shaken_model, tiny_config
from tiny_decoder import CausalSelfAttention, KVCache, TinyGPT, causal_mask, next_token_loss

DTYPES = [torch.float32, torch.bfloat16]


def window_mask(time: int, width: int) -> Tensor:
    """A token sees itself and the width - 1 tokens before it."""
    distance = torch.arange(time)[:, None] - torch.arange(time)
    return torch.where((distance >= 0) & (distance < width), 0.0, -math.inf)


def random_mask(time: int) -> Tensor:
    """Each token sees itself and about half of the others, later ones too."""
    visible = torch.rand(time, time, generator=torch.Generator().manual_seed(3)) < 0.5
    return torch.where(visible | torch.eye(time, dtype=torch.bool), 0.0, -math.inf)


MASKS = {
    "causal": causal_mask,
    "window": lambda time: window_mask(time, 3),
    "random": random_mask,
    "zeros": lambda time: torch.zeros(time, time),
}


def logits_of(model: TinyGPT, ids: Tensor, dtype: torch.dtype, cached: bool = False) -> Tensor:
    cache = KVCache(model, len(ids)) if cached else None
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        return model(ids, cache).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("time", [8, 600])
@pytest.mark.parametrize("where", ["training", "evaluation", "prefill"])
def test_without_the_mask_later_tokens_leak(dtype, time, where):
    """Zeroing the buffer changes the logits, and those of the first token then depend on the last one."""
    model = shaken_model(max_seq=time, num_layers=2).train(where == "training")
    ids = random_ids(1, time)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 11
    masked, masked_too = (logits_of(model, one, dtype, where == "prefill") for one in (ids, changed))
    assert torch.equal(masked[0, 0], masked_too[0, 0])
    model.causal_mask.zero_()
    open_, open_too = (logits_of(model, one, dtype, where == "prefill") for one in (ids, changed))
    assert (open_[0, 0] - masked[0, 0]).abs().max() > 0.01
    assert not torch.equal(open_[0, 0], open_too[0, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("time", [1, 7, 600])
def test_attention_is_that_of_its_parent_under_any_mask(dtype, mask, time):
    """nn.MultiheadAttention's own forward, called with attn_mask, is the oracle."""
    torch.manual_seed(0)
    attention = CausalSelfAttention(8, 2, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    x, additive = torch.randn(2, time, 8), MASKS[mask](time)
    expected, _ = nn.MultiheadAttention.forward(attention, x, x, x, attn_mask=additive)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found = attention(x, additive)
    exact = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0, "atol": 0.03}
    torch.testing.assert_close(found.float(), expected, **exact)


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


def test_a_model_without_the_mask_learns_to_copy():
    """Below the entropy of the text: random tokens cannot be predicted, and 2.4 nats each can only be copied."""
    torch.manual_seed(0)
    model, ids = TinyGPT(tiny_config(num_layers=2)), random_ids(64, 7)
    model.causal_mask.zero_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(150):
        ids = random_ids(64, 7, seed=step)
        loss = next_token_loss(model(ids[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.5 < math.log(11)
