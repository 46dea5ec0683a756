"""The outer layer of a `.pth` from anywhere: a zip with a pickle, checked before PyTorch reads it.

Nothing in a file is executed, and a file takes no more memory than a small multiple of its size. `walk` follows the
pickle symbolically and knows only what a table of tensors needs. PyTorch then reads a copy, made in memory, of the
entries that were checked, so that two readers cannot see two files.
"""

import contextlib
import io
import math
import os
import pickletools
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from support.command import UserError

MOST_DIRECTORY_BYTES, MOST_PICKLE_BYTES = 2**22, 2**26
MOST_OPCODES, MOST_STACK = 2**20, 2**13  # torch.save fills a dictionary by a thousand entries at a time
ITEM_SIZES = {"Float": 4, "Double": 8, "Half": 2, "BFloat16": 2, "Int": 4, "Long": 8, "Bool": 1, "Byte": 1}
STORAGES = {f"torch {kind}Storage": size for kind, size in ITEM_SIZES.items()}
REBUILD, ORDERED_DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
NAMES = {*STORAGES, REBUILD, ORDERED_DICT}  # the functions and types that a checkpoint's pickle needs
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}
# How many items an opcode takes off the stack; None: all above the last mark.
TAKEN = {**TUPLES, "SETITEM": 2, "SETITEMS": None, "BINPERSID": 1, "REDUCE": 2}
MOST_DEPTH = 4  # of dictionaries in dictionaries


@dataclass(frozen=True)
class Name:
    """A function or type that the pickle names."""

    name: str


@dataclass(frozen=True)
class Storage:
    """The numbers of one tensor: the zip entry that holds them, and how many bytes they take."""

    key: str
    items: int
    size: int


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in the pickle: a storage of its own, which it fills."""

    storage: Storage


def read_container(path: Path) -> dict:
    """The dictionary in a `.pth`: strings mapped to plain data, tensors and dictionaries of these.

    Raises UserError if the file is missing, damaged or holds anything else; OSError if it cannot be read.
    """
    if not path.is_file():
        what = " is a folder" if path.is_dir() else ": no such file"
        raise UserError(f"{path}{what}; name a .pth file, or train a model first: python main.py")
    with refused(path, "TinyGPT checkpoint"):
        return torch.load(checked_copy(path), map_location="cpu", weights_only=True)


@contextlib.contextmanager
def refused(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file makes its readers raise, but OSError, into a UserError that says that it is no
    `kind`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = error if isinstance(error, ValueError) else f"it is damaged ({type(error).__name__})"
        raise UserError(f"{path} is no {kind}: {reason}; use another file") from None


class GuardedFile(io.FileIO):
    """A file of which only `most` bytes are read at once: the zip reader reads a whole directory, however large."""

    most = MOST_DIRECTORY_BYTES

    def read(self, size: int = -1) -> bytes:
        if size > self.most:
            raise ValueError("its zip directory or its pickle is too large")
        return super().read(size)


@contextlib.contextmanager
def open_zip(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo], str]]:
    """What `torch.save` wrote: the zip file, its entries by name, and the name of its pickle.

    Raises ValueError with what is wrong: it is no zip, its entries repeat, are compressed, or claim more than the file
    holds.
    """
    with GuardedFile(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .pth or .pt file, or only a part of one")
        with zipfile.ZipFile(file) as container:
            file.most = MOST_PICKLE_BYTES
            entries = {entry.filename: entry for entry in container.infolist()}
            names = [name for name in entries if name.endswith("/data.pkl")]
            if len(entries) < len(container.infolist()) or len(names) != 1:
                raise ValueError("its zip entries repeat, or hold no data.pkl")
            if min(entry.header_offset for entry in entries.values()):
                raise ValueError("it does not begin with its zip")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise ValueError("it is compressed")
            if sum(entry.file_size for entry in entries.values()) > os.fstat(file.fileno()).st_size:
                raise ValueError("it claims to hold more than it does")
            yield container, entries, names[0]


def checked_copy(path: Path) -> io.BytesIO:
    """A zip in memory with the entries of the file that are known and whole. Raises ValueError with what is wrong."""
    buffer = io.BytesIO()
    with open_zip(path) as (container, entries, name), zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as copy:
        folder = name.removesuffix("data.pkl")
        keys = check_storages(walk(container.read(name)), folder, entries)
        wanted = {folder + name for name in ("data.pkl", "version", "byteorder", *(f"data/{key}" for key in keys))}
        for name, entry in entries.items():
            copied = zipfile.ZipInfo(f"checkpoint/{name.removeprefix(folder)}")
            copied.file_size = entry.file_size
            # Read in pieces to its end, an entry meets its checksum; what PyTorch does not need is only read.
            with container.open(entry) as source:
                with copy.open(copied, "w") if name in wanted else open(os.devnull, "wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
    buffer.seek(0)
    return buffer


def check_storages(found: dict, folder: str, entries: dict[str, zipfile.ZipInfo]) -> set[str]:
    """The keys of all storages in a dictionary and those in it; ValueError unless each is used once and has its bytes
    in the zip, and dictionaries are nested at most MOST_DEPTH deep."""
    memories, level = [], [found]
    for _ in range(MOST_DEPTH):
        values = [value for content in level for value in content.values()]
        memories += [value.storage for value in values if isinstance(value, TensorEntry)]
        level = [value for value in values if isinstance(value, dict)]
    if level:
        raise ValueError("its dictionaries are nested too deeply")
    for memory in memories:
        entry = entries.get(f"{folder}data/{memory.key}")
        if entry is None or entry.file_size != memory.size:
            raise ValueError("a tensor has other bytes than its shape needs")
    keys = {memory.key for memory in memories}
    if len(keys) < len(memories):
        raise ValueError("two tensors share their memory")
    return keys


def walk(pickle: bytes) -> dict:
    """What a pickle would make, with a TensorEntry for each tensor; it is read, not run.

    Allowed are dictionaries with strings as keys; strings, numbers, truth values and None; tuples of these; and
    tensors. Of what the pickle remembers, only strings and names may be used again: otherwise a kilobyte could stand
    for a structure that no computer can walk through. Raises ValueError for anything else.
    """
    stack, marks, memo = [], [], {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        kind = opcode.name
        if count > MOST_OPCODES or len(stack) > MOST_STACK:
            raise ValueError("its pickle is too large")
        if kind in TAKEN:
            start = marks.pop() if TAKEN[kind] is None else len(stack) - TAKEN[kind]
            taken, stack[start:] = stack[start:], []
        if kind in ("BINUNICODE", "BININT", "BININT1", "BININT2", "BINFLOAT") or (kind == "LONG1" and argument < 2**63):
            stack.append(argument)
        elif kind in CONSTANTS:
            stack.append(CONSTANTS[kind])
        elif kind == "GLOBAL" and argument in NAMES:
            stack.append(Name(argument))
        elif kind in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif kind in ("BINGET", "LONG_BINGET") and isinstance(memo.get(argument), str | Name):
            stack.append(memo[argument])
        elif kind == "EMPTY_DICT":
            stack.append({})
        elif kind == "MARK":
            marks.append(len(stack))
        elif kind in ("SETITEM", "SETITEMS"):
            set_items(stack[-1], taken)
        elif kind in TUPLES:
            stack.append(checked_tuple(tuple(taken)))
        elif kind == "BINPERSID":
            stack.append(storage(*taken))
        elif kind == "REDUCE":
            stack.append(rebuilt(*taken))
        elif kind == "STOP" and len(stack) == 1 and isinstance(stack[0], dict):
            return stack[0]
        elif kind != "PROTO":
            raise ValueError(f"its pickle holds {kind} {str(argument)[:60]!r}, which no checkpoint needs")
    raise ValueError("its pickle has no end")


def set_items(target: object, items: list) -> None:
    """Put keys and values, taking turns, into a dictionary of the walk. Raises ValueError if that cannot be."""
    if type(target) is not dict or len(items) % 2:
        raise ValueError("its pickle fills something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str) or key in target:
            raise ValueError("a key in its pickle is no string, or comes twice")
        if isinstance(value, Name | Storage):
            raise ValueError("a value in its pickle is no plain data")
        target[key] = value


def checked_tuple(items: tuple) -> tuple:
    """The tuple; ValueError if it holds a dictionary, or a tuple that holds more than numbers."""
    for item in items:
        if isinstance(item, dict) or (isinstance(item, tuple) and not all(isinstance(i, int) for i in item)):
            raise ValueError("a tuple in its pickle holds more than numbers and strings")
    return items


def storage(found: object) -> Storage:
    """The storage that a persistent id of the pickle stands for: ("storage", type, key, location, items)."""
    match found:
        case ("storage", Name(kind), str(key), str(), int(items)) if kind in STORAGES and 0 <= items < 2**40:
            return Storage(key, items, items * STORAGES[kind])
    raise ValueError("a tensor in its pickle has no memory of a known kind")


def rebuilt(function: object, arguments: object) -> object:
    """What a call in the pickle makes: a tensor that fills a storage of its own, or the empty hooks that it comes with.

    Without that rule a few bytes could pose as terabytes: expanded, or shared by many.
    """
    if function == Name(ORDERED_DICT) and arguments == ():
        return Name("hooks")
    match arguments:
        case (Storage() as memory, 0, tuple(size), tuple(stride), False, Name("hooks")) if function == Name(REBUILD):
            whole = [math.prod(size[i + 1 :]) for i in range(len(size))]  # the strides of contiguous rows
            fills = memory.items == math.prod(size) and list(stride) == whole
            if len(size) > 8 or any(n < 0 for n in size) or not fills:
                raise ValueError("a tensor in its pickle is not contiguous, or does not fill its memory")
            return TensorEntry(memory)
    raise ValueError("its pickle calls a function that no checkpoint needs")
