"""Project Gutenberg, from a server of made-up books with made-up faults."""

import hashlib
import io
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from corpora import gutenberg
from corpora.gutenberg import fetch_books, read_manifest, strip_licence
from data_setup import load_corpus
from helpers import SMALL_NETWORK, assert_one_error_line
from support.command import UserError

HEADER = "\ufeffThe Project Gutenberg eBook of {0}\r\n\r\nTitle: {0}\r\nAuthor: Nobody\r\n\r\n"
START = "*** START OF THE PROJECT GUTENBERG EBOOK {0} ***\r\n\r\n"
END = "\r\n\r\n*** END OF THE PROJECT GUTENBERG EBOOK {0} ***\r\nmuch licence\r\n"


def body(number: int) -> str:
    return f"Chapter {number}.\r\n\r\n" + f"This is book {number}, naïve and short.\r\n" * (10 + number)


def page(number: int) -> bytes:
    return (HEADER + START + "{1}" + END).format(f"BOOK {number}", body(number)).encode()


def clean(number: int) -> str:
    return body(number).strip().replace("\r\n", "\n") + "\n"


class Library(ThreadingHTTPServer):
    """Serves /cache/epub/N/pgN.txt; faults: book number -> what goes wrong."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Shelf)
        self.faults: dict[int, str] = {}
        self.requests: list[int] = []  # which books were asked for
        self.open_now, self.max_open = 0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Shelf(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.open_now += 1
        server.max_open = max(server.max_open, server.open_now)
        number = int(self.path.removeprefix("/cache/epub/").split("/")[0])
        assert self.path == f"/cache/epub/{number}/pg{number}.txt" and "TinyGPT" in self.headers["User-Agent"]
        server.requests.append(number)
        data, fault = page(number), server.faults.get(number)
        answers = {
            "short": data[: len(data) // 2],
            "latin-1": data.replace("ï".encode(), b"\xef"),
            "no markers": body(number).encode(),
        }
        if fault == "404":
            self.send_error(404)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers.get(fault, data))
        server.open_now -= 1

    def log_message(self, *_):
        pass


@pytest.fixture
def library():
    with Library() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def fetch(library, folder, *numbers):
    return fetch_books(folder, list(numbers), library.url, pause=0.0)


# --- The text ----------------------------------------------------------------------------------------------------


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


# --- Fetching ----------------------------------------------------------------------------------------------------


def test_books_arrive_with_a_manifest_and_are_not_fetched_twice(library, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(gutenberg.time, "sleep", waits.append)
    fetch_books(tmp_path, [3, 1, 3], library.url, pause=1.5)
    assert waits == [0, 1.5] and library.max_open == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.txt", "3.txt", "manifest.json"]
    for number, book in read_manifest(tmp_path).items():
        data = (tmp_path / f"{number}.txt").read_bytes()
        assert data.decode() == clean(number)
        assert (book.title, book.sha256) == (f"BOOK {number}", hashlib.sha256(data).hexdigest())
    (tmp_path / "3.txt").unlink()
    fetch(library, tmp_path, 1, 2, 3)
    assert library.requests == [3, 1, 2, 3] and list(read_manifest(tmp_path)) == [1, 2, 3]


@pytest.mark.parametrize(
    "fault, words",
    [("404", "404"), ("no markers", "markers"), ("short", "markers"), ("latin-1", "can't decode byte 0xef")],
)
def test_a_book_that_cannot_be_fetched_is_an_error_and_a_later_run_goes_on(library, tmp_path, fault, words):
    library.faults = {2: fault}
    with pytest.raises(OSError, match=f"/cache/epub/2/pg2.txt.*{words}.*the same command"):
        fetch(library, tmp_path, 1, 2, 3)
    assert list(read_manifest(tmp_path)) == [1] and not (tmp_path / "2.txt").exists()
    library.faults = {}
    fetch(library, tmp_path, 1, 2, 3)
    assert library.requests == [1, 2, 2, 3]


def test_a_file_that_was_not_fetched_is_not_overwritten(library, tmp_path):
    (tmp_path / "1.txt").write_text("my own", encoding="utf-8")
    (tmp_path / "2.txt").write_bytes(clean(2).encode())  # fetched, and killed before it stood in the manifest
    fetch(library, tmp_path, 2)
    with pytest.raises(UserError, match="1.txt is not a book that this command fetched"):
        fetch(library, tmp_path, 1)
    assert (tmp_path / "1.txt").read_text(encoding="utf-8") == "my own" and list(read_manifest(tmp_path)) == [2]


def test_a_title_cannot_steer_the_terminal(library, tmp_path, monkeypatch):
    monkeypatch.setattr(gutenberg, "strip_licence", lambda *_: ("A\x1b]52;c;eA==\x07B", "text\n"))
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", shown)
    fetch(library, tmp_path, 1)
    assert r"A\x1b]52;c;eA==\x07B" in shown.getvalue() and "\x1b" not in shown.getvalue()
    assert read_manifest(tmp_path)[1].title == "A\x1b]52;c;eA==\x07B"


def test_endless_answers_are_cut_off(library, tmp_path, monkeypatch):
    monkeypatch.setattr(gutenberg, "MAX_BYTES", 300)
    with pytest.raises(OSError, match="too large"):
        fetch(library, tmp_path, 1)


@pytest.mark.parametrize("flag, value", [("--books", "0"), ("--mirror", "ftp://x"), ("--pause", "-1")])
def test_bad_flags_are_named(in_process, tmp_path, flag, value):
    code, _, err = in_process("data_setup.py", "gutenberg", f"{flag}={value}")
    assert code == 2
    assert_one_error_line(err, flag, value)
    assert list(tmp_path.iterdir()) == []


# --- The corpus --------------------------------------------------------------------------------------------------


def test_the_split_is_by_whole_books(library, tmp_path):
    fetch(library, tmp_path / "gutenberg", *range(1, 13))
    corpus = load_corpus("gutenberg", tmp_path)
    assert corpus.val.text() == clean(2) + clean(12)
    assert corpus.train.text() == "".join(clean(n) for n in (1, *range(3, 12)))
    assert all(span.start == 0 for split in (corpus.train, corpus.val) for span in split.spans)


def test_books_that_are_missing_few_or_changed_are_errors(library, tmp_path):
    with pytest.raises(UserError, match="python data_setup.py gutenberg"):
        load_corpus("gutenberg", tmp_path)
    folder = tmp_path / "gutenberg"
    fetch(library, folder, 1)
    with pytest.raises(UserError, match="one more"):
        load_corpus("gutenberg", tmp_path)
    fetch(library, folder, 2)
    (folder / "2.txt").write_text("something else, long enough", encoding="utf-8")
    with pytest.raises(UserError, match="2.txt is not as it was fetched"):
        load_corpus("gutenberg", tmp_path)
    for text in ("{", "{}", '[{"id": 5}]', "[5]"):
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="manifest.json is damaged|cannot be split"):
            load_corpus("gutenberg", tmp_path)


def test_from_the_command_line_to_a_trained_model(library, in_process, tmp_path):
    arguments = ["gutenberg", "--mirror", library.url + "/", "--pause", "0", "--books", "30", "40"]
    code, out, err = in_process("data_setup.py", *arguments)
    assert code == 0 and f"{len(clean(30)):,} characters to train on, {len(clean(40)):,} to validate" in out, err
    manifest = json.loads((tmp_path / "data/gutenberg/manifest.json").read_text(encoding="utf-8"))
    assert [line["title"] for line in manifest] == ["BOOK 30", "BOOK 40"]
    code, out, err = in_process("main.py", *SMALL_NETWORK, "--data", "gutenberg", "--steps", "2", "--out", "g.pth")
    assert code == 0 and "gutenberg" in out, err
    library.faults = {50: "404"}
    code, out, err = in_process("data_setup.py", *arguments, "50")
    assert code == 1
    assert_one_error_line(err, "/cache/epub/50/pg50.txt", "404")
