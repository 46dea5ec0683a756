"""Files from the network: whole and right, or not at all."""

import contextlib
import hashlib
import http.client
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from tqdm import tqdm

from support.durable import remove_leftovers, write_atomically

USER_AGENT = "TinyGPT (a small language model for learners)"
WHOLE_TIME = 600.0  # seconds that one file may take, however steadily it trickles


@dataclass(frozen=True)
class Download:
    """A file that can be fetched and must come out exactly so."""

    url: str
    file: str
    size: int  # bytes
    sha256: str


class BadAnswer(OSError):
    """The server answered, but not with the file; `status` is its code, such as 404."""

    def __init__(self, url: str, status: int, reason: str):
        super().__init__(f"{url} answered {status} {' '.join(reason.split())}")
        self.status = status


class SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http or anything else."""

    def redirect_request(self, request, file, code, message, headers, new_url):
        """The request to follow with; URLError if its scheme is another."""
        if urlsplit(new_url).scheme != urlsplit(request.full_url).scheme:
            raise urllib.error.URLError(f"it redirects to another scheme, {new_url}, which is not followed")
        return super().redirect_request(request, file, code, message, headers, new_url)


def receive(url: str, timeout: float = 20.0, whole_time: float = WHOLE_TIME) -> Iterator[bytes]:
    """Yield the bytes behind a URL as they come.

    timeout: seconds for the connection and for each wait on it; whole_time: seconds for all of it. Raises OSError that
    names the URL for everything that can go wrong on the way. A thread reads, so that name look-up, connection and
    headers, which have no deadline of their own, do not outlast whole_time.
    """
    pieces = queue.Queue(maxsize=64)
    deadline = time.monotonic() + whole_time

    def pump() -> None:
        with contextlib.suppress(queue.Full):  # nobody listens any more
            try:
                for piece in receive_in_steps(url, timeout):
                    pieces.put(piece, timeout=whole_time)
                pieces.put(b"", timeout=whole_time)
            except OSError as error:
                pieces.put(error, timeout=whole_time)

    threading.Thread(target=pump, daemon=True).start()
    while True:
        try:
            piece = pieces.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise OSError(f"{url} is too slow: it was not done after {whole_time:g} seconds") from None
        if isinstance(piece, OSError):
            raise piece
        if not piece:
            return
        yield piece


def receive_in_steps(url: str, timeout: float) -> Iterator[bytes]:
    """`receive` without a limit for all of it."""
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    opener = urllib.request.build_opener(SameScheme)
    try:
        with opener.open(request, timeout=timeout) as response:
            while piece := response.read1(2**16):  # what has come, not waiting for more
                yield piece
    except urllib.error.HTTPError as error:
        raise BadAnswer(url, error.code, error.reason) from None
    except urllib.error.URLError as error:
        raise OSError(f"cannot reach {url}: {error.reason}") from None
    except TimeoutError:
        raise OSError(f"{url} sent nothing for {timeout:g} seconds") from None
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{url} broke off ({type(error).__name__})") from None


def fetch(source: Download, folder: Path, timeout: float = 20.0, whole_time: float = WHOLE_TIME) -> Path:
    """The path of `source` in `folder`, downloaded first if it is not there.

    The bytes go to a temporary file, are checked (length, sha256), and only then get their name: a broken download
    leaves nothing behind. Times as in `receive`. Raises OSError if the file cannot be fetched whole or the copy in
    `folder` is not what it should be.
    """
    path = folder / source.file
    if path.exists():
        if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
            raise OSError(f"{path} is not the expected file (its sha256 differs): delete it to download it again")
        return path
    remove_leftovers(path, older_than=WHOLE_TIME)  # a younger one may be another process's, alive

    def fill(file: BinaryIO) -> None:
        try:
            download(source, file, timeout, whole_time)
        except OSError as error:
            if error.errno:  # the disk, not the network
                raise
            raise OSError(f"{error}; you can put the file at {path} by hand (its sha256: {source.sha256})") from None

    write_atomically(path, fill)
    return path


def download(source: Download, file: BinaryIO, timeout: float, whole_time: float) -> None:
    """Write the bytes behind `source.url` to an open file; OSError unless their number and sha256 are right."""
    digest, received = hashlib.sha256(), 0
    with tqdm(
        total=source.size, unit="B", unit_scale=True, desc=f"downloading {source.file}", leave=False, disable=None
    ) as bar:
        for piece in receive(source.url, timeout, whole_time):
            received += len(piece)
            if received > source.size:
                break
            file.write(piece)
            digest.update(piece)
            bar.update(len(piece))
    if received != source.size:
        amount = f"more than {source.size:,} bytes" if received > source.size else f"{received:,} bytes"
        raise OSError(f"{source.url} sent {amount} instead of {source.size:,}")
    if digest.hexdigest() != source.sha256:
        raise OSError(f"{source.url} sent a file with another sha256 than expected; nothing was kept")
