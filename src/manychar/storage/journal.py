"""The journal: what was applied, in which order, and from which checkpoint each server started.

Append-only. A record is its length and a checksum (two 32-bit little-endian numbers), then msgpack.
Each checksum goes on from the one before, so that a record that is missing, moved or altered shows
in all that follow. What cannot be read at the end is the torn tail of a server that was killed: it
is cut off and reported, never trusted.
"""

import dataclasses
import mmap
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from manychar.numerics.checksum import checksum
from manychar.numerics.run_definition import FORMAT_VERSION
from manychar.processes.errors import UserError, because
from manychar.protocol.messages import Frame
from manychar.storage.atomic_files import open_regular, sync_directory

JOURNAL_NAME = "journal.msgpack"
LONGEST_RECORD = 512
_FRAME = struct.Struct("<II")


@dataclasses.dataclass(frozen=True)
class Head:
    """The first record: which run's journal this is."""

    format: int
    run: str


@dataclasses.dataclass(frozen=True)
class Begin:
    """A server started in `term` from checkpoint `step`; later steps of earlier terms are void."""

    term: int
    step: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Step:
    """Weights `step` came into being; `digest` is the checksum of their bytes."""

    term: int
    step: int
    loss: float
    digest: int


Record = Head | Begin | Step
_KINDS: dict[int, type[Any]] = {0: Head, 1: Begin, 2: Step}
_NUMBERS = {kind: number for number, kind in _KINDS.items()}


def weights_digest(weights: Frame) -> int:
    """Return the cheap digest of weights that the journal keeps of each step."""
    return checksum(weights)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a journal file holds: the records that can be trusted, and how far they reach.

    `checksum` is the last record's; `fault` says what follows them, empty if nothing does. `newest`
    is the last step of the history that survives, `gap` the first one that it has no record of.
    """

    records: tuple[Record, ...]
    length: int
    checksum: int
    fault: str
    newest: int
    gap: int | None

    def covers(self, step: int) -> bool:
        """Whether every step up to this one is told of."""
        return step <= self.newest and (self.gap is None or self.gap > step)

    def living(self) -> dict[int, Step]:
        """Return the steps of the history that survives, by step."""
        steps: dict[int, Step] = {}
        for record in self.records:
            if isinstance(record, Begin):
                for void in [step for step in steps if step > record.step]:
                    del steps[void]
            elif isinstance(record, Step):
                steps[record.step] = record
        return steps

    def beginnings(self) -> dict[int, Begin]:
        """Return the starts that the history that survives goes through, by checkpoint step."""
        begins: dict[int, Begin] = {}
        for record in self.records:
            if isinstance(record, Begin):
                begins = {step: begin for step, begin in begins.items() if step <= record.step}
                begins[record.step] = record
        return begins


def read_journal(path: Path, run: str, *, with_steps: bool = True) -> Reading:
    """Read a journal as far as it can be trusted; a file that is not there is an empty one.

    Without its steps, of which there may be many millions, the records are heads and beginnings.
    Raises UserError where it cannot be read, or belongs to another run.
    """
    try:
        data = _mapped(path)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise UserError(f"{path}: {because(error)}") from None
    records: list[Record] = []
    length = checksum = newest = 0
    gap: int | None = None
    fault = ""
    for end, found, value in _scan(data):
        if isinstance(value, str):
            fault = f"byte {length:,} of {len(data):,}: {value}"
            break
        if with_steps or not isinstance(value, Step):
            records.append(value)
        if not isinstance(value, Head):
            newest, gap = _follow(newest, gap, value)
        length, checksum = end, found
    if records and records[0] != Head(FORMAT_VERSION, run):
        raise UserError(f"{path}: not this run's journal: it begins with {records[0]}")
    return Reading(tuple(records), length, checksum, fault, newest, gap)


def _mapped(path: Path) -> bytes | mmap.mmap:
    """Return a file's bytes, in memory as far as they are read. Raises OSError."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _follow(newest: int, gap: int | None, record: "Begin | Step") -> tuple[int, int | None]:
    """Return (newest living step, first one without a record) after one more record."""
    if isinstance(record, Begin):
        skips = record.step > newest
        if gap is not None and record.step < gap:
            gap = None
    else:
        skips = record.step > newest + 1
    if skips and gap is None:
        gap = newest + 1
    return record.step, gap


def _scan(data: bytes | mmap.mmap) -> Iterator[tuple[int, int, Record | str]]:
    """Yield (end, checksum, record) of each record; at the first fault, its description."""
    start = checksum = 0
    while start < len(data):
        if len(data) - start < _FRAME.size:
            yield start, checksum, "a torn record"
            return
        length, expected = _FRAME.unpack_from(data, start)
        payload = data[start + _FRAME.size : start + _FRAME.size + length]
        if length > LONGEST_RECORD or len(payload) < length:
            yield start, checksum, "a torn record"
            return
        checksum = _checksum(payload, checksum)
        record = _unpack(payload) if checksum == expected else None
        start += _FRAME.size + length
        yield start, checksum, record or "a record with a wrong checksum"
        if record is None:
            return


def _checksum(payload: bytes, before: int) -> int:
    """CRC-32 of the length and the payload, going on from the record before."""
    return zlib.crc32(payload, zlib.crc32(struct.pack("<I", len(payload)), before))


def _pack(record: Record) -> bytes:
    values = [getattr(record, field.name) for field in dataclasses.fields(record)]
    payload: bytes = msgpack.packb([_NUMBERS[type(record)], *values])
    return payload


def _unpack(payload: bytes) -> Record | None:
    try:
        number, *values = msgpack.unpackb(payload, max_ext_len=0)
        record: Record = _KINDS[number](*values)
    except (ValueError, TypeError, KeyError, msgpack.UnpackException):
        return None
    return record


def newest_term(path: Path, run: str) -> int:
    """Return the newest term that a journal speaks of, 0 for none."""
    records = read_journal(path, run, with_steps=False).records
    return max((record.term for record in records if isinstance(record, Begin)), default=0)


class Journal:
    """A journal that is written to; what is appended is flushed in groups, synced on request.

    What a flush could not write is kept, and written by the next one, so that a disk that was full
    for a while leaves no gap.
    """

    def __init__(self, path: Path, run: str, reading: Reading) -> None:
        """Go on after what could be read; the rest is cut off. Raises OSError."""
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._file.truncate(reading.length)
        self._file.seek(reading.length)
        self._checksum = reading.checksum
        self._unwritten = bytearray()
        if not reading.records:
            self.append([Head(FORMAT_VERSION, run)])
            sync_directory(path.parent)

    def append(self, records: Iterable[Record]) -> None:
        """Add records; they reach the disk with the next `flush` and `sync`."""
        for record in records:
            payload = _pack(record)
            self._checksum = _checksum(payload, self._checksum)
            self._unwritten += _FRAME.pack(len(payload), self._checksum) + payload

    def flush(self) -> None:
        """Hand what was appended to the operating system. Raises OSError."""
        while self._unwritten:
            written = self._file.write(self._unwritten)
            del self._unwritten[:written]

    def sync(self) -> None:
        """Make what was flushed durable; from any thread. Raises OSError."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close. Raises OSError, and is closed all the same."""
        try:
            self.flush()
        finally:
            self._file.close()
