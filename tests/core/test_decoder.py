"""The network: the mask, shapes and errors, the loss, learning, and GPT-2 as an independent oracle."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.peers import gpt2_twin
from helpers import tiny_config
from tiny_decoder import CausalSelfAttention, TinyGPT, TinyGPTConfig, causal_mask, next_token_loss, sinusoids


def random_ids(model: TinyGPT, batch: int, time: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(model.config.vocab_size, (batch, time), generator=generator)


def test_mask_values():
    expected = [[0, -math.inf, -math.inf], [0, 0, -math.inf], [0, 0, 0]]
    assert torch.equal(causal_mask(3), torch.tensor(expected))
    assert TinyGPT(tiny_config()).causal_mask.shape == (6, 6)


def test_mask_is_a_buffer_but_not_in_checkpoints(tiny_model):
    assert "causal_mask" in dict(tiny_model.named_buffers())
    assert "causal_mask" not in tiny_model.state_dict()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_a_later_token_changes_no_earlier_logit(tiny_model, training, grad):
    """In training and in evaluation, with and without gradients."""
    tiny_model.train(training)
    with torch.set_grad_enabled(grad):
        ids = random_ids(tiny_model, 2, 6)
        before = tiny_model(ids)
        for t in range(5):
            changed = ids.clone()
            changed[:, t + 1 :] = (ids[:, t + 1 :] + 1) % tiny_model.config.vocab_size
            after = tiny_model(changed)
            torch.testing.assert_close(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=1e-6)
            assert not torch.allclose(after[:, t + 1], before[:, t + 1])


def test_no_gradient_flows_from_a_logit_to_a_later_position(tiny_model):
    embedded = []
    tiny_model.dropout.register_forward_hook(lambda module, args, output: embedded.append(output.requires_grad_()))
    logits = tiny_model(random_ids(tiny_model, 1, 6))
    for t in range(6):
        (gradient,) = torch.autograd.grad(logits[0, t].sum(), embedded[0], retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached.tolist() == [True] * (t + 1) + [False] * (5 - t)


def test_boolean_masks_mean_the_opposite_of_tril():
    """The gotcha that makes the mask additive: to nn.MultiheadAttention a boolean True means "may NOT look"."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(1, 4, 8)
    may_look = torch.tril(torch.ones(4, 4)).bool()
    additive, _ = attention(x, x, x, attn_mask=causal_mask(4))
    inverted, _ = attention(x, x, x, attn_mask=~may_look)
    _, weights = attention(x, x, x, attn_mask=may_look)
    torch.testing.assert_close(additive, inverted)
    assert torch.isnan(weights[0, -1]).all(), "tril itself as a mask blocks all that the last position may see"


def random_attention(**options) -> CausalSelfAttention:
    torch.manual_seed(0)
    attention = CausalSelfAttention(8, 2, batch_first=True, **options)
    if attention.in_proj_bias is not None:
        nn.init.normal_(attention.in_proj_bias)
    return attention


@pytest.mark.parametrize("time", [1, 7, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_is_that_of_its_parent(time, bias):
    """nn.MultiheadAttention's own forward is the oracle."""
    attention = random_attention(bias=bias)
    x, mask = torch.randn(2, time, 8), causal_mask(time)
    expected, _ = nn.MultiheadAttention.forward(attention, x, x, x, attn_mask=mask)
    torch.testing.assert_close(attention(x, mask), expected)
    assert attention.state_dict().keys() == nn.MultiheadAttention(8, 2, bias=bias).state_dict().keys()


@pytest.mark.parametrize("time", [1, 7, 512, 513])
def test_attention_in_bfloat16_is_close_to_its_parent_in_float32(time):
    """Up to 512 tokens by the products written out, beyond by the fused kernel."""
    attention = random_attention()
    x, mask = torch.randn(2, time, 8), causal_mask(time)
    expected, _ = nn.MultiheadAttention.forward(attention, x, x, x, attn_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention(x, mask)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("time", [1, 7, 40])
def test_the_products_written_out_are_the_fused_kernel(time):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, time, 4)
    found = random_attention().attend(q, k, v, causal_mask(time))
    torch.testing.assert_close(found, scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_weights_are_dropped_in_training_only(dtype):
    """With values of 1 a result is the sum of the weights that were kept: 1 in all, or, dropped, not always 1."""
    attention = random_attention(dropout=0.5)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        attention.in_proj_weight[16:], attention.in_proj_bias[16:] = 0, 1
        attention.out_proj.weight.copy_(torch.eye(8))
        x, mask = torch.randn(1, 256, 8), causal_mask(256)
        sums = attention(x, mask)[0].float().view(256, 2, 4)  # a head's four results are the same sum
        torch.testing.assert_close(sums, sums[:, :, :1].expand_as(sums))
        assert set(sums[0].unique().tolist()) <= {0.0, 2.0}, "the first token's only weight is dropped or doubled"
        assert sums.std() > 0.01 and sums[64:].mean().item() == pytest.approx(1, abs=0.05)
        torch.testing.assert_close(attention.eval()(x, mask).float(), torch.ones(1, 256, 8), rtol=0, atol=0.01)


@pytest.mark.parametrize("time", [1, 2, 5, 6])
def test_logits_are_finite_and_shaped(tiny_model, time):
    logits = tiny_model(random_ids(tiny_model, 3, time))
    assert logits.shape == (3, time, 11) and torch.isfinite(logits).all()


def test_gradients_are_finite(tiny_model):
    ids = random_ids(tiny_model, 3, 6)
    next_token_loss(tiny_model.train()(ids), ids).backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in tiny_model.parameters())


@pytest.mark.parametrize(
    "ids, words",
    [
        (torch.zeros(1, 7, dtype=torch.long), "7 tokens do not fit into max_seq 6"),
        (torch.zeros(1, 0, dtype=torch.long), "neither of them 0"),
        (torch.zeros(0, 3, dtype=torch.long), "neither of them 0"),
        (torch.zeros(3, dtype=torch.long), "shape"),
    ],
)
def test_ids_of_a_wrong_shape_are_refused(tiny_model, ids, words):
    with pytest.raises(ValueError, match=words):
        tiny_model(ids)


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


def test_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().max_seq = 7


@pytest.mark.parametrize("init", ["normal", "sinusoid"])
@pytest.mark.parametrize("vocab_size, embed_dim", [(67, 32), (67, 256), (1000, 64)])
def test_first_loss_is_that_of_guessing(vocab_size, embed_dim, init):
    torch.manual_seed(0)
    model = TinyGPT(TinyGPTConfig(vocab_size, max_seq=32, embed_dim=embed_dim, num_heads=4, num_layers=4), init)
    ids = random_ids(model, 8, 33)
    loss = next_token_loss(model(ids[:, :-1]), ids[:, 1:])
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=0.03)


def test_loss_flattens_batch_and_time():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    by_hand = -torch.stack([logits[b, t].log_softmax(-1)[targets[b, t]] for b in range(2) for t in range(3)]).mean()
    torch.testing.assert_close(next_token_loss(logits, targets), by_hand)
    with pytest.raises(ValueError, match="do not match"):
        next_token_loss(logits, targets[:, :2])


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_a_model_for_a_loader_has_empty_embeddings(tie_embeddings):
    model = TinyGPT(tiny_config(tie_embeddings=tie_embeddings), init=None)
    assert not model.token_embedding.weight.any() and not model.position_embedding.weight.any()
    with pytest.raises(ValueError, match="init"):
        TinyGPT(tiny_config(), init="zeros")


def test_the_other_first_weights_are_sinusoids_and_xavier():
    """Glorot & Bengio's bound is sqrt(6 / (fan_in + fan_out)); q, k and v count as three square matrices."""
    torch.manual_seed(0)
    model = TinyGPT(TinyGPTConfig(11, max_seq=8, embed_dim=64, num_heads=2, num_layers=1), "sinusoid")
    assert torch.equal(model.position_embedding.weight, 0.1 * sinusoids(8, 64))
    block = model.blocks[0]
    assert block.attention.in_proj_weight.abs().max().item() == pytest.approx(math.sqrt(6 / 128), rel=0.01)
    assert block.mlp.up.weight.abs().max().item() == pytest.approx(math.sqrt(6 / 320), rel=0.01)
    assert not block.attention.in_proj_bias.any() and not block.attention.out_proj.bias.any()


def test_gpt2_initial_weights():
    """N(0, 0.02²), and the ends of the 2 x 8 branches by 1 / sqrt(16) less; biases and norms as ever."""
    torch.manual_seed(0)
    model = TinyGPT(TinyGPTConfig(100, max_seq=100, embed_dim=64, num_heads=2, num_layers=8))
    matrices = {name: p.std().item() for name, p in model.named_parameters() if p.ndim == 2}
    shrunk = {name for name, std in matrices.items() if std == pytest.approx(0.005, rel=0.05)}
    assert all(std == pytest.approx(0.02, rel=0.05) for name, std in matrices.items() if name not in shrunk)
    assert shrunk == {f"blocks.{i}.{end}.weight" for i in range(8) for end in ("attention.out_proj", "mlp.down")}
    assert all((p == ("norm.weight" in name)).all() for name, p in model.named_parameters() if p.ndim == 1)


@pytest.mark.parametrize("max_seq, embed_dim", [(256, 64), (64, 7), (1, 1)])
def test_positions_start_as_sinusoids(max_seq, embed_dim):
    rows = sinusoids(max_seq, embed_dim)
    assert rows.shape == (max_seq, embed_dim)
    if embed_dim == 64:
        assert rows.square().mean().item() == pytest.approx(1, rel=0.01)
        alike = rows @ rows.T / embed_dim
        assert (alike - alike.diag().diag()).max() < alike.diag().min(), "no two positions look alike"
        assert alike[10, 11] > alike[10, 30], "neighbours look more alike than strangers"


def test_one_batch_can_be_learned_by_heart(tiny_model):
    ids = random_ids(tiny_model, 4, 7)
    optimizer = torch.optim.AdamW(tiny_model.train().parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = next_token_loss(tiny_model(ids[:, :-1]), ids[:, 1:])
        loss.backward()
        optimizer.step()
    # The first target of a row depends on one token only, so rows that share it cannot all be certain.
    assert loss.item() < 0.2


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = TinyGPT(tiny_config(dropout=0.5))
    ids = random_ids(model, 2, 6)
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


SHAPES = {
    "ours": {},
    "GPT-2": {"gelu": "tanh", "tie_embeddings": True},
    "nanoGPT": {"bias": False, "tie_embeddings": True},
    "another": {"gelu": "tanh", "bias": False},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_same_logits_as_gpt2(shape):
    """Every parameter is random; biases that a model does not have are 0 in its twin."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = TinyGPTConfig(vocab_size=50, max_seq=16, embed_dim=32, num_heads=4, num_layers=3, **SHAPES[shape])
    model = TinyGPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
        ids = random_ids(model, 2, 16)
        torch.testing.assert_close(model(ids), gpt2_twin(model)(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_gpt2(shape):
    """The embeddings' too: a tied weight gets the sum of what it does in both places."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = TinyGPT(tiny_config(**SHAPES[shape]))
    ids = random_ids(model, 3, 6)
    twin = gpt2_twin(model)
    next_token_loss(model(ids[:, :-1]), ids[:, 1:]).backward()
    next_token_loss(twin(ids[:, :-1]).logits, ids[:, 1:]).backward()
    for ours, theirs in ((model.token_embedding, twin.transformer.wte), (model.head, twin.lm_head)):
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-6)
    packed = model.blocks[0].attention.in_proj_weight.grad
    torch.testing.assert_close(packed, twin.transformer.h[0].attn.c_attn.weight.grad.T, rtol=1e-4, atol=1e-6)


def test_shapes_hold_the_parameters_that_they_say():
    """Counted by hand for V 11, T 6, C 8, one layer: 12 C^2 matrices; biases 9 C; norms 3 x C, twice with biases."""
    matrices, biases, norms, tables = 12 * 64, 9 * 8, 3 * 8, (11 + 6) * 8
    for changes, expected in (
        ({}, tables + 11 * 8 + matrices + biases + 2 * norms),
        ({"bias": False}, tables + 11 * 8 + matrices + norms),
        ({"tie_embeddings": True}, tables + matrices + biases + 2 * norms),
    ):
        model = TinyGPT(tiny_config(**changes))
        assert model.num_parameters() == expected and model.head.bias is None
