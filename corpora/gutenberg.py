"""Books from Project Gutenberg, fetched politely and freed of the licence around them.

    python data_setup.py gutenberg --books 1342 84 100

A book is `data/gutenberg/ID.txt`. One connection at a time, a pause between books; a book that is there is not fetched
again, so a broken run goes on where it stopped. Project Gutenberg asks heavy users to take one of its mirrors:
https://www.gutenberg.org/MIRRORS.ALL
"""

import argparse
import re
import time
from pathlib import Path

from tqdm import tqdm

from corpora.download import receive
from corpora.texts import Corpus, TextSpan, assemble_corpus, measure
from support.command import UserError, one_line, visible
from support.durable import write_atomically

MIRROR = "https://www.gutenberg.org"
# Alice's Adventures in Wonderland, The Time Machine, The War of the Worlds, The Strange Case of Dr Jekyll and Mr
# Hyde, The Adventures of Tom Sawyer, Adventures of Huckleberry Finn, Frankenstein, A Tale of Two Cities, The Complete
# Works of William Shakespeare, Treasure Island, Middlemarch, Emma, Sense and Sensibility, The Picture of Dorian Gray,
# Walden, Dracula, Wuthering Heights, Jane Eyre, Pride and Prejudice, Great Expectations, The Adventures of Sherlock
# Holmes, Moby Dick.
BOOKS = [11, 35, 36, 43, 74, 76, 84, 98, 100, 120, 145, 158, 161, 174, 205, 345, 768, 1260, 1342, 1400, 1661, 2701]
PAUSE = 2.0  # seconds between books
MAX_BYTES = 2**26  # of a book
MARKER = r"^\*\*\* ?{} OF TH(?:E|IS) PROJECT GUTENBERG EBOOK[^\n]*\*\*\*[ \t]*$"
BODY = re.compile(f"(?ims){MARKER.format('START')}(.*?){MARKER.format('END')}")


def mirror_url(value: str) -> str:
    """A flag type: a URL."""
    if not value.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"must be a URL that begins with https:// or http://, not {value[:40]!r}")
    return value.rstrip("/")


def fetch_books(folder: Path, books: list[int], mirror: str) -> None:
    """Fetch those of `books` that are not in the folder, from `mirror`.

    Raises OSError if a book cannot be fetched or has no licence markers; the books before it stay.
    """
    missing = [number for number in dict.fromkeys(books) if not (folder / f"{number}.txt").exists()]
    for number in tqdm(missing, desc="Project Gutenberg", unit="book", disable=None):
        time.sleep(0 if number == missing[0] else PAUSE)
        url = f"{mirror}/cache/epub/{number}/pg{number}.txt"
        try:
            title, text = strip_licence(receive(url, MAX_BYTES).decode("utf-8-sig"))
        except (OSError, ValueError) as error:
            raise OSError(f"cannot fetch {url}: {one_line(error)}; the same command goes on from there") from None
        write_atomically(folder / f"{number}.txt", lambda file, text=text: file.write(text.encode()))
        tqdm.write(f"{number:6d}  {len(text):10,} characters  {visible(title)}")


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


def gutenberg_corpus(folder: Path) -> Corpus:
    """The books in the folder, split by whole books: every tenth, counted from the last, is one to validate on.

    Raises UserError if there are fewer than two books.
    """
    books = sorted((path for path in folder.glob("*.txt") if path.stem.isdecimal()), key=lambda path: int(path.stem))
    if len(books) < 2:
        raise UserError("--data gutenberg needs two books or more; fetch them with: python data_setup.py gutenberg")
    train, val, digests = [], [], []
    for number, path in enumerate(books, start=1):
        size, digest = measure(path)
        digests.append(digest)
        (train if (len(books) - number) % 10 else val).append(TextSpan(path, 0, size))
    return assemble_corpus("gutenberg", train, val, digests)
