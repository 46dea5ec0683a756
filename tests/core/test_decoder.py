"""The network: shapes and errors, initial weights, the loss, and GPT-2 as an independent oracle."""

import dataclasses
import math

import pytest
import torch

from benchmarks.peers import gpt2_twin
from formats.huggingface import gpt2_weights
from helpers import random_ids, shaken_model, tiny_config
from tiny_decoder import TinyGPT, TinyGPTConfig, next_token_loss, sinusoids


@pytest.mark.parametrize(
    "shape, words",
    [((1, 7), "7 tokens do not fit into max_seq 6"), ((1, 0), "shape"), ((0, 3), "shape"), ((3,), "shape")],
)
def test_ids_of_a_wrong_shape_are_refused(tiny_model, shape, words):
    with pytest.raises(ValueError, match=words):
        tiny_model(torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    "field, value",
    [
        ("vocab_size", 0),
        ("max_seq", -1),
        ("num_layers", 1.0),
        ("num_heads", True),
        ("num_heads", 3),
        ("dropout", 1.0),
        ("dropout", float("nan")),
        ("dropout", "0"),
        ("attention_dropout", -0.1),
        ("bias", 1),
        ("tie_embeddings", None),
        ("gelu", "relu"),
        ("gelu", None),
    ],
)
def test_wrong_configs_name_the_field(field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(tiny_config(), **{field: value})


# --- Initial weights ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["normal", "sinusoid"])
@pytest.mark.parametrize("vocab_size, embed_dim", [(67, 32), (67, 256), (1000, 64)])
def test_the_first_loss_is_that_of_guessing(vocab_size, embed_dim, init):
    torch.manual_seed(0)
    model = TinyGPT(TinyGPTConfig(vocab_size, max_seq=32, embed_dim=embed_dim, num_heads=4, num_layers=4), init)
    ids = random_ids(8, 33, vocab_size=vocab_size)
    loss = next_token_loss(model(ids[:, :-1]), ids[:, 1:])
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.03)


def test_gpt2s_initial_weights():
    """N(0, 0.02²); the ends of the 2 x 8 branches divided by sqrt(16); biases 0 and norms 1."""
    torch.manual_seed(0)
    model = TinyGPT(TinyGPTConfig(100, max_seq=100, embed_dim=64, num_heads=2, num_layers=8))
    matrices = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    shrunk = {name for name, std in matrices.items() if std == pytest.approx(0.005, rel=0.05)}
    assert all(std == pytest.approx(0.02, rel=0.05) for name, std in matrices.items() if name not in shrunk)
    assert shrunk == {f"blocks.{i}.{end}.weight" for i in range(8) for end in ("attention.out_proj", "mlp.down")}
    assert all((p == ("norm.weight" in name)).all() for name, p in model.named_parameters() if p.ndim == 1)


def test_the_other_initial_weights_are_sinusoids_and_xavier():
    """Glorot & Bengio's bound is sqrt(6 / (fan_in + fan_out)); q, k and v count as three square matrices."""
    torch.manual_seed(0)
    model = TinyGPT(TinyGPTConfig(11, max_seq=256, embed_dim=64, num_heads=2, num_layers=1), "sinusoid")
    block, rows = model.blocks[0], 10 * model.position_embedding.weight
    assert block.attention.in_proj_weight.abs().max().item() == pytest.approx(math.sqrt(6 / 128), rel=0.01)
    assert block.mlp.up.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 320), rel=0.01)
    assert rows.square().mean().item() == pytest.approx(1, rel=0.01)
    alike = rows @ rows.T / 64
    assert (alike - alike.diag().diag()).max() < alike.diag().min(), "no two positions look alike"
    assert alike[10, 11] > alike[10, 30], "neighbours look more alike than strangers"
    assert sinusoids(64, 7).shape == (64, 7) and sinusoids(1, 1).shape == (1, 1)
    for tied in (True, False):  # a loader brings the weights of its own
        model = TinyGPT(tiny_config(tie_embeddings=tied), init=None)
        assert not model.token_embedding.weight.any() and not model.position_embedding.weight.any()
    with pytest.raises(ValueError, match="init"):
        TinyGPT(tiny_config(), init="zeros")


def test_the_loss_is_the_mean_over_batch_and_time():
    logits, targets = torch.randn(2, 3, 5), torch.tensor([[0, 1, 2], [3, 4, 0]])
    by_hand = -torch.stack([logits[b, t].log_softmax(-1)[targets[b, t]] for b in range(2) for t in range(3)]).mean()
    torch.testing.assert_close(next_token_loss(logits, targets), by_hand)
    with pytest.raises(ValueError, match="do not match"):
        next_token_loss(logits, targets[:, :2])


def test_dropout_acts_in_training_only():
    model, ids = TinyGPT(tiny_config(dropout=0.5)), random_ids(2, 6)
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


# --- GPT-2 -------------------------------------------------------------------------------------------------------

SHAPES = {
    "ours": {},
    "GPT-2": {"gelu": "tanh", "tie_embeddings": True},
    "nanoGPT": {"bias": False, "tie_embeddings": True},
    "another": {"gelu": "tanh", "bias": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_gradients_are_those_of_gpt2(shape):
    """Every parameter has a part. Biases that a model does not have are 0 in its twin.

    A tied weight's gradient is the sum of both its uses.
    """
    pytest.importorskip("transformers")
    model = shaken_model(vocab_size=50, max_seq=16, embed_dim=32, num_heads=4, num_layers=3, **SHAPES[shape])
    twin, ids = gpt2_twin(model), random_ids(2, 17, vocab_size=50)
    logits, expected = model(ids[:, :-1]), twin(ids[:, :-1]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    next_token_loss(logits, ids[:, 1:]).backward()
    next_token_loss(expected, ids[:, 1:]).backward()
    for name, gradient in gpt2_weights({name: p.grad for name, p in model.named_parameters()}).items():
        assert gradient.any(), name
        torch.testing.assert_close(gradient, twin.get_parameter(name).grad, rtol=1e-4, atol=1e-5)
