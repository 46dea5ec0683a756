"""Hugging Face folders, against transformers, tokenizers and CTranslate2 themselves."""

import dataclasses
import itertools
import json
import re
import struct
from pathlib import Path

import pytest
import torch

from corpora.tokenizer_files import bpe_to_json
from formats.checkpoint import Checkpoint
from formats.huggingface import load_huggingface, save_huggingface
from helpers import new_run, sampled_ids, shaken, written
from sampling.text_stream import suppressed
from support.command import UserError
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import BOS, END_OF_TEXT, BPETokenizer, CharTokenizer

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("tokenizers")

BYTES = {"type": "ByteLevel", "add_prefix_space": False}  # a tokenizer's rule for words
TABLE = "transformer.wte.weight"
TEXT = "Hello wörld, €5 and 12 345!\n  <bos> don't \U0001d11e\t日本\n"
SHAPES = list(itertools.product(("char", "bpe"), (False, True), (False, True)))


def a_model(kind="char", tied=False, bias=True, end="<bos>", start=None) -> Checkpoint:
    """A model with clear preferences; tied ones have the tanh GELU, as GPT-2."""
    if kind == "char":
        tokenizer = CharTokenizer("".join(sorted(set(TEXT), reverse=True)), start or "\n")  # as after fine-tuning
    else:
        tokenizer = BPETokenizer.train([TEXT], 280)
        tokenizer = BPETokenizer([end, *tokenizer.tokens[1:]], tokenizer.merges, start or BOS)
    torch.manual_seed(0)
    gelu = "tanh" if tied else "exact"
    config = TinyGPTConfig(tokenizer.vocab_size, 32, 24, 3, 2, bias=bias, gelu=gelu, tie_embeddings=tied)
    model = shaken(TinyGPT(config), 0.2).eval()
    model.position_embedding.weight.data *= 5  # or a tied model repeats the last token for ever
    return Checkpoint(model, tokenizer, {"corpus": "a text", "step": 7, "val_loss": 1.25})


def greedy(loaded: Checkpoint, prompt: str, length: int) -> list[int]:
    tokenizer = loaded.tokenizer
    ids = tokenizer.encode(prompt) or [tokenizer.start_id]
    return sampled_ids(loaded.model, ids, length, suppressed=suppressed(tokenizer))


def pretrained(folder):
    """Model and tokenizer as a user of transformers loads them."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind, tied, bias", SHAPES)
def test_transformers_has_the_same_ids_logits_and_text(tmp_path, kind, tied, bias):
    """What is written comes back, no biases as zeros. Version 4 of transformers added token types: other logits."""
    loaded = a_model(kind, tied, bias)
    save_huggingface(tmp_path / "out", loaded)
    theirs, tokenizer = pretrained(tmp_path / "out")
    ids = loaded.tokenizer.encode(TEXT)
    assert tokenizer(TEXT).input_ids == ids
    assert tokenizer.init_kwargs["model_input_names"] == ["input_ids", "attention_mask"]
    assert tokenizer.decode(ids) == TEXT
    window = torch.tensor([ids[:32]])
    torch.testing.assert_close(theirs(window).logits, loaded.model(window), atol=1e-4, rtol=0)
    prompt = tokenizer("Hello", return_tensors="pt").input_ids
    length = 32 - prompt.size(1)
    written = theirs.generate(prompt, do_sample=False, max_new_tokens=length)[0, prompt.size(1) :].tolist()
    assert written == greedy(loaded, "Hello", length) and len(set(written)) > 2
    for part in (theirs, tokenizer):
        part.save_pretrained(tmp_path / "again")
    for name in ("out", "again"):
        back = load_huggingface(tmp_path / name)
        assert torch.equal(back.model.eval()(window), loaded.model(window)) and back.origin == {"converted_from": name}
        assert back.model.config == dataclasses.replace(loaded.model.config, bias=True)
        assert back.tokenizer.to_plain() == loaded.tokenizer.to_plain()


@pytest.mark.parametrize("start", ["<bos>", "\n"])
@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_a_padded_batch_and_an_empty_prompt_make_our_texts(tmp_path, kind, start):
    """The start token was the padding, which transformers hides: another text; and batches could not be padded."""
    transformers = pytest.importorskip("transformers")
    loaded = a_model(kind, start=start)
    save_huggingface(tmp_path / "out", loaded)
    theirs, tokenizer = pretrained(tmp_path / "out")
    assert theirs.generation_config.pad_token_id != loaded.tokenizer.start_id == theirs.config.bos_token_id
    batch = tokenizer(["Hello", "H", "Hello, Hello"], padding=True, return_tensors="pt")
    made = theirs.generate(**batch, do_sample=False, max_new_tokens=12)[:, batch.input_ids.size(1) :].tolist()
    assert made == [greedy(loaded, prompt, 12) for prompt in ("Hello", "H", "Hello, Hello")]
    expected = loaded.tokenizer.decode(greedy(loaded, "", 12))
    ids = theirs.generate(do_sample=False, max_new_tokens=12)[0, 1:].tolist()
    assert loaded.tokenizer.decode(ids) == expected
    pipeline = transformers.pipeline("text-generation", model=theirs, tokenizer=tokenizer)
    assert pipeline("", do_sample=False, max_new_tokens=12)[0]["generated_text"].endswith(expected)
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    assert collate([tokenizer("Hello"), tokenizer("H")])["labels"].shape == (2, len(loaded.tokenizer.encode("Hello")))


@pytest.fixture
def gpt2_folder(tmp_path):
    """A folder as transformers itself writes it: GPT-2's architecture, small, with a tokenizer like GPT-2's."""
    transformers = pytest.importorskip("transformers")
    loaded = a_model("bpe", end="<|endoftext|>")
    sizes = {"vocab_size": loaded.tokenizer.vocab_size, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
    config = transformers.GPT2Config(**sizes)
    torch.manual_seed(1)
    model = shaken(transformers.GPT2LMHeadModel(config), 0.1).eval()
    model.save_pretrained(tmp_path / "gpt2")
    content = {**json.loads(bpe_to_json(loaded.tokenizer)), "pre_tokenizer": BYTES}
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]  # as GPT-2's own file
    (tmp_path / "gpt2" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "gpt2", model, loaded.tokenizer


def rewrite(folder, change) -> None:
    """Change the tensors of a folder: `change` gets them by name."""
    tensors = safetensors.load_file(folder / "model.safetensors")
    safetensors.save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def as_gpt2s_own_file(folder, model):
    """No `transformer.` in the names, and the masks."""
    masks = {"h.0.attn.bias": torch.ones(1, 1, 16, 16), "h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewrite(folder, lambda tensors: {name.removeprefix("transformer."): t for name, t in tensors.items()} | masks)


def in_half_precision(folder, model):
    """Both kinds of it, in turns."""
    for p, dtype in zip(model.parameters(), itertools.cycle([torch.float16, torch.bfloat16])):
        p.data = p.data.to(dtype)
    rewrite(folder, lambda tensors: {name: p.clone() for name, p in model.state_dict().items() if name in tensors})
    model.float()


@pytest.mark.parametrize("store", [None, as_gpt2s_own_file, in_half_precision])
def test_gpt2_comes_in(gpt2_folder, store):
    folder, model, tokenizer = gpt2_folder
    if store:
        store(folder, model)
    loaded = load_huggingface(folder)
    config, ids = loaded.model.config, torch.arange(40, 56)[None]
    torch.testing.assert_close(loaded.model.eval()(ids), model(ids).logits, atol=1e-5, rtol=1e-5)
    assert (config.gelu, config.tie_embeddings, config.bias, config.dropout) == ("tanh", True, True, 0.1)
    assert loaded.tokenizer.to_plain() == tokenizer.to_plain()
    assert loaded.tokenizer.eos_id == loaded.tokenizer.bos_id == loaded.tokenizer.start_id


def test_tokens_that_the_tokenizer_lacks_are_left_out(gpt2_folder):
    folder, model, tokenizer = gpt2_folder
    model.resize_token_embeddings(tokenizer.vocab_size + 3)
    model.save_pretrained(folder)
    with pytest.warns(UserWarning, match="3 tokens"):
        loaded = load_huggingface(folder)
    ids = torch.arange(40, 56)[None]
    torch.testing.assert_close(loaded.model.eval()(ids), model(ids).logits[..., : tokenizer.vocab_size])


def test_gpt2_ends_its_text_unless_told_otherwise(gpt2_folder, output_of):
    folder, _, tokenizer = gpt2_folder
    rewrite(folder, lambda tensors: {**tensors, "transformer.ln_f.weight": torch.zeros(24)})
    rewrite(folder, lambda tensors: {**tensors, "transformer.ln_f.bias": 99 * tensors[TABLE][tokenizer.eos_id]})
    output_of("convert.py", "gpt2", "gpt2.pth")
    flags = ("--checkpoint", "gpt2.pth", "--prompt", "Hello", "--temperature", "0", "--max-new-tokens", "9")
    assert output_of("generate.py", *flags) == "Hello\n"
    assert output_of("generate.py", *flags[:4], "--max-new-tokens", "9", "--beams", "2") == "Hello\n"
    assert len(output_of("generate.py", *flags, "--ignore-eos")) > len("Hello\n")


def test_gpt2_learns_documents_between_which_its_own_token_stands(gpt2_folder, output_of):
    """Each begins with that one token, and there a sample ends."""
    end, words = gpt2_folder[2].eos_id, ["Hello", "12"]
    written(Path("t.txt"), END_OF_TEXT.join(words * 150))
    output_of("convert.py", "gpt2", "gpt2.pth")
    flags = ["--init-from", "gpt2.pth", "--data", "t.txt", "--documents", f"={END_OF_TEXT}", "--steps", 80]
    tokens = new_run(*flags, "--out", "a.pth").train_set.tokens.tolist()
    found = [tuple(group) for is_end, group in itertools.groupby(tokens, end.__eq__) if not is_end]
    assert set(found[:-1]) == {tuple(gpt2_folder[2].encode(word)) for word in words}
    assert tokens.count(end) == len(found) > 200
    output_of("main.py", *flags, "--lr", 0.01, "--out", "a.pth")
    sample = output_of("generate.py", "--checkpoint", "a.pth", "--num-samples", 9, "--seed", 1)
    assert {text for text in sample.split("\n") if text and "---" not in text} == set(words)


FOREIGN = (
    ({"model_type": "gptj"}, "model_type"),
    ({"activation_function": "relu"}, "activation_function"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({"scale_attn_weights": False}, "scale_attn_weights"),
    ({"n_inner": 50}, "n_inner"),
    ({"n_positions": 10**9}, "max_seq"),
    ({"n_layer": 900}, "blocks."),
    ({"n_layer": "2"}, "n_layer"),
    ({"n_embd": 2**14, "n_head": 1}, "in_proj_bias"),
    ({"vocab_size": 5}, "280 tokens"),
    ({"resid_pdrop": "much"}, "dropout"),
)


@pytest.mark.parametrize("fields, word", FOREIGN)
def test_what_the_network_cannot_express_is_named(tmp_path, fields, word):
    save_huggingface(tmp_path / "out", a_model("bpe"))
    change_json(tmp_path / "out" / "config.json", lambda content: content.update(fields))
    with pytest.raises(UserError, match=rf"(?s)^[^\n]*{re.escape(word)}[^\n]*$"):
        load_huggingface(tmp_path / "out")


def change_json(path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def header(change):
    """Change the header of the weights; `change` may return a length that the file then claims for it."""

    def damage(folder):
        whole = (folder / "model.safetensors").read_bytes()
        size = struct.unpack("<Q", whole[:8])[0]
        content = json.loads(whole[8 : 8 + size])
        length = change(content)
        text = json.dumps(content).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length or len(text)) + text + whole[8 + size :])

    return damage


def tensor(change, name=TABLE):
    return lambda folder: rewrite(folder, lambda tensors: {**tensors, name: change(tensors.get(name))})


def content(file: str, text: bytes):
    return lambda folder: (folder / file).write_bytes(text)


def tokenizer(change):
    return lambda folder: change_json(folder / "tokenizer.json", change)


def characters(**vocabulary):
    model = {"vocab": vocabulary, "merges": []}
    return tokenizer(lambda content: content.update(decoder={"type": "Fuse"}, model=model))


DAMAGES = {
    "empty": content("model.safetensors", b""),
    "huge header": header(lambda content: 2**62),
    "a tensor missing": header(lambda content: content.pop("transformer.h.1.ln_2.bias") and None),
    "offsets beyond the file": header(lambda content: content[TABLE].update(data_offsets=[0, 10**12])),
    "shape of terabytes": header(lambda content: content[TABLE].update(shape=[2**24, 2**14])),
    "not finite": tensor(lambda table: table * torch.inf),
    "a tensor too many": tensor(lambda none: torch.ones(1), "h.0.extra"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no config": lambda folder: (folder / "config.json").unlink(),
    # Tokenizers that look like ours, and read text in another way:
    "normalizer": tokenizer(lambda content: content.update(normalizer={"type": "NFC"})),
    "another rule for words": tokenizer(lambda content: content.update(pre_tokenizer={**BYTES, "use_regex": False})),
    "an id too large": tokenizer(lambda content: content["model"]["vocab"].update(x=9999)),
    "no start among characters": characters(**{"<unk>": 0, "a": 1}),
}


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items()])
def test_damaged_and_hostile_folders_are_one_line(tmp_path, damage):
    save_huggingface(tmp_path / "out", a_model("bpe"))
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=r"^[^\n]*out[^\n]*$"):
        load_huggingface(tmp_path / "out")


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    save_huggingface(tmp_path / "out", a_model())
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin.*save_pretrained"):
        load_huggingface(tmp_path / "out")


def test_earlier_folders_are_kept_or_replaced_whole(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    first, second = a_model(tied=False), a_model(tied=True)
    save_huggingface(folder, first)
    with pytest.raises(UserError, match="--force"):
        save_huggingface(folder, second)
    monkeypatch.setattr("formats.huggingface.gpt2_weights", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_huggingface(folder, second, force=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not load_huggingface(folder).model.config.tie_embeddings
    save_huggingface(folder, second, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert load_huggingface(folder).model.config.tie_embeddings
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="thesis.txt"):
        save_huggingface(folder, first, force=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind, tied, bias", SHAPES[::3])
def test_ctranslate2_converts_the_folder(tmp_path, kind, tied, bias):
    """The documented command: ct2-transformers-converter --model my_model --output_dir my_model_ct2."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    loaded = a_model(kind, tied, bias)
    save_huggingface(tmp_path / "out", loaded)
    ctranslate2.converters.TransformersConverter(str(tmp_path / "out")).convert(str(tmp_path / "ct2"))
    twin = ctranslate2.Generator(str(tmp_path / "ct2"), compute_type="float32", intra_threads=1)
    _, tokenizer = pretrained(tmp_path / "out")
    prompt = tokenizer.convert_ids_to_tokens(loaded.tokenizer.encode("Hello"))
    length = 32 - len(prompt)
    special = [[token] for token in tokenizer.convert_ids_to_tokens(loaded.tokenizer.special_ids)]
    options = {"max_length": length, "include_prompt_in_result": False, "suppress_sequences": special}
    assert twin.generate_batch([prompt], **options)[0].sequences_ids[0] == greedy(loaded, "Hello", length)
