"""Writes files so that a crash leaves the old one or the new one, never half of it.

A file that is replaced keeps its mode, owner and group, and a symbolic link to it stays.
"""

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from manychar.processes.errors import because, user_errors
from manychar.processes.log import logger

LOCK_PAUSE = 0.05  # seconds
NO_LOCKS = "this file system has no locks ({}); use another one, or mount it with locks"
WITHOUT_LOCKS = errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS
NO_SYNC = "this file system cannot fsync a directory: a power failure may undo the newest files"
WARNED_VARIABLE = "MANYCHAR_DIRECTORY_FSYNC"  # set by this process or one that started it


def lock_file(file: IO[Any] | int, *, within: float) -> None:
    """Lock a file for this process alone, within so many seconds. OSError; BlockingIOError."""
    deadline = time.monotonic() + within
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        except OSError as error:
            reason = f"flock: {because(error)}"
            has_none = error.errno in WITHOUT_LOCKS
            raise OSError(error.errno, NO_LOCKS.format(reason) if has_none else reason) from None
        time.sleep(LOCK_PAUSE)


def write_file(path: Path, pieces: Iterable[bytes], mode: int = 0o666) -> None:
    """Write and fsync a new file; `rename` makes its name durable. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(pieces)
        file.flush()
        sync(file.fileno(), path)


@contextlib.contextmanager
def unnamed_file(directory: Path, pieces: Iterable[bytes]) -> Iterator[IO[bytes]]:
    """Yield a file that consists of these pieces, on the disk of a directory. Raises OSError."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.writelines(pieces)
        file.flush()
        yield file


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace a file: temporary file, fsync, rename, fsync of the directory. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        mode &= path.stat().st_mode  # from its first byte on
    with replacing(path) as temporary:
        write_file(temporary, [data], mode)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the name of a temporary file, which replaces `path` at the end, or is removed."""
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with contextlib.suppress(FileNotFoundError):
            _give(temporary, path.stat())
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _give(path: Path, like: os.stat_result) -> None:
    """Give a file the owner, group and mode of another one, as far as this user may."""
    for owner, group in ((-1, like.st_gid), (like.st_uid, -1)):
        with contextlib.suppress(PermissionError):
            os.chown(path, owner, group)
    path.chmod(stat.S_IMODE(like.st_mode))


@contextlib.contextmanager
def no_more_readable_than(directory: Path) -> Iterator[None]:
    """Make files, in this process and its children, that only those may read who may list it."""
    closed = 0o777 & ~directory.stat().st_mode
    before = os.umask(closed)
    os.umask(before | closed)
    try:
        yield
    finally:
        os.umask(before)


def write_output(path: Path, data: bytes) -> None:
    """Replace the file of -o; follow a link, replace no device. Raises UserError."""
    with user_errors(path, "give another -o FILE"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(errno.EINVAL, "not a regular file")
        replace_file(path, data)


def rename(source: Path, target: Path) -> None:
    """Rename a file or directory durably; where that fails, remove a name that is new."""
    is_new = not os.path.lexists(target)
    source.rename(target)
    try:
        sync_directory(target.parent)
    except OSError:
        if is_new:
            target.rename(source)
        raise


@contextlib.contextmanager
def all_or_nothing() -> Iterator[list[Path]]:
    """Yield a list of what is made, which is removed where an error is raised."""
    made: list[Path] = []
    try:
        yield made
    except BaseException:
        remove(made)
        raise


def remove(made: Iterable[Path]) -> None:
    """Remove files and empty directories, the last ones first, as far as that is possible."""
    for each in reversed(list(made)):
        with contextlib.suppress(OSError):
            each.rmdir() if each.is_dir() else each.unlink()


def make_directories(path: Path, made: list[Path], mode: int = 0o777) -> None:
    """Make a directory and its missing parents durably; add each to `made`. Raises OSError."""
    for each in reversed([path, *path.parents]):
        if not each.exists():
            each.mkdir(mode if each == path else 0o777)
            made.append(each)
            sync_directory(each.parent)


def sync(descriptor: int, path: Path) -> None:
    """Make what was written to an open file durable. Raises an OSError that names it."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise OSError(error.errno, f"fsync of {path}: {because(error)}") from None


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable, where its file system can do that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor, path)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        if WARNED_VARIABLE not in os.environ:
            os.environ[WARNED_VARIABLE] = ""
            logger.warning(f"{path}: {NO_SYNC}")
    finally:
        os.close(descriptor)


def remove_temporary(directory: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)
