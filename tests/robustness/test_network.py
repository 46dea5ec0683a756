"""Downloads through a local server that misbehaves: exit 1, nothing at the final path, and a retry starts clean."""

import contextlib
import hashlib
import io
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import data_setup
from corpora.download import Download, fetch, receive
from faults import Child
from support import durable

BODY = b"Speak, I charge thee, speak!\n" * 400


def reply(body: bytes = b"", length: int | None = None, status: int = 200, location: str = "") -> bytes:
    """What a server sends."""
    length = len(body) if length is None else length
    return f"HTTP/1.0 {status} X\r\nContent-Length: {length}\r\nLocation: {location}\r\n\r\n".encode() + body


ANSWERS = {"good": reply(BODY), "elsewhere": reply(status=302, location="/good")}
SLOW = {"stall": 5, "trickle": 0.05}  # seconds after each byte
FAULTS = {  # what is sent, and what the error says
    "404": (reply(status=404), "404"),
    "short": (reply(BODY[:500], len(BODY)), "500 bytes of the expected"),
    "too_long": (reply(BODY * 3), "too large"),
    "wrong_hash": (reply(BODY[::-1]), "sha256"),
    "stall": (reply(length=len(BODY)), "timed out"),
    "trickle": (reply(length=len(BODY)), "too slow"),
    "to_ftp": (reply(status=302, location="ftp://127.0.0.1:1/good"), "cannot fetch"),
    "to_file": (reply(status=302, location="file:///etc/passwd"), "not allowed"),
    "to_nonsense": (reply(status=302, location="http://[::1/"), "cannot fetch"),
}


class Handler(BaseHTTPRequestHandler):
    """Answers /NAME with what has that name."""

    def do_GET(self):
        assert "TinyGPT" in self.headers["User-Agent"]
        name = self.path.strip("/")
        with contextlib.suppress(OSError):
            self.wfile.write(ANSWERS[name] if name in ANSWERS else FAULTS[name][0])
            for byte in BODY if name in SLOW else b"":
                self.wfile.write(bytes([byte]))
                if self.server.released.wait(SLOW[name]):
                    break

    def log_message(self, *_):
        pass


@pytest.fixture
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


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_an_error_that_leaves_nothing_and_a_retry_starts_clean(url, tmp_path, fault):
    with pytest.raises(OSError, match=FAULTS[fault][1]) as failure:
        fetch(source(url + fault), tmp_path, timeout=0.5, whole_time=1.0)
    assert url + fault in str(failure.value) and "\n" not in str(failure.value)
    assert f"{tmp_path / 'text.txt'} by hand (its sha256: {source('').sha256})" in str(failure.value)
    assert list(tmp_path.iterdir()) == []
    path = fetch(source(url + "elsewhere"), tmp_path)
    assert path.read_bytes() == BODY and list(tmp_path.iterdir()) == [path]
    assert fetch(source(url + fault), tmp_path) == path, "what is there is not fetched again"


class Answer(io.BytesIO):
    """What `urlopen` returns, without a server, whose thread could not be forked."""

    url, length = "http://example.org/", len(BODY)


def test_a_redirect_away_from_encryption_is_not_followed(monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer(BODY))
    with pytest.raises(OSError, match="http://example.org/, which is not encrypted"):
        receive("https://example.org/", 10)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_death_in_the_middle_leaves_nothing_at_the_final_path(tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Answer(BODY))

    def prepare():
        durable.os.fsync = lambda _: os._exit(9)  # all is written to the temporary file
        data_setup.data_folder, data_setup.TINYSHAKESPEARE = lambda: tmp_path / "data", source(Answer.url)

    assert Child(tmp_path, "data_setup.py", "tinyshakespeare", prepare=prepare).wait() == 9
    (leftover,) = (tmp_path / "data").iterdir()
    path = fetch(source(Answer.url), tmp_path / "data")
    assert path.read_bytes() == BODY and leftover.exists(), "another process could be writing it"
    path.unlink()
    os.utime(leftover, (0, 0))
    fetch(source(Answer.url), tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == [path], "nobody has written to it for long: removed"
