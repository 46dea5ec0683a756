"""Damaged and hostile files: refused with one line, in bounded memory and time; nothing runs or changes. Every
damage is tried once on the reader, and one damage on every command that reads a file."""

import contextlib
import json
import os
import random
import re
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
from faults import NETWORK, OUT, SMALL_RUN, TEXT, Child, copy_of, files_of, flip_a_bit, run_here, write_corpus
from formats.adapter import apply_adapter
from formats.checkpoint import FORMAT, LIMITS, MODEL, TRAINING, load_model, read_checkpoint, save_model
from formats.describe import describe_file
from formats.huggingface import load_huggingface, save_huggingface
from helpers import ROOT, assert_one_error_line, posix, tiny_config
from support.command import UserError, one_line
from tiny_decoder import TinyGPT
from tokenizer import CharTokenizer

ADAPTER, SLOW = Path("adapter.pth"), pytest.mark.slow
FLAGS = [flag for flag in SMALL_RUN if flag not in NETWORK]  # a fine-tuned model has its base's shape
# What each command is given, and which file it reads.
COMMANDS = {
    "resume": (OUT.last, ["main.py", "--resume"]),
    "sample": (OUT.best, ["generate.py", "--max-new-tokens", 3]),
    "train": (OUT.best, ["main.py", *FLAGS, "--init-from", OUT.best, "--steps", 1, "--out", "tuned.pth"]),
    "convert": (OUT.best, ["convert.py", OUT.best, "merged.pth"]),
    "describe": (OUT.best, ["convert.py", OUT.best]),
    "sample adapted": (ADAPTER, ["generate.py", "--lora", ADAPTER, "--max-new-tokens", 3]),
    "merge": (ADAPTER, ["convert.py", OUT.best, "merged.pth", "--lora", ADAPTER]),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with an unfinished run, and no earlier generation to fall back on."""
    folder = write_corpus(tmp_path_factory.mktemp("template"))
    run_here(folder, *SMALL_RUN, "--steps", 4, "--eval-every", 2, "--stop-at", 2)
    run_here(folder, *FLAGS, "--init-from", OUT.best, "--lora-rank", 2, "--out", ADAPTER, "--steps", 1)
    return folder


@pytest.fixture
def refused(template, tmp_path, output_of):
    """Damage the file that a command reads and see it refused: `refused(command, damage, "words", …)`."""

    def check(command: str, damage, *words: str):
        copy_of(template, tmp_path)
        name, arguments = COMMANDS[command]
        damage(tmp_path / name)
        before = files_of(tmp_path)
        errors = output_of(*arguments, code=2)
        assert_one_error_line(errors, *words)
        assert len(errors.splitlines()) == 1 and len(errors) < 1200
        assert files_of(tmp_path) == before, "a file changed"

    return check


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_whole_file_and_refuses_a_damaged_one(refused, tmp_path, output_of, command):
    name, arguments = COMMANDS[command]
    refused(command, flip_a_bit, str(name), "damaged")
    flip_a_bit(tmp_path / name)  # back again
    output_of(*arguments)


# --- Not a checkpoint at all, or damaged on the way --------------------------------------------------------------


def rewritten(change, compression=zipfile.ZIP_STORED):
    """A damage that writes the zip anew, each entry with the bytes that `change(name, bytes)` gives, or left out."""

    def damage(path):
        with zipfile.ZipFile(path) as container:
            entries = {name: change(name, container.read(name)) for name in container.namelist()}
        with zipfile.ZipFile(path, "w", compression) as container:
            for name in [name for name, data in entries.items() if data is not None]:
                container.writestr(name, entries[name])

    return damage


def with_entry(ending, change, **options):
    """A damage that changes the entry of the zip whose name ends so."""
    return rewritten(lambda name, data: change(data) if name.endswith(ending) else data, **options)


def lying_size(path):
    """The directory of the zip claims that an entry holds 3 GB."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<II", content, content.index(b"PK\x01\x02") + 20, 3 * 2**30, 3 * 2**30)
    path.write_bytes(content)


def many_entries(path):
    """400,000 empty entries in the directory of the zip."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 3, 20, *[0] * 8, 1, *[0] * 6) + b"x"
    content, directory = path.read_bytes(), 400_000 * entry
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, len(directory), len(content), 0)
    path.write_bytes(content + directory + end)


BYTES = {
    "random bytes": (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), "not a .pth"),
    "another zip": (with_entry("/data.pkl", lambda data: None), "data.pkl"),
    "an old torch file": (lambda p: torch.save({}, p, _use_new_zipfile_serialization=False), "not a .pth"),
    "a zip bomb": (with_entry("/0", lambda data: bytes(2**27), compression=zipfile.ZIP_DEFLATED), "compressed"),
    "a lying size": (lying_size, "more than it does"),
    "many entries": (many_entries, "directory"),
    "a tensor cut short": (with_entry("data/0", lambda data: data[:-4]), "too few"),
    "a tensor's bytes missing": (with_entry("data/0", lambda data: None), "missing"),
}


@pytest.mark.parametrize("name", [OUT.last, OUT.best])
def test_a_file_cut_at_any_length_is_refused(template, tmp_path, name):
    """Every length near both ends and a spread between."""
    whole, path = (template / name).read_bytes(), tmp_path / "cut.pth"
    for length in sorted({*range(0, 200), *range(200, len(whole), 97), *range(len(whole) - 200, len(whole))}):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut.pth is not a TinyGPT checkpoint"):
            read_checkpoint(path, TRAINING if name == OUT.last else MODEL)


@pytest.mark.parametrize("step", [211, pytest.param(7, marks=SLOW)])
def test_a_byte_changed_anywhere_is_noticed_or_changes_nothing(template, tmp_path, step):
    """A byte in each tensor, and every so many of all others; PyTorch itself loads most of these files."""
    path, whole = tmp_path / "changed.pth", (template / OUT.last).read_bytes()
    header, original = read_checkpoint(template / OUT.last, TRAINING)
    in_tensors = {whole.index(t.numpy().tobytes()) for t in original.values() if t.numel() > 1}
    for position in in_tensors | set(range(0, len(whole), step)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            again, tensors = read_checkpoint(path, TRAINING)
        except UserError:
            continue
        assert position not in in_tensors and again == header and tensors.keys() == original.keys()
        assert all(torch.equal(tensors[name], original[name]) for name in original)


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
    return lambda path: torch.save({**torch.load(path, weights_only=True), **entries}, path)


def part_of(name, **changes):
    """An edit of a part of the header."""
    return lambda header, tensors: header[name].update(changes)


def with_tensor(name, make):
    """An edit that replaces a tensor by what `make` makes of it."""
    return lambda header, tensors: tensors.update({name: make(tensors[name])})


NORM = "final_norm.bias"
EDITS = {
    "another format": (lambda h, t: h.update(format=FORMAT + 1), "another version of TinyGPT"),
    "an extra tensor": (lambda h, t: t.update(more=torch.zeros(1)), "'more'"),
    "a misshapen tensor": (with_tensor(NORM, lambda t: torch.zeros(2)), f"'{NORM}' is (2,)"),
    "a tensor of half precision": (with_tensor(NORM, lambda t: t.half()), "float16"),
    "a sparse tensor": (with_tensor(NORM, lambda t: t.to_sparse()), "pickle"),
    "a NaN weight": (with_tensor(NORM, lambda t: t.fill_(torch.nan)), "not finite"),
    "a transposed weight": (with_tensor("blocks.0.mlp.up.weight", lambda t: t.t().contiguous().t()), "contiguous"),
    "a config without a field": (lambda h, t: h["config"].pop("num_heads"), "config has a field"),
    "a negative config": (part_of("config", max_seq=-1), "max_seq"),
    "a config of terabytes": (part_of("config", embed_dim=2**14, num_layers=2**10), "in_proj_bias"),
    "a number without end": (part_of("config", embed_dim=10**4000), "embed_dim"),
    "a window without positions": (part_of("config", max_seq=7000), "position_embedding"),
    "terabytes from one number": (with_tensor(NORM, lambda t: t[:1].expand(2**40)), "more than the file holds"),
    "another size of vocabulary": (part_of("tokenizer", characters="abc", start="a"), "5 tokens"),
    "a vocabulary of one character": (part_of("tokenizer", characters="a" * 16_000_000), "vocabulary"),
    "half a surrogate pair": (
        lambda h, t: h["tokenizer"].update(characters=h["tokenizer"]["characters"][:-1] + "\ud800"),
        "not a character",
    ),
}
OUTER = {
    "no header": (lambda path: torch.save({"tensors": {}}, path), "'header'"),
    "a header nested deeply": (replaced(header="[" * 100_000), "nested"),
    "a header with surrogates": (replaced(header='{"format": 2, "kind": "\\ud800"}'), "'config'"),
    "a header of many objects": (replaced(header="[" + "{}," * 2_000_000 + "{}]"), "too large"),
    "tensors as a list": (replaced(tensors=[1]), "'tensors'"),
}


# --- Code, memory and time ---------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function` with `arguments`, made when the file is loaded."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


CALLS = {
    "a shell command": Call(os.system, "touch canary"),
    "exec": Call(exec, "open('canary', 'w')"),
    "a parameter": torch.nn.Parameter(torch.zeros(1)),
}


def test_the_canary_would_sing(tmp_path):
    """The file that is planted below does run its code where nothing is refused."""
    torch.save(CALLS["exec"], tmp_path / "canary.pth")
    torch.load(tmp_path / "canary.pth", weights_only=False)
    assert (tmp_path / "canary").exists()


def with_pickle(code: bytes):
    """A damage that replaces the pickle, `code` after its two bytes of protocol."""
    return with_entry("data.pkl", lambda data: b"\x80\x02" + code)


# Keys and values that are twice the one before, 60 times: 2**60 parts to hash or to walk through.
PAIRS = b"})q\0" + b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60)) + b"Ns."
PICKLES = {
    "a key of 2**60 tuples": with_pickle(PAIRS),
    "many dictionaries": with_pickle(b"}" * 20_000_000 + b"."),
    "a very long number": with_pickle(b"\x8b" + struct.pack("<i", 30_000_000) + b"\1" * 30_000_000),
    "a very long pickle": with_pickle(bytes(2**26)),
}
DAMAGES = {**BYTES, **{name: (edited(edit), words) for name, (edit, words) in EDITS.items()}, **OUTER}
DAMAGES |= {name: (replaced(call=call), "its pickle") for name, call in CALLS.items()}


def refusal(path: Path, read=load_model) -> str:
    """What `read` says of a file that it refuses; describing the file gives no other error, and changes nothing."""
    before = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with contextlib.suppress(UserError):
            describe_file(path)
        with pytest.raises(UserError) as refused:
            read(path)
    assert path.read_bytes() == before and not Path("canary").exists()
    assert path.name in str(refused.value) and len(one_line(refused.value)) < 1000
    return str(refused.value)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_refused(template, tmp_path, name):
    damage, words = DAMAGES[name]
    shutil.copy(template / OUT.last, tmp_path / "state.pth")
    damage(shutil.copy(template / OUT.best, tmp_path / "a.pth"))
    assert words in refusal(tmp_path / "a.pth")


MATRIX = "blocks.0.mlp.up.weight.A"
ADAPTER_EDITS = {
    "a NaN weight": (with_tensor(MATRIX, lambda t: t.fill_(torch.nan)), "not finite"),
    "another rank": (part_of("config", rank=3), "(2, 8)"),
    "a rank of billions": (part_of("config", rank=2**40), "rank"),
    "a nested target": (part_of("config", targets=[["moon"]]), "moon"),
    "an unknown entry": (part_of("config", moon=1), "entries that this version does not know"),
    "an endless alpha": (part_of("config", alpha=10**400), "alpha"),
}


@pytest.mark.parametrize("name", ADAPTER_EDITS)
def test_an_adapter_that_does_not_fit_is_refused(template, tmp_path, name):
    edit, words = ADAPTER_EDITS[name]
    edited(edit)(shutil.copy(template / ADAPTER, tmp_path / "adapter.pth"))
    base = load_model(template / OUT.best)
    assert words in refusal(tmp_path / "adapter.pth", lambda path: apply_adapter(base, path))


GROWTH, SHARE = 300e6, 4  # reading a file takes at most so many bytes, and so many times its size


def assert_small_peak(path: Path, outcome: type | None) -> None:
    """A process of its own reads the file, within bounds of memory and time, and raises `outcome`."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc, to see the peak of a process")

    def peak() -> int:
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    def read() -> None:
        before, result = peak(), None  # the peak of a forked process begins with what it holds
        try:
            load_huggingface(path) if path.is_dir() else load_model(path)
        except UserError as error:
            result = type(error)
        files = path.iterdir() if path.is_dir() else [path]
        limit = GROWTH + SHARE * sum(file.stat().st_size for file in files)
        print(f"{result} after {(peak() - before) / 1e6:.0f} MB of {limit / 1e6:.0f}", file=sys.stderr)
        os._exit(0 if result is outcome and peak() - before <= limit else 3)

    child = Child(path.parent, "convert.py", prepare=read)
    assert child.wait(30) == 0, f"{path.name}: {child.stderr}"


BOMBS = {**PICKLES, "many entries": many_entries, "many objects": OUTER["a header of many objects"][0]}
BOMBS["a config of terabytes"] = edited(EDITS["a config of terabytes"][0])


@pytest.mark.parametrize("name", BOMBS)
def test_no_file_takes_much_memory_or_time(template, tmp_path, name):
    path = Path(shutil.copy(template / OUT.best, tmp_path / "a.pth"))
    BOMBS[name](path)
    assert_small_peak(path, UserError)


def write_large(path: Path, **shape) -> Path:
    """A model of many positions or parameters in the format that the name tells."""
    tokenizer = CharTokenizer.from_text(TEXT)
    model = TinyGPT(tiny_config(vocab_size=tokenizer.vocab_size, tie_embeddings=True, **shape), init=None)
    save_model(path.with_suffix(".pth"), model, tokenizer, {})
    if not path.suffix:
        pytest.importorskip("safetensors")
        save_huggingface(path, load_model(path.with_suffix(".pth")))
    return path


@pytest.mark.parametrize("name", ["a.pth", "a"])
def test_the_mask_of_the_largest_window_takes_little_memory(tmp_path, name):
    """A file of 72 kB took 2.7 GB, for its mask."""
    assert_small_peak(write_large(tmp_path / name, max_seq=LIMITS["max_seq"]), None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.pth", "a"])
def test_reading_400_mb_takes_at_most_four_times_as_much(tmp_path, name):
    assert_small_peak(write_large(tmp_path / name, num_layers=8, embed_dim=1024), None)


LOW_MEMORY = """
import importlib, resource, sys
from support.command import run
sys.argv = sys.argv[1:]
command = importlib.import_module(sys.argv[0].removesuffix(".py")).main
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 12 * 2**20,) * 2)
run(command)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, to see the size of a process")
def test_a_lack_of_memory_is_no_damage(tmp_path):
    """A good file was called damaged. The process may take 12 MiB more than it has; the file holds 25 MB."""
    write_corpus(tmp_path)
    steps = ["--steps", 2, "--stop-at", 1, "--eval-every", 1]
    run_here(tmp_path, *SMALL_RUN, *steps, "--embed-dim", 512, "--num-layers", 2)
    arguments = [sys.executable, "-c", LOW_MEMORY, *map(str, COMMANDS["convert"][1])]
    done = subprocess.run(arguments, env=environment(PYTHONPATH=str(ROOT)), capture_output=True, encoding="utf-8")
    assert done.returncode == 1, done.stderr
    assert_one_error_line(done.stderr, "not enough memory")


STATE_EDITS = {
    "no training state": (lambda h, t: h.update(training=3), "'training'"),
    "no step": (lambda h, t: h["training"].pop("step"), "'step'"),
    "an endless step": (part_of("training", step=2**60), "'step'"),
    "a NaN loss": (part_of("training", best_loss=float("nan")), "NaN is not a number"),
    "another version's settings": (lambda h, t: h["settings"].pop("windows"), "windows missing"),
    "a setting of another type": (part_of("settings", steps="many"), "--steps"),
    "a setting out of range": (part_of("settings", lr=-1.0), "--lr"),
    "a window wider than the model's": (part_of("settings", max_seq=16), "max_seq"),
    "no optimizers": (lambda h, t: [t.pop(n) for n in list(t) if n.startswith("optimizer/")], "optimizers or average"),
    "a parameter without a moment": (lambda h, t: t.pop("optimizer/0/0/exp_avg"), "exp_avg"),
    "no momentum": (lambda h, t: t.pop("optimizer/1/0/momentum"), "momentum"),
}


@pytest.mark.parametrize("edit", STATE_EDITS)
def test_a_training_state_that_does_not_fit_is_refused(refused, edit):
    damage, words = STATE_EDITS[edit]
    refused("resume", edited(damage), words, str(OUT.last))


@posix
def test_a_batch_that_the_memory_does_not_hold_is_refused_on_resume(refused, monkeypatch):
    """A small file must not make a large run, on a machine with 1 GiB of memory."""
    pages, real = 2**30 // os.sysconf("SC_PAGE_SIZE"), os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else real(name))
    refused("resume", edited(part_of("settings", batch_size=2**20)), "GiB", "--batch-size")
