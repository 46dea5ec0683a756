"""Books from Project Gutenberg: fetched politely, freed of the licence around them, listed in a manifest.

    python data_setup.py gutenberg --books 1342 84 100

A book is `data/gutenberg/ID.txt`; `data/gutenberg/manifest.json` names all of them with title, size and sha256. One
connection at a time, a pause between books; a book that is there is not fetched again, so a broken run goes on where it
stopped. Project Gutenberg asks heavy users to take one of its mirrors: https://www.gutenberg.org/MIRRORS.ALL
"""

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

import cli
from cli import setting
from download import BadAnswer, receive
from durable import write_atomically

MIRROR = "https://www.gutenberg.org"
BOOKS = (
    11,  # Alice's Adventures in Wonderland
    35,  # The Time Machine
    36,  # The War of the Worlds
    43,  # The Strange Case of Dr Jekyll and Mr Hyde
    74,  # The Adventures of Tom Sawyer
    76,  # Adventures of Huckleberry Finn
    84,  # Frankenstein
    98,  # A Tale of Two Cities
    100,  # The Complete Works of William Shakespeare
    120,  # Treasure Island
    145,  # Middlemarch
    158,  # Emma
    161,  # Sense and Sensibility
    174,  # The Picture of Dorian Gray
    205,  # Walden
    345,  # Dracula
    768,  # Wuthering Heights
    1260,  # Jane Eyre
    1342,  # Pride and Prejudice
    1400,  # Great Expectations
    1661,  # The Adventures of Sherlock Holmes
    2701,  # Moby Dick
)
ATTEMPTS = 4  # for each book
LARGEST = 2**26  # bytes that a book may have
MARKER = r"^\*\*\* ?{} OF TH(?:E|IS) PROJECT GUTENBERG EBOOK.*\*\*\*[ \t]*$"
START, END = (re.compile(MARKER.format(word), re.MULTILINE | re.IGNORECASE) for word in ("START", "END"))


@dataclass(frozen=True)
class FetchSettings:
    """Every flag of `data_setup.py gutenberg`."""

    books: tuple[int, ...] = setting(
        (), f"which books, by their ids (without it: {len(BOOKS)} well-known English ones)", group="gutenberg",
        low=1, high=10**7,
    )  # fmt: skip
    mirror: str = setting(MIRROR, "where from: what comes before /cache/epub/ID/pgID.txt", group="gutenberg")
    pause: float = setting(
        2.0, "seconds between two books, and before the first retry", group="gutenberg", low=0, high=3600
    )

    def __post_init__(self):
        cli.validate(self)
        if not self.mirror.startswith(("http://", "https://")):
            raise ValueError(f"--mirror must be a URL that begins with https:// or http://, not {self.mirror!r}")


@dataclass(frozen=True)
class Book:
    """A line of the manifest."""

    id: int
    title: str
    characters: int
    bytes: int
    sha256: str  # of the file

    @property
    def file(self) -> str:
        return f"{self.id}.txt"


def fetch_books(settings: FetchSettings, folder: Path) -> dict[int, Book]:
    """Fetch what is missing of `settings.books`, and return every book that is in the folder, by id.

    Raises OSError if a book cannot be had or has no licence markers; those before it stay.
    """
    books = read_manifest(folder) if (folder / "manifest.json").exists() else {}
    missing = [number for number in dict.fromkeys(settings.books or BOOKS) if not is_intact(books.get(number), folder)]
    for i, number in enumerate(tqdm(missing, desc="Project Gutenberg", unit="book", disable=None)):
        if i:
            time.sleep(settings.pause)
        title, text = fetch_book(number, settings)
        data = text.encode("utf-8")
        book = Book(number, title, len(text), len(data), hashlib.sha256(data).hexdigest())
        write_atomically(folder / book.file, lambda file, data=data: file.write(data))
        books[number] = book
        write_manifest(books, folder)
        tqdm.write(f"{number:6d}  {len(text):10,} characters  {title}")
    return books


def is_intact(book: Book | None, folder: Path) -> bool:
    """Whether the book's file is there and as the manifest says."""
    path = folder / book.file if book else None
    return bool(path) and path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == book.sha256


def fetch_book(number: int, settings: FetchSettings) -> tuple[str, str]:
    """Title and text of a book. What may pass (no answer, a busy server, a text cut short) is tried again, each time
    after twice the pause; raises OSError after ATTEMPTS attempts, or at once if the server says there is no such book.
    """
    url = f"{settings.mirror.rstrip('/')}/cache/epub/{number}/pg{number}.txt"
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return strip_licence(read_whole(url), url)
        except OSError as error:
            gone = isinstance(error, BadAnswer) and 400 <= error.status < 500 and error.status != 429
            if gone or attempt == ATTEMPTS:
                raise
            tqdm.write(f"{cli.one_line(error)}: trying again")
            time.sleep(settings.pause * 2 ** (attempt - 1))
    raise AssertionError("unreachable: the last attempt returns or raises")


def read_whole(url: str) -> str:
    """The UTF-8 text behind a URL, line ends as LF. Raises OSError if it cannot be had, is too large or not UTF-8."""
    data = bytearray()
    for piece in receive(url):
        data += piece
        if len(data) > LARGEST:
            raise OSError(f"{url} sent more than {LARGEST:,} bytes: that is no book")
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


def write_manifest(books: dict[int, Book], folder: Path) -> None:
    """Write the list of the books in the folder, by id."""
    lines = json.dumps([asdict(books[number]) for number in sorted(books)], indent=1, ensure_ascii=False)
    write_atomically(folder / "manifest.json", lambda file: file.write(lines.encode("utf-8")))


def read_manifest(folder: Path) -> dict[int, Book]:
    """The books in the folder by id, in the order of their ids. Raises ValueError if there is no manifest, or none."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise ValueError("--data gutenberg: no books yet; fetch them with: python data_setup.py gutenberg")
    try:
        books = [Book(**line) for line in json.loads(path.read_text(encoding="utf-8"))]
        return {book.id: book for book in sorted(books, key=lambda book: book.id)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({cli.one_line(error)}): delete it and fetch the books again") from None
