"""Downloads through a local server that misbehaves: exit 1, nothing at the final path, and a retry starts clean."""

import contextlib
import hashlib
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import data_setup
from corpora.download import Download, fetch
from faults import Child
from helpers import assert_one_error_line
from support import durable

BODY = b"Speak, I charge thee, speak!\n" * 400


class Handler(BaseHTTPRequestHandler):
    """Answers /NAME with the fault of that name."""

    def do_GET(self):
        fault = self.path.strip("/")
        getattr(self, fault.partition(".")[0])()

    def log_message(self, *_):
        pass

    def send(self, body: bytes, length: int | None = None):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, url: str):
        self.send_response(302)
        self.send_header("Location", url)
        self.end_headers()

    def good(self):
        self.send(BODY)

    def missing(self):
        self.send_error(404)

    def broken_server(self):
        self.send_error(503)

    def short(self):
        self.send(BODY[:500], len(BODY))

    def wrong_length(self):
        self.send(BODY, 300)

    def too_long(self):
        self.send(BODY * 3)

    def wrong_hash(self):
        self.send(BODY[::-1])

    def empty(self):
        self.send(b"")

    def no_http(self):
        self.wfile.write(b"220 mail.example.org ESMTP\r\n" * 3)

    def hang_up(self):
        self.connection.close()

    def endless_header(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")

    def stall(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY[:10])
        self.server.released.wait(5)

    def trickle(self):
        """A byte every twentieth of a second: never a stall, and done in ten minutes."""
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for byte in BODY:
                if self.server.released.wait(0.05):
                    break
                self.wfile.write(bytes([byte]))

    def slow_header(self):
        """Header lines, each before the server would count as silent, and no end of them."""
        with contextlib.suppress(OSError):
            self.wfile.write(b"HTTP/1.0 200 OK\r\n")
            while not self.server.released.wait(0.05):
                self.wfile.write(b"X: y\r\n")

    def circle(self):
        self.redirect("/circle")

    def elsewhere(self):
        self.redirect("/good")

    def to_https(self):
        self.redirect(f"https://127.0.0.1:{self.server.server_port}/good")

    def to_ftp(self):
        self.redirect("ftp://127.0.0.1/good")

    def to_file(self):
        self.redirect("file:///etc/passwd")


@pytest.fixture(scope="module")
def url():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.released.set()
        server.shutdown()
        thread.join()


def source(url: str) -> Download:
    return Download(url, "text.txt", len(BODY), hashlib.sha256(BODY).hexdigest())


FAULTS = {
    "missing": "404",
    "broken_server": "503",
    "short": "instead of",
    "wrong_length": "instead of",
    "too_long": "more than",
    "empty": "instead of",
    "wrong_hash": "sha256",
    "no_http": "broke off",
    "hang_up": "broke off|cannot reach",
    "endless_header": "broke off",
    "stall": "nothing for 0.5 seconds",
    "trickle": "too slow",
    "slow_header": "too slow",
    "circle": "302",
    "to_https": "another scheme",
    "to_ftp": "another scheme",
    "to_file": "not allowed",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_that_leaves_nothing_and_a_retry_starts_clean(url, tmp_path, fault):
    started = time.monotonic()
    with pytest.raises(OSError, match=FAULTS[fault]) as failure:
        fetch(source(url + fault), tmp_path, timeout=0.5, whole_time=1.0)
    assert url + fault in str(failure.value) and "\n" not in str(failure.value)
    by_hand = f"you can put the file at {tmp_path / 'text.txt'} by hand (its sha256: {source('').sha256})"
    assert by_hand in str(failure.value)
    assert time.monotonic() - started < 4
    assert list(tmp_path.iterdir()) == []
    path = fetch(source(url + "good"), tmp_path)
    assert path.read_bytes() == BODY and list(tmp_path.iterdir()) == [path]


def test_a_redirect_within_the_scheme_is_followed(url, tmp_path):
    assert fetch(source(url + "elsewhere"), tmp_path).read_bytes() == BODY


@pytest.fixture
def command(in_process, monkeypatch, tmp_path):
    """`data_setup.py tinyshakespeare`, the corpus being behind a URL of the local server."""

    def run(url: str) -> tuple[int, str, str]:
        monkeypatch.setattr(data_setup.load_corpus, "__defaults__", (tmp_path / "data", source(url)))
        return in_process("data_setup.py", "tinyshakespeare")

    return run


def test_the_command_says_it_in_one_line(url, command, tmp_path):
    for fault in ("missing", "to_https", "short"):
        code, _, errors = command(url + fault)
        assert code == 1
        assert_one_error_line(errors, url + fault, FAULTS[fault])
        assert not list((tmp_path / "data").glob("*"))
    assert command(url + "good")[0] == 0


def test_a_cached_corpus_that_changed_is_refused_by_name(url, command, tmp_path):
    assert command(url + "good")[0] == 0
    path = tmp_path / "data/text.txt"
    path.write_bytes(BODY.replace(b"thee", b"them"))
    code, _, errors = command(url + "good")
    assert code == 1
    assert_one_error_line(errors, str(path), "sha256", "delete it")
    assert b"them" in path.read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_death_in_the_middle_leaves_nothing_at_the_final_path(url, tmp_path):
    def prepare():
        durable.os.fsync = lambda _: os._exit(9)  # all is written to the temporary file
        data_setup.load_corpus.__defaults__ = (tmp_path / "data", source(url + "good"))

    assert Child(tmp_path, "data_setup.py", "tinyshakespeare", prepare=prepare).wait() == 9
    (leftover,) = (tmp_path / "data").iterdir()
    assert leftover.name.endswith(".tmp")
    path = fetch(source(url + "good"), tmp_path / "data")
    assert path.read_bytes() == BODY and leftover.exists(), "another process could be writing it"
    path.unlink()
    os.utime(leftover, (0, 0))
    fetch(source(url + "good"), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == [path], "what is older than any download can take is removed"


def test_death_of_the_disk_in_mid_download(url, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("support.durable.os.fsync", full)
    with pytest.raises(OSError, match="text.txt: No space left on device"):
        fetch(source(url + "good"), tmp_path)
    assert list(tmp_path.iterdir()) == []
