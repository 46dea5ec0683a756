"""Damaged and hostile checkpoints: refused with one line by each command that reads them; nothing runs or changes."""

import io
import os
import pickle
import random
import shutil
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from conftest import assert_one_error_line
from faults import NETWORK, OUT, SMALL_RUN, TEXT, copy_of, files_of, flip_a_bit, run_here, write_corpus
from formats.checkpoint import FORMAT, fingerprint, load_checkpoint
from training.state import RunPaths

# What each command is given, and which file it reads.
FLAGS = [flag for flag in SMALL_RUN if flag not in NETWORK]  # a fine-tuned model has its base's shape
COMMANDS = {
    "resume": (OUT.last, ["main.py", "--resume"]),
    "sample": (OUT.best, ["generate.py", "--max-new-tokens", 3]),
    "train": (OUT.best, ["main.py", *FLAGS, "--init-from", OUT.best, "--steps", 1, "--out", "tuned.pth"]),
    "merge": (OUT.best, ["training/lora.py", "merge", OUT.best, "adapter.pth", "merged.pth"]),
}
ADAPTER_COMMANDS = {
    "sample": (Path("adapter.pth"), ["generate.py", "--lora", "adapter.pth", "--max-new-tokens", 3]),
    "merge": (Path("adapter.pth"), ["training/lora.py", "merge", OUT.best, "adapter.pth", "merged.pth"]),
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

    def check(command: str, damage, *words: str, known=COMMANDS):
        copy_of(template, tmp_path)
        name, arguments = known[command]
        damage(tmp_path / name)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with warnings.catch_warnings(record=True) as warned:
            code, output, errors = in_process(*arguments)
        assert code == 2, errors
        assert_one_error_line(errors, str(name), *words)
        assert len(errors.splitlines()) == 1 and not warned and not output
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
        with pytest.raises(ValueError, match="cut.pth is damaged or no TinyGPT checkpoint"):
            load_checkpoint(path, "training" if name == OUT.last else "model")


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
        with pytest.raises(ValueError, match="checksum"):
            load_checkpoint(path, "training")
        try:
            torch.load(path, weights_only=True)
            unnoticed += 1
        except Exception:
            pass
    assert unnoticed > 50


# --- Well-formed, but not what was saved -------------------------------------------------------------------------


def edited(edit):
    """A damage that changes the content and writes a flawless file again."""

    def damage(path):
        content = torch.load(path, weights_only=True)
        edit(content)
        torch.save(content, path)

    return damage


def with_another_vocabulary(content):
    """As many characters, but others; the fingerprint of the first vocabulary stays."""
    content["tokenizer"]["characters"] = content["tokenizer"]["characters"][:-1] + "\u00ff"


def with_terabytes_from_one_number(content):
    """A config of a terabyte, every tensor a single number expanded to its shape."""
    content["config"].update(embed_dim=2**14, num_layers=1)
    for name, tensor in content["weights"].items():
        shape = [{8: 2**14, 24: 3 * 2**14, 32: 4 * 2**14}.get(size, size) for size in tensor.shape]
        if name == "position_embedding.weight":
            shape = [8, 2**14]  # 8 is the window here
        content["weights"][name] = torch.zeros(1).expand(shape)


def with_shared_memory(content):
    """Many weights that are views of one."""
    one = torch.zeros(10_000)
    for name, tensor in content["weights"].items():
        content["weights"][name] = one[: tensor.numel()].view(tensor.shape)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(depth):
    """A few dozen lists that, written out, would be 2 ** depth."""
    value = [1]
    for _ in range(depth):
        value = [value, value]
    return value


def cyclic():
    value = {}
    value["itself"] = value
    return value


EDITS = {
    "a newer format": (lambda c: c.update(format=FORMAT + 1), "format"),
    "a format in words": (lambda c: c.update(format="1"), "format"),
    "an endless format": (lambda c: c.update(format=10**5000), ""),
    "no weights": (lambda c: c.pop("weights"), "'weights'"),
    "weights as a list": (lambda c: c.update(weights=[1]), "'weights'"),
    "a missing tensor": (lambda c: c["weights"].pop("head.bias"), "'head.bias' is missing"),
    "an extra tensor": (lambda c: c["weights"].update(more=torch.zeros(1)), "'more'"),
    "a misshapen tensor": (lambda c: c["weights"].update({"head.bias": torch.zeros(2)}), "'head.bias'"),
    "a tensor of another type": (lambda c: c["weights"].update({"head.bias": torch.zeros(2).long()}), "int64"),
    "a number for a tensor": (lambda c: c["weights"].update({"head.bias": 3.0}), "'head.bias'"),
    "a sparse tensor": (lambda c: c["weights"].update({"head.bias": torch.zeros(3).to_sparse()}), "names"),
    "a NaN weight": (lambda c: c["weights"]["head.bias"][:1].fill_(torch.nan), "not finite"),
    "an infinite weight": (lambda c: c["weights"]["head.bias"][:1].fill_(-torch.inf), "not finite"),
    "a name that is no text": (lambda c: c["weights"].update({(1, 2): torch.zeros(1)}), ""),
    "a config without a field": (lambda c: c["config"].pop("num_heads"), "num_heads"),
    "a config with text": (lambda c: c["config"].update(embed_dim="8"), "embed_dim"),
    "a config with True": (lambda c: c["config"].update(num_layers=True), "num_layers"),
    "a negative config": (lambda c: c["config"].update(max_seq=-1), "max_seq"),
    "a NaN dropout": (lambda c: c["config"].update(dropout=float("nan")), "dropout"),
    "a config of terabytes": (lambda c: c["config"].update(embed_dim=2**14, num_layers=2**10), ""),
    "a config past all bounds": (lambda c: c["config"].update(embed_dim=2**40), "embed_dim"),
    "terabytes from one number": (with_terabytes_from_one_number, "memory of its own"),
    "weights that share memory": (with_shared_memory, "memory of its own"),
    "a nested config": (lambda c: c["config"].update(embed_dim=nested(300)), ""),
    "a config of 2**60 lists": (lambda c: c["config"].update(embed_dim=doubled(60)), "twice"),
    "a cyclic origin": (lambda c: c.update(origin=cyclic()), "twice"),
    "a nested origin": (lambda c: c["origin"].update(corpus=[[1]]), "no number"),
    "a reordered vocabulary": (lambda c: c["tokenizer"].update(characters=c["tokenizer"]["characters"][::-1]), "order"),
    "another corpus's vocabulary": (with_another_vocabulary, "vocabulary"),
    "an empty vocabulary": (lambda c: c["tokenizer"].update(characters=""), ""),
    "an unknown tokenizer": (lambda c: c["tokenizer"].update(kind="morse"), "kind"),
    "no text in the tokenizer": (lambda c: c["tokenizer"].update(characters=["a"]), "damaged"),
    "BPE that is none": (lambda c: c.update(tokenizer={"kind": "bpe", "json": "[" * 9999, "start": "\n"}), ""),
    "another kind": (lambda c: c.update(kind="model\n\x1b[2J"), ""),
}


@commands
@pytest.mark.parametrize("edit", EDITS)
def test_content_that_does_not_fit_is_refused(refused, command, edit):
    damage, words = EDITS[edit]
    if edit == "BPE that is none":
        pytest.importorskip("tokenizers")
    refused(command, edited(damage), words)


@pytest.mark.parametrize("command, name", [("resume", OUT.best), ("sample", OUT.last)])
def test_the_wrong_kind_of_checkpoint_is_refused(refused, template, command, name):
    refused(command, lambda path: shutil.copy(template / name, path), "checkpoint, and a")


ADAPTER_EDITS = {
    "a newer format": (lambda c: c.update(format=FORMAT + 1), "format"),
    "another base": (lambda c: c.update(base="0" * 64), "base"),
    "a base that is no text": (lambda c: c.update(base=3), "'base'"),
    "a missing tensor": (lambda c: c["weights"].popitem(), "is missing"),
    "an extra tensor": (lambda c: c["weights"].update(more=torch.zeros(1)), "'more'"),
    "a misshapen tensor": (lambda c: c["weights"].update({"blocks.0.mlp.0.weight.A": torch.zeros(2)}), "mlp.0"),
    "a NaN weight": (lambda c: c["weights"]["blocks.0.mlp.0.weight.A"].fill_(torch.nan), "not finite"),
    "another rank": (lambda c: c["config"].update(rank=3), ""),
    "a rank of billions": (lambda c: c["config"].update(rank=2**40), ""),
    "a rank in words": (lambda c: c["config"].update(rank="2"), ""),
    "an unknown target": (lambda c: c["config"].update(targets=("moon",)), ""),
    "a NaN alpha": (lambda c: c["config"].update(alpha=float("nan")), ""),
    "no kind": (lambda c: c.pop("kind"), "'kind'"),
}


@adapter_commands
@pytest.mark.parametrize("edit", ADAPTER_EDITS)
def test_an_adapter_that_does_not_fit_is_refused(refused, command, edit):
    damage, words = ADAPTER_EDITS[edit]
    refused(command, edited(damage), words, known=ADAPTER_COMMANDS)


# --- Training states ---------------------------------------------------------------------------------------------


def swap_optimizers(content):
    content["training"]["optimizers"].reverse()


STATE_EDITS = {
    "no training state": (lambda c: c.update(training=3), "no dictionary"),
    "no step": (lambda c: c["training"].pop("step"), "'step'"),
    "a negative step": (lambda c: c["training"].update(step=-1), "'step'"),
    "an endless step": (lambda c: c["training"].update(step=2**60), "'step'"),
    "a step in words": (lambda c: c["training"].update(step="2"), "'step'"),
    "a NaN loss": (lambda c: c["training"].update(best_loss=float("nan")), "best_loss"),
    "endless seconds": (lambda c: c["training"].update(train_seconds=float("inf")), "train_seconds"),
    "another corpus": (lambda c: c["training"].update(corpus_sha256="0" * 64), "no longer the text"),
    "another version's settings": (lambda c: c["training"]["settings"].pop("token_noise"), "token_noise missing"),
    "an unknown setting": (lambda c: c["training"]["settings"].update(colour="red"), "colour"),
    "a setting of another type": (lambda c: c["training"]["settings"].update(steps="4"), "--steps"),
    "a setting out of range": (lambda c: c["training"]["settings"].update(lr=-1.0), "--lr"),
    "a setting missing its value": (lambda c: c["training"]["settings"].update(lr=None), "--lr"),
    "a window wider than the model's": (lambda c: c["training"]["settings"].update(max_seq=16), "max_seq"),
    "nested settings": (lambda c: c["training"]["settings"].update(steps=[[1]]), "no number"),
    "no optimizers": (lambda c: c["training"].update(optimizers=[]), "optimizer"),
    "optimizers in another order": (swap_optimizers, "optimizer"),
    "an optimizer of words": (lambda c: c["training"].update(optimizers=["a", "b"]), "optimizer"),
    "an optimizer without a parameter": (lambda c: c["training"]["optimizers"][0].pop(0), "optimizer"),
    "a parameter without a moment": (lambda c: c["training"]["optimizers"][0][0].pop("exp_avg"), "exp_avg"),
    "an unknown moment": (lambda c: c["training"]["optimizers"][0][0].update(more=torch.zeros(1)), "more"),
    "a misshapen moment": (lambda c: c["training"]["optimizers"][0][0].update(exp_avg=torch.zeros(1)), "exp_avg"),
    "a NaN moment": (lambda c: c["training"]["optimizers"][0][0]["exp_avg"].fill_(torch.nan), "not finite"),
    "momentum in words": (lambda c: c["training"]["optimizers"][1][0].update(momentum="high"), "momentum"),
    "no momentum": (lambda c: c["training"]["optimizers"][1].clear(), "momentum"),
    "no average": (lambda c: c["training"].pop("average"), "average of the weights is missing"),
    "an average without a tensor": (lambda c: c["training"]["average"].pop("head.bias"), "'head.bias' is missing"),
    "a misshapen average": (lambda c: c["training"]["average"].update({"head.bias": torch.zeros(2)}), "'head.bias'"),
    "a NaN average": (lambda c: c["training"]["average"]["head.bias"].fill_(torch.nan), "not finite"),
}


@pytest.mark.parametrize("edit", STATE_EDITS)
def test_a_training_state_that_does_not_fit_is_refused(refused, edit):
    damage, words = STATE_EDITS[edit]
    refused("resume", edited(damage), words)


def test_a_whole_vocabulary_swap_is_refused_on_resume(refused):
    """With the fingerprint adjusted as well, the corpus itself gives it away."""

    def swap(content):
        with_another_vocabulary(content)
        content["vocabulary"] = fingerprint(content["tokenizer"])

    refused("resume", edited(swap), "vocabulary is not that of text.txt")


def test_another_text_under_the_same_name_is_refused_on_resume(refused, tmp_path):
    refused("resume", lambda _: (tmp_path / "text.txt").write_text(TEXT[::-1]), "no longer the text")


# --- Code and memory ---------------------------------------------------------------------------------------------


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
def test_a_pickle_that_would_do_something_is_refused_unread(refused, command, call, peak_memory):
    before = peak_memory()
    refused(command, edited(lambda content: content["origin"].update(call=CALLS[call]())), "names")
    assert peak_memory() - before < 200 * 2**20


@pytest.fixture
def peak_memory():
    """The most bytes that this process has held so far."""
    resource = pytest.importorskip("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_the_canary_would_sing(tmp_path, monkeypatch):
    """The file that the test above plants does run its code where nothing is refused."""
    monkeypatch.chdir(tmp_path)
    torch.save(CALLS["exec"](), tmp_path / "canary.pth")
    torch.load(tmp_path / "canary.pth", weights_only=False)
    assert (tmp_path / "canary").exists()


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
    load_checkpoint(paths.best)
