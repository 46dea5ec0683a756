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
from pathlib import Path
from typing import NamedTuple

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
BOOKS = [11, 35, 36, 43, 74, 76, 84, 98, 100, 120, 145, 158, 161, 174, 205, 345, 768, 1260, 1342, 1400, 1661, 2701]
MAX_BYTES = 2**26  # of a book
MARKER = r"^\*\*\* ?{} OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^\n]*\*\*\*[ \t]*$"
BODY = re.compile(f"(?ims){MARKER.format('START')}(.*?){MARKER.format('END')}")


class Book(NamedTuple):
    """A line of the manifest; its file is ID.txt."""

    id: int
    title: str
    sha256: str  # of the file


def mirror_url(value: str) -> str:
    """A flag type: a URL."""
    if not value.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"must be a URL that begins with https:// or http://, not {value[:40]!r}")
    return value.rstrip("/")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `data_setup.py gutenberg`, which are the parameters of `fetch_books`."""
    group = parser.add_argument_group("gutenberg")
    group.add_argument("--books", type=whole(1, 10**7), nargs="+", default=BOOKS, metavar="ID", help="their numbers")
    group.add_argument("--mirror", type=mirror_url, default=MIRROR, help="what comes before /cache/epub/ID/pgID.txt")
    group.add_argument("--pause", type=number(0, 3600), default=2.0, help="seconds between books")


def fetch_books(folder: Path, books: list[int], mirror: str, pause: float) -> dict[int, Book]:
    """Fetch what is missing of `books` from `mirror`; return every `Book` that is in the folder, by id.

    pause: seconds between two books. Raises OSError if a book cannot be fetched or has no licence markers; the books
    before it stay.
    """
    here = read_manifest(folder) if (folder / "manifest.json").exists() else {}
    missing = [i for i in dict.fromkeys(books) if i not in here or not (folder / f"{i}.txt").exists()]
    for count, i in enumerate(tqdm(missing, desc="Project Gutenberg", unit="book", disable=None)):
        time.sleep(pause if count else 0)
        url, path = f"{mirror}/cache/epub/{i}/pg{i}.txt", folder / f"{i}.txt"
        try:
            title, text = strip_licence(receive(url, MAX_BYTES).decode("utf-8-sig"))
        except (OSError, ValueError) as error:
            raise OSError(f"cannot fetch {url}: {one_line(error)}; the same command goes on from there") from None
        data = text.encode("utf-8")
        if path.exists() and path.read_bytes() != data:
            raise UserError(f"{path} is not a book that this command fetched: move it away")
        write_atomically(path, lambda file, data=data: file.write(data))
        here[i] = Book(i, title, hashlib.sha256(data).hexdigest())
        lines = json.dumps([here[i]._asdict() for i in sorted(here)], indent=1, ensure_ascii=False).encode("utf-8")
        write_atomically(folder / "manifest.json", lambda file, lines=lines: file.write(lines))
        tqdm.write(f"{i:6d}  {len(text):10,} characters  {visible(title, sys.stdout)}")
    return here


def strip_licence(text: str) -> tuple[str, str]:
    """Title and bare text of a book: what stands between the start and the end marker, line ends as LF.

    Raises ValueError if the text has not both markers, in this order.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    body = BODY.search(text)
    if not body:
        raise ValueError("it has no Project Gutenberg start and end markers: it is not a whole book")
    title = re.search(r"^Title: *(.+)$", text[: body.start()], re.MULTILINE)
    return (title[1].strip() if title else "untitled"), body[1].strip() + "\n"


def read_manifest(folder: Path) -> dict[int, Book]:
    """The books in the folder, by id and in that order. Raises UserError if the manifest is missing or damaged."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError("--data gutenberg: no books yet; fetch them with: python data_setup.py gutenberg")
    try:
        return {line["id"]: Book(**line) for line in parse_json(path.read_text(encoding="utf-8"))}
    except (KeyError, TypeError, ValueError) as error:
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
