"""Files that a crash cannot half-write, and a lock that dies with its process."""

import contextlib
import errno
import glob
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from support.command import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


def write_atomically(path: Path, write: Callable[[BinaryIO], None], previous: Path | None = None) -> None:
    """Let `write` fill the file at `path`, which at every moment is either the old file or the whole new one.

    The bytes go to a temporary file in the same folder, reach the disk (fsync), take the name (rename), and the name
    reaches the disk (fsync of the folder). With `previous`, the old file takes that name first: killed in between, only
    the old file is there, as `previous`. Raises OSError that names `path`, the temporary file removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        # torch.save turns what is raised within a write into a RuntimeError whose context holds the reason.
        reason = error.__context__ if isinstance(error, RuntimeError) and error.__context__ else error
        if isinstance(reason, OSError) and reason.errno:
            raise OSError(f"cannot write {path}: {reason.strerror or reason}") from error
        raise reason from None


def write_folder_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder, which takes the name `path`, and the place of an earlier folder, once it is whole
    and on the disk. Raises what `write` raises, the new folder removed and the earlier one in its place."""
    path = path.absolute()
    temporary, earlier = (path.with_name(f"{path.name}.{os.getpid()}.{role}.tmp") for role in ("new", "old"))
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        for file in temporary.iterdir():
            with open(file, "rb+") as handle:
                os.fsync(handle.fileno())
        sync_folder(temporary)
        if path.exists():
            os.replace(path, earlier)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        if earlier.exists() and not path.exists():
            os.replace(earlier, path)
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(earlier, ignore_errors=True)


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


def remove_leftovers(path: Path, older_than: float = 0.0) -> None:
    """Delete the temporary files, untouched for so many seconds, that a killed writer of `path` left in its folder.

    Hold the lock meanwhile, or give an age that no living writer's file reaches.
    """
    for leftover in path.parent.glob(f"{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - leftover.stat().st_mtime >= older_than:
                leftover.unlink()


@contextlib.contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file at `path`, made if need be; UserError(refusal) if another process holds it.

    The system itself frees the lock when the process ends, however it ends, so no stale lock can be left behind. The
    file stays, unless what is done within ends in a UserError and there was none before. Raises OSError that says what
    to do if the lock cannot be made.
    """
    new = not path.exists()
    with contextlib.ExitStack() as held:
        try:
            lock(held.enter_context(open(path, "ab")), path, refusal)
        except OSError as error:
            advice = "choose another --out, on a disk of this machine"
            raise OSError(f"cannot make the lock file {path}: {error.strerror}; {advice}") from None
        try:
            yield
        except UserError:
            if new:
                with contextlib.suppress(OSError):  # Windows deletes no open file
                    path.unlink()
            raise


def lock(file: BinaryIO, path: Path, refusal: str) -> None:
    """Take the lock of an open file; UserError(refusal) if another process has it, or has just removed the file."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise UserError(refusal) from None
        raise
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
        raise UserError(refusal)
