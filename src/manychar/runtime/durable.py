"""Files: read up to a bound; written so that a crash leaves the old or the new one, never half."""

import errno
import os
import stat
from pathlib import Path


def read_file(path: Path, at_most: int) -> bytes:
    """Return the bytes of a regular file that is no longer than that. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # whatever it is, do not wait for it
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > at_most:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes are too many", str(path))
        return file.read(at_most + 1)


def write_file(path: Path, data: bytes) -> None:
    """Write and fsync a new file; the caller makes it known by `rename`. Raises OSError."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`: temporary file, fsync, rename, fsync of the directory."""
    temporary = temporary_name(path)
    try:
        write_file(temporary, data)
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename(source: Path, target: Path) -> None:
    """Give a file or directory its name, and make that durable."""
    source.rename(target)
    sync_directory(target.parent)


def make_directories(path: Path) -> None:
    """Make a directory and the parents that are missing, each durable in its own parent."""
    if not path.parent.exists():
        make_directories(path.parent)
    path.mkdir()
    sync_directory(path.parent)


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
