"""LoRA: the algebra, who is reached, what is frozen, the adapter file, and fine-tuning through the commands."""

import dataclasses

import pytest
import torch

from formats.adapter import adapter_weights, apply_adapter, base_weights, save_adapter
from formats.checkpoint import Checkpoint, load_model, model_digest, read_checkpoint, save_model, write_checkpoint
from formats.growth import get_rows, grow_model, grown_tokenizer, own_rows, set_rows, train_rows
from helpers import SMALL_NETWORK, assert_one_error_line, random_ids, read_metrics, shaken, tiny_config, written
from lora import TARGETS, LoRAConfig, add_adapters, merge_adapters
from optimizers import make_optimizers
from recipe import parse_flags
from support.command import UserError
from tiny_decoder import KVCache, TinyGPT, next_token_loss
from tokenizer import BOS, BPETokenizer, CharTokenizer

CONFIG = LoRAConfig(rank=3, alpha=6.0, targets=tuple(TARGETS))
TOKENIZER = CharTokenizer.from_text("abcdefghi")  # with the two special tokens: the tiny config's 11
IDS = random_ids(5, 6, seed=1)
NANOGPT = {"bias": False, "tie_embeddings": True}


def fresh(**changes) -> TinyGPT:
    torch.manual_seed(0)
    return TinyGPT(tiny_config(num_layers=2, **changes)).eval()


def adapted(config: LoRAConfig = CONFIG, **changes) -> TinyGPT:
    """A model whose adapters are no longer zero."""
    model = fresh(**changes)
    add_adapters(model, config)
    for number, tensor in enumerate(adapter_weights(model).values()):
        tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)) / 3)
    return model


# --- The algebra -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_at_step_0_the_model_is_its_base_exactly(training):
    model, base = fresh().train(training), fresh().train(training)
    add_adapters(model, CONFIG)
    assert torch.equal(model(IDS), base(IDS))


@pytest.mark.parametrize("targets", [tuple(TARGETS), ("qkv",), ("out",), ("up", "down")])
def test_the_weight_is_w_plus_b_a_alpha_over_rank(targets):
    """The oracle: an ordinary model whose matrices were changed by hand."""
    config = LoRAConfig(3, 6.0, targets)
    model, by_hand = adapted(config), fresh()
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
def test_every_path_sees_the_adapters_and_merging_leaves_an_ordinary_model(training, context):
    """Training, evaluation and the cached decode give the same logits."""
    model, merged = adapted().train(training), adapted()
    merge_adapters(merged)
    assert merged.state_dict().keys() == fresh().state_dict().keys() and not adapter_weights(merged)
    assert all(p.requires_grad for p in merged.parameters())
    with context():
        torch.testing.assert_close(model(IDS), merged(IDS), atol=1e-5, rtol=0)
        if context is not torch.enable_grad:  # the cache is for generation
            torch.testing.assert_close(model(IDS, KVCache(model, len(IDS))), merged(IDS), atol=1e-5, rtol=0)


def test_bfloat16_products_do_not_reach_the_sum():
    model, merged = adapted(), adapted()
    merge_adapters(merged)
    with torch.autocast("cpu", torch.bfloat16):
        weights = [(m.blocks[0].attention.in_proj_weight, m.blocks[1].mlp.down.weight) for m in (model, merged)]
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(*weights, strict=True))


def test_dropout_drops_whole_inputs_and_only_in_training():
    model = adapted(dataclasses.replace(CONFIG, dropout=0.5))
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
    model = adapted(LoRAConfig(3, 6.0, ("up", "down")))
    theirs = peft.get_peft_model(fresh(), peft.LoraConfig(r=3, lora_alpha=6, target_modules=["mlp.up", "mlp.down"]))
    for name, tensor in adapter_weights(model).items():
        name = f"base_model.model.{name.replace('weight.', 'lora_')}.default.weight"
        theirs.get_parameter(name).data.copy_(tensor)
    torch.testing.assert_close(theirs(IDS), model(IDS), atol=1e-6, rtol=0)


def test_training_moves_every_adapter_and_leaves_the_base():
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
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {name for name, _ in model.named_parameters() if name.endswith((".A", ".B"))}
    assert len(moved) == 2 * 4 * 2


# --- The adapter file --------------------------------------------------------------------------------------------


def test_a_wrong_base_or_file_is_refused(tmp_path):
    save_adapter(tmp_path / "a.pth", adapted(), TOKENIZER, CONFIG, {})
    save_model(tmp_path / "model.pth", fresh(), TOKENIZER, {})
    header, tensors = read_checkpoint(tmp_path / "a.pth", "adapter")
    write_checkpoint(tmp_path / "cut.pth", header, dict(list(tensors.items())[1:]))
    another, other_words = shaken(fresh(), scale=1e-6), CharTokenizer.from_text("abcdefghj")
    for base, tokenizer, name, words in (
        (another, TOKENIZER, "a.pth", "another base"),
        (fresh(), other_words, "a.pth", "another base"),
        (fresh(), TOKENIZER, "cut.pth", "is missing"),
        (fresh(), TOKENIZER, "model.pth", "kind"),
        (fresh(), TOKENIZER, "none.pth", "no such file"),
    ):
        with pytest.raises(UserError, match=words):
            apply_adapter(Checkpoint(base, tokenizer, {}), tmp_path / name)
    with pytest.raises(UserError, match="beside its base"):
        load_model(tmp_path / "a.pth")


# --- Through the commands ----------------------------------------------------------------------------------------

FIRST = "the king sleeps in the tower. the queen waits by the gate.\n" * 60
SECOND = "a fox ate a hen, a hen ate a bee, a bee ate a fig.\n" * 60
TUNING = ["--init-from", "base.pth", "--data", "second.txt", "--batch-size", 4]


@pytest.fixture
def run(output_of, tmp_path):
    """Commands in a folder with a base model, base.pth, and a second text."""
    written(tmp_path / "first.txt", SECOND[:51] * 2 + FIRST)
    written(tmp_path / "second.txt", SECOND)
    output_of("main.py", *SMALL_NETWORK, "--data", "first.txt", "--steps", 20, "--out", "base.pth")
    return output_of


def load_adapted(folder, name) -> TinyGPT:
    base = load_model(folder / "base.pth")
    apply_adapter(base, folder / name)
    return base.model.eval()


def test_fine_tune_sample_and_merge(run, tmp_path):
    base_bytes = (tmp_path / "base.pth").read_bytes()
    adapters = [*TUNING, "--steps", 40, "--lora-rank", 4, "--ema-decay", 0.5, "--eval-every", 10]
    out = run("main.py", *adapters, "--out", "lora.pth")
    assert "generate.py --checkpoint base.pth --lora lora.pth" in out and "0 new characters" in out
    assert (tmp_path / "base.pth").read_bytes() == base_bytes
    assert (tmp_path / "lora.pth").stat().st_size < len(base_bytes)

    # Stopped and resumed, a run trains to the same adapters, without its base.
    run("main.py", *adapters, "--out", "again.pth", "--stop-at", 13)
    (tmp_path / "base.pth").rename(tmp_path / "elsewhere.pth")
    run("main.py", "--resume", "--out", "again.pth")
    (tmp_path / "elsewhere.pth").rename(tmp_path / "base.pth")
    one, other = (load_adapted(tmp_path, name) for name in ("lora.pth", "again.pth"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    # Sampled with its adapter or merged, the model writes the same.
    run("convert.py", "base.pth", "merged.pth", "--lora", "lora.pth")
    merged, ids = load_model(tmp_path / "merged.pth").model.eval(), torch.arange(8)[None]
    torch.testing.assert_close(merged(ids), one(ids), atol=1e-5, rtol=0)
    sampling = ["--prompt", "a fox", "--max-new-tokens", 40, "--seed", 1, "--temperature", 0]
    with_adapter = run("generate.py", "--checkpoint", "base.pth", "--lora", "lora.pth", *sampling)
    assert with_adapter == run("generate.py", "--checkpoint", "merged.pth", *sampling)
    assert with_adapter != run("generate.py", "--checkpoint", "base.pth", *sampling)

    # Full fine-tuning is the same command without --lora-rank; its model is not the adapter's base.
    run("main.py", *TUNING, "--steps", 40, "--eval-every", 20, "--out", "full.pth")
    for name in ("lora", "full"):
        losses = [line["val_loss"] for line in read_metrics(tmp_path / f"{name}.metrics.jsonl")]
        assert losses[-1] < losses[0]
    for wrong in (["convert.py", "full.pth", "bad.pth"], ["generate.py", "--checkpoint", "full.pth"]):
        assert_one_error_line(run(*wrong, "--lora", "lora.pth", code=2), "lora.pth is for another base")
    assert not (tmp_path / "bad.pth").exists()


@pytest.mark.parametrize("flags", [[], ["--lora-rank", 2]])
def test_a_fine_tuning_that_makes_the_base_worse_keeps_the_base(run, tmp_path, flags):
    """The base was not evaluated, and a worse model was announced as the best."""
    output = run("main.py", *TUNING, *flags, "--lr", 30, "--steps", 1, "--out", "x.pth")
    assert "no gain over the base" in output and output.count(" *") == 1
    base, kept = load_model(tmp_path / "base.pth"), load_model(tmp_path / ("base.pth" if flags else "x.pth"))
    if flags:
        apply_adapter(kept, tmp_path / "x.pth")
    torch.testing.assert_close(kept.model.eval()(IDS), base.model.eval()(IDS))


def test_what_fine_tuning_refuses(run, tmp_path):
    tuning = ["main.py", *TUNING, "--steps", 1, "--out", "x.pth"]
    for flags, words in (
        (["--embed-dim", 48], ["--embed-dim 48", "base.pth (16)"]),
        (["--tokenizer", "t.json"], ["--tokenizer"]),
        (["--lora-rank", 17], ["--lora-rank 17"]),
        (["--lora-rank", 2, "--lora-targets", "q"], ["--lora-targets"]),
    ):
        assert_one_error_line(run(*tuning, *flags, code=2), *words)
    assert_one_error_line(run("main.py", "--data", "second.txt", "--lora-rank", 2, code=2), "--init-from")
    assert not (tmp_path / "x.pth").exists()


# --- A text with new characters --------------------------------------------------------------------------------------


def grown(new: str = "ÄÖ三", start: str = BOS, **changes) -> tuple[TinyGPT, CharTokenizer]:
    """An adapted model that knows more characters than its base, its rows moved away from their initial values."""
    model, tokenizer = adapted(**changes), grown_tokenizer(TOKENIZER, new, start)
    grow_model(model, len(new), special=2)
    rows = own_rows(tokenizer, len(new))
    shake = torch.Generator().manual_seed(7)
    moved = {name: t + torch.randn(t.shape, generator=shake) / 3 for name, t in get_rows(model, rows).items()}
    set_rows(model, rows, moved)
    return model, tokenizer


@pytest.mark.parametrize("shape", [{}, NANOGPT])
def test_a_grown_model_computes_what_its_base_does_and_begins_new_rows_with_the_mean(shape):
    base, model = fresh(**shape), fresh(**shape)
    grow_model(model, 3, special=2)
    assert model.config.vocab_size == 14 and model(IDS).shape[-1] == 14 and model.head.weight.shape == (14, 8)
    torch.testing.assert_close(model(IDS)[..., :11], base(IDS), atol=1e-6, rtol=0)
    for table, old in ((model.token_embedding, base.token_embedding), (model.head, base.head)):
        assert torch.equal(table.weight[:11], old.weight)
        torch.testing.assert_close(table.weight[11:], table.weight[2:11].mean(0).expand(3, -1))
    assert (model.head.weight is model.token_embedding.weight) == bool(shape)


@pytest.mark.parametrize("shape", [{}, NANOGPT])
@pytest.mark.parametrize(("new", "start"), [("ÄÖ三", "a"), ("ÄÖ三", BOS), ("", BOS)])
def test_an_adapter_file_brings_back_the_adapted_model_with_its_characters(tmp_path, shape, new, start):
    """The base is told by its weights before it grew, not by its dropout; merged and saved it stays the same model."""
    model, tokenizer = grown(new, start, **shape)
    digest = model_digest(fresh(**shape).config, TOKENIZER, base_weights(fresh(**shape)))
    save_adapter(tmp_path / "a.pth", model, tokenizer, CONFIG, {"step": 5}, digest, len(new))
    base, ids = Checkpoint(fresh(**shape, dropout=0.3), TOKENIZER, {}), random_ids(5, 6, vocab_size=11 + len(new))
    assert apply_adapter(base, tmp_path / "a.pth") == {"step": 5}
    assert base.tokenizer.to_plain() == tokenizer.to_plain() and base.tokenizer.start == start
    assert torch.equal(base.model(ids), model(ids))
    merge_adapters(base.model)
    save_model(tmp_path / "merged.pth", base.model, tokenizer, {})
    torch.testing.assert_close(load_model(tmp_path / "merged.pth").model.eval()(ids), model(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("field", "value"), [("characters", "ÄÄÖ"), ("characters", "aÖ三"), ("start", "?"), ("start", 3), ("start", "xy")]
)
def test_an_adapter_whose_characters_do_not_fit_is_refused(tmp_path, field, value):
    model, tokenizer = grown()
    save_adapter(tmp_path / "a.pth", model, tokenizer, CONFIG, {}, model_digest(fresh().config, TOKENIZER, {}), 3)
    header, tensors = read_checkpoint(tmp_path / "a.pth", "adapter")
    header["base"] = model_digest(fresh().config, TOKENIZER, base_weights(fresh()))
    write_checkpoint(tmp_path / "a.pth", header | {field: value}, tensors)
    base = Checkpoint(fresh(), TOKENIZER, {})
    with pytest.raises(UserError, match="cannot be used"):
        apply_adapter(base, tmp_path / "a.pth")
    assert torch.equal(base.model(IDS), fresh()(IDS)) and base.tokenizer is TOKENIZER


def test_characters_for_a_byte_level_base_are_refused(tmp_path):
    base = Checkpoint(fresh(vocab_size=257), BPETokenizer.train(["ab"], 257), {})
    save_adapter(tmp_path / "a.pth", adapted(vocab_size=257), base.tokenizer, CONFIG, {})
    header, tensors = read_checkpoint(tmp_path / "a.pth", "adapter")
    write_checkpoint(tmp_path / "a.pth", header | {"characters": "abc"}, tensors)
    with pytest.raises(UserError, match="cannot be used"):
        apply_adapter(base, tmp_path / "a.pth")


def test_under_adapters_only_new_rows_and_special_ones_are_trained():
    model, tokenizer = grown()
    rows = own_rows(tokenizer, 3)
    assert rows == [0, 1, 11, 12, 13]
    train_rows(model, rows)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    (optimizer,) = make_optimizers(model, parse_flags(["--steps=9", "--init-from=base.pth", "--lora-rank=3"])[0])
    ids = random_ids(5, 6, vocab_size=14)
    for _ in range(3):
        next_token_loss(model(ids[:, :-1]), ids[:, 1:]).backward()
        optimizer.step()
    for name in ("token_embedding.weight", "head.weight"):
        changed = (model.get_parameter(name) != before[name]).any(dim=1)
        assert changed[11:].any() and not changed[2:11].any()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if ".original" in name)


@pytest.mark.parametrize("flags", [[], ["--lora-rank", 2]])
def test_fine_tuning_takes_a_text_with_new_characters(run, tmp_path, flags):
    """It was refused if more than 1% were new. Stopped and resumed the model is the same, and it writes them."""
    written(tmp_path / "second.txt", "süß ist der Kuß\nÄÖÜ\n" * 200)
    tuning = ["main.py", *TUNING, "--documents", "lines", "--steps", 30, "--eval-every", 30, "--lr", 0.02, *flags]
    assert "new characters: KdÄÖÜßü" in run(*tuning, "--out", "x.pth")
    run(*tuning, "--stop-at", 7, "--out", "y.pth")
    run("main.py", "--resume", "--out", "y.pth")
    one, other = (read_checkpoint(tmp_path / name)[1] for name in ("x.pth", "y.pth"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    model = ["--checkpoint", "base.pth", "--lora", "x.pth"] if flags else ["--checkpoint", "x.pth"]
    texts = run("generate.py", *model, "--num-samples", 9, "--seed", 1, "--max-new-tokens", 30)
    assert set("üÄß") & set(texts)


def test_a_training_state_without_its_adapters_is_refused(run, tmp_path):
    run("main.py", *TUNING, "--lora-rank", 2, "--steps", 4, "--stop-at", 2, "--out", "x.pth")
    state, matrix = tmp_path / "x.last.pth", "adapter/blocks.0.mlp.up.weight.B"
    header, tensors = read_checkpoint(state, "training")
    for damaged, words in (
        ({name: tensor for name, tensor in tensors.items() if name != matrix}, "is missing"),
        (tensors | {matrix: torch.zeros(64, 3)}, "expected (64, 2)"),
        (tensors | {matrix.replace("0", "3"): torch.zeros(64, 2)}, "unexpected tensor"),
    ):
        write_checkpoint(state, header, damaged)
        assert_one_error_line(run("main.py", "--resume", "--out", "x.pth", code=2), "x.last.pth", words)
    write_checkpoint(state, header, tensors)
    run("main.py", "--resume", "--out", "x.pth")
