"""What `--data` names by a path: a file, several, or a folder; and files that hold many documents.

Several documents are shuffled before they are split, so that the validation part is like the rest: the last tenth of a
sorted list is not. The seed is fixed, so that every run of a text has the same split. `<bos>` goes before each
document.
"""

import hashlib
import itertools
import mmap
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpora.texts import (
    BLOCK,
    TRAIN_SHARE,
    Corpus,
    Split,
    TextSpan,
    encoding_of,
    not_text,
    read_blocks,
    split_documents,
)
from support.command import UserError, one_line, shell_line

NAMES = ("auto", "tinyshakespeare", "gutenberg", "synthetic")  # the other values of --data
GLOB = "*.txt"  # which files of a folder are taken
SHUFFLE_SEED = 0
SEPARATORS = {  # --documents -> what stands between two documents
    "lines": re.compile(rb"[\r\n]+"),
    "blank": re.compile(rb"\r?\n(?:[ \t]*\r?\n)+"),
}


def path_corpus(words: Sequence[str], documents: str | None, glob: str) -> Corpus:
    """The corpus in the files that `files_in` finds; of folders, a line on stderr says what was found and left out.

    words: paths as the user has written them. documents: how a file is cut into documents, as `--documents` says; None:
    each file is one. Raises UserError if there is no file or too little text, OSError if one cannot be read.
    """
    name, paths = shell_line(words) if words[1:] else words[0], list(map(expanded, words))
    for path, word in zip(paths, words, strict=True):
        if not path.is_file() and not path.is_dir():
            what = "not a regular file" if path.exists() else "no such file or folder"
            raise UserError(f"--data {word}: {what}, and not one of {', '.join(NAMES)}")
    files = files_in(paths, glob)
    if not files:
        raise UserError(f"--data {name}: no file matches --glob {shell_line([glob])}")
    if documents:
        corpus = documents_corpus(name, files, documents)
    else:
        order = np.random.default_rng(SHUFFLE_SEED).permutation(len(files))
        corpus = split_documents(name, [files[i] for i in order])
    if any(path.is_dir() for path in paths):
        others = [path.name for path in files_in(paths, "*") if path not in set(files)]
        skipped = f"; skipped: {', '.join(others[:3])}{', …' if others[3:] else ''}" if others else ""
        characters = len(corpus.train) + len(corpus.val)
        print(one_line(f"{name}: files: {len(files)}, characters: {characters:,}{skipped}"), file=sys.stderr)
    return corpus


def expanded(word: str) -> Path:
    """A path in which `~` is the home folder."""
    return Path(os.path.expanduser(word))


def files_in(paths: Iterable[Path], glob: str) -> list[Path]:
    """These files, and those of these folders and their subfolders whose names match; no hidden ones."""

    def matching(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.rglob(glob)):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path

    return [file for path in paths for file in (matching(path) if path.is_dir() else [path])]


def text_size(data: Sequence[str], glob: str = GLOB) -> int:
    """The bytes of the files that `--data` names by their paths; 0 if there are none."""
    files = files_in(map(expanded, data), glob)
    return sum(file.stat().st_size for file in files if file.is_file())


def separator(documents: str, text: bytes | mmap.mmap) -> re.Pattern[bytes]:
    """What stands between two documents of a text: for `=STRING` the lines that consist of the string, and if there is
    no such line, the string wherever it occurs.

    Raises UserError if `documents` says nothing of this kind, or the text holds no such string.
    """
    if documents in SEPARATORS:
        return SEPARATORS[documents]
    if not documents.startswith("=") or documents == "=":
        raise UserError(f'--documents {documents}: must be lines, blank, or "=STRING" with what stands between two')
    string = re.escape(documents[1:].encode())
    for pattern in (re.compile(rb"^[ \t]*" + string + rb"[ \t]*\r?$", re.MULTILINE), re.compile(string)):
        if pattern.search(text):
            return pattern
    raise UserError(f"--documents {documents}: the text does not hold {documents[1:]}")


@dataclass(frozen=True)
class DocumentSpans:
    """Documents in a given order, as `Split` wants its spans: a list of ten million would fill the memory, so each span
    is made when it is asked for.

    texts: the bytes of the files in UTF-8. starts, lengths (documents,): of each document, in bytes, as if the texts
    were one. skip: so many characters of the first document belong to another split. keep: so many of the last to this.
    """

    texts: list[bytes | mmap.mmap]
    starts: np.ndarray
    lengths: np.ndarray
    skip: int = 0
    keep: int | None = None

    def __iter__(self) -> Iterator[TextSpan]:
        bases = np.cumsum([0, *map(len, self.texts)])
        last = len(self.starts) - 1
        for first in range(0, len(self.starts), 2**16):
            starts, lengths = self.starts[first : first + 2**16], self.lengths[first : first + 2**16]
            numbers = np.searchsorted(bases, starts, side="right") - 1
            places = zip(numbers.tolist(), (starts - bases[numbers]).tolist(), lengths.tolist(), strict=True)
            for i, (number, start, length) in enumerate(places, start=first):
                text = decoded(self.texts[number][start : start + length])
                end = len(text) if self.keep is None or i < last else self.keep
                yield TextSpan(text, 0 if i else self.skip, end)


def decoded(text: bytes) -> str:
    """A document's characters, line ends as LF."""
    return text.decode().replace("\r\n", "\n")


@dataclass(frozen=True)
class DocumentSplit(Split):
    """A split of many short documents, whose characters were counted when they were found."""

    characters: int = 0

    def __len__(self) -> int:
        return self.characters

    def blocks(self) -> Iterator[str]:
        """All of it, many documents in one block."""
        pieces, size = [], 0
        for span in self.spans:
            pieces.append(span.source[span.start : span.stop])
            size += span.stop - span.start
            if size >= BLOCK:
                yield "".join(pieces)
                pieces, size = [], 0
        if pieces:
            yield "".join(pieces)


def documents_corpus(name: str, files: list[Path], documents: str) -> Corpus:
    """The documents of all files, shuffled, the first TRAIN_SHARE of their characters to train on; one may be cut."""
    texts = list(map(utf8_bytes, files))
    starts, lengths, sizes, base = array("q"), array("i"), array("i"), 0  # sizes: in characters
    for file, text in zip(files, texts, strict=True):
        for start, stop in gaps(text, separator(documents, text)):
            try:
                sizes.append(len(decoded(text[start:stop])))
            except UnicodeDecodeError as error:
                raise not_text(file, error, start + error.start) from None
            starts.append(base + start)
            lengths.append(stop - start)
        base += len(text)
    order = np.random.default_rng(SHUFFLE_SEED).permutation(np.arange(len(sizes), dtype=np.int32))
    starts, lengths, sizes = np.array(starts)[order], np.array(lengths)[order], np.array(sizes)[order]
    total = int(sizes.sum(dtype=np.int64))
    cut = int(TRAIN_SHARE * total)
    if cut < 2 or total - cut < 2:
        raise UserError(f"{name} holds {total} characters in documents; that is too little to train on")
    ends = sizes.cumsum(dtype=np.int64)
    at = int(np.searchsorted(ends, cut))  # the document in which the training part ends
    before = cut - int(ends[at] - sizes[at])  # so many of its characters are in it
    whole = before == sizes[at]
    train = DocumentSpans(texts, starts[: at + 1], lengths[: at + 1], keep=before)
    val = DocumentSpans(texts, starts[at + whole :], lengths[at + whole :], skip=0 if whole else before)
    digest = hashlib.sha256(repr(documents).encode())
    for text in texts:
        digest.update(hashlib.sha256(text).digest())
    sha256 = digest.hexdigest()
    parts = [
        DocumentSplit(spans, f"{sha256} {part}", separated=True, characters=size)
        for spans, part, size in ((train, "train", cut), (val, "val", total - cut))
    ]
    return Corpus(name, *parts, sha256)


def utf8_bytes(path: Path) -> bytes | mmap.mmap:
    """The bytes of a text file in UTF-8; those of a large file stay on the disk."""
    if encoding_of(path) != "utf-8-sig":
        return "".join(read_blocks(path)).encode()
    if path.stat().st_size <= BLOCK:
        return path.read_bytes()
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def gaps(text: bytes | mmap.mmap, pattern: re.Pattern[bytes]) -> Iterator[tuple[int, int]]:
    """What stands between the matches of a pattern, without the line ends around it: first byte, byte after the last;
    empty ones are left out."""
    begin = 3 if text[:3] == b"\xef\xbb\xbf" else 0  # a byte order mark
    borders = ((found.start(), found.end()) for found in pattern.finditer(text))
    for end, following in itertools.chain(borders, [(len(text), len(text))]):
        while begin < end and text[begin] in b"\r\n":
            begin += 1
        while begin < end and text[end - 1] in b"\r\n":
            end -= 1
        if begin < end:
            yield begin, end
        begin = following
