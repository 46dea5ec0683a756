"""Project Gutenberg, with made-up books that have made-up faults; the network's own are in test_network.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from corpora import gutenberg
from corpora.gutenberg import fetch_books, strip_licence
from data_setup import load_corpus
from helpers import assert_one_error_line, text_of
from support.command import UserError

MIRROR = "https://mirror.example.org"
HEADER = "\ufeffThe Project Gutenberg eBook of {0}\r\n\r\nTitle: {0}\r\nAuthor: Nobody\r\n\r\n"
START = "*** START OF THE PROJECT GUTENBERG EBOOK {0} ***\r\n\r\n"
END = "\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK {0} ***\r\nmuch licence\r\n"


def body(number: int) -> str:
    return f"Chapter {number}.\r\n\r\n" + f"This is book {number}, naïve and short.\r\n" * (10 + number)


def page(number: int) -> bytes:
    return (HEADER + START + "{1}" + END).format(f"BOOK {number}", body(number)).encode()


def clean(number: int) -> str:
    return body(number).strip().replace("\r\n", "\n") + "\n"


@pytest.fixture
def library(monkeypatch):
    """Takes the network's place, without pauses. requests: the books asked for; faults: book -> what is wrong."""
    shelf = SimpleNamespace(requests=[], faults={})

    def receive(url: str, max_bytes: int) -> bytes:
        number = int(url.split("/")[-2])
        assert url == f"{MIRROR}/cache/epub/{number}/pg{number}.txt" and max_bytes < 10**8
        shelf.requests.append(number)
        data = page(number)
        if shelf.faults.get(number) == "404":
            raise OSError("HTTP Error 404: Not Found")
        answers = {
            "short": data[: len(data) // 2],
            "latin-1": data.replace("ï".encode(), b"\xef"),
            "no markers": body(number).encode(),
        }
        return answers.get(shelf.faults.get(number), data)

    monkeypatch.setattr(gutenberg, "receive", receive)
    monkeypatch.setattr(gutenberg.time, "sleep", lambda seconds: None)
    return shelf


def fetch(folder: Path, *numbers: int):
    fetch_books(folder, list(numbers), MIRROR)


@pytest.mark.parametrize(
    "start, end",
    [
        ("*** START OF THE PROJECT GUTENBERG EBOOK X ***", "*** END OF THE PROJECT GUTENBERG EBOOK X ***"),
        ("***START OF THIS PROJECT GUTENBERG EBOOK X***", "***END OF THIS PROJECT GUTENBERG EBOOK X***"),
        ("*** START OF THE PROJECT GUTENBERG EBOOK, X (1899) ***  ", "*** End of the Project Gutenberg eBook X ***"),
    ],
)
def test_licence_and_markers_go_and_nothing_else(start, end):
    text = f"Title: The X\nlicence\n{start}\n\nOnce upon ***\n\na time.\n\n{end}\nlicence\n"
    assert strip_licence(text) == ("The X", "Once upon ***\n\na time.\n")


def test_books_are_fetched_once_with_a_pause_between(library, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(gutenberg.time, "sleep", waits.append)
    fetch(tmp_path, 3, 1, 3)
    assert waits == [0, gutenberg.PAUSE]
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {"1.txt": clean(1), "3.txt": clean(3)}
    (tmp_path / "3.txt").unlink()
    fetch(tmp_path, 1, 2, 3)
    assert library.requests == [3, 1, 2, 3]


@pytest.mark.parametrize(
    "fault, words",
    [("404", "404"), ("no markers", "markers"), ("short", "markers"), ("latin-1", "can't decode byte 0xef")],
)
def test_a_book_that_cannot_be_fetched_is_an_error_and_a_later_run_goes_on(library, tmp_path, fault, words):
    library.faults = {2: fault}
    with pytest.raises(OSError, match=f"/cache/epub/2/pg2.txt.*{words}.*the same command"):
        fetch(tmp_path, 1, 2, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["1.txt"]
    library.faults = {}
    fetch(tmp_path, 1, 2, 3)
    assert library.requests == [1, 2, 2, 3]


def test_the_split_is_by_whole_books(library, tmp_path):
    fetch(tmp_path / "gutenberg", *range(1, 13))
    corpus = load_corpus("gutenberg", tmp_path)
    assert text_of(corpus.val) == clean(2) + clean(12)
    assert text_of(corpus.train) == "".join(clean(n) for n in (1, *range(3, 12)))


def test_one_book_cannot_be_split(library, tmp_path):
    fetch(tmp_path / "gutenberg", 1)
    with pytest.raises(UserError, match="python data_setup.py gutenberg"):
        load_corpus("gutenberg", tmp_path)


def test_the_command_says_what_it_fetched(library, output_of):
    arguments = ["gutenberg", "--mirror", MIRROR + "/", "--books", "30", "40"]
    out = output_of("data_setup.py", *arguments)
    assert f"{len(clean(30)):,} characters to train on, {len(clean(40)):,} to validate" in out
    assert "BOOK 30" in out and "BOOK 40" in out
    library.faults = {50: "404"}
    assert_one_error_line(output_of("data_setup.py", *arguments, "50", code=1), "/cache/epub/50/pg50.txt", "404")
