"""Attention maps and logit lens against PyTorch's own module and the model's own logits."""

import pytest
import torch
from torch import nn

from helpers import tiny_config
from sampling.inspect import attention_maps, logit_lens, residual_stream
from tiny_decoder import TinyGPT


@pytest.fixture(params=[{}, {"bias": False, "tie_embeddings": True, "gelu": "tanh"}])
def model(request) -> TinyGPT:
    torch.manual_seed(0)
    model = TinyGPT(tiny_config(num_layers=2, **request.param))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn_like(p)
    return model


@torch.inference_mode()
def test_attention_maps_are_the_weights_that_multihead_attention_reports(model):
    """Every layer and head, and the row sums; the parent class computes the same by its own code."""
    ids = [3, 1, 4, 1, 5]
    maps = attention_maps(model, ids)
    assert maps.shape == (2, 2, 5, 5)
    mask = model.causal_mask[:5, :5]
    for block, x, found in zip(model.blocks, residual_stream(model, ids), maps, strict=False):
        normed = block.attention_norm(x[None])
        _, expected = nn.MultiheadAttention.forward(
            block.attention, normed, normed, normed, attn_mask=mask, average_attn_weights=False
        )  # (1, nh, T, T)
        torch.testing.assert_close(found, expected[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 2, 5))
    assert (maps.triu(1) == 0).all()


def test_the_last_layer_of_the_lens_is_the_model(model):
    ids = [3, 1, 4, 1, 5, 9]
    lens = logit_lens(model, ids)
    assert lens.shape == (3, 6, 11)
    with torch.no_grad():
        torch.testing.assert_close(lens[-1], model.eval()(torch.tensor([ids]))[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(lens[0], lens[-1], atol=0.1)


@pytest.mark.parametrize("ids", [[], [1] * 7])
def test_refuses_more_tokens_than_the_window(model, ids):
    with pytest.raises(ValueError, match="1 to 6 tokens"):
        attention_maps(model, ids)
