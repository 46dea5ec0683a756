"""Texts of any size: read in blocks, split, and encoded once into token ids.

A text in memory and a file on disk look the same from here: both come as blocks of a million characters, so that a
gigabyte never lies in memory at once. The ids of a large split go to a file that training maps into memory
(`numpy.memmap`); those of a small one stay in memory.
"""

import codecs
import hashlib
import json
import mmap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from corpora.fast_bpe import for_length
from support.command import UserError, typed
from support.durable import write_atomically
from tokenizer import UNK, Tokenizer, UnknownCharacterWarning

BLOCK = 2**20  # characters or bytes that are looked at in one go
IN_MEMORY = 2**24  # a split of more characters than this is encoded into a file


# How files begin that hold text which has to be taken out first, and the command that does so.
NO_TEXT = {b"\x1f\x8b": "gunzip -c {} > {new}", b"PK\3\4": "unzip {}", b"%PDF": "pdftotext {} {new}"}
ZIPPED = dict.fromkeys((".docx", ".odt", ".epub"), "pandoc -t plain -o {new} {}")  # zips that are documents


def encoding_of(path: Path) -> str:
    """The encoding of a text file: UTF-16 or UTF-32 if it begins with the mark of one, else UTF-8.

    Raises UserError if there is no such file, or, with the command that makes text of it, if it is an archive or a
    document; OSError if it cannot be read.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}; check name and folder")
    with open(path, "rb") as file:
        head = file.read(4)
    for signature, command in NO_TEXT.items():
        if head.startswith(signature):
            raise UserError(f"{path} is no text; make one: {filled_in(ZIPPED.get(path.suffix.lower(), command), path)}")
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    return "utf-16" if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def filled_in(command: str, path: Path) -> str:
    """A command with the name of a file for {}, and for {new} that of a text beside it."""
    new = path.with_name(f"{path.stem}.utf8.txt")
    return command.replace("{}", typed([str(path)])).replace("{new}", typed([str(new)]))


def read_blocks(source: Path | str) -> Iterator[str]:
    """The characters of a text (a str) or a file (a Path) in blocks of BLOCK.

    A file's byte order mark is dropped, CRLF and CR become LF. Raises UserError that names the file and the byte if
    it is neither UTF-8 nor UTF-16 with its mark, or if it looks like UTF-16 without it: every second byte is NUL where
    such a text is ASCII; or if there is no such file. Raises OSError if it cannot be read.
    """
    if isinstance(source, str):
        yield from (source[i : i + BLOCK] for i in range(0, len(source), BLOCK))
        return
    with open(source, encoding=encoding_of(source), newline=None) as file:
        try:
            while block := file.read(BLOCK):
                if block.count("\0") > 0.1 * len(block):
                    code = "utf-16le" if ord(block[0]) else "utf-16be"
                    advice = filled_in(f"iconv -f {code} -t utf-8 {{}} > {{new}}", source)
                    raise UserError(f"{source} is full of NUL characters, as UTF-16 text is: {advice}")
                yield block
        except UnicodeDecodeError as error:
            # The bytes that Python tried to decode are the last ones that it has read from the file.
            position = file.buffer.tell() - len(error.object) + error.start
            code, name = ("utf-16le", "UTF-16") if b"\0" in error.object else ("latin1", "Latin-1")
            advice = f"; if it is {name}: {filled_in(f'iconv -f {code} -t utf-8 {{}} > {{new}}', source)}"
            byte = f"byte {position} is 0x{error.object[error.start]:02x}{advice if error.encoding == 'utf-8' else ''}"
            raise UserError(f"{source} is not {error.encoding.upper()} text: {byte}") from None


@dataclass(frozen=True)
class TextSpan:
    """The characters from start to stop (not included) of a text or file; start 0 is where the document begins."""

    source: Path | str = field(repr=False)
    start: int
    stop: int

    def blocks(self) -> Iterator[str]:
        position = 0
        for block in read_blocks(self.source):
            if position >= self.stop:
                return
            if part := block[max(0, self.start - position) : self.stop - position]:
                yield part
            position += len(block)


@dataclass(frozen=True)
class Split:
    """The training or the validation part of a corpus: spans of text, read anew each time they are asked for.

    identity: names exactly this text, for the cache of its ids. separated: it is one of several documents' parts, and
    `<bos>` goes before each document.
    """

    spans: Iterable[TextSpan]
    identity: str
    characters: int
    separated: bool = False

    def __len__(self) -> int:
        """How many characters."""
        return self.characters

    def blocks(self) -> Iterator[str]:
        """All of it, many short documents in one block."""
        return map("".join, gathered(block for span in self.spans for block in span.blocks()))


def gathered(parts: Iterable[Sequence]) -> Iterator[list[Sequence]]:
    """The parts in lists that hold BLOCK items or a little more."""
    waiting, size = [], 0
    for part in parts:
        waiting.append(part)
        size += len(part)
        if size >= BLOCK:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


def measure(source: Path | str) -> tuple[int, str]:
    """How many characters a text has, and the sha256 of its UTF-8 form (of what `read_blocks` gives)."""
    characters, digest = 0, hashlib.sha256()
    for block in read_blocks(source):
        characters += len(block)
        digest.update(block.encode("utf-8", "surrogatepass"))
    return characters, digest.hexdigest()


# --- Corpora ---------------------------------------------------------------------------------------------------------

TENTH_PIECE = 200  # tokens in a row, of which `odd_tenth` takes every tenth piece
TRAIN_SHARE = 0.9  # of the characters, by position; the rest is the validation split


@dataclass(frozen=True)
class Corpus:
    """One text or several documents, in two parts."""

    name: str
    train: Split
    val: Split
    sha256: str  # of the whole text in UTF-8; of several documents, of their digests
    floor: float | None = None  # the lowest possible validation loss, nats per character, where it is known


def split_documents(name: str, sources: Sequence[str | Path]) -> Corpus:
    """The first TRAIN_SHARE of all characters to train on, the rest to validate on; a document may be cut in two, and
    empty ones are left out.

    sources: texts, or paths of UTF-8 files. Raises UserError if there is too little text to split.
    """
    measured = [(source, *measure(source)) for source in sources]
    total = sum(size for _, size, _ in measured)
    cut = int(TRAIN_SHARE * total)
    if cut < 2 or total - cut < 2:
        raise UserError(f"{name} holds {total} characters; that is too little to train on: give more text")
    train, val, begin = [], [], 0
    for source, size, _ in measured:
        middle = min(max(cut - begin, 0), size)
        train.append(TextSpan(source, 0, middle))
        val.append(TextSpan(source, middle, size))
        begin += size
    return assemble_corpus(name, train, val, [digest for _, size, digest in measured if size])


def assemble_corpus(name: str, train: list[TextSpan], val: list[TextSpan], digests: list[str]) -> Corpus:
    """A corpus of these spans, empty ones left out; digests: the sha256 of each document they come from."""
    several = len(digests) > 1
    sha256 = hashlib.sha256("".join(digests).encode()).hexdigest() if several else digests[0]

    def split(spans: list[TextSpan]) -> Split:
        spans = [span for span in spans if span.start < span.stop]
        places = [(span.start, span.stop) for span in spans]
        return Split(tuple(spans), f"{sha256} {places}", sum(stop - start for start, stop in places), several)

    return Corpus(name, split(train), split(val), sha256)


# --- Token ids ---------------------------------------------------------------------------------------------------


def token_blocks(tokenizer: Tokenizer, split: Split) -> Iterator[np.ndarray]:
    """The ids of a split, block by block, with `<bos>` before each document if there are several."""
    bos = np.array([tokenizer.bos_id], tokenizer.id_dtype)

    def parts() -> Iterator[np.ndarray]:
        for span in split.spans:
            if split.separated and span.start == 0:
                yield bos
            yield from tokenizer.encode_blocks(span.blocks())

    return map(np.concatenate, gathered(parts()))


def mapped_anew(tokens: np.ndarray) -> np.ndarray:
    """The same ids, a file's through a new mapping: what an old one has touched counts as this process's memory."""
    if not isinstance(tokens, np.memmap) or not isinstance(tokens.base, mmap.mmap):  # a slice has its parent's offset
        return tokens
    return np.memmap(tokens.filename, tokens.dtype, "r", tokens.offset, tokens.shape)


def encode_split(tokenizer: Tokenizer, split: Split, cache: Path) -> np.ndarray:
    """The ids of a split (N,): in memory if it is small, else mapped from a file in the folder `cache`.

    Characters that the tokenizer does not know become `<unk>`, with one warning. Raises UserError if there are fewer
    than two tokens, OSError if the file cannot be written.
    """
    tokenizer = for_length(tokenizer, len(split))
    if len(split) <= IN_MEMORY:
        ids = np.concatenate([np.zeros(0, tokenizer.id_dtype), *token_blocks(tokenizer, split)])
    else:
        ids = encode_into_file(tokenizer, split, cache)
    if len(ids) < 2:
        raise UserError("a part of the text is a single token, too short to train or validate on: give more text")
    if unknown := count_unknown(tokenizer, ids):
        message = f"unknown in the training part: {unknown:,} of {len(split):,} characters; read as {UNK}"
        warnings.warn(message, UnknownCharacterWarning, stacklevel=2)
    return ids


def count_unknown(tokenizer: Tokenizer, ids: np.ndarray) -> int:
    """How many of the ids (N,) are `<unk>`."""
    if tokenizer.unk_id is None:
        return 0
    return sum(int((mapped_anew(ids)[i : i + BLOCK] == tokenizer.unk_id).sum()) for i in range(0, len(ids), BLOCK))


def encode_into_file(tokenizer: Tokenizer, split: Split, cache: Path) -> np.memmap:
    """The ids (N,) of a split in a file, made the first time and found again by the sha256 of text and tokenizer.

    The same sha256 and the number of bytes stand behind the ids. A file that is not whole, or holds impossible ids, is
    made anew.
    """
    key = hashlib.sha256(f"{split.identity} {json.dumps(tokenizer.to_plain())}".encode()).digest()
    path = cache / f"{key.hex()[:32]}.ids"

    def write(file: BinaryIO) -> None:
        blocks = token_blocks(tokenizer, split)
        file.writelines(tqdm(blocks, desc="encoding", unit=" blocks", disable=None, leave=False))
        file.write(key + file.tell().to_bytes(8, "little"))

    ids = stored_ids(path, key, tokenizer)
    if ids is None or any(int(ids[i : i + BLOCK].max()) >= tokenizer.vocab_size for i in range(0, len(ids), BLOCK)):
        ids = None  # Windows replaces no file that is mapped
        write_atomically(path, write)
        ids = stored_ids(path, key, tokenizer)
    return mapped_anew(ids)


def stored_ids(path: Path, key: bytes, tokenizer: Tokenizer) -> np.memmap | None:
    """The ids (N,) in a whole file of `encode_into_file`; None if there is no such file."""
    bytes_of_ids = path.stat().st_size - len(key) - 8 if path.is_file() else 0
    if bytes_of_ids <= 0:
        return None
    with open(path, "rb") as file:
        file.seek(bytes_of_ids)
        if file.read() != key + bytes_of_ids.to_bytes(8, "little"):
            return None
    return np.memmap(path, tokenizer.id_dtype, "r", shape=(bytes_of_ids // tokenizer.id_dtype.itemsize,))


def bigram_entropy(tokens: np.ndarray) -> float:
    """Nats per token that are left to guess for who knows the token before, and how often each follows which.

    The conditional entropy H(next | previous) of the tokens (N,) themselves: what a table of counts can reach at best.
    """

    def entropy(values: np.ndarray) -> float:
        shares = np.unique(values, return_counts=True)[1] / len(values)
        return float(-(shares * np.log(shares)).sum())

    previous, following = tokens[:-1].astype(np.int64), tokens[1:].astype(np.int64)
    return entropy(previous << 32 | following) - entropy(previous)


def odd_tenth(train: np.ndarray, val: np.ndarray, smoothing: float = 0.1) -> tuple[float, float]:
    """How well a table of pairs predicts the validation tokens, and how well a tenth taken from everywhere in the
    training tokens: nats per token. If a text is of one kind, the two are close.

    Each is under the counts of the other training tokens, to each of which `smoothing` is added.
    """

    def loss(known: np.ndarray, held_out: np.ndarray) -> float:
        pairs, counts = np.unique(known[:-1] << 32 | known[1:], return_counts=True)
        previous = np.bincount(known[:-1], minlength=size)
        wanted = held_out[:-1] << 32 | held_out[1:]
        places = np.searchsorted(pairs, wanted).clip(max=len(pairs) - 1)
        seen = np.where(pairs[places] == wanted, counts[places], 0)
        return float(-np.log((seen + smoothing) / (previous[held_out[:-1]] + smoothing * size)).mean())

    train, val = train.astype(np.int64), val.astype(np.int64)
    size = int(max(train.max(), val.max())) + 1
    everywhere = np.arange(len(train)) // TENTH_PIECE % 10 == 0
    return loss(train, val), loss(train[~everywhere], train[everywhere])
