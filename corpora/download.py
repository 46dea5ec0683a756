"""Files from the network: whole and right, or not at all."""

import hashlib
import http.client
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from support.command import interruptible
from support.durable import remove_leftovers, write_atomically

USER_AGENT = "TinyGPT (a small language model for learners)"
BAR = {"desc": "downloading", "unit": "B", "unit_scale": True, "leave": False, "disable": None}  # tqdm's
WHOLE_TIME = 600.0  # seconds that one file may take, however steadily it trickles


@dataclass(frozen=True)
class Download:
    """A file that can be fetched and must come out exactly so."""

    url: str
    file: str
    size: int  # bytes
    sha256: str


class SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http or anything else."""

    def redirect_request(self, request, file, code, message, headers, new_url):
        """The request to follow with; URLError if its scheme is another."""
        if urlsplit(new_url).scheme != urlsplit(request.full_url).scheme:
            raise urllib.error.URLError(f"it redirects to another scheme, {new_url}, which is not followed")
        return super().redirect_request(request, file, code, message, headers, new_url)


def receive(url: str, largest: int, timeout: float = 20.0, whole_time: float = WHOLE_TIME) -> bytes:
    """The bytes behind a URL, at most `largest` of them.

    timeout: seconds for the connection and for each wait on it; whole_time: seconds for all of it, name look-up and
    headers included, which have no deadline of their own. Raises OSError that names the URL for everything that can go
    wrong on the way: FileNotFoundError if the server says that it has no such file.
    """
    try:
        data = interruptible(lambda: read(url, largest, timeout), whole_time)
    except TimeoutError:
        raise OSError(f"{url} is too slow: it was not done after {whole_time:g} seconds") from None
    if len(data) > largest:
        raise OSError(f"{url} sent more than {largest:,} bytes")
    return data


def read(url: str, largest: int, timeout: float) -> bytes:
    """`receive` without a limit for all of it; it stops reading at more than `largest` bytes."""
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})
    opener = urllib.request.build_opener(SameScheme)
    data = bytearray()
    try:
        with opener.open(request, timeout=timeout) as response, tqdm(total=response.length, **BAR) as bar:
            while len(data) <= largest and (piece := response.read1(2**16)):  # what has come, not waiting for more
                data += piece
                bar.update(len(piece))
    except urllib.error.HTTPError as error:
        kind = FileNotFoundError if error.code in (404, 410) else OSError
        raise kind(f"{url} answered {error.code} {' '.join(error.reason.split())}") from None
    except urllib.error.URLError as error:
        raise OSError(f"cannot reach {url}: {error.reason}") from None
    except TimeoutError:
        raise OSError(f"{url} sent nothing for {timeout:g} seconds") from None
    except (OSError, http.client.HTTPException) as error:
        raise OSError(f"{url} broke off ({type(error).__name__})") from None
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
            sent = f"{len(data):,} bytes with another sha256 instead of the expected {source.size:,} bytes"
            raise OSError(f"{source.url} sent {sent}; nothing was kept")
    except OSError as error:
        raise OSError(f"{error}; you can put the file at {path} by hand (its sha256: {source.sha256})") from None
    remove_leftovers(path, older_than=WHOLE_TIME)  # a younger one may be another process's, alive
    write_atomically(path, lambda file: file.write(data))
    return path
