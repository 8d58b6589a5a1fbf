"""The journal: what was applied, in which order, and from which checkpoint each server started.

An append-only log. The first record has the file's format and the run, each other is a ServerStart
or an AppliedStep.
"""

import dataclasses
import itertools
from array import array
from pathlib import Path
from typing import Any

from manychar.processes.errors import UserError
from manychar.storage.append_log import AppendLog, Extent, LogReader
from manychar.storage.file_format import FORMAT_VERSION, check_format

JOURNAL_NAME, METRICS_NAME = "journal.jsonl", "metrics.jsonl"
NO_RECORD = -1


@dataclasses.dataclass(frozen=True)
class ServerStart:
    """A server started in `term` from checkpoint `step`; later steps of earlier terms are void."""

    term: int
    step: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class AppliedStep:
    """The weights of `step` were made; `digest` is their folded digest, in hexadecimal."""

    term: int
    step: int
    loss: float
    digest: str


@dataclasses.dataclass(frozen=True)
class JournalContents:
    """The history that survives, by step, and how far its file can be trusted.

    `newest` is its last step, `term` the last one in which a server started. `digests` holds the
    steps' as numbers, or NO_RECORD: eight bytes each, because there may be many millions.
    """

    starts: dict[int, ServerStart]
    digests: "array[int]"
    newest: int
    term: int
    extent: Extent

    def digest(self, step: int) -> str | None:
        """Return the digest of the weights of this step, in hexadecimal; None without a record."""
        known = self.digests[step] if step < len(self.digests) else NO_RECORD
        return None if known == NO_RECORD else f"{known:08x}"


def read_journal(run: Path, run_id: str, *, with_steps: bool = True) -> JournalContents:
    """Read a run's journal as far as it can be trusted; a file that is not there is an empty one.

    Without its steps, `digests` stays empty.
    Raises UserError where it cannot be read, or belongs to another run.
    """
    reader = LogReader(run / JOURNAL_NAME)
    starts: dict[int, ServerStart] = {}
    digests = array("q")
    newest = term = 0
    for number, values in enumerate(reader):
        if number == 0:
            check_format(reader.path, values.get("format"))
            if values.get("run") != run_id:
                raise UserError(f"{reader.path}: not this run's journal: it begins with {values}")
            continue
        newest = values["step"]
        if "sha256" in values:
            term = max(term, values["term"])
            starts = {step: each for step, each in starts.items() if step <= newest}
            del digests[newest + 1 :]
            starts[newest] = ServerStart(**values)
        elif with_steps:
            digests.extend(itertools.repeat(NO_RECORD, newest + 1 - len(digests)))
            digests[newest] = int(values["digest"], 16)
    return JournalContents(starts, digests, newest, term, reader.extent)


def continue_journal(run: Path, run_id: str, contents: JournalContents) -> AppendLog:
    """Return the journal to continue after what could be read. Raises OSError."""
    journal = AppendLog(run / JOURNAL_NAME, contents.extent)
    if not contents.extent.length:
        journal.append({"format": FORMAT_VERSION, "run": run_id})
    return journal


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl, oldest first, as far as they can be trusted.

    Each has `step`, `loss_nats_per_character` (the mean of the steps since the record before),
    `smooth_loss_nats_per_character`, `characters`, `seconds` and `workers`. Raises UserError where
    the file cannot be read.
    """
    return list(LogReader(run / METRICS_NAME))


def resume_metrics(run: Path, step: int) -> tuple[AppendLog, float]:
    """Remove records after `step`; return (log, training seconds). Raises OSError, UserError."""
    reader = LogReader(run / METRICS_NAME, up_to=step)
    seconds = 0.0
    for record in reader:
        seconds = record["seconds"]
    return AppendLog(reader.path, reader.extent), seconds
