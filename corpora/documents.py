"""What `--data` names by a path: a file, several, or a folder; and files that hold many documents.

Several documents are shuffled before they are split, so that the validation part is like the rest: the last tenth of a
sorted list is not. The seed is fixed, so that every run of a text has the same split. `<bos>` goes before each
document.
"""

import hashlib
import itertools
import os
import re
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from corpora.texts import TRAIN_SHARE, Corpus, Split, TextSpan, read_blocks, split_documents
from support.command import UserError, one_line, typed

NAMES = ("auto", "tinyshakespeare", "gutenberg", "synthetic")  # the other values of --data
GLOB = "*.txt"  # which files of a folder are taken
SHUFFLE_SEED = 0
SEPARATORS = {"lines": rb"\n", "blank": rb"\n(?:[ \t]*\n)+"}  # --documents -> what stands between two documents


def path_corpus(words: Sequence[str], documents: str | None, glob: str) -> Corpus:
    """The corpus in the files that `files_in` finds; lines on stderr say how many documents and, of folders,
    files were found, and which were left out.

    words: paths as the user has written them. documents: how a file is cut into documents, as `--documents` says; None:
    each file is one. Raises UserError if there is no file or too little text, OSError if one cannot be read.
    """
    name, paths = typed(words) if words[1:] else words[0], list(map(Path, words))
    for path, word in zip(paths, words, strict=True):
        if not path.is_file() and not path.is_dir():
            what = "not a regular file" if path.exists() else "no such file or folder"
            names = "a named corpus stands alone" if word in NAMES else f"not one of {', '.join(NAMES)}"
            raise UserError(f"--data {word}: {what}, and {names}")
    files = files_in(paths, glob)
    if not files:
        raise UserError(f'--data {name}: no file matches --glob {typed([glob])}; --glob "*.py" takes others')
    if documents:
        corpus = documents_corpus(name, files, documents)
    else:
        order = np.random.default_rng(SHUFFLE_SEED).permutation(len(files))
        corpus = split_documents(name, [files[i] for i in order])
    if any(path.is_dir() for path in paths):
        others = [path.name for path in sorted(set(files_in(paths, "*")) - set(files))]
        skipped = f"; skipped: {', '.join(others[:3])}{', …' if others[3:] else ''}" if others else ""
        print(one_line(f"{name}: files: {len(files)}{skipped}"), file=sys.stderr)
    return corpus


def files_in(paths: Iterable[Path], glob: str) -> list[Path]:
    """These files, and those of these folders and their subfolders whose names match; no hidden ones, and each once.

    Raises UserError if `glob` is no pattern of names.
    """

    def matching(folder: Path) -> Iterator[Path]:
        for path in sorted(folder.rglob(glob)):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield path

    try:
        files = [file for path in paths for file in (matching(path) if path.is_dir() else [path])]
    except (ValueError, NotImplementedError) as error:  # what pathlib says of "**.py" and of "/*.txt"
        raise UserError(f"--glob {glob}: {error}") from None
    return list({os.path.realpath(file): file for file in files}.values())


def text_size(data: Sequence[str], glob: str = GLOB) -> int:
    """The characters in the files that `--data` names by their paths; 0 if there are none. Of many, it is the bytes."""
    files = [file for file in files_in(map(Path, data), glob) if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return size if size > 2**21 else sum(len(block) for file in files for block in read_blocks(file))


def documents_corpus(name: str, files: list[Path], documents: str) -> Corpus:
    """The documents of all files, shuffled, the first TRAIN_SHARE of their characters to train on; one may be cut."""
    text, digest = bytearray(), hashlib.sha256(repr(documents).encode())
    begins, starts, lengths, sizes = [], array("q"), array("i"), array("i")  # sizes: in characters
    for file in files:
        begins.append(len(text))
        for block in read_blocks(file):
            text += block.encode()
        digest.update(hashlib.sha256(memoryview(text)[begins[-1] :]).digest())
        text += b"\n"  # the next file begins a line
    between = separator(text, documents, name)
    for begin, end in itertools.pairwise([*begins, len(text)]):
        for start, document in documents_in(text, begin, end - 1, between):
            starts.append(start)
            lengths.append(len(document))
            sizes.append(len(document.decode()))
    if len(sizes) == 1:
        raise UserError(f"--documents {documents}: {name} would be a single document; leave --documents out")
    order = np.random.default_rng(SHUFFLE_SEED).permutation(np.arange(len(sizes), dtype=np.int32))
    starts, lengths, sizes = (np.frombuffer(column, column.typecode)[order] for column in (starts, lengths, sizes))
    ends = sizes.cumsum(dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    cut = int(TRAIN_SHARE * total)
    if cut < 2 or total - cut < 2:
        raise UserError(f"{name} holds {total} characters in documents; that is too little to train on: give more text")
    where = f" (each ends wherever it holds {documents[1:]})" if between == re.escape(documents[1:].encode()) else ""
    print(one_line(f"{name}: documents: {len(sizes):,}{where}"), file=sys.stderr)
    at = int(np.searchsorted(ends, cut))  # the document in which the training part ends
    train = Documents(text, starts[: at + 1], lengths[: at + 1], keep=int(cut - ends[at] + sizes[at]))
    whole = train.keep == sizes[at]
    val = Documents(text, starts[at + whole :], lengths[at + whole :], skip=0 if whole else train.keep)
    sha256 = digest.hexdigest()
    parts = (Split(train, f"{sha256} train", cut, True), Split(val, f"{sha256} val", total - cut, True))
    return Corpus(name, *parts, sha256)


def documents_in(text: bytearray, begin: int, end: int, between: bytes) -> Iterator[tuple[int, bytearray]]:
    """The documents in the bytes from begin to end, and where each begins; line ends around them are left out, and
    empty ones. between: the pattern of what stands between two."""
    for found in re.compile(rb"(?:%b)|\Z" % between, re.MULTILINE).finditer(text, begin, end):
        document = text[begin : found.start()].rstrip(b"\n")
        start = begin + len(document) - len(document.lstrip(b"\n"))
        if start < begin + len(document):
            yield start, document[start - begin :]
        begin = found.end()


def separator(text: bytearray, documents: str, name: str) -> bytes:
    """The pattern of what stands between two documents of the corpus: for `=STRING` the lines that consist of the
    string, and if no file has such a line, the string wherever it occurs.

    Raises UserError if `documents` says nothing of this kind, or the text holds no such string.
    """
    if documents in SEPARATORS:
        return SEPARATORS[documents]
    if documents[:1] != "=" or documents == "=" or documents.encode(errors="replace").decode() != documents:
        raise UserError(f'--documents {documents}: must be lines, blank, or "=STRING" with what stands between two')
    string = re.escape(documents[1:].encode())
    for pattern in (rb"^[ \t]*%b[ \t]*$" % string, string):
        if re.compile(pattern, re.MULTILINE).search(text):
            return pattern
    raise UserError(f"--documents {documents}: {name} does not hold {documents[1:]}: correct it or leave it out")


@dataclass(frozen=True)
class Documents:
    """Documents in a given order, as `Split` wants its spans: a list of ten million would fill the memory, so each span
    is made when it is asked for.

    text: in UTF-8. starts, lengths (documents,): of each document, in bytes. skip: so many characters of the first
    document belong to another split. keep: so many of the last to this; None: all.
    """

    text: bytearray
    starts: np.ndarray
    lengths: np.ndarray
    skip: int = 0
    keep: int | None = None

    def __iter__(self) -> Iterator[TextSpan]:
        last = len(self.starts) - 1
        for i, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            document = self.text[start : start + length].decode()
            yield TextSpan(document, 0 if i else self.skip, self.keep if i == last and self.keep else len(document))
