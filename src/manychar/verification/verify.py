"""verify: trains a run again on this machine, and compares every checkpoint bit for bit.

The run falls into pieces, each from one checkpoint to the next. A piece starts from what its
checkpoint holds (checkpoint 0 is compared with the definition's first state), so if every piece
comes to the checkpoint at its end, the whole run does; and pieces can be computed side by side.
"""

import dataclasses
import functools
import itertools
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from manychar.numerics.option import counted
from manychar.numerics.training_step import TrainingState
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.processes.subcommand import Command
from manychar.protocol.unit_payload import as_frame, folded_digest
from manychar.storage.checkpoint import checkpoint_path
from manychar.storage.corpus_file import check_corpus
from manychar.storage.journal import JOURNAL_NAME, JournalContents, read_journal
from manychar.storage.run_directory import RunDirectory, open_run
from manychar.verification.replay import first_difference, replay

LINE_EVERY = 2.0  # seconds
LONGEST_TAIL = 2**20  # bytes; a crash leaves less than what is written between two flushes


class Piece(NamedTuple):
    """Steps `begin` … `end - 1`, from the checkpoint of `begin`."""

    begin: int
    end: int


class Finding(NamedTuple):
    """The first step whose weights differ, and the array that does."""

    step: int
    array: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be computed again: pieces, what of it is compared, remarks.

    Of the steps, those that are `recorded` in the journal are compared.
    """

    path: Path
    pieces: list[Piece]
    recorded: int
    checkpoints: int
    remark: str

    @property
    def steps(self) -> int:
        return sum(piece.end - piece.begin for piece in self.pieces)


def plan(directory: RunDirectory, *, begin: int, end: int | None) -> Plan:
    """Return what `--from` and `--to` come to; the files are checked, nothing is computed yet.

    Raises UserError for a damaged or altered file.
    """
    check_corpus(directory.path, directory.definition.corpus_sha256)
    directory.read_if_there(directory.recovery)  # its step is what it states
    saved = sorted({step for step, _ in directory.resumable()})
    if not saved or saved[0] != 0:
        raise UserError(f"{directory.checkpoints}: checkpoint 0 is missing")
    reading = read_journal(directory.path, directory.run_id)
    newest, remark = _newest_step(directory, reading, saved[-1])
    end = newest if end is None else end
    if not 0 <= begin <= end <= newest or (begin == end > 0):
        raise UserError(
            f"--from {begin} --to {end}: give two of this run's steps, 0 … {newest},"
            " the smaller one as --from"
        )
    first = max(step for step in saved if step <= begin)
    edges = sorted({first, end, *(step for step in saved if first < step < end)})
    edges = edges if len(edges) > 1 else [first, first]  # checkpoint 0 alone
    pieces = [Piece(*edge) for edge in itertools.pairwise(edges)]
    compared = [step for step in saved if first < step <= end or step == first == 0]
    if first < begin:
        earlier = f"no checkpoint of step {begin:,}: from {first:,}"
        remark = "; ".join(filter(None, [remark, earlier]))
    recorded = sum(reading.digest(step) is not None for step in range(first + 1, end + 1))
    return Plan(directory.path, pieces, recorded, len(compared), remark)


def _newest_step(
    directory: RunDirectory, reading: JournalContents, newest_checkpoint: int
) -> tuple[int, str]:
    """Return the run's newest step, after a check that the journal is complete, and a remark."""
    path = directory.path / JOURNAL_NAME
    starts, steps = reading.starts, range(1, newest_checkpoint + 1)
    missing = {step for step in steps if reading.digest(step) is None}
    covered = newest_checkpoint not in missing or newest_checkpoint in starts
    tail = path.stat().st_size - reading.extent.length if reading.extent.fault else 0
    if reading.extent.fault and (not covered or tail > LONGEST_TAIL):
        raise UserError(f"{path}: damaged or altered: {reading.extent.fault}")
    lost = _lost(missing, starts)
    if unexplained := missing - lost:
        raise UserError(f"{path}: altered: it has no record of step {min(unexplained):,}")
    for step, started in starts.items():
        start = checkpoint_path(directory.checkpoints, step)
        checkpoint = directory.read_if_there(start)
        if checkpoint is not None and checkpoint.sha256 != started.sha256:
            known = f"not the checkpoint that term {started.term} started from, by the journal"
            raise UserError(f"{start}: {known}")
    remarks = []
    if lost:
        remarks.append(
            f"no record of {counted(len(lost), 'step')} from {min(lost):,} to {max(lost):,}: of"
            " these, only the checkpoints are compared"
        )
    if reading.extent.fault:
        remarks.append(f"{reading.extent.fault}: an incomplete end, after the newest checkpoint")
    newest = max(newest_checkpoint, len(reading.digests) - 1)
    return newest, f"{path}: {'; '.join(remarks)}" if remarks else ""


def _lost(missing: set[int], starts: Iterable[int]) -> set[int]:
    """Return those of the steps without a record that lead without a break to a start."""
    lost: set[int] = set()
    for step in starts:
        while step in missing:
            lost.add(step)
            step -= 1  # noqa: PLW2901 - backwards from the start
    return lost


def check(path: Path, pieces: list[Piece]) -> Finding | None:
    """Compute some pieces again, in a child process, and return the first difference.

    Raises UserError for a damaged file.
    """
    directory = open_run(path)
    journal = read_journal(path, directory.run_id)
    next_line, done = time.monotonic() + LINE_EVERY, 0
    state: TrainingState | None = None
    for piece in pieces:
        checkpoint, damaged = directory.newest_checkpoint(up_to=piece.begin)
        for complaint in damaged.values():
            raise UserError(complaint)
        # A live run may have pruned it: then from the end of the piece before, or an earlier one.
        if state is None or state.step != piece.begin or checkpoint.state.step == piece.begin:
            state = checkpoint.state
        begin = state.step
        if begin == 0 and (array := first_difference(next(replay(directory, 0)), state)):
            return Finding(0, array)
        first_wrong: int | None = None
        states = itertools.islice(replay(directory, piece.end - begin, state), 1, None)
        for step, state in enumerate(states, begin + 1):
            if journal.digest(step) not in (
                None,
                folded_digest(as_frame(state.parameters.flat)).hex(),
            ):
                first_wrong = first_wrong or step
            done += step > piece.begin
            if time.monotonic() >= next_line:
                next_line = time.monotonic() + LINE_EVERY
                logger.info(f"verify: {done:,} steps", extra={"values": {"step": done}})
        array = ""
        for end in (checkpoint_path(directory.checkpoints, piece.end), directory.recovery):
            saved = directory.read_if_there(end)
            if saved is not None and saved.state.step == piece.end:
                array = array or first_difference(saved.state, state)
        if array or first_wrong is not None:
            return Finding(first_wrong or piece.end, array or "the weights, by the journal")
    return None


def compare(todo: Plan, *, processes: int) -> Finding | None:
    """Compute every piece again in so many child processes, and return the first difference.

    Raises UserError for a damaged file, and where a process ended before it was through.
    """
    size = math.ceil(len(todo.pieces) / processes)
    shares = [todo.pieces[i : i + size] for i in range(0, len(todo.pieces), size)]
    done, next_line = [0] * len(shares), 0.0

    def note(number: int, progress: Mapping[str, Any]) -> None:
        nonlocal next_line
        done[number] = progress["step"]
        if time.monotonic() >= next_line:
            next_line = time.monotonic() + LINE_EVERY
            logger.info(f"verify: {sum(done):,} of {todo.steps:,} steps")

    commands = [
        Command(
            *("verify-share", str(todo.path)),
            given=json.dumps(share).encode(),
            on_progress=functools.partial(note, number),
        )
        for number, share in enumerate(shares)
    ]
    try:
        found = (json.loads("".join(command.output())) for command in commands)
        return next((Finding(*each) for each in found if each is not None), None)
    finally:
        for command in commands:
            command.kill()
