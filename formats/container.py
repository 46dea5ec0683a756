"""The outer layer of a `.pth` or `.pt` from anywhere: a zip, in which a pickle describes tensors. The one reader of it.

A pickle is a program, and unpickling runs it. Here it is interpreted by a machine that knows only what a table of
tensors needs: plain values, lists, dictionaries, and tensors whose bytes lie in the zip. Whatever else it holds ends
the reading, so no file runs code, takes more memory than a small multiple of its size, or reads without end. Nothing
else reads the file afterwards, so no second reader can see another file in the same bytes.
"""

import errno
import io
import math
import os
import pickletools
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from support.command import UserError, out_of_memory

MAX_DIRECTORY_BYTES, MAX_PICKLE_BYTES = 2**22, 2**26
MAX_OPCODES = 2**20
MAX_DIMENSIONS, MAX_NUMBERS = 8, 2**48  # of a tensor
# The tensors together may have so many times the bytes of the file: tied weights are two tensors in one memory, but
# expanded ones could claim terabytes.
MAX_CLAIM = 2
PIECE = 2**20  # bytes that are read at once

# What a pickle may name, and what that stands for here.
DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
}
NAMES = {**DTYPES, "torch._utils _rebuild_tensor_v2": Tensor, "collections OrderedDict": dict}
# How many items an opcode takes off the stack; None: all above the last mark.
TAKEN = {"TUPLE": None, "EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "APPENDS": None}
TAKEN |= {"SETITEM": 2, "SETITEMS": None, "BUILD": 1, "BINPERSID": 1, "REDUCE": 2}


def read_container(path: Path, kind: str = "TinyGPT checkpoint") -> dict:
    """The dictionary in a file that `torch.save` wrote: keys are strings or whole numbers, values are numbers, strings,
    truth values, None, tensors, and tuples, lists and dictionaries of these.

    Raises UserError, "… is not a {kind}", if the file is missing, damaged or holds anything else; OSError if it cannot
    be read; what PyTorch or Python raises if there is not enough memory.
    """
    if not path.is_file():
        what = " is a folder; convert.py reads those of Hugging Face" if path.is_dir() else ": no such file"
        raise UserError(f"{path}{what}; name a .pth file, or train a model first: python main.py")
    try:
        entries = read_zip(path)
        content = unpickle(bytes(entries["data.pkl"].numpy()), entries)
        if type(content) is not dict:
            raise ValueError("it does not hold a dictionary")
        return content
    except Exception as error:
        # A damaged file can raise anything: EINVAL, too, if it points before its start. Other OSErrors and a lack of
        # memory say nothing about the file.
        if (isinstance(error, OSError) and error.errno != errno.EINVAL) or out_of_memory(error):
            raise
        reason = error if isinstance(error, ValueError) else f"it is damaged ({type(error).__name__})"
        raise UserError(f"{path} is not a {kind}: {reason}; use another file") from None


# --- The zip -----------------------------------------------------------------------------------------------------


class GuardedFile(io.FileIO):
    """A file that is read in pieces: `zipfile` would read a zip's directory at once, however large, into objects that
    take a dozen times its memory."""

    def read(self, size: int = -1) -> bytes:
        if size > MAX_DIRECTORY_BYTES:
            raise ValueError("its zip directory is too large")
        return super().read(size)


def read_zip(path: Path) -> dict[str, Tensor]:
    """The bytes (n,) of every entry of a zip, whose checksums are right, by name without the zip's one folder; there is
    a "data.pkl".

    Raises ValueError with what is wrong: it is not such a zip, is compressed, or claims more than the file holds.
    """
    with GuardedFile(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not a .pth or .pt file, or only a part of one")
        with zipfile.ZipFile(file) as container:
            entries = {entry.filename.partition("/")[2]: entry for entry in container.infolist()}
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise ValueError("it is compressed")
            if sum(entry.file_size for entry in entries.values()) > os.fstat(file.fileno()).st_size:
                raise ValueError("it claims to hold more than it does")
            if "data.pkl" not in entries or entries["data.pkl"].file_size > MAX_PICKLE_BYTES:
                raise ValueError("its zip holds no data.pkl, or a very large one")
            return {name: read_entry(container, entry) for name, entry in entries.items()}


def read_entry(container: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Tensor:
    """The bytes (n,) of an entry, in memory aligned as PyTorch aligns it. `zipfile` checks the checksum at the end."""
    memory = torch.zeros(entry.file_size, dtype=torch.uint8)  # a hostile entry can be shorter than it says
    with container.open(entry) as source:
        for piece in memory.split(PIECE):
            source.readinto(piece.numpy())
    return memory


# --- The pickle --------------------------------------------------------------------------------------------------


def unpickle(pickle: bytes, entries: dict[str, Tensor]) -> object:
    """What a pickle describes, the bytes of its tensors in `entries`. Raises ValueError if it needs more than this
    machine knows, and other exceptions if it is damaged.

    Of what the pickle remembers, only strings, names and flat tuples may be used again: a kilobyte could otherwise
    stand for a structure with more parts than any computer can walk through.
    """
    stack, marks, memo = [], [], {}
    unclaimed = MAX_CLAIM * sum(map(len, entries.values()))  # bytes that further tensors may have
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickle)):
        if count > MAX_OPCODES:
            raise ValueError("its pickle is too large")
        name, taken = opcode.name, []
        if name in TAKEN:
            start = marks.pop() if TAKEN[name] is None else len(stack) - TAKEN[name]
            taken, stack[start:] = stack[start:], []
        match name:
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "NONE":
                stack.append(None)
            case "GLOBAL" if argument in NAMES:
                stack.append(NAMES[argument])
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET" if is_reusable(memo[argument]):
                stack.append(memo[argument])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3" | "TUPLE":
                stack.append(tuple(taken))
            case "APPEND" | "APPENDS" if type(stack[-1]) is list:
                stack[-1].extend(taken)
            case "SETITEM" | "SETITEMS" if type(stack[-1]) is dict:
                set_items(stack[-1], taken)
            case "BINPERSID":
                stack.append(find_storage(*taken, entries))
            case "REDUCE":
                stack.append(call(*taken))
                unclaimed -= stack[-1].nbytes if isinstance(stack[-1], Tensor) else 0
                if unclaimed < 0:
                    raise ValueError("its tensors claim to be more than the file holds")
            case "STOP":
                return stack.pop()
            case "PROTO" | "BUILD":  # what is built are attributes of an OrderedDict, which nobody needs
                pass
            case _:
                raise ValueError(f"its pickle holds {name}, used as no checkpoint uses it")
    raise ValueError("its pickle has no end")


def is_reusable(value: object) -> bool:
    """Whether a pickle may use a value again that it has made before."""
    if isinstance(value, tuple):
        return len(value) <= MAX_DIMENSIONS and all(isinstance(item, int | float) for item in value)
    return isinstance(value, str | torch.dtype | type)


def set_items(target: dict, items: list) -> None:
    """Put keys and values, taking turns, into a dictionary. Raises ValueError if one is missing, or a key is neither a
    string nor a whole number: tuples in tuples can take for ever to hash."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int):
            raise ValueError("a key in its pickle is neither a string nor a whole number")
        target[key] = value


def find_storage(identity: object, entries: dict[str, Tensor]) -> tuple[Tensor, torch.dtype]:
    """The bytes and their type that a persistent id of the pickle, ("storage", type, key, location, items), names."""
    match identity:
        case ("storage", torch.dtype() as dtype, str(key), str(), int(items)):
            memory = entries.get(f"data/{key}")
            if memory is not None and len(memory) == items * dtype.itemsize:
                return memory, dtype
    raise ValueError("a tensor's bytes are missing, or too many or too few, or of an unknown type")


def call(function: object, arguments: object) -> Tensor | dict:
    """What a call in the pickle makes: an empty OrderedDict, here a dictionary, or a tensor that looks into the bytes
    of an entry and so takes no further memory. Raises ValueError, or TypeError and the like, if it is neither."""
    if function is dict and arguments == ():
        return {}
    if function is not Tensor:
        raise ValueError("its pickle calls a function that no checkpoint needs")
    (memory, dtype), offset, size, stride, *_ = arguments
    if len(size) > MAX_DIMENSIONS or math.prod(size) > MAX_NUMBERS:
        raise ValueError("a tensor has an impossible shape")
    try:
        return memory.view(dtype).as_strided(size, stride, offset)
    except RuntimeError:
        raise ValueError("a tensor looks beyond its memory") from None
