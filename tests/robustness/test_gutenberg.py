"""Project Gutenberg, with made-up books that have made-up faults; the network's own are in test_network.py."""

import hashlib
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from corpora import gutenberg
from corpora.gutenberg import fetch_books, read_manifest, strip_licence
from data_setup import load_corpus
from helpers import assert_one_error_line
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
    """Takes the network's place. requests: the books that were asked for; faults: book -> what is wrong with it."""
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
    return shelf


def fetch(folder: Path, *numbers: int):
    return fetch_books(folder, list(numbers), MIRROR, pause=0.0)


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


def test_books_arrive_with_a_manifest_and_are_not_fetched_twice(library, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(gutenberg.time, "sleep", waits.append)
    fetch_books(tmp_path, [3, 1, 3], MIRROR, pause=1.5)
    assert waits == [0, 1.5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.txt", "3.txt", "manifest.json"]
    for number, book in read_manifest(tmp_path).items():
        data = (tmp_path / f"{number}.txt").read_bytes()
        assert data.decode() == clean(number)
        assert (book.title, book.sha256) == (f"BOOK {number}", hashlib.sha256(data).hexdigest())
    (tmp_path / "3.txt").unlink()
    fetch(tmp_path, 1, 2, 3)
    assert library.requests == [3, 1, 2, 3] and list(read_manifest(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize(
    "fault, words",
    [("404", "404"), ("no markers", "markers"), ("short", "markers"), ("latin-1", "can't decode byte 0xef")],
)
def test_a_book_that_cannot_be_fetched_is_an_error_and_a_later_run_goes_on(library, tmp_path, fault, words):
    library.faults = {2: fault}
    with pytest.raises(OSError, match=f"/cache/epub/2/pg2.txt.*{words}.*the same command"):
        fetch(tmp_path, 1, 2, 3)
    assert list(read_manifest(tmp_path)) == [1] and not (tmp_path / "2.txt").exists()
    library.faults = {}
    fetch(tmp_path, 1, 2, 3)
    assert library.requests == [1, 2, 2, 3]


def test_a_file_that_was_not_fetched_is_not_overwritten(library, tmp_path):
    (tmp_path / "1.txt").write_text("my own", encoding="utf-8")
    (tmp_path / "2.txt").write_bytes(clean(2).encode())  # fetched, and killed before it stood in the manifest
    fetch(tmp_path, 2)
    with pytest.raises(UserError, match="1.txt is not a book that this command fetched"):
        fetch(tmp_path, 1)
    assert (tmp_path / "1.txt").read_text(encoding="utf-8") == "my own" and list(read_manifest(tmp_path)) == [2]


def test_a_title_cannot_steer_the_terminal(library, tmp_path, monkeypatch):
    monkeypatch.setattr(gutenberg, "strip_licence", lambda *_: ("A\x1b]52;c;eA==\x07B", "text\n"))
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", shown)
    fetch(tmp_path, 1)
    assert r"A\x1b]52;c;eA==\x07B" in shown.getvalue() and "\x1b" not in shown.getvalue()
    assert read_manifest(tmp_path)[1].title == "A\x1b]52;c;eA==\x07B"


def test_the_split_is_by_whole_books(library, tmp_path):
    fetch(tmp_path / "gutenberg", *range(1, 13))
    corpus = load_corpus("gutenberg", tmp_path)
    assert corpus.val.text() == clean(2) + clean(12)
    assert corpus.train.text() == "".join(clean(n) for n in (1, *range(3, 12)))


def test_books_that_are_missing_few_or_changed_are_errors(library, tmp_path):
    with pytest.raises(UserError, match="python data_setup.py gutenberg"):
        load_corpus("gutenberg", tmp_path)
    folder = tmp_path / "gutenberg"
    fetch(folder, 1)
    with pytest.raises(UserError, match="one more"):
        load_corpus("gutenberg", tmp_path)
    fetch(folder, 2)
    (folder / "2.txt").write_text("something else, long enough", encoding="utf-8")
    with pytest.raises(UserError, match="2.txt is not as it was fetched"):
        load_corpus("gutenberg", tmp_path)
    for text in ("{", "{}", '[{"id": 5}]', "[5]"):
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="manifest.json is damaged|cannot be split"):
            load_corpus("gutenberg", tmp_path)


def test_the_command_says_what_it_fetched(library, in_process, tmp_path):
    arguments = ["gutenberg", "--mirror", MIRROR + "/", "--pause", "0", "--books", "30", "40"]
    code, out, err = in_process("data_setup.py", *arguments)
    assert code == 0 and f"{len(clean(30)):,} characters to train on, {len(clean(40)):,} to validate" in out, err
    manifest = json.loads((tmp_path / "data/gutenberg/manifest.json").read_text(encoding="utf-8"))
    assert [line["title"] for line in manifest] == ["BOOK 30", "BOOK 40"]
    library.faults = {50: "404"}
    code, out, err = in_process("data_setup.py", *arguments, "50")
    assert code == 1
    assert_one_error_line(err, "/cache/epub/50/pg50.txt", "404")
