"""verify: trains a run again on this machine, and compares every checkpoint bit for bit.

The run falls into pieces, each from one checkpoint to the next. A piece starts from what its
checkpoint holds (checkpoint 0 is compared with the definition's first state), so if every piece
comes to the checkpoint at its end, the whole run does; and pieces can be computed side by side.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from manychar.network.event_loop import EventLoop
from manychar.processes.child_process import how_it_ended
from manychar.processes.errors import RUN_FAILED, UserError
from manychar.processes.supervisor import ProcessSlot, Supervisor
from manychar.protocol import unit_payload
from manychar.storage.checkpoint import checkpoint_path, list_checkpoints, read_checkpoint
from manychar.storage.corpus_file import check_corpus
from manychar.storage.journal import JOURNAL_NAME, AppliedStep, ServerStart, read_journal
from manychar.storage.run_directory import RunDirectory, open_run
from manychar.verification.replay import first_difference, replay

PROGRESS_EVERY_STEPS = 20
LONGEST_TAIL = 2**20  # bytes; a crash leaves less than what is written between two flushes


@dataclasses.dataclass(frozen=True)
class Piece:
    """Steps `begin` … `end - 1`, from the checkpoint of `begin`; `digests` are the journal's."""

    path: Path
    begin: int
    end: int
    digests: dict[int, str]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The first step whose weights differ, and the array that does."""

    step: int
    array: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be computed again: pieces, the checkpoints that are compared, remarks."""

    pieces: list[Piece]
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
    saved = [step for step, _ in list_checkpoints(directory.checkpoints)]
    if not saved or saved[0] != 0:
        raise UserError(f"{directory.checkpoints}: checkpoint 0 is missing")
    living, remark = _journal(directory, saved[-1])
    newest = max([*living, saved[-1]])
    end = newest if end is None else end
    if not 0 <= begin <= end <= newest or (begin == end > 0):
        raise UserError(
            f"--from {begin} --to {end}: give two of this run's steps, 0 … {newest},"
            " the smaller one as --from"
        )
    first = max(step for step in saved if step <= begin)
    edges = sorted({first, end, *(step for step in saved if first < step < end)})
    edges = edges if len(edges) > 1 else [first, first]  # checkpoint 0 alone
    pieces = []
    for a, b in itertools.pairwise(edges):
        digests = {step: living[step].digest for step in range(a + 1, b + 1) if step in living}
        pieces.append(Piece(directory.path, a, b, digests))
    compared = [step for step in saved if first < step <= end or step == first == 0]
    return Plan(pieces, len(compared), remark)


def _journal(directory: RunDirectory, newest_checkpoint: int) -> tuple[dict[int, AppliedStep], str]:
    """Return the journal's steps, after a check that it tells the whole story, and a remark."""
    path = directory.path / JOURNAL_NAME
    reading = read_journal(directory.path, directory.run_id)
    living, starts = reading.living(AppliedStep), reading.living(ServerStart)
    covered = newest_checkpoint in {0, *living, *starts}
    tail = path.stat().st_size - reading.extent.length if reading.extent.fault else 0
    if reading.extent.fault and (not covered or tail > LONGEST_TAIL):
        raise UserError(f"{path}: damaged or altered: {reading.extent.fault}")
    missing = set(range(1, newest_checkpoint + 1)) - living.keys()
    lost = _lost(missing, starts)
    if unexplained := missing - lost:
        raise UserError(f"{path}: altered: it has no record of step {min(unexplained)}")
    for step, started in starts.items():
        checkpoint = checkpoint_path(directory.checkpoints, step)
        if checkpoint.exists() and read_checkpoint(checkpoint).sha256 != started.sha256:
            known = f"not the checkpoint that term {started.term} started from, by the journal"
            raise UserError(f"{checkpoint}: {known}")
    remarks = []
    if lost:
        remarks.append(
            f"no record of {len(lost):,} steps from {min(lost)} to {max(lost)}, lost in a crash of"
            " the server: only their checkpoints are compared"
        )
    if reading.extent.fault:
        remarks.append(f"{reading.extent.fault}: an incomplete end, after the newest checkpoint")
    return living, f"{path}: {'; '.join(remarks)}" if remarks else ""


def _lost(missing: set[int], starts: Iterable[int]) -> set[int]:
    """Return those of the steps without a record that lead without a break to a start."""
    lost: set[int] = set()
    for step in starts:
        while step in missing:
            lost.add(step)
            step -= 1  # noqa: PLW2901 - backwards from the start
    return lost


def check(piece: Piece, progress: Callable[[int], None]) -> Finding | None:
    """Compute one piece again; return the first difference. Raises UserError for a damaged file."""
    directory = open_run(piece.path)
    state = directory.read(checkpoint_path(directory.checkpoints, piece.begin)).state
    if piece.begin == 0 and (array := first_difference(next(replay(directory, 0)), state)):
        return Finding(0, array)
    first_wrong: int | None = None
    states = replay(directory, piece.end - piece.begin, state)
    for step, state in enumerate(states, piece.begin):
        if step == piece.begin:
            continue
        digest = unit_payload.digest(unit_payload.as_frame(state.parameters.flat)).hex()
        if first_wrong is None and piece.digests.get(step, digest) != digest:
            first_wrong = step
        if step % PROGRESS_EVERY_STEPS == 0 or step == piece.end:
            progress((step - piece.begin - 1) % PROGRESS_EVERY_STEPS + 1)
    end = checkpoint_path(directory.checkpoints, piece.end)
    array = first_difference(directory.read(end).state, state) if end.exists() else ""
    if array or first_wrong is not None:
        step = piece.end if first_wrong is None else first_wrong
        return Finding(step, array or "the weights, by the journal")
    return None


def compare(todo: Plan, *, processes: int, progress: Callable[[int], None]) -> Finding | None:
    """Compute every piece again, `processes` side by side, and return the first difference.

    `progress` is called with the steps that were done since its last call. Raises UserError for a
    damaged file, and where a process ended before it was through.
    """
    if processes == 1 or len(todo.pieces) == 1:
        found = (check(piece, progress) for piece in todo.pieces)
        return next((finding for finding in found if finding is not None), None)
    shares = [todo.pieces[i::processes] for i in range(min(processes, len(todo.pieces)))]
    return _in_processes(shares, progress)


def _in_processes(shares: list[list[Piece]], progress: Callable[[int], None]) -> Finding | None:
    """Compute each share again in a child process; return the first difference."""
    found: dict[int, Finding | str] = {}  # by the step that a piece begins at
    failures: list[str] = []

    def read_line(line: str) -> None:
        match json.loads(line):
            case {"steps": steps}:
                progress(steps)
            case {"begin": begin, "fault": fault}:
                found[begin] = fault
            case {"begin": begin, "step": step, "array": array}:
                found[begin] = Finding(step, array)

    def ended(slot: ProcessSlot, code: int) -> None:
        if code:
            failures.append(f"{slot.name} ended {how_it_ended(code)}")

    with EventLoop() as loop:
        supervisor = Supervisor(loop, on_end=ended)
        loop.callback(supervisor.kill)
        for i, share in enumerate(shares):
            name, arguments = f"process {i + 1} of verify", ["verify-share", str(share[0].path)]
            slot = ProcessSlot(name=name, arguments=arguments, on_line=read_line, has_stdin=True)
            supervisor.start(slot)
            pieces = [(piece.begin, piece.end, list(piece.digests.items())) for piece in share]
            slot.write(json.dumps(pieces) + "\n")
        while not (failures or all(slot.is_empty for slot in supervisor.slots)):
            loop.turn()
    if failures:
        raise UserError(failures[0], code=RUN_FAILED)
    first = found[min(found)] if found else None
    if isinstance(first, str):
        raise UserError(first)
    return first


def check_share(path: Path, pieces: list[Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Compute some pieces again, in a child; report progress and the first finding."""
    for begin, end, digests in pieces:
        try:
            piece = Piece(path, begin, end, dict(digests))
            finding = check(piece, lambda steps: tell({"steps": steps}))
        except UserError as error:
            tell({"begin": begin, "fault": str(error)})
            return
        if finding is not None:
            tell({"begin": begin, "step": finding.step, "array": finding.array})
            return
