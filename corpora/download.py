"""Files from the network: whole and right, or not at all."""

import hashlib
import http.client
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from support.command import one_line
from support.durable import write_atomically

BAR = {"desc": "downloading", "unit": "B", "unit_scale": True, "leave": False, "disable": None}  # tqdm's
WHOLE_TIME = 600.0  # seconds that one file may take, however steadily it trickles


@dataclass(frozen=True)
class Download:
    """A file that can be fetched and must come out exactly so."""

    url: str
    file: str
    size: int  # bytes
    sha256: str


def receive(url: str, max_bytes: int, timeout: float = 20.0, whole_time: float = WHOLE_TIME) -> bytes:
    """The bytes behind a URL, at most `max_bytes` of them.

    timeout: seconds for the connection and for each wait on it; whole_time: seconds for the content. Raises OSError,
    which does not name the URL, for everything that can go wrong on the way.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "TinyGPT (a small language model for learners)"})
    data, deadline = bytearray(), time.monotonic() + whole_time
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response, tqdm(total=response.length, **BAR) as bar:
            if url.startswith("https:") and not response.url.startswith("https:"):
                raise OSError(f"it redirects to {response.url}, which is not encrypted, and is not followed")
            while piece := response.read1(2**16):  # what has come, not waiting for more
                data += piece
                bar.update(len(piece))
                if len(data) > max_bytes or time.monotonic() > deadline:
                    raise OSError(f"too large or too slow: {len(data):,} bytes, {max_bytes:,} expected at most")
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address that makes no sense
        raise OSError(one_line(error)) from None
    return bytes(data)


def fetch(source: Download, folder: Path, timeout: float = 20.0, whole_time: float = WHOLE_TIME) -> Path:
    """The path of `source` in `folder`, downloaded first if it is not there.

    The bytes are checked (sha256) before any is written. Times as in `receive`. Raises OSError if the file
    cannot be fetched whole or the copy in `folder` is not what it should be.
    """
    path = folder / source.file
    if path.exists():
        if hashlib.sha256(path.read_bytes()).hexdigest() != source.sha256:
            raise OSError(f"{path} is not the expected file (its sha256 differs): delete it to download it again")
        return path
    try:
        data = receive(source.url, source.size, timeout, whole_time)
        if hashlib.sha256(data).hexdigest() != source.sha256:
            raise OSError(f"{len(data):,} bytes of the expected {source.size:,} came, with another sha256")
    except OSError as error:
        by_hand = f"you can put the file at {path} by hand (its sha256: {source.sha256})"
        raise OSError(f"cannot fetch {source.url}: {error}; {by_hand}") from None
    write_atomically(path, lambda file: file.write(data))
    return path
