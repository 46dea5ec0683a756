"""Books from Project Gutenberg: fetched politely, freed of the licence around them, listed in a manifest.

    python data_setup.py gutenberg --books 1342 84 100

A book is `data/gutenberg/ID.txt`; `data/gutenberg/manifest.json` names all of them with title, size and sha256. One
connection at a time, a pause between books; a book that is there is not fetched again, so a broken run goes on where it
stopped. Project Gutenberg asks heavy users to take one of its mirrors: https://www.gutenberg.org/MIRRORS.ALL
"""

import argparse
import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from corpora.download import receive
from corpora.texts import Corpus, TextSpan, assemble_corpus, measure
from support.command import UserError, number, one_line, visible, whole
from support.durable import write_atomically
from support.plain import parse_json

MIRROR = "https://www.gutenberg.org"
# Alice's Adventures in Wonderland, The Time Machine, The War of the Worlds, The Strange Case of Dr Jekyll and Mr
# Hyde, The Adventures of Tom Sawyer, Adventures of Huckleberry Finn, Frankenstein, A Tale of Two Cities, The Complete
# Works of William Shakespeare, Treasure Island, Middlemarch, Emma, Sense and Sensibility, The Picture of Dorian Gray,
# Walden, Dracula, Wuthering Heights, Jane Eyre, Pride and Prejudice, Great Expectations, The Adventures of Sherlock
# Holmes, Moby Dick.
BOOKS = (11, 35, 36, 43, 74, 76, 84, 98, 100, 120, 145, 158, 161, 174, 205, 345, 768, 1260, 1342, 1400, 1661, 2701)
RETRIES = 3  # for each book
LARGEST = 2**26  # bytes that a book may have
MARKER = r"^\*\*\* ?{} OF TH(?:E|IS) PROJECT GUTENBERG EBOOK.*\*\*\*[ \t]*$"
START, END = (re.compile(MARKER.format(word), re.MULTILINE | re.IGNORECASE) for word in ("START", "END"))


@dataclass(frozen=True)
class Book:
    """A line of the manifest; its file is ID.txt."""

    id: int
    title: str
    characters: int
    bytes: int
    sha256: str  # of the file


def mirror_url(value: str) -> str:
    """A flag type: a URL."""
    if not value.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"must be a URL that begins with https:// or http://, not {value[:40]!r}")
    return value.rstrip("/")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `data_setup.py gutenberg`, which are the parameters of `fetch_books`."""
    group = parser.add_argument_group("gutenberg")
    which = f"the books (without it: {len(BOOKS)} well-known English ones)"
    group.add_argument("--books", type=whole(1, 10**7), nargs="+", default=(), metavar="ID", help=which)
    group.add_argument("--mirror", type=mirror_url, default=MIRROR, help="what comes before /cache/epub/ID/pgID.txt")
    group.add_argument("--pause", type=number(0, 3600), default=2.0, help="seconds between books")


def fetch_books(folder: Path, books: Sequence[int] = (), mirror: str = MIRROR, pause: float = 2.0) -> dict:
    """Fetch what is missing of `books` (none: BOOKS) from `mirror`; return every `Book` that is in the folder, by id.

    pause: seconds between two books, and before the first retry. Raises OSError if a book cannot be fetched or has no
    licence markers; the books before it stay.
    """
    found = read_manifest(folder) if (folder / "manifest.json").exists() else {}
    missing = [book_id for book_id in dict.fromkeys(books or BOOKS) if not is_intact(found.get(book_id), folder)]
    for i, book_id in enumerate(tqdm(missing, desc="Project Gutenberg", unit="book", disable=None)):
        if i:
            time.sleep(pause)
        title, text = fetch_book(f"{mirror}/cache/epub/{book_id}/pg{book_id}.txt", pause)
        data = text.encode("utf-8")
        book = Book(book_id, title, len(text), len(data), hashlib.sha256(data).hexdigest())
        path = folder / f"{book_id}.txt"
        if path.exists() and book_id not in found and path.read_bytes() != data:
            raise UserError(f"{path} is not a book that this command fetched: move it away")
        write_atomically(path, lambda file, data=data: file.write(data))
        found[book_id] = book
        lines = json.dumps([asdict(found[i]) for i in sorted(found)], indent=1, ensure_ascii=False).encode("utf-8")
        write_atomically(folder / "manifest.json", lambda file, lines=lines: file.write(lines))
        tqdm.write(f"{book_id:6d}  {len(text):10,} characters  {visible(title, sys.stdout)}")
    return found


def is_intact(book: Book | None, folder: Path) -> bool:
    """Whether the book's file is there and as the manifest says."""
    path = folder / f"{book.id}.txt" if book else folder
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == book.sha256


def fetch_book(url: str, pause: float) -> tuple[str, str]:
    """Title and text of a book. A fault that may pass (no answer, a busy server, a text cut short) is tried again, each
    time after twice the pause. Raises OSError after the last retry, or at once if the server has no such book.
    """
    for retry in range(RETRIES + 1):
        try:
            return strip_licence(read_whole(url), url)
        except OSError as error:
            if retry == RETRIES or isinstance(error, FileNotFoundError):
                raise
            tqdm.write(f"{one_line(error)}: trying again")
            time.sleep(pause * 2**retry)


def read_whole(url: str) -> str:
    """The UTF-8 text behind a URL, line ends as LF. Raises OSError if there is none, or more than LARGEST bytes."""
    data = receive(url, LARGEST)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise OSError(f"{url} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def strip_licence(text: str, url: str) -> tuple[str, str]:
    """Title and bare text of a book: what stands between the start and the end marker.

    Raises OSError if the text has not both markers, in this order.
    """
    start = START.search(text)
    end = END.search(text, start.end()) if start else None
    if not end:
        raise OSError(f"{url} has no Project Gutenberg {'end' if start else 'start'} marker: it is no whole book")
    title = re.search(r"^Title: *(.+)$", text[: start.start()], re.MULTILINE)
    return (title[1].strip() if title else "untitled"), text[start.end() : end.start()].strip() + "\n"


def read_manifest(folder: Path) -> dict[int, Book]:
    """The books in the folder, by id and in that order. Raises UserError if the manifest is missing or damaged."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError("--data gutenberg: no books yet; fetch them with: python data_setup.py gutenberg")
    try:
        books = [Book(**line) for line in parse_json(path.read_text(encoding="utf-8"))]
        return {book.id: book for book in sorted(books, key=lambda book: book.id)}
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({one_line(error)}): delete it and fetch the books again") from None


def gutenberg_corpus(folder: Path) -> Corpus:
    """The books in the folder, split by whole books: every tenth, counted from the last, is one to validate on.

    Raises UserError if there are fewer than two books or one differs from the manifest.
    """
    books = list(read_manifest(folder).values())
    if len(books) < 2:
        raise UserError(f"--data gutenberg: {len(books)} book cannot be split by books; fetch one more")
    train, val = [], []
    for left, book in zip(reversed(range(len(books))), books, strict=True):
        path = folder / f"{book.id}.txt"
        size, digest = measure(path)
        if digest != book.sha256:
            raise UserError(f"{path} is not as it was fetched: delete it and run python data_setup.py gutenberg again")
        (train if left % 10 else val).append(TextSpan(path, 0, size))
    return assemble_corpus("gutenberg", train, val, [book.sha256 for book in books])
