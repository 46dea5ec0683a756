"""Damaged and hostile checkpoints: refused with one line by each command that reads them; nothing runs or changes."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from conftest import environment
from faults import NETWORK, OUT, SMALL_RUN, TEXT, copy_of, files_of, flip_a_bit, run_here, write_corpus
from formats.checkpoint import FORMAT, MODEL, TRAINING, load_model, read_checkpoint, write_checkpoint
from helpers import ROOT, assert_one_error_line
from support.command import UserError
from training.state import RunPaths

# What each command is given, and which file it reads.
FLAGS = [flag for flag in SMALL_RUN if flag not in NETWORK]  # a fine-tuned model has its base's shape
COMMANDS = {
    "resume": (OUT.last, ["main.py", "--resume"]),
    "sample": (OUT.best, ["generate.py", "--max-new-tokens", 3]),
    "train": (OUT.best, ["main.py", *FLAGS, "--init-from", OUT.best, "--steps", 1, "--out", "tuned.pth"]),
    "convert": (OUT.best, ["convert.py", OUT.best, "merged.pth"]),
}
ADAPTER_COMMANDS = {
    "sample": (Path("adapter.pth"), ["generate.py", "--lora", "adapter.pth", "--max-new-tokens", 3]),
    "merge": (Path("adapter.pth"), ["convert.py", OUT.best, "merged.pth", "--lora", "adapter.pth"]),
}
commands = pytest.mark.parametrize("command", COMMANDS)
adapter_commands = pytest.mark.parametrize("command", ADAPTER_COMMANDS)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with an unfinished run, and no earlier generation to fall back on."""
    folder = write_corpus(tmp_path_factory.mktemp("template"))
    run_here(folder, *SMALL_RUN, "--steps", 4, "--eval-every", 2, "--stop-at", 2)
    tuned = ["--init-from", OUT.best, "--lora-rank", 2, "--out", "adapter.pth", "--steps", 1]
    run_here(folder, *FLAGS, *tuned)
    return folder


@pytest.fixture
def refused(template, tmp_path, in_process):
    """Damage the file that a command reads and see it refused: `refused(command, damage, "words", …)`."""

    def check(command: str, damage, *words: str, known=COMMANDS, named=True):
        copy_of(template, tmp_path)
        name, arguments = known[command]
        damage(tmp_path / name)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with warnings.catch_warnings(record=True) as warned:
            code, output, errors = in_process(*arguments)
        assert code == 2, errors
        assert_one_error_line(errors, *words, *([str(name)] if named else []))
        assert len(errors.splitlines()) == 1 and len(errors) < 1200 and not warned and not output
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before, "a file changed"

    return check


@commands
def test_the_undamaged_file_is_accepted(template, tmp_path, in_process, command):
    copy_of(template, tmp_path)
    assert in_process(*COMMANDS[command][1])[0] == 0


# --- Not a checkpoint at all, or damaged on the way --------------------------------------------------------------


def another_zip(path):
    with zipfile.ZipFile(path, "w") as container:
        container.writestr("word/document.xml", "<w>Not a checkpoint.</w>")


def prepended(path):
    """PyTorch's old format, then the zip: Python's zip reader would check the second, PyTorch would load the first."""
    whole = path.read_bytes()
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + whole)


def rewritten(path, change=lambda name, data: [(name, data)], compression=zipfile.ZIP_STORED):
    """The zip written anew, each entry replaced by what `change` makes of it."""
    with zipfile.ZipFile(path) as container:
        entries = [pair for name in container.namelist() for pair in change(name, container.read(name))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about duplicate names
        with zipfile.ZipFile(path, "w", compression) as container:
            for name, data in entries:
                container.writestr(name, data)


def bomb(path):
    """200 MB of zeros in 200 kB."""
    rewritten(path, lambda name, data: [(name, bytes(200 * 2**20) if "data/0" in name else data)], zipfile.ZIP_DEFLATED)


def lying_size(path):
    """The directory of the zip claims that an entry holds 3 GB."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    struct.pack_into("<II", content, entry + 20, 3 * 2**30, 3 * 2**30)
    path.write_bytes(content)


def overlapping(path):
    """Every entry of the zip's directory points at the first one's bytes."""
    content = bytearray(path.read_bytes())
    position = content.index(b"PK\x01\x02")
    while (position := content.find(b"PK\x01\x02", position + 4)) > 0:
        struct.pack_into("<I", content, position + 42, 0)
    path.write_bytes(content)


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("a poem, not a model\n"),
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "a pickle": lambda path: path.write_bytes(pickle.dumps({"weights": [1.0]})),
    "another zip": another_zip,
    "an old torch file": lambda path: torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False),
    "a flipped bit": flip_a_bit,
    "an old file before the zip": prepended,
    "a zip bomb": bomb,
    "an entry twice": lambda path: rewritten(path, lambda name, data: [(name, data)] * (1 + name.endswith("/0"))),
    "a lying size": lying_size,
    "overlapping entries": overlapping,
    "two pickles": lambda path: rewritten(path, lambda n, d: [(n, d)] + [(f"b/{n}", d)] * n.endswith("data.pkl")),
    "a tensor cut short": lambda path: rewritten(path, lambda n, d: [(n, d[:-4] if n.endswith("data/0") else d)]),
    "a tensor's bytes missing": lambda path: rewritten(path, lambda n, d: [(n, d)] * (not n.endswith("data/0"))),
}


@adapter_commands
def test_the_undamaged_adapter_is_accepted(template, tmp_path, in_process, command):
    copy_of(template, tmp_path)
    assert in_process(*ADAPTER_COMMANDS[command][1])[0] == 0


@adapter_commands
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_adapter_is_refused(refused, command, damage):
    refused(command, DAMAGES[damage], known=ADAPTER_COMMANDS)


@commands
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(refused, command, damage):
    refused(command, DAMAGES[damage])


def test_a_compressed_checkpoint_is_refused_for_being_compressed(refused):
    """However little it unpacks to."""
    refused("sample", lambda path: rewritten(path, compression=zipfile.ZIP_DEFLATED), "compressed")


@pytest.mark.parametrize("name", [OUT.last, OUT.best])
def test_a_file_cut_at_any_length_is_refused(template, tmp_path, name):
    """Every length near both ends and a spread between, without a command around it."""
    whole = (template / name).read_bytes()
    path = tmp_path / "cut.pth"
    lengths = {*range(0, 200), *range(200, len(whole), 97), *range(len(whole) - 200, len(whole))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut.pth is no TinyGPT checkpoint"):
            read_checkpoint(path, TRAINING if name == OUT.last else MODEL)


def test_a_flipped_bit_in_any_tensor_is_noticed(template, tmp_path):
    """One bit in each entry of the zip in turn; PyTorch itself loads most of these files without a word."""
    path = tmp_path / "flipped.pth"
    whole = (template / OUT.last).read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as container:
        entries = container.infolist()
    assert len(entries) > 50
    unnoticed = 0
    for entry in entries:
        name_size, extra_size = struct.unpack_from("<HH", whole, entry.header_offset + 26)
        place = entry.header_offset + 30 + name_size + extra_size + entry.file_size // 2
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(UserError, match="flipped.pth is no TinyGPT checkpoint"):
            read_checkpoint(path, TRAINING)
        try:
            torch.load(path, weights_only=True)
            unnoticed += 1
        except Exception:
            pass
    assert unnoticed > 50


# --- Well-formed, but not what was saved -------------------------------------------------------------------------


def edited(edit):
    """A damage that changes header and tensors, `edit(header, tensors)`, and writes a flawless file again."""

    def damage(path):
        content = torch.load(path, weights_only=True)
        header, tensors = json.loads(content["header"]), content["tensors"]
        edit(header, tensors)
        torch.save({"header": json.dumps(header), "tensors": tensors}, path)

    return damage


def replaced(**entries):
    """A damage that changes the outermost dictionary."""

    def damage(path):
        torch.save({**torch.load(path, weights_only=True), **entries}, path)

    return damage


def part_of(name, **changes):
    """An edit of a part of the header."""
    return lambda header, tensors: header[name].update(changes)


def with_tensor(name, make):
    """An edit that replaces a tensor by what `make` makes of it."""
    return lambda header, tensors: tensors.update({name: make(tensors[name])})


def with_terabytes_from_one_number(header, tensors):
    """A config of a terabyte, every tensor a single number expanded to its shape."""
    header["config"].update(embed_dim=2**14, num_layers=1)
    for name, tensor in tensors.items():
        shape = [{8: 2**14, 24: 3 * 2**14, 32: 4 * 2**14}.get(size, size) for size in tensor.shape]
        if name == "position_embedding.weight":
            shape = [8, 2**14]  # 8 is the window here
        tensors[name] = torch.zeros(()).expand(shape)


def with_shared_memory(header, tensors):
    """Many weights that are views of one."""
    one = torch.zeros(10_000)
    tensors |= {name: one[: tensor.numel()].view(tensor.shape) for name, tensor in tensors.items()}


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


NORM = "final_norm.bias"
EDITS = {
    "a newer format": (lambda h, t: h.update(format=FORMAT + 1), "format"),
    "a format in words": (lambda h, t: h.update(format="2"), "format"),
    "no config": (lambda h, t: h.pop("config"), "'config'"),
    "a config as a list": (lambda h, t: h.update(config=[1]), "'config'"),
    "no tensors": (lambda h, t: t.clear(), "is missing"),
    "a missing tensor": (lambda h, t: t.pop(NORM), f"'{NORM}' is missing"),
    "an extra tensor": (lambda h, t: t.update(more=torch.zeros(1)), "'more'"),
    "a head's bias": (lambda h, t: t.update({"head.bias": torch.zeros(1)}), "'head.bias'"),
    "a tensor with an endless name": (lambda h, t: t.update({"a" * 5_000_000: torch.zeros(1)}), "aaaa"),
    "a misshapen tensor": (with_tensor(NORM, lambda t: torch.zeros(2)), f"'{NORM}'"),
    "a tensor of another type": (with_tensor(NORM, lambda t: t.long()), f"'{NORM}'"),
    "a tensor of double precision": (with_tensor(NORM, lambda t: t.double()), "float64"),
    "a number for a tensor": (with_tensor(NORM, lambda t: 3.0), f"'{NORM}'"),
    "a list for a tensor": (with_tensor(NORM, lambda t: [3.0]), ""),
    "a sparse tensor": (with_tensor(NORM, lambda t: t.to_sparse()), ""),
    "a tensor with the negative bit": (with_tensor(NORM, lambda t: torch._neg_view(t)), ""),
    "a tensor that asks for gradients": (with_tensor(NORM, lambda t: t.requires_grad_()), ""),
    "a NaN weight": (with_tensor(NORM, lambda t: t.fill_(torch.nan)), "not finite"),
    "an infinite weight": (with_tensor(NORM, lambda t: t.fill_(-torch.inf)), "not finite"),
    "a transposed weight": (with_tensor("blocks.0.mlp.up.weight", lambda t: t.t().contiguous().t()), "contiguous"),
    "a name that is no text": (lambda h, t: t.update({(1, 2): torch.zeros(1)}), "no string"),
    "a config without a field": (lambda h, t: h["config"].pop("num_heads"), "config has a field"),
    "a config with one more": (part_of("config", colour="red"), "config has a field"),
    "a config with text": (part_of("config", embed_dim="8"), "embed_dim"),
    "a config with True": (part_of("config", num_layers=True), "num_layers"),
    "a config with a number for yes": (part_of("config", bias=1), "bias"),
    "an unknown gelu": (part_of("config", gelu="none"), "gelu"),
    "a negative config": (part_of("config", max_seq=-1), "max_seq"),
    "a NaN dropout": (part_of("config", dropout=float("nan")), ""),
    "a config of terabytes": (part_of("config", embed_dim=2**14, num_layers=2**10), ""),
    "a config past all bounds": (part_of("config", embed_dim=2**40), "embed_dim"),
    "a number without end": (part_of("config", embed_dim=10**4000), "embed_dim"),
    "terabytes from one number": (with_terabytes_from_one_number, "fill its memory"),
    "weights that share memory": (with_shared_memory, "fill its memory"),
    "a nested config": (part_of("config", embed_dim=nested(300)), "embed_dim"),
    "a tie that is not there": (part_of("config", tie_embeddings=True), "'head.weight'"),
    "a character twice": (lambda h, t: h["tokenizer"].update(characters=2 * h["tokenizer"]["characters"]), "once"),
    "an empty vocabulary": (part_of("tokenizer", characters=""), "vocabulary"),
    "another size of vocabulary": (part_of("tokenizer", characters="abc", start="a"), "5 tokens"),
    "an unknown tokenizer": (part_of("tokenizer", kind="morse"), "kind"),
    "no text in the tokenizer": (part_of("tokenizer", characters=["a"]), "'characters'"),
    "BPE that is none": (
        lambda h, t: h.update(tokenizer={"kind": "bpe", "tokens": [[]], "merges": [5], "start": "\n"}),
        "byte",
    ),
    "another kind": (lambda h, t: h.update(kind="model\n\x1b[2J"), ""),
}
OUTER = {
    "no header": (lambda path: torch.save({"tensors": {}}, path), "'header'"),
    "a header that is no text": (replaced(header=3), "'header'"),
    "a header that is no JSON": (replaced(header="{"), "JSON"),
    "a header that is a list": (replaced(header="[]"), "no dictionary"),
    "a header nested deeply": (replaced(header="[" * 100_000), "nested"),
    "a header with surrogates": (replaced(header='{"format": 2, "kind": "\\ud800"}'), ""),
    "a header of many objects": (replaced(header="[" + "{}," * 2_000_000 + "{}]"), "too large"),
    "a header of 20 MB": (replaced(header=" " * 20_000_000), "too large"),
    "tensors as a list": (replaced(tensors=[1]), ""),
    "format 1": (lambda path: torch.save({"format": 1, "kind": "model", "weights": {}}, path), ""),
    "an endless format": (lambda path: torch.save({"format": 10**5000}, path), ""),
}


@commands
@pytest.mark.parametrize("edit", EDITS)
def test_content_that_does_not_fit_is_refused(refused, command, edit):
    damage, words = EDITS[edit]
    refused(command, edited(damage), words)


@commands
@pytest.mark.parametrize("edit", OUTER)
def test_an_outer_layer_that_does_not_fit_is_refused(refused, command, edit):
    refused(command, *OUTER[edit])


@pytest.mark.parametrize("command, name", [("resume", OUT.best), ("sample", OUT.last)])
def test_the_wrong_kind_of_checkpoint_is_refused(refused, template, command, name):
    refused(command, lambda path: shutil.copy(template / name, path), "is of kind ")


MATRIX = "blocks.0.mlp.up.weight.A"
ADAPTER_EDITS = {
    "a newer format": (lambda h, t: h.update(format=FORMAT + 1), "format"),
    "another base": (lambda h, t: h.update(base="0" * 64), "base"),
    "a base that is no text": (lambda h, t: h.update(base=3), "base"),
    "a missing tensor": (lambda h, t: t.popitem(), "is missing"),
    "an extra tensor": (lambda h, t: t.update(more=torch.zeros(1)), "'more'"),
    "a misshapen tensor": (with_tensor(MATRIX, lambda t: torch.zeros(2)), "mlp.up"),
    "a NaN weight": (with_tensor(MATRIX, lambda t: t.fill_(torch.nan)), "not finite"),
    "another rank": (part_of("config", rank=3), ""),
    "a rank of billions": (part_of("config", rank=2**40), ""),
    "a rank in words": (part_of("config", rank="2"), ""),
    "an unknown target": (part_of("config", targets=["moon"]), ""),
    "a nested target": (part_of("config", targets=[["moon"]]), ""),
    "a NaN alpha": (part_of("config", alpha=float("nan")), ""),
    "an infinite alpha": (part_of("config", alpha=float("inf")), ""),
    "an endless alpha": (part_of("config", alpha=10**400), ""),
    "a dropout": (part_of("config", dropout="x"), ""),
    "no kind": (lambda h, t: h.pop("kind"), "'kind'"),
}


@adapter_commands
@pytest.mark.parametrize("edit", ADAPTER_EDITS)
def test_an_adapter_that_does_not_fit_is_refused(refused, command, edit):
    damage, words = ADAPTER_EDITS[edit]
    refused(command, edited(damage), words, known=ADAPTER_COMMANDS)


# --- Training states ---------------------------------------------------------------------------------------------


def swap_optimizers(header, tensors):
    swapped = {name.translate({ord("0"): "1", ord("1"): "0"}): t for name, t in tensors.items() if "optimizer/" in name}
    for name in [name for name in tensors if name.startswith("optimizer/")]:
        del tensors[name]
    tensors |= swapped


def without(prefix):
    """An edit that drops tensors."""

    def edit(header, tensors):
        for name in [name for name in tensors if name.startswith(prefix)]:
            del tensors[name]

    return edit


def with_another_vocabulary(header, tensors):
    """As many characters, but others."""
    header["tokenizer"]["characters"] = header["tokenizer"]["characters"][:-1] + "\u00ff"


MOMENT, MOMENTUM, AVERAGE = "optimizer/0/0/exp_avg", "optimizer/1/0/momentum", f"average/{NORM}"
STATE_EDITS = {
    "no training state": (lambda h, t: h.update(training=3), "'training'"),
    "no step": (lambda h, t: h["training"].pop("step"), "'step'"),
    "a negative step": (part_of("training", step=-1), "'step'"),
    "an endless step": (part_of("training", step=2**60), "'step'"),
    "a step in words": (part_of("training", step="2"), "'step'"),
    "a NaN loss": (part_of("training", best_loss=float("nan")), "NaN is no number"),
    "a loss of minus infinity": (part_of("training", best_loss=float("-inf")), "-Infinity is no number"),
    "an infinite loss": (part_of("training", best_loss=float("inf")), "Infinity is no number"),
    "endless seconds": (part_of("training", train_seconds=float("inf")), "Infinity is no number"),
    "a negative loss": (part_of("training", best_loss=-1.0), "'best_loss' is out of range"),
    "negative seconds": (part_of("training", train_seconds=-1.0), "'train_seconds' is out of range"),
    "a negative sum": (part_of("training", loss_sum=-1.0), "'loss_sum' is out of range"),
    "a NaN sum": (part_of("training", loss_sum=float("nan")), "NaN is no number"),
    "another corpus": (part_of("training", corpus_sha256="0" * 64), "no longer the text"),
    "no settings": (lambda h, t: h.pop("settings"), "'settings'"),
    "another version's settings": (lambda h, t: h["settings"].pop("token_noise"), "token_noise missing"),
    "an unknown setting": (part_of("settings", colour="red"), "colour"),
    "a setting of another type": (part_of("settings", steps="many"), "--steps"),
    "a setting out of range": (part_of("settings", lr=-1.0), "--lr"),
    "a setting that is no number": (part_of("settings", lr=float("nan")), "NaN is no number"),
    "a setting missing its value": (part_of("settings", lr=None), "lr"),
    "a text of nothing": (part_of("settings", data=""), "--data"),
    "a window wider than the model's": (part_of("settings", max_seq=16), "max_seq"),
    "nested settings": (part_of("settings", steps=[[1]]), "--steps"),
    "no optimizers": (without("optimizer/"), "optimizers or average"),
    "optimizers in another order": (swap_optimizers, "optimizers or average"),
    "an optimizer without a parameter": (without("optimizer/0/0/"), "optimizers or average"),
    "a parameter without a moment": (lambda h, t: t.pop(MOMENT), "exp_avg"),
    "an unknown moment": (lambda h, t: t.update({"optimizer/0/0/more": torch.zeros(1)}), "more"),
    "a misshapen moment": (with_tensor(MOMENT, lambda t: torch.zeros(1)), "exp_avg"),
    "a NaN moment": (with_tensor(MOMENT, lambda t: t.fill_(torch.nan)), "not finite"),
    "no momentum": (lambda h, t: t.pop(MOMENTUM), "momentum"),
    "no average": (without("average/"), "is missing"),
    "an average without a tensor": (lambda h, t: t.pop(AVERAGE), f"'{NORM}' is missing"),
    "a misshapen average": (with_tensor(AVERAGE, lambda t: torch.zeros(2)), f"'{NORM}'"),
    "a NaN average": (with_tensor(AVERAGE, lambda t: t.fill_(torch.nan)), "not finite"),
    "another vocabulary": (with_another_vocabulary, "vocabulary is not that of text.txt"),
}


@pytest.mark.parametrize("edit", STATE_EDITS)
def test_a_training_state_that_does_not_fit_is_refused(refused, edit):
    damage, words = STATE_EDITS[edit]
    refused("resume", edited(damage), words)


def test_a_batch_that_the_memory_does_not_hold_is_refused_on_resume(refused, monkeypatch):
    """A small file must not make a large run, on a machine with 1 GiB of memory."""
    pages = 2**30 // os.sysconf("SC_PAGE_SIZE")
    real = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else real(name))
    refused("resume", edited(part_of("settings", batch_size=2**20)), "GiB", "--batch-size", named=False)


def test_another_text_under_the_same_name_is_refused_on_resume(refused, tmp_path):
    refused("resume", lambda _: (tmp_path / "text.txt").write_text(TEXT[::-1]), "no longer the text")


# --- Code --------------------------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`, made when the file is loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


CALLS = {
    "a shell command": lambda: Call(os.system, "touch canary"),
    "exec": lambda: Call(exec, "open('canary', 'w')"),
    "getattr": lambda: Call(getattr, "", "join"),
    "a gigabyte of bytes": lambda: Call(bytearray, 2**30),
    "a gigabyte of storage": lambda: Call(torch.UntypedStorage, 2**30),
    "a tensor of a gigabyte": lambda: Call(torch.Tensor, 2**28),
    "a subclass": lambda: torch.nn.Parameter(torch.zeros(1)),
}


@commands
@pytest.mark.parametrize("call", CALLS)
def test_a_pickle_that_would_do_something_is_refused_unread(refused, command, call, tmp_path):
    refused(command, lambda path: replaced(call=CALLS[call]())(path), "its pickle")
    assert not (tmp_path / "canary").exists()


def test_the_canary_would_sing(tmp_path):
    """The file that the test above plants does run its code where nothing is refused."""
    torch.save(CALLS["exec"](), tmp_path / "canary.pth")
    torch.load(tmp_path / "canary.pth", weights_only=False)
    assert (tmp_path / "canary").exists()


# --- Memory and time ---------------------------------------------------------------------------------------------


def with_pickle(make):
    """A damage that replaces the pickle of a whole file by `make()`."""
    return lambda path: rewritten(path, lambda name, data: [(name, make() if name.endswith("data.pkl") else data)])


def key_of_tuples(depth):
    """{((…),): None}, whose key no reader can hash without as many calls."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"Ns."


def shadowed(name):
    """An OrderedDict with an attribute in place of a method."""
    return b"\x80\x02ccollections\nOrderedDict\n)R}X" + struct.pack("<I", len(name)) + name.encode() + b"Nsb."


def many_entries(path):
    """400,000 empty entries in the directory of the zip."""
    content, directory = path.read_bytes(), 400_000 * central_entry()
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(content), 0)
    path.write_bytes(content + directory + end)


def central_entry():
    """An entry of a zip's directory for an empty file at its beginning."""
    return struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"


def many_characters(header, tensors):
    header["tokenizer"]["characters"] = "a" * 16_000_000


def memories(count):
    """A pickle that remembers one thing under many numbers."""
    return b"\x80\x02}" + b"".join(b"r" + struct.pack("<I", number) for number in range(count)) + b"."


BOMBS = {
    "a zip bomb": bomb,
    "a lying size": lying_size,
    "many entries": many_entries,
    "a key of tuples, 3 kB": with_pickle(lambda: key_of_tuples(3_000)),
    "a key of tuples, 200 kB": with_pickle(lambda: key_of_tuples(200_000)),
    "a list of lists": with_pickle(lambda: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "dictionaries in dictionaries": with_pickle(lambda: b"\x80\x02" + b"}" * 200_000 + b"Ns" * 199_999 + b"."),
    "a shadowed get": with_pickle(lambda: shadowed("get")),
    "a shadowed items": with_pickle(lambda: shadowed("items")),
    "many sets": with_pickle(lambda: b"\x80\x04" + b"\x8f" * 2_000_000 + b"."),
    "many dictionaries": with_pickle(lambda: b"\x80\x02" + b"}" * 20_000_000 + b"."),
    "many marks": with_pickle(lambda: b"\x80\x02" + b"(" * 20_000_000 + b"}."),
    "many short-lived dictionaries": with_pickle(lambda: b"\x80\x02}" + b"X\0\0\0\0}s" * 3_000_000 + b"."),
    "many memories": with_pickle(lambda: memories(3_000_000)),
    "a very long number": with_pickle(lambda: b"\x80\x02\x8b" + struct.pack("<i", 30_000_000) + b"\1" * 30_000_000),
    "a very long pickle": with_pickle(lambda: bytes(2**26 + 1)),
    "a text of nothing": with_pickle(lambda: b"\x80\x02X\xff\xff\xff\x7f."),
    "terabytes from one number": edited(with_terabytes_from_one_number),
    "a config of terabytes": edited(EDITS["a config of terabytes"][0]),
    "a header of many objects": OUTER["a header of many objects"][0],
    "a vocabulary of one character": edited(many_characters),
    "a tensor with an endless name": edited(EDITS["a tensor with an endless name"][0]),
}
# The most memory that a process has held, in bytes. (`getrusage` would give that of the process which started it, if
# that was more.)
PEAK = """
import re, sys
from pathlib import Path
from formats.checkpoint import MODEL, load_model, read_checkpoint
from support.command import UserError
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
"""
# Reads every file named, and prints what it says with the growth of the peak.
READ_ALL = """
load_model(Path(sys.argv[1]))
before = peak()
for name in sys.argv[2:]:
    try:
        load_model(Path(name))
        print(name, "loaded")
    except UserError as error:
        print(name, peak() - before, len(str(error)))
"""
MOST_GROWTH = 250 * 2**20  # of the peak over all of them; the largest file has 64 MB


def read_in_a_process(*paths: Path, script: str = READ_ALL) -> list[list[str]]:
    """The lines, cut into words, that a fresh process prints which reads these files."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc, to see the peak of a process")
    done = subprocess.run(
        [sys.executable, "-c", PEAK + script, *map(str, paths)],
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [line.split() for line in done.stdout.splitlines()]


def test_no_file_takes_much_memory_or_time(template, tmp_path):
    """One process refuses them all, with one short line each; no interpreter crash, no RecursionError."""
    whole = template / OUT.best
    paths = []
    for number, damage in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{number}.pth")
        shutil.copy(whole, paths[-1])
        damage(paths[-1])
    lines = read_in_a_process(whole, *paths)
    assert len(lines) == len(BOMBS)
    for name, line in zip(BOMBS, lines, strict=True):
        assert line[1] != "loaded", name
        assert int(line[1]) < MOST_GROWTH, f"{name}: peak {int(line[1]) / 2**20:.0f} MiB above the imports"
        assert int(line[2]) < 400, name


READ_ONE = """
before = peak()
read_checkpoint(Path(sys.argv[1]), MODEL)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 50])
def test_reading_500_mb_takes_at_most_two_and_a_half_times_as_much(tmp_path, count):
    path = tmp_path / "large.pth"
    tensors = {f"t{i}": torch.zeros(125_000_000 // count) for i in range(count)}
    write_checkpoint(path, {"kind": MODEL, "config": {}, "origin": {}}, tensors)
    ((peak,),) = read_in_a_process(path, script=READ_ONE)
    path.unlink()
    assert int(peak) < 2.5 * 500_000_000


# --- Two readers, two files --------------------------------------------------------------------------------------


def canary_pickle() -> bytes:
    return pickle.dumps(CALLS["exec"](), protocol=2)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["DATA.PKL", "Data.pkl"])
def test_a_second_pickle_in_capitals_is_not_read(template, tmp_path, name, first):
    """PyTorch's zip reader does not tell capitals apart; the bytes that it gets hold only what was checked."""
    path = tmp_path / "a.pth"
    shutil.copy(template / OUT.best, path)

    def add(entry, data):
        if not entry.endswith("/data.pkl"):
            return [(entry, data)]
        other = (entry.replace("data.pkl", name), canary_pickle())
        return [other, (entry, data)] if first else [(entry, data), other]

    rewritten(path, add)
    loaded, whole = load_model(path), load_model(template / OUT.best)
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), whole.model.parameters(), strict=True))
    assert not (tmp_path / "canary").exists()


def moved(content: bytes, offset: int) -> bytes:
    """A zip whose directory expects it to begin at `offset`."""
    content, position = bytearray(content), content.rindex(b"PK\x05\x06")
    (directory,) = struct.unpack_from("<I", content, position + 16)
    struct.pack_into("<I", content, position + 16, directory + offset)
    while (directory := content.find(b"PK\x01\x02", directory)) >= 0:
        (start,) = struct.unpack_from("<I", content, directory + 42)
        struct.pack_into("<I", content, directory + 42, start + offset)
        directory += 46
    return bytes(content)


def plain_zip(path: Path) -> bytes:
    """A checkpoint as Python writes a zip: with one directory of the old form."""
    rewritten(path)
    return path.read_bytes()


def two_directories(path: Path, good_last: bool, comment: bool) -> None:
    """The checkpoint and one with a canary in one file, each with a directory of its own."""
    good = plain_zip(path)
    rewritten(path, lambda name, data: [(name, canary_pickle() if name.endswith("data.pkl") else data)])
    bad = path.read_bytes()
    first, last = (bad, good) if good_last else (good, bad)
    last = moved(last, len(first))
    if comment:  # the second one lies in the comment of the first one's directory
        first = first[:-2] + struct.pack("<H", len(last))
    path.write_bytes(first + last)


@pytest.mark.parametrize("comment", [True, False])
@pytest.mark.parametrize("good_last", [True, False])
def test_two_directories_in_one_zip_are_refused(refused, tmp_path, good_last, comment):
    refused("sample", lambda path: two_directories(path, good_last, comment))
    assert not (tmp_path / "canary").exists()


# --- A new run over damaged files --------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["empty", "a flipped bit", "random bytes"])
def test_training_anew_keeps_damaged_files_as_they_are(template, tmp_path, in_process, damage):
    copy_of(template, tmp_path)
    paths = RunPaths(tmp_path / OUT.best)
    for path in (paths.best, paths.last):
        DAMAGES[damage](path)
    before = files_of(tmp_path)
    assert in_process("main.py", *SMALL_RUN, "--steps", 1, "--eval-every", 1)[0] == 0
    after = files_of(tmp_path)
    assert {name: after[name.replace("decoder.", "decoder.1.", 1)] for name in before} == before
    load_model(paths.best)
