"""Attention maps and logit lens against PyTorch's own module and the model's own logits."""

import pytest
import torch
from torch import nn

from helpers import shaken_model
from sampling.inspect import attention_maps, logit_lens, residual_stream
from tiny_decoder import CausalSelfAttention, TinyGPT


@pytest.fixture(params=[{}, {"bias": False, "tie_embeddings": True, "gelu": "tanh"}])
def model(request) -> TinyGPT:
    return shaken_model(num_layers=2, **request.param)


@torch.inference_mode()
def test_attention_maps_are_the_weights_that_multihead_attention_reports(model):
    """Every layer and head; the parent class computes the same by its own code."""
    ids = [3, 1, 4, 1, 5]
    maps, stream = attention_maps(model, ids), residual_stream(model, ids)
    assert maps.shape == (2, 2, 5, 5)
    for block, x, weights in zip(model.blocks, stream[:2], maps, strict=True):
        x, mask = block.attention_norm(x[None]), model.causal_mask[:5, :5]
        unaveraged = {"attn_mask": mask, "average_attn_weights": False}
        _, expected = nn.MultiheadAttention.forward(block.attention, x, x, x, **unaveraged)  # (1, nh, T, T)
        torch.testing.assert_close(weights, expected[0], rtol=1e-5, atol=1e-6)


def test_maps_are_of_the_attention_that_runs(monkeypatch):
    monkeypatch.setattr(CausalSelfAttention, "weigh", lambda self, q, k, v, mask, dropout=0.0: v)
    maps = attention_maps(shaken_model(), [3, 1, 4])
    assert torch.equal(maps, torch.eye(3).expand_as(maps))


@torch.inference_mode()
def test_the_last_layer_of_the_lens_is_the_model(model):
    ids = [3, 1, 4, 1, 5, 9]
    lens = logit_lens(model, ids)
    assert lens.shape == (3, 6, 11)
    torch.testing.assert_close(lens[-1], model(torch.tensor([ids]))[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(lens[0], lens[-1], atol=0.1)


@pytest.mark.parametrize("ids", [[], [1] * 7])
def test_refuses_more_tokens_than_the_window(model, ids):
    with pytest.raises(ValueError, match="1 to 6 tokens"):
        attention_maps(model, ids)
