"""Append-only logs: a JSON object a line, whose last key is a chained CRC-32.

Each checksum continues the one of the line before, so a line that is missing, moved or altered
shows in all that follow. The torn line of a process that was killed is reported and truncated.
"""

import contextlib
import itertools
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from manychar.processes.errors import user_errors
from manychar.processes.log import logger
from manychar.storage.atomic_files import sync, sync_directory

_encode = json.JSONEncoder(separators=(",", ":")).encode
_TAIL_LENGTH = len(b',"crc":"00000000"}\n')
TORN = "torn record"


class Extent(NamedTuple):
    """How far a log can be trusted: bytes, the last record's checksum, and what is wrong there."""

    length: int = 0
    crc: int = 0
    fault: str = ""

    def damage(self, path: Path) -> list[str]:
        """Return what is wrong with the file, if it is not the torn end of a killed writer."""
        is_torn_end = self.length and self.fault.endswith(TORN)
        return [f"{path}: damaged at {self.fault}"] if self.fault and not is_torn_end else []


class LogReader:
    """Yields the records of a log, without their checksums, as far as they can be trusted.

    It ends before the first record of a step above `up_to`; `extent` has been read so far. A file
    that is not there is an empty log. Raises UserError where it cannot be read.
    """

    def __init__(self, path: Path, *, up_to: float = math.inf) -> None:
        self.path = path
        self.extent = Extent()
        self._up_to = up_to

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read on after `extent`."""
        length, crc, _ = self.extent
        absent = contextlib.suppress(FileNotFoundError)
        with user_errors(self.path), absent, self.path.open("rb") as file:
            file.seek(length)
            for line in file:
                before, crc = crc, zlib.crc32(line[:-_TAIL_LENGTH], crc)
                if line[-_TAIL_LENGTH:] != _tail(crc):
                    size = os.fstat(file.fileno()).st_size
                    what = "wrong checksum" if line.endswith(b"\n") else TORN
                    self.extent = Extent(length, before, f"byte {length:,} of {size:,}: {what}")
                    return
                record: dict[str, Any] = json.loads(line[:-_TAIL_LENGTH] + b"}")
                if record.get("step", 0) > self._up_to:
                    return
                length += len(line)
                self.extent = Extent(length, crc)
                yield record


def damage_of(*paths: Path) -> list[str]:
    """Return what is wrong with logs, a line for each that is damaged. Raises UserError."""
    readers = [LogReader(path) for path in paths]
    for _ in itertools.chain(*readers):
        pass
    return [fault for each in readers for fault in each.extent.damage(each.path)]


def _tail(crc: int) -> bytes:
    return b',"crc":"%08x"}\n' % crc


class AppendLog:
    """A log that is written to: records are flushed in groups, and synced on request.

    What a flush could not write is written by the next one: a full disk leaves no gap. A file that
    has grown to `most_bytes` replaces the older one, FILE.1.jsonl, and a new one begins.
    """

    def __init__(self, path: Path, extent: Extent, *, most_bytes: float = math.inf) -> None:
        """Continue at a reader's extent; the rest is truncated. Raises OSError."""
        if extent.fault:
            kept = ""
            if extent.damage(path):  # more than the torn end of a killed writer
                shutil.copyfile(path, damaged := path.with_name(f"{path.name}.damaged"))
                kept = f"; all of it is in {damaged.name}"
            logger.warning(f"{path.name}: {extent.fault}: truncated there{kept}")
        self.path = path
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._file.truncate(extent.length)
        self._file.seek(extent.length)
        self._crc = extent.crc
        self._most_bytes = most_bytes
        self._records: list[object] = []
        self._unwritten = bytearray()
        if not extent.length:
            sync_directory(path.parent)

    def append(self, record: object) -> None:
        """Add a record, a dict or dataclass; it reaches the disk with `flush` and `sync`."""
        self._records.append(record)

    def flush(self) -> None:
        """Write what was appended. Raises OSError."""
        for record in self._records:
            values = record if isinstance(record, dict) else vars(record)
            body = _encode(values).encode()[:-1]
            self._crc = zlib.crc32(body, self._crc)
            self._unwritten += body + _tail(self._crc)
        self._records.clear()
        while self._unwritten:
            written = self._file.write(self._unwritten)
            del self._unwritten[:written]
        if self._file.tell() >= self._most_bytes:
            with contextlib.suppress(FileNotFoundError):  # a flush before could not open a new one
                self.path.replace(self.path.with_suffix(f".1{self.path.suffix}"))
            newer = self.path.open("w+b", buffering=0)
            self._file.close()
            self._file, self._crc = newer, 0

    def sync(self) -> None:
        """Make what was flushed durable; from any thread. Raises OSError."""
        sync(self._file.fileno(), self.path)

    def is_removed(self) -> bool:
        """Whether there is no file of this name any more: what is written is lost."""
        try:
            self.path.lstat()
        except OSError as error:
            return isinstance(error, FileNotFoundError)
        return False

    def close(self) -> None:
        """Flush and close. Raises OSError, and is closed all the same."""
        try:
            self.flush()
        finally:
            self._file.close()
