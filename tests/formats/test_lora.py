"""LoRA: the algebra, who is reached, what is frozen, the adapter file, and fine-tuning through the commands."""

import dataclasses
import json

import pytest
import torch

from formats.adapter import adapter_weights, apply_adapter, base_weights, save_adapter
from formats.checkpoint import ADAPTER, TRAINING, Checkpoint, load_model, read_checkpoint, save_model, write_checkpoint
from helpers import SMALL_NETWORK, assert_one_error_line, tiny_config
from lora import TARGETS, LoRAConfig, adapter_shapes, add_adapters, merge_adapters
from optimizers import make_optimizers
from recipe import parse_flags
from support.command import UserError
from tiny_decoder import KVCache, TinyGPT, next_token_loss
from tokenizer import CharTokenizer

ALL = tuple(TARGETS)
CONFIG = LoRAConfig(rank=3, alpha=6.0, targets=ALL)
TOKENIZER = CharTokenizer.from_text("abcdefghi")  # with the two special tokens: the tiny config's 11
IDS = torch.randint(11, (5, 6), generator=torch.Generator().manual_seed(1))


def fresh(seed: int = 0, **changes) -> TinyGPT:
    torch.manual_seed(seed)
    return TinyGPT(tiny_config(num_layers=2, **changes)).eval()


def trained(config: LoRAConfig = CONFIG, seed: int = 0) -> TinyGPT:
    """A model whose adapters are no longer zero."""
    model = fresh(seed)
    add_adapters(model, config)
    for name, tensor in adapter_weights(model).items():
        torch.manual_seed(len(name))
        tensor.copy_(torch.randn(tensor.shape) / 3)
    return model


# --- The algebra -------------------------------------------------------------------------------------------------


def test_at_step_0_the_model_is_its_base_exactly():
    model, base = fresh(), fresh()
    add_adapters(model, CONFIG)
    assert torch.equal(model(IDS), base(IDS))
    model.train()
    assert torch.equal(model(IDS), base.train()(IDS))


@pytest.mark.parametrize("targets", [ALL, ("qkv",), ("out",), ("up", "down")])
def test_the_weight_is_w_plus_b_a_alpha_over_rank(targets):
    """The oracle: an ordinary model whose matrices were changed by hand."""
    model, by_hand = trained(LoRAConfig(3, 6.0, targets)), fresh()
    adapters = adapter_weights(model)
    with torch.no_grad():
        for name, weight in by_hand.named_parameters():
            if f"{name}.A" in adapters:
                weight += adapters[f"{name}.B"] @ adapters[f"{name}.A"] * (6.0 / 3)
    assert len(adapters) == 2 * 2 * len(targets)
    assert (model(IDS) - fresh()(IDS)).abs().max() > 0.01
    torch.testing.assert_close(model(IDS), by_hand(IDS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_every_path_sees_the_adapters(training, context):
    """Training, evaluation and the cached decode give the same logits."""
    model, merged = trained(), trained()
    merge_adapters(merged)
    model.train(training)
    with context():
        torch.testing.assert_close(model(IDS), merged(IDS), atol=1e-5, rtol=0)
    if context is not torch.enable_grad:  # the cache is for generation
        with context():
            torch.testing.assert_close(model(IDS, KVCache(model, len(IDS))), merged(IDS), atol=1e-5, rtol=0)


def test_merging_leaves_an_ordinary_model():
    model, merged = trained(), trained()
    merge_adapters(merged)
    assert merged.state_dict().keys() == fresh().state_dict().keys() and not adapter_weights(merged)
    assert all(p.requires_grad for p in merged.parameters())
    with torch.inference_mode():
        torch.testing.assert_close(merged(IDS), model(IDS), atol=1e-5, rtol=0)


def test_bfloat16_products_do_not_reach_the_sum():
    model, merged = trained(), trained()
    merge_adapters(merged)
    with torch.autocast("cpu", torch.bfloat16):
        weights = [(m.blocks[0].attention.in_proj_weight, m.blocks[1].mlp.down.weight) for m in (model, merged)]
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(*weights, strict=True))


def test_dropout_drops_whole_inputs_and_only_in_training():
    model = trained(LoRAConfig(3, 6.0, ALL, dropout=0.5))
    base, module = base_weights(model)["blocks.0.mlp.up.weight"], model.blocks[0].mlp.up
    full = module.weight - base
    model.train()
    torch.manual_seed(0)
    columns = ((module.weight - base) / full).mean(dim=0)
    assert all(min(abs(c), abs(c - 2)) < 1e-3 for c in columns.tolist()) and 0 < (columns > 1).sum() < len(columns)


@pytest.mark.slow  # importing peft takes seconds
def test_peft_agrees():
    """The same A and B in the peft library, on the MLP (peft has a way of its own with nn.MultiheadAttention)."""
    peft = pytest.importorskip("peft")
    model = trained(LoRAConfig(3, 6.0, ("up", "down")))
    theirs = peft.get_peft_model(fresh(), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["mlp.up", "mlp.down"]))
    for name, tensor in adapter_weights(model).items():
        place = f"base_model.model.{name.replace('weight.', 'lora_')}.default.weight"
        theirs.get_parameter(place).data.copy_(tensor)
    torch.testing.assert_close(theirs(IDS), model(IDS), atol=1e-6, rtol=0)


# --- Training ----------------------------------------------------------------------------------------------------


def test_every_adapter_receives_gradient_and_the_base_none():
    model = trained().train()
    next_token_loss(model(IDS), IDS).backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert with_gradient == {name for name, _ in model.named_parameters() if name.endswith((".A", ".B"))}
    assert len(with_gradient) == 2 * 4 * 2


def test_training_moves_the_adapters_and_leaves_the_base():
    model = fresh()
    add_adapters(model, CONFIG)
    before = {name: tensor.clone() for name, tensor in base_weights(model).items()}
    flags = ["--steps=60", "--init-from=base.pth", "--lora-rank=3", "--lr=0.02", "--weight-decay=0.5"]
    (optimizer,) = make_optimizers(model, parse_flags(flags)[0])
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups), "adapters start at zero and stay small"
    losses = []
    for _ in range(60):
        loss = next_token_loss(model(IDS[:, :-1]), IDS[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    after = base_weights(model)
    assert after.keys() == before.keys() == fresh().state_dict().keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(tensor.abs().max() > 0 for name, tensor in adapter_weights(model).items() if name.endswith(".B"))


def test_the_shapes_are_those_of_the_adapters():
    for targets in (ALL, ("out", "qkv")):
        config = LoRAConfig(5, 1.0, targets)
        model = trained(config)
        assert adapter_shapes(fresh(), config) == {name: t.shape for name, t in adapter_weights(model).items()}


@pytest.mark.parametrize(
    "changes, flag",
    [
        ({"rank": 0}, "--lora-rank"),
        ({"alpha": 0}, "--lora-alpha"),
        ({"alpha": float("nan")}, "--lora-alpha"),
        ({"targets": ()}, "--lora-targets"),
        ({"targets": ("qkv", "qkv")}, "--lora-targets"),
        ({"targets": ("head",)}, "--lora-targets"),
        ({"targets": ("qkv", [])}, "--lora-targets"),
    ],
)
def test_bad_settings_name_the_flag(changes, flag):
    with pytest.raises(ValueError, match=flag):
        dataclasses.replace(CONFIG, **changes)


def test_a_rank_above_the_width_is_refused():
    model = fresh()
    with pytest.raises(ValueError, match="--lora-rank 9 is larger"):
        add_adapters(model, LoRAConfig(9, 1.0, ALL))
    assert all(p.requires_grad for p in model.parameters())


# --- The adapter file --------------------------------------------------------------------------------------------


@pytest.fixture
def adapter_file(tmp_path):
    save_adapter(tmp_path / "a.pth", trained(), TOKENIZER, CONFIG, {"step": 5})
    return tmp_path / "a.pth"


def test_an_adapter_file_brings_back_the_adapted_model(adapter_file):
    base = Checkpoint(fresh(), TOKENIZER, {})
    assert apply_adapter(base, adapter_file) == {"step": 5}
    assert torch.equal(base.model(IDS), trained()(IDS))


def test_a_base_of_nanogpts_shape_can_be_adapted_and_merged(tmp_path):
    shape = {"bias": False, "tie_embeddings": True}
    base, adapted = fresh(**shape), fresh(**shape)
    add_adapters(adapted, CONFIG)
    for name, tensor in adapter_weights(adapted).items():
        torch.manual_seed(len(name))
        tensor.copy_(torch.randn(tensor.shape))
    save_adapter(tmp_path / "a.pth", adapted, TOKENIZER, CONFIG, {})
    apply_adapter(Checkpoint(base, TOKENIZER, {}), tmp_path / "a.pth")
    expected = adapted(IDS)
    assert torch.equal(base(IDS), expected) and not torch.equal(fresh(**shape)(IDS), expected)
    merge_adapters(base)
    save_model(tmp_path / "merged.pth", base, TOKENIZER, {})
    torch.testing.assert_close(load_model(tmp_path / "merged.pth").model.eval()(IDS), expected, atol=1e-5, rtol=0)


def test_an_adapter_file_is_small(tmp_path):
    model = TinyGPT(tiny_config(embed_dim=128, num_layers=4))
    add_adapters(model, LoRAConfig(8, 16.0, ALL))
    save_adapter(tmp_path / "a.pth", model, TOKENIZER, LoRAConfig(8, 16.0, ALL), {})
    numbers = 4 * 8 * ((128 + 384) + (128 + 128) + (128 + 512) + (512 + 128))  # layers x rank x (in + out)
    assert 4 * numbers < (tmp_path / "a.pth").stat().st_size < 4 * numbers + 32 * 512 + 8192


def test_the_base_is_told_by_its_weights_not_by_its_adapters_or_dropout(adapter_file):
    """The adapter was saved from an adapted model; the same base with another dropout takes it."""
    assert apply_adapter(Checkpoint(fresh(dropout=0.3), TOKENIZER, {}), adapter_file) == {"step": 5}
    changed = fresh()
    changed.head.weight.data[3, 3] += 1e-6
    for base, tokenizer in ((changed, TOKENIZER), (fresh(), CharTokenizer.from_text("abcdefghj"))):
        with pytest.raises(UserError, match="another base"):
            apply_adapter(Checkpoint(base, tokenizer, {}), adapter_file)


def test_wrong_bases_ranks_and_keys_are_refused_and_the_base_stays(adapter_file):
    header, tensors = read_checkpoint(adapter_file, ADAPTER)

    def refuse(words, base=None, tensors=tensors, **changes):
        write_checkpoint(adapter_file, {**header, **changes}, tensors)
        base = base or Checkpoint(fresh(), TOKENIZER, {})
        before = base.model(IDS)
        with pytest.raises(UserError, match=words):
            apply_adapter(base, adapter_file)
        assert torch.equal(base.model(IDS), before) and base.model.state_dict().keys() == fresh().state_dict().keys()

    config = header["config"]
    refuse("another base", Checkpoint(fresh(seed=1), TOKENIZER, {}))
    refuse(r"expected \(4, 8\)", config={**config, "rank": 4})
    refuse("larger than the matrices", config={**config, "rank": 4000})
    refuse("cannot be used", config={"rank": 3})
    refuse("--lora-targets", config={**config, "targets": ["head"]})
    refuse("is missing", tensors=dict(list(tensors.items())[1:]))
    refuse("unexpected tensor", tensors={**tensors, "blocks.9.mlp.up.weight.A": torch.zeros(3, 8)})
    save_model(adapter_file, fresh(), TOKENIZER, {})
    with pytest.raises(UserError, match="is of kind 'model', and one of kind 'adapter' is needed"):
        apply_adapter(Checkpoint(fresh(), TOKENIZER, {}), adapter_file)
    with pytest.raises(UserError, match="no such file"):
        apply_adapter(Checkpoint(fresh(), TOKENIZER, {}), adapter_file.with_name("none.pth"))


def test_an_adapter_is_no_model(adapter_file):
    with pytest.raises(UserError, match="is of kind 'adapter', and one of kind 'model' is needed: name its base"):
        load_model(adapter_file)


# --- Through the commands ----------------------------------------------------------------------------------------

FIRST = "the king sleeps in the tower. the queen waits by the gate.\n" * 60
SECOND = "a fox ate a hen, a hen ate a bee, a bee ate a fig.\n" * 60


@pytest.fixture
def run(in_process, tmp_path):
    """Commands in a folder with a base model, base.pth, and a second text."""
    (tmp_path / "first.txt").write_text(SECOND[:51] * 2 + FIRST, encoding="utf-8")
    (tmp_path / "second.txt").write_text(SECOND, encoding="utf-8")

    def run(*arguments, code=0):
        got, out, err = in_process(*arguments)
        assert got == code, err
        return err if code else out

    run("main.py", *SMALL_NETWORK, "--data", "first.txt", "--steps", "20", "--out", "base.pth")
    return run


def losses(tmp_path, name):
    return [json.loads(line)["val_loss"] for line in (tmp_path / f"{name}.metrics.jsonl").read_text().splitlines()]


def test_fine_tune_sample_and_merge(run, tmp_path):
    base_bytes = (tmp_path / "base.pth").read_bytes()
    tuning = ["--init-from", "base.pth", "--data", "second.txt", "--batch-size", "4", "--steps", "40"]
    adapters = [*tuning, "--lora-rank", "4", "--ema-decay", "0.5", "--eval-every", "10"]
    out = run("main.py", *adapters, "--out", "lora.pth")
    assert "generate.py --checkpoint base.pth --lora lora.pth" in out
    assert "adapter  rank 4" in out and "0.00% of the characters" in out
    assert losses(tmp_path, "lora")[-1] < losses(tmp_path, "lora")[0]
    assert (tmp_path / "base.pth").read_bytes() == base_bytes
    assert (tmp_path / "lora.pth").stat().st_size < len(base_bytes)

    # Stopped and resumed, a run trains to the same adapters, without its base.
    run("main.py", *adapters, "--out", "again.pth", "--stop-at", "13")
    (tmp_path / "base.pth").rename(tmp_path / "elsewhere.pth")
    run("main.py", "--resume", "--out", "again.pth")
    (tmp_path / "elsewhere.pth").rename(tmp_path / "base.pth")
    one, other = (load_adapted(tmp_path, name) for name in ("lora.pth", "again.pth"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    # Sampled with its adapter or merged, the model writes the same.
    run("convert.py", "base.pth", "merged.pth", "--lora", "lora.pth")
    ids = torch.arange(8)[None]
    merged = load_model(tmp_path / "merged.pth").model.eval()
    torch.testing.assert_close(merged(ids), one.eval()(ids), atol=1e-5, rtol=0)
    sampling = ["--prompt", "a fox", "--max-new-tokens", "40", "--seed", "1", "--temperature", "0"]
    with_adapter = run("generate.py", "--checkpoint", "base.pth", "--lora", "lora.pth", *sampling)
    assert with_adapter == run("generate.py", "--checkpoint", "merged.pth", *sampling)
    assert with_adapter != run("generate.py", "--checkpoint", "base.pth", *sampling)

    # Full fine-tuning is the same command without --lora-rank.
    run("main.py", *tuning, "--eval-every", "20", "--out", "full.pth")
    assert losses(tmp_path, "full")[-1] < losses(tmp_path, "full")[0]
    load_model(tmp_path / "full.pth")

    # The wrong base changes nothing.
    err = run("convert.py", "full.pth", "bad.pth", "--lora", "lora.pth", code=2)
    assert_one_error_line(err, "lora.pth is for another base")
    assert not (tmp_path / "bad.pth").exists()
    assert_one_error_line(run("generate.py", "--checkpoint", "full.pth", "--lora", "lora.pth", code=2), "another base")


def load_adapted(folder, name):
    base = load_model(folder / "base.pth")
    apply_adapter(base, folder / name)
    return base.model


def test_what_fine_tuning_refuses(run, tmp_path):
    tuning = ["--init-from", "base.pth", "--data", "second.txt", "--steps", "1", "--out", "x.pth"]
    assert_one_error_line(run("main.py", *tuning, "--embed-dim", "48", code=2), "--embed-dim 48", "base.pth (16)")
    assert_one_error_line(run("main.py", *tuning, "--tokenizer", "t.json", code=2), "--tokenizer")
    assert_one_error_line(run("main.py", *tuning, "--lora-rank", "17", code=2), "--lora-rank 17")
    assert_one_error_line(run("main.py", *tuning, "--lora-rank", "2", "--lora-targets", "q", code=2), "--lora-targets")
    assert_one_error_line(run("main.py", "--data", "second.txt", "--lora-rank", "2", code=2), "--init-from")
    (tmp_path / "second.txt").write_text(SECOND + "ÄÖÜ" * 30, encoding="utf-8")
    assert_one_error_line(run("main.py", *tuning, code=2), "2.9% of the characters", "byte-level BPE")
    assert not (tmp_path / "x.pth").exists()
    (tmp_path / "second.txt").write_text(SECOND + "ÄÖÜ" * 3, encoding="utf-8")
    assert "0.29% of the characters" in run("main.py", *tuning, "--batch-size", "4")


def test_a_training_state_without_its_adapters_is_refused(run, tmp_path):
    flags = ["--init-from", "base.pth", "--data", "second.txt", "--batch-size", "4", "--lora-rank", "2"]
    run("main.py", *flags, "--steps", "4", "--stop-at", "2", "--out", "x.pth")
    header, tensors = read_checkpoint(tmp_path / "x.last.pth", TRAINING)
    (tmp_path / "x.pth").unlink(missing_ok=True)
    (tmp_path / "x.previous.pth").unlink(missing_ok=True)
    adapter = {name: tensor for name, tensor in tensors.items() if name.startswith("adapter/")}
    rest = {name: tensor for name, tensor in tensors.items() if name not in adapter}
    assert len(adapter) == 8
    for damaged, words in (
        ({}, "is missing"),
        (dict(list(adapter.items())[1:]), "is missing"),
        (adapter | {"adapter/blocks.0.mlp.up.weight.B": torch.zeros(64, 3)}, "expected (64, 2)"),
        (adapter | {"adapter/blocks.3.mlp.up.weight.B": torch.zeros(64, 2)}, "unexpected tensor"),
    ):
        write_checkpoint(tmp_path / "x.last.pth", header, {**rest, **damaged})
        assert_one_error_line(run("main.py", "--resume", "--out", "x.pth", code=2), "x.last.pth", words)
    write_checkpoint(tmp_path / "x.last.pth", header, tensors)
    run("main.py", "--resume", "--out", "x.pth")
