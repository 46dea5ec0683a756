"""Files that a crash cannot half-write, and a lock that dies with its process."""

import contextlib
import errno
import glob
import os
import secrets
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from support.command import UserError

ABANDONED = 3600.0  # seconds without a write after which the writer of a temporary file counts as dead


def temporary_name(path: Path) -> Path:
    """A name beside `path` for what will take its name. It is random: in containers, every process may be number 1."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


def leftovers(path: Path) -> list[Path]:
    """What has a `temporary_name` of `path`: a killed writer left it, or a living one is at work."""
    return list(path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"))


def remove_leftovers(path: Path, older_than: float = ABANDONED) -> None:
    """Delete the `leftovers` of `path` that nobody has written to for so many seconds.

    With an age that a living writer may reach, such as 0, hold a lock that keeps others from writing `path`.
    """
    for leftover in leftovers(path):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime >= older_than:
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def replace(source: Path, target: Path) -> None:
    """`os.replace`; on Windows, where it fails while another program holds a file open, tried again for 2 seconds."""
    for _ in range(20 if sys.platform == "win32" else 0):
        with contextlib.suppress(PermissionError):
            return os.replace(source, target)
        time.sleep(0.1)
    os.replace(source, target)


def write_atomically(path: Path, write: Callable[[BinaryIO], None], previous: Path | None = None) -> None:
    """Let `write` fill the file at `path`, which at every moment is either the old file or the whole new one.

    The bytes go to a temporary file in the same folder, reach the disk (fsync), take the name (rename), and the name
    reaches the disk (fsync of the folder). With `previous`, the old file takes that name first: killed in between, only
    the old file is there, as `previous`. Raises OSError that names `path`, the temporary file removed.
    """
    path = path if previous else Path(os.path.realpath(path))  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            replace(path, previous)
        replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch.save turns what is raised within a write into a RuntimeError whose context holds the reason.
        reason = error.__context__ if isinstance(error, RuntimeError) and error.__context__ else error
        if isinstance(reason, OSError) and reason.errno:
            raise OSError(f"cannot write {path}: {reason.strerror or reason}") from error
        raise reason from None


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; it is on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def write_folder_atomically(path: Path, files: dict[str, bytes]) -> None:
    """Write a new folder with these files, which takes the name `path` once it is whole and on the disk.

    A folder that is there already stays, because a shell may be in it, or a disk mounted on it: its files are deleted,
    then the new ones moved in, so that none of both are ever mixed. Raises like `write_atomically`, the earlier files
    in their place and the new ones removed.
    """
    path = path.resolve()  # a link stays a link
    remove_leftovers(path)
    temporary = temporary_name(path / "new" if path.is_dir() else path)
    try:
        for name, content in files.items():
            write_atomically(temporary / name, lambda file, content=content: file.write(content))
        if temporary.parent == path:
            for file in set(path.iterdir()) - {temporary}:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            for name in files:
                replace(temporary / name, path / name)
            sync_folder(path)
        else:
            replace(temporary, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_overwrite(path: Path, is_ours: Callable[[Path], object] | None = None, force: bool = False) -> None:
    """Raise UserError if writing `path` would overwrite something that is not an earlier output of the same kind.

    is_ours: reads the file; returns False or raises ValueError, UserError or OSError if it is of another kind; None:
    no earlier file is overwritten. force: overwrite any file; what is not a regular file is refused all the same.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: give another name")
    ours = force
    with contextlib.suppress(ValueError, UserError, OSError):
        ours = ours or (is_ours is not None and is_ours(path))
    if not ours:
        foreign = " and is not from this command" if is_ours else ""
        raise UserError(f"{path} exists{foreign}: give another name, or --force to overwrite it")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable, where the system can: Windows has no such call, some network drives neither."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file at `path`, made if need be; UserError(refusal) if another process holds it.

    The operating system frees the lock when the process ends, however it ends, so no stale lock can be left behind.
    The file stays, unless what is done within ends in a UserError and there was none before. Raises OSError that says
    what to do if the lock cannot be made, or would empty a file of the user's.
    """
    new, lock = not path.exists(), FileLock(path)
    try:
        if path.is_file() and path.stat().st_size:  # a lock is empty; some versions of filelock empty the file
            raise OSError("a file of that name has content: move it")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # where there are no locks: a marker file, which would outlive a kill
            lock.acquire(timeout=0)
    except Timeout:
        raise UserError(refusal) from None
    except (OSError, NotImplementedError, UserWarning) as error:
        reason = getattr(error, "strerror", None) or error
        advice = "or choose another --out, on a disk of this machine"
        raise OSError(f"cannot make the lock file {path}: {reason}, {advice}") from None
    try:
        yield
    except UserError:
        if new:
            with contextlib.suppress(OSError):  # Windows deletes no open file
                path.unlink()
        raise
    finally:
        lock.release()
