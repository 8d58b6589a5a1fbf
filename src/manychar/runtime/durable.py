"""Writing files so that a crash at any moment leaves the old one or the new one, never half."""

import os
from pathlib import Path


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
