"""Hugging Face folders, against transformers, tokenizers and CTranslate2 themselves."""

import json
import shutil
import struct
import sys

import pytest
import torch

from corpora.bpe import BPETokenizer
from formats.checkpoint import Checkpoint, load_model, model_weights, save_model
from formats.huggingface import load_huggingface, save_huggingface, stored_tensors
from helpers import assert_one_error_line
from sampler import Sampling, SlidingWindow, generate, row_generators
from sampling.text_stream import suppressed
from support.command import UserError
from tiny_decoder import TinyGPT, TinyGPTConfig
from tokenizer import CharTokenizer

safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("tokenizers")

TEXT = "Hello wörld, €5 and 12 345!\n  <bos> don't \U0001d11e\t日本\n"
SHAPES = [
    pytest.param(kind, tied, bias, id=f"{kind}-{'tied' if tied else 'untied'}-{'bias' if bias else 'no bias'}")
    for kind in ("char", "bpe")
    for tied in (False, True)
    for bias in (False, True)
]


def a_model(kind="char", tied=False, bias=True, end="<bos>") -> Checkpoint:
    """A model with clear preferences; tied ones have the tanh GELU, as GPT-2."""
    if kind == "char":
        tokenizer = CharTokenizer.from_text(TEXT)
    else:
        tokenizer = BPETokenizer.train([TEXT], 280)
        tokenizer = BPETokenizer(tokenizer.to_json().replace('"<bos>"', f'"{end}"'))
    torch.manual_seed(0)
    gelu = "tanh" if tied else "exact"
    model = TinyGPT(TinyGPTConfig(tokenizer.vocab_size, 32, 24, 3, 2, bias=bias, gelu=gelu, tie_embeddings=tied))
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn_like(p)
        model.position_embedding.weight *= 5  # or a tied model repeats the last token for ever
    return Checkpoint(model.eval(), tokenizer, {"corpus": "a text", "step": 7, "val_loss": 1.25})


def greedy(loaded: Checkpoint, prompt: str, length: int) -> list[int]:
    window = SlidingWindow(loaded.model, [loaded.tokenizer.encode(prompt)])
    steps = generate(window, length, row_generators(0, 1), Sampling(temperature=0), suppressed(loaded.tokenizer))
    return [token for (token,) in steps]


def assert_same_model(a: Checkpoint, b: Checkpoint) -> None:
    """Shape, tokenizer and weights are equal to the last bit."""
    assert a.model.config == b.model.config and a.tokenizer.to_plain() == b.tokenizer.to_plain()
    ours, theirs = model_weights(a.model), model_weights(b.model)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


def pretrained(transformers, folder):
    """Model and tokenizer as a user of transformers loads them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind, tied, bias", SHAPES)
def test_out_and_back_is_the_same_file(tmp_path, in_process, kind, tied, bias):
    loaded = a_model(kind, tied, bias)
    save_model(tmp_path / "a.pth", loaded.model, loaded.tokenizer, loaded.origin)
    assert in_process("convert.py", "a.pth", "out/")[0] == 0
    assert in_process("convert.py", "out", "b.pth")[0] == 0
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


@pytest.mark.parametrize("kind, tied, bias", SHAPES)
def test_transformers_has_the_same_ids_logits_and_text(tmp_path, transformers, kind, tied, bias):
    loaded = a_model(kind, tied, bias)
    save_huggingface(tmp_path / "out", loaded)
    theirs, tokenizer = pretrained(transformers, tmp_path / "out")
    ids = loaded.tokenizer.encode(TEXT)
    assert tokenizer(TEXT).input_ids == ids
    assert tokenizer.decode(ids) == TEXT
    window = torch.tensor([ids[:32]])
    torch.testing.assert_close(theirs(window).logits, loaded.model(window), atol=1e-4, rtol=0)
    prompt = tokenizer("Hello", return_tensors="pt").input_ids
    length = 32 - prompt.size(1)
    found = theirs.generate(prompt, do_sample=False, max_new_tokens=length)[0, prompt.size(1) :].tolist()
    assert found == greedy(loaded, "Hello", length) and len(set(found)) > 2


@pytest.mark.slow
@pytest.mark.parametrize("kind, tied, bias", SHAPES)
def test_back_after_save_pretrained(tmp_path, transformers, kind, tied, bias):
    """What transformers writes itself comes back as well, without the origin: it may have been trained on."""
    loaded = a_model(kind, tied, bias)
    save_huggingface(tmp_path / "out", loaded)
    for part in pretrained(transformers, tmp_path / "out"):
        part.save_pretrained(tmp_path / "again")
    back = load_huggingface(tmp_path / "again")
    assert_same_model(back, loaded)
    assert back.origin == {"converted_from": "again"}


def test_biases_that_were_trained_elsewhere_are_kept(tmp_path, transformers):
    loaded = a_model(bias=False)
    save_huggingface(tmp_path / "out", loaded)
    theirs, _ = pretrained(transformers, tmp_path / "out")
    with torch.no_grad():
        theirs.transformer.ln_f.bias += 1
    theirs.save_pretrained(tmp_path / "out")
    back = load_huggingface(tmp_path / "out")
    ids = torch.tensor([[5, 3, 4]])
    assert back.model.config.bias
    torch.testing.assert_close(back.model.eval()(ids), theirs(ids).logits)


@pytest.fixture
def gpt2_folder(tmp_path, transformers):
    """A folder as transformers itself writes it: GPT-2's architecture, small, with a tokenizer like GPT-2's."""
    loaded = a_model("bpe", end="<|endoftext|>")
    config = transformers.GPT2Config(
        vocab_size=loaded.tokenizer.vocab_size, n_positions=16, n_embd=24, n_layer=2, n_head=3
    )
    torch.manual_seed(1)
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p)
    model.save_pretrained(tmp_path / "gpt2")
    content = json.loads(loaded.tokenizer.to_json())
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]  # as GPT-2's own file
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    (tmp_path / "gpt2" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "gpt2", model, loaded.tokenizer


def rewrite(folder, change) -> None:
    """Change the tensors of a folder: `change` gets them by name."""
    tensors = safetensors.load_file(folder / "model.safetensors")
    safetensors.save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


def set_config(folder, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def assert_loads_as(folder, model, atol=1e-5) -> Checkpoint:
    loaded = load_huggingface(folder)
    ids = torch.arange(40, 56)[None]
    torch.testing.assert_close(loaded.model.eval()(ids), model(ids).logits, atol=atol, rtol=1e-5)
    return loaded


def test_gpt2_comes_in(gpt2_folder):
    folder, model, tokenizer = gpt2_folder
    loaded = assert_loads_as(folder, model)
    config = loaded.model.config
    assert (config.gelu, config.tie_embeddings, config.bias, config.dropout) == ("tanh", True, True, 0.1)
    assert loaded.tokenizer.to_plain() == tokenizer.to_plain()
    assert loaded.tokenizer.eos_id == loaded.tokenizer.bos_id == loaded.tokenizer.start_id


def test_gpt2_with_masks_and_bare_names(gpt2_folder):
    """GPT-2's own file names its tensors without `transformer.`, and holds the masks."""
    folder, model, _ = gpt2_folder

    def bare(tensors):
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        return {**tensors, "h.0.attn.bias": torch.ones(1, 1, 16, 16), "h.0.attn.masked_bias": torch.tensor(-1e4)}

    rewrite(folder, bare)
    assert_loads_as(folder, model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gpt2_in_half_precision_is_widened(gpt2_folder, dtype):
    folder, model, _ = gpt2_folder
    rewrite(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert_loads_as(folder, model.to(dtype).float())


def test_gpt2_in_shards(gpt2_folder):
    folder, model, _ = gpt2_folder
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert_loads_as(folder, model)


def test_tokens_that_the_tokenizer_lacks_are_left_out(gpt2_folder):
    folder, model, tokenizer = gpt2_folder
    model.resize_token_embeddings(tokenizer.vocab_size + 3)
    model.save_pretrained(folder)
    with pytest.warns(UserWarning, match="3 tokens"):
        loaded = load_huggingface(folder)
    ids = torch.arange(40, 56)[None]
    torch.testing.assert_close(loaded.model.eval()(ids), model(ids).logits[..., : tokenizer.vocab_size])


def test_gpt2_ends_its_text_unless_told_otherwise(gpt2_folder, in_process):
    folder, _, tokenizer = gpt2_folder

    def favour_the_end(tensors):
        tensors["transformer.ln_f.weight"] *= 0
        tensors["transformer.ln_f.bias"] = 99 * tensors["transformer.wte.weight"][tokenizer.eos_id]
        return tensors

    rewrite(folder, favour_the_end)
    assert in_process("convert.py", "gpt2", "gpt2.pth")[0] == 0
    flags = ("--checkpoint", "gpt2.pth", "--prompt", "Hello", "--temperature", "0", "--max-new-tokens", "9")
    code, output, _ = in_process("generate.py", *flags)
    assert (code, output) == (0, "Hello\n")
    assert in_process("generate.py", *flags[:4], "--max-new-tokens", "9", "--beams", "2")[:2] == (0, "Hello\n")
    code, output, _ = in_process("generate.py", *flags, "--ignore-eos")
    assert code == 0 and len(output) > len("Hello\n")


@pytest.mark.slow
def test_gpt2_is_fine_tuned_in_a_smaller_window(gpt2_folder, in_process, tmp_path):
    in_process("convert.py", "gpt2", "gpt2.pth")
    (tmp_path / "my.txt").write_text(TEXT * 40, encoding="utf-8")
    flags = ("--init-from", "gpt2.pth", "--data", "my.txt", "--max-seq", "8", "--batch-size", "4", "--steps", "4")
    code, _, errors = in_process("main.py", *flags, "--lora-rank", "2", "--out", "my_lora.pth", "--device", "cpu")
    assert code == 0, errors
    assert in_process("convert.py", "gpt2.pth", "merged/", "--lora", "my_lora.pth")[0] == 0
    assert load_huggingface(tmp_path / "merged").model.config.max_seq == 16


FOREIGN = {
    "another model": ({"model_type": "gptj"}, "model_type"),
    "another activation": ({"activation_function": "relu"}, "activation_function"),
    "another epsilon": ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
    "scaled by layer": ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "unscaled": ({"scale_attn_weights": False}, "scale_attn_weights"),
    "cross-attention": ({"add_cross_attention": True}, "add_cross_attention"),
    "another MLP": ({"n_inner": 50}, "n_inner"),
    "terabytes": ({"n_positions": 10**9}, "max_seq"),
    "a million layers": ({"n_layer": 10**6}, "num_layers"),
    "too many layers": ({"n_layer": 900}, "blocks."),
    "a wide one": ({"n_embd": 2**14, "n_head": 1}, "(32, 16384)"),
    "a list for a field": ({"activation_function": ["gelu"]}, "activation_function"),
    "a text for a number": ({"n_layer": "2"}, "n_layer"),
    "fewer tokens": ({"vocab_size": 5}, "280 tokens"),
    "a strange dropout": ({"resid_pdrop": "much"}, "dropout"),
}


@pytest.mark.parametrize("fields, word", [pytest.param(*case, id=name) for name, case in FOREIGN.items()])
def test_what_the_network_cannot_express_is_named(tmp_path, in_process, fields, word):
    save_huggingface(tmp_path / "out", a_model("bpe"))
    set_config(tmp_path / "out", **fields)
    code, output, errors = in_process("convert.py", "out", "in.pth")
    assert (code, output) == (2, "")
    assert_one_error_line(errors, word)
    assert not (tmp_path / "in.pth").exists()


def damaged(folder) -> dict:
    """Ways to damage a folder, by name."""
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    name = "transformer.wte.weight"

    def with_header(changed, length=None):
        text = json.dumps(changed).encode()
        return lambda: weights.write_bytes(struct.pack("<Q", length or len(text)) + text + whole[8 + size :])

    def with_entry(**fields):
        return with_header({**header, name: {**header[name], **fields}})

    return {
        "cut": lambda: weights.write_bytes(whole[: len(whole) // 2]),
        "empty": lambda: weights.write_bytes(b""),
        "huge header": with_header(header, 2**62),
        "header beyond the file": with_header(header, 2**23),
        "offsets beyond the file": with_entry(data_offsets=[0, 10**12]),
        "offsets that overlap": with_entry(data_offsets=[8, 8 + 4 * 280 * 24]),
        "shape of terabytes": with_entry(shape=[2**24, 2**14]),
        "integers": with_entry(dtype="I32"),
        "deep header": lambda: weights.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
        "not finite": lambda: rewrite(folder, lambda tensors: {**tensors, name: tensors[name] * torch.inf}),
        "a tensor missing": lambda: rewrite(folder, lambda tensors: {k: t for k, t in tensors.items() if k != name}),
        "a number for a table": lambda: rewrite(folder, lambda tensors: {**tensors, name: torch.tensor(1.0)}),
        "a tensor too many": lambda: rewrite(folder, lambda tensors: {**tensors, "h.0.extra": torch.ones(1)}),
        "no weights": weights.unlink,
        "no config": (folder / "config.json").unlink,
        "no tokenizer": (folder / "tokenizer.json").unlink,
        "config is no JSON": lambda: (folder / "config.json").write_text("{"),
        "config is no text": lambda: (folder / "config.json").write_bytes(b"\xff\xfe"),
        "a JSON bomb": lambda: (folder / "config.json").write_text("[" * 10**6),
        "a wide JSON bomb": lambda: (folder / "tokenizer.json").write_text("[" + "{}," * 10**6 + "{}]"),
        "config is a list": lambda: (folder / "config.json").write_text("[]"),
        "tokenizer is empty": lambda: (folder / "tokenizer.json").write_text("{}"),
        "an origin that is not finite": with_header(
            {**header, "__metadata__": {"tinygpt_origin": '{"val_loss": 1e999}'}}
        ),
    }


NAMES = [
    *("cut", "empty", "huge header", "header beyond the file", "offsets beyond the file", "offsets that overlap"),
    *("shape of terabytes", "integers", "deep header", "not finite", "a tensor missing", "a number for a table"),
    *("a tensor too many", "no weights", "no config", "no tokenizer", "config is no JSON", "config is no text"),
    *("a JSON bomb", "a wide JSON bomb", "config is a list", "tokenizer is empty", "an origin that is not finite"),
]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_and_hostile_folders_are_one_line(tmp_path, in_process, name):
    save_huggingface(tmp_path / "out", a_model("bpe"))
    damaged(tmp_path / "out")[name]()
    code, output, errors = in_process("convert.py", "out", "in.pth")
    assert (code, output) == (2, "")
    assert_one_error_line(errors, "out cannot be used")
    assert not (tmp_path / "in.pth").exists()


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "."])
def test_an_index_cannot_reach_out_of_its_folder(tmp_path, in_process, file):
    folder = tmp_path / "out"
    save_huggingface(folder, a_model())
    shutil.move(folder / "model.safetensors", tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": file}}))
    code, _, errors = in_process("convert.py", "out", "in.pth")
    assert code == 2
    assert_one_error_line(errors, "it has no")


def test_pickled_weights_are_refused_with_the_way_out(tmp_path, in_process):
    save_huggingface(tmp_path / "out", a_model())
    (tmp_path / "out" / "model.safetensors").rename(tmp_path / "out" / "pytorch_model.bin")
    code, _, errors = in_process("convert.py", "out", "in.pth")
    assert code == 2
    assert_one_error_line(errors, "pytorch_model.bin", "save_pretrained")


def ids_as_truth(content: dict) -> dict[str, bool]:
    """The tokens 0 and 1, with false and true for ids, which Python takes for numbers."""
    return {token: bool(i) for token, i in content["model"]["vocab"].items() if i < 2}


def tokenizer_changes():
    """Tokenizers that look like ours and are not."""
    yield "normalizer", lambda content: content.update(normalizer={"type": "NFC"})
    yield "prefix space", lambda content: content["pre_tokenizer"].update(add_prefix_space=True)
    yield "another rule for words", lambda content: content["pre_tokenizer"].update(use_regex=False)
    yield "another decoder", lambda content: content.update(decoder={"type": "WordPiece"})
    yield "a hole", lambda content: content["model"]["vocab"].update({"x": 9999})
    yield "a merge of nothing", lambda content: content["model"]["merges"].append(["nothing", "no"])
    yield "numbers for merges", lambda content: content["model"]["merges"].append([1, 2])
    yield "truth values for ids", lambda content: content["model"]["vocab"].update(ids_as_truth(content))
    yield "texts for ids", lambda content: content["model"]["vocab"].update({"x": "9"})


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in tokenizer_changes()])
def test_another_tokenizer_is_refused(tmp_path, change):
    folder = tmp_path / "out"
    save_huggingface(folder, a_model("bpe"))
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False}
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="out cannot be used"):
        load_huggingface(folder)


TRUTH = {"<unk>": False, "<bos>": True, "a": 2}


@pytest.mark.parametrize(
    "vocabulary", [{"<unk>": 0, "a": 1}, {"<unk>": 0, "<bos>": 1, "ab": 2}, {"<unk>": "0"}, {}, TRUTH]
)
def test_another_character_vocabulary_is_refused(tmp_path, vocabulary):
    folder = tmp_path / "out"
    save_huggingface(folder, a_model())
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] = vocabulary
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match="out cannot be used"):
        load_huggingface(folder)


def test_earlier_folders_are_kept_or_replaced_whole(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    first, second = a_model(bias=True), a_model(tied=True)
    save_huggingface(folder, first)
    with pytest.raises(UserError, match="--force"):
        save_huggingface(folder, second)
    monkeypatch.setattr("formats.huggingface.gpt2_weights", lambda model: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_huggingface(folder, second, force=True)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_same_model(load_huggingface(folder), first)
    save_huggingface(folder, second, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert_same_model(load_huggingface(folder), second)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="thesis.txt"):
        save_huggingface(folder, first, force=True)


def test_missing_package_is_one_line(tmp_path, in_process, monkeypatch):
    loaded = a_model()
    save_model(tmp_path / "a.pth", loaded.model, loaded.tokenizer, {})
    for name in [name for name in sys.modules if name.split(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    code, _, errors = in_process("convert.py", "a.pth", "out/")
    assert code == 2
    assert_one_error_line(errors, "pip install safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("kind, tied, bias", SHAPES[::3])
def test_ctranslate2_converts_the_folder(tmp_path, transformers, kind, tied, bias):
    """The documented command: ct2-transformers-converter --model my_model --output_dir my_model_ct2."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    loaded = a_model(kind, tied, bias)
    save_huggingface(tmp_path / "out", loaded)
    ctranslate2.converters.TransformersConverter(str(tmp_path / "out")).convert(str(tmp_path / "ct2"))
    twin = ctranslate2.Generator(str(tmp_path / "ct2"), compute_type="float32", intra_threads=1)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer.convert_ids_to_tokens(loaded.tokenizer.encode("Hello"))
    length = 32 - len(prompt)
    special = [[token] for token in tokenizer.convert_ids_to_tokens(loaded.tokenizer.special_ids)]
    options = {"max_length": length, "include_prompt_in_result": False, "suppress_sequences": special}
    assert twin.generate_batch([prompt], **options)[0].sequences_ids[0] == greedy(loaded, "Hello", length)


def test_lora_is_merged_on_the_way(tmp_path, in_process):
    from formats.adapter import adapter_weights, save_adapter
    from lora import LoRAConfig, add_adapters, merge_adapters

    loaded = a_model()
    save_model(tmp_path / "a.pth", loaded.model, loaded.tokenizer, {})
    config = LoRAConfig(2, 4.0, ("qkv",))
    add_adapters(loaded.model, config)
    with torch.no_grad():
        for name, tensor in adapter_weights(loaded.model).items():
            tensor += name.endswith("B")
    save_adapter(tmp_path / "lora.pth", loaded.model, loaded.tokenizer, config, {})
    merge_adapters(loaded.model)
    assert in_process("convert.py", "a.pth", "out/", "--lora", "lora.pth")[0] == 0
    assert_same_model(load_huggingface(tmp_path / "out"), loaded)
    assert in_process("convert.py", "out", "back.pth")[0] == 0
    assert load_model(tmp_path / "back.pth").origin["merged_from"] == "lora.pth"


def test_a_file_is_opened_once(tmp_path, monkeypatch):
    """331 kB with 10,000 empty tensors took 25 seconds: it was opened for each."""
    package, opened = pytest.importorskip("safetensors"), []
    real = package.safe_open
    monkeypatch.setattr(package, "safe_open", lambda *args, **more: opened.append(args) or real(*args, **more))
    tensors = {f"{number}": torch.zeros(0) for number in range(50)}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    assert {name for name, _, _ in stored_tensors(tmp_path)} == tensors.keys()
    assert len(opened) == 1


def test_a_vocabulary_larger_than_its_rows_is_refused(tmp_path):
    save_huggingface(tmp_path / "out", a_model())
    content = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps({**content, "vocab_size": 2**62}))
    with pytest.raises(UserError, match="rows"):
        load_huggingface(tmp_path / "out")
