"""Files: read up to a bound; written so that a crash leaves the old or the new one, never half."""

import errno
import fcntl
import json
import os
import stat
import time
from pathlib import Path
from typing import IO, Any, BinaryIO

LARGEST_CONFIG = 2**20
LOCK_PAUSE = 0.05


def read_file(path: Path, at_most: int) -> bytes:
    """Return the bytes of a regular file that is no longer than that. Raises OSError."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise OSError(errno.EFBIG, f"{size:,} bytes are too many", str(path))
        return file.read(at_most + 1)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read; whatever else it is, do not wait for it. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def parsed(text: str | bytes) -> Any:
    """Return what JSON from outside says. Raises ValueError; also where it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def lock_file(file: IO[Any], *, within: float) -> None:
    """Lock a file for this process alone, within so many seconds. Raises BlockingIOError."""
    deadline = time.monotonic() + within
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(LOCK_PAUSE)


def write_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write and fsync a new file; the caller makes it known by `rename`. Raises OSError.

    `mode` is the most that it is open to; the umask takes from it.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Put `data` in the place of `path`: temporary file, fsync, rename, fsync of the directory."""
    temporary = temporary_name(path)
    try:
        write_file(temporary, data, mode)
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace_where_told(path: Path, data: bytes) -> None:
    """Put `data` where a user said: a link is followed, and no device or pipe is replaced.

    Raises OSError.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    replace_file(target, data)


def rename(source: Path, target: Path) -> None:
    """Give a file or directory its name, and make that durable."""
    source.rename(target)
    sync_directory(target.parent)


def make_directories(path: Path, made: list[Path]) -> None:
    """Make a directory and the parents that are missing, each durable in its own parent.

    Those that were made are added to `made`, also where the next one fails. Raises OSError.
    """
    for each in reversed([path, *path.parents]):
        if not each.exists():
            each.mkdir()
            made.append(each)
            sync_directory(each.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Return a name beside `path` that no reader takes for the real thing."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def remove_temporary(directory: Path) -> None:
    """Remove what writers that were killed left behind."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)
