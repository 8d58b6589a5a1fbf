"""The journal: what was applied, in which order, and from which checkpoint each server started.

An append-only log of a Head, and then of Begin and Step records.
"""

import dataclasses
from pathlib import Path
from typing import Any

from manychar.numerics.checksum import checksum
from manychar.processes.errors import UserError
from manychar.protocol.messages import Frame
from manychar.storage.append_log import AppendLog, Extent, LogReader
from manychar.storage.file_format import FORMAT_VERSION, check_format

JOURNAL_NAME = "journal.jsonl"


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


def weights_digest(weights: Frame) -> int:
    """Return the cheap digest of weights that the journal keeps of each step."""
    return checksum(weights)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a journal file holds: the records that can be trusted, and how far they reach.

    `newest` is the last step of the history that survives.
    """

    records: tuple[Record, ...]
    extent: Extent
    newest: int

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
    reader = LogReader(path)
    records: list[Record] = []
    newest = 0
    for values in reader:
        record = _record(values)
        if not records:
            _check_head(path, values, run)
        if with_steps or not isinstance(record, Step):
            records.append(record)
        if not isinstance(record, Head):
            newest = record.step
    return Reading(tuple(records), reader.extent, newest)


def _record(values: dict[str, Any]) -> Record:
    if "digest" in values:
        return Step(**values)
    return Begin(**values) if "sha256" in values else Head(**values)


def _check_head(path: Path, values: dict[str, Any], run: str) -> None:
    check_format(path, values.get("format"))
    if values.get("run") != run:
        raise UserError(f"{path}: not this run's journal: it begins with {values}")


def newest_term(path: Path, run: str) -> int:
    """Return the newest term that a journal speaks of, 0 for none."""
    records = read_journal(path, run, with_steps=False).records
    return max((record.term for record in records if isinstance(record, Begin)), default=0)


def continue_journal(path: Path, run: str, reading: Reading) -> AppendLog:
    """Return the journal to continue after what could be read. Raises OSError."""
    journal = AppendLog(path, reading.extent)
    if not reading.records:
        journal.append([Head(FORMAT_VERSION, run)])
    return journal
