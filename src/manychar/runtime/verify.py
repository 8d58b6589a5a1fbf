"""verify: does a run again in this one place, and compares every checkpoint bit for bit.

The run falls into pieces, each from one checkpoint to the next. A piece starts from what its
checkpoint holds (checkpoint 0 is compared with the definition's own beginning), so if every piece
comes to the checkpoint at its end, the whole run does; and pieces can be done side by side.
"""

import dataclasses
import itertools
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from manychar.numerics.train import advance, start
from manychar.protocol.steps import as_frame
from manychar.runtime.checkpoint import checkpoint_path, list_checkpoints, read_checkpoint
from manychar.runtime.corpus_file import check_corpus
from manychar.runtime.errors import UserError
from manychar.runtime.journal import JOURNAL_NAME, Step, read_journal, weights_digest
from manychar.runtime.replay import first_difference
from manychar.runtime.run_directory import RunDirectory, open_run

PROGRESS_EVERY_STEPS = 20


@dataclasses.dataclass(frozen=True)
class Piece:
    """Steps `begin` … `end - 1`, from the checkpoint of `begin`; `digests` are the journal's."""

    path: Path
    begin: int
    end: int
    digests: dict[int, int]


@dataclasses.dataclass(frozen=True)
class Finding:
    """The first step whose weights differ, and the array that does."""

    step: int
    array: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be done again: pieces, and the checkpoints that will have been compared."""

    pieces: list[Piece]
    checkpoints: int

    @property
    def steps(self) -> int:
        """How many steps that is."""
        return sum(piece.end - piece.begin for piece in self.pieces)


def plan(directory: RunDirectory, *, begin: int, end: int | None) -> Plan:
    """Return what `--from` and `--to` come to; the files are checked, nothing is computed yet.

    Raises UserError for a damaged or altered file, and for a run of mixed arithmetic.
    """
    if directory.settings.mixed:
        raise UserError(
            f"{directory.path}: other arithmetic was let in: not reproducible bit for bit"
        )
    check_corpus(directory.path, directory.definition.corpus_sha256)
    saved = [step for step, _ in list_checkpoints(directory.checkpoints)]
    if not saved or saved[0] != 0:
        raise UserError(f"{directory.checkpoints}: checkpoint 0 is missing")
    living = _journal(directory, saved[-1])
    newest = max([*living, saved[-1]])
    end = newest if end is None else end
    if not 0 <= begin <= end <= newest:
        raise UserError(f"--from {begin} --to {end}: the run's steps are 0 … {newest}")
    first = max(step for step in saved if step <= begin)
    edges = sorted({first, end, *(step for step in saved if first < step < end)})
    pieces = [
        Piece(
            directory.path, a, b, {k: living[k].digest for k in range(a + 1, b + 1) if k in living}
        )
        for a, b in itertools.pairwise(edges)
    ]
    return Plan(pieces, len([step for step in saved if first <= step <= end]))


def _journal(directory: RunDirectory, newest_checkpoint: int) -> dict[int, Step]:
    """Return the journal's steps, after a check that it tells the whole story."""
    path = directory.path / JOURNAL_NAME
    reading = read_journal(path, directory.run)
    living = reading.living()
    covered = newest_checkpoint == 0 or newest_checkpoint in living
    if reading.fault and not covered:
        raise UserError(f"{path}: damaged or altered: {reading.fault}")
    missing = sorted(set(range(1, newest_checkpoint + 1)) - living.keys())
    if missing:
        raise UserError(f"{path}: altered: it has no record of step {missing[0]}")
    for step, begin in reading.beginnings().items():
        checkpoint = checkpoint_path(directory.checkpoints, step)
        if checkpoint.exists() and read_checkpoint(checkpoint).sha256 != begin.sha256:
            raise UserError(
                f"{checkpoint}: not the checkpoint that the journal says term"
                f" {begin.term} began from"
            )
    return living


def check(piece: Piece, progress: Callable[[int], None]) -> Finding | None:
    """Do one piece again, and return the first difference. Raises UserError for a damaged file."""
    directory = open_run(piece.path)
    definition = directory.definition
    vocabulary, streams = directory.streams()
    checkpoint = read_checkpoint(checkpoint_path(directory.checkpoints, piece.begin))
    if checkpoint.definition != definition or checkpoint.vocabulary != vocabulary:
        raise UserError(f"{piece.path}: checkpoint {piece.begin} is of another definition or text")
    state = checkpoint.state
    if piece.begin == 0 and (array := first_difference(start(definition, len(vocabulary)), state)):
        return Finding(0, array)
    first_wrong: int | None = None
    for step in range(piece.begin + 1, piece.end + 1):
        state = advance(state, definition, streams)
        digest = weights_digest(as_frame(state.parameters.flat))
        if first_wrong is None and piece.digests.get(step, digest) != digest:
            first_wrong = step
        if step % PROGRESS_EVERY_STEPS == 0 or step == piece.end:
            progress((step - piece.begin - 1) % PROGRESS_EVERY_STEPS + 1)
    end = checkpoint_path(directory.checkpoints, piece.end)
    array = first_difference(read_checkpoint(end).state, state) if end.exists() else ""
    if array or first_wrong is not None:
        step = piece.end if first_wrong is None else first_wrong
        return Finding(step, array or "the weights, by the journal")
    return None


def verify(plan: Plan, *, processes: int, progress: Callable[[int], None]) -> Finding | None:
    """Do every piece again, `processes` side by side, and return the first difference.

    `progress` is called with the steps that were done since its last call.
    """
    if processes == 1 or len(plan.pieces) == 1:
        found = (check(piece, progress) for piece in plan.pieces)
        return next((finding for finding in found if finding is not None), None)
    context = multiprocessing.get_context("spawn")
    steps: SimpleQueue[int] = context.SimpleQueue()
    with context.Pool(processes, _begin_child, (steps,)) as pool:
        results = [pool.apply_async(_check_in_child, (piece,)) for piece in plan.pieces]
        done = 0
        while done < plan.steps and not all(result.ready() for result in results):
            if steps.empty():
                next(r for r in results if not r.ready() or r is results[-1]).wait(0.05)
                continue
            count = steps.get()
            done += count
            progress(count)
        findings = [result.get() for result in results]
    return next((finding for finding in findings if finding is not None), None)


_steps: "SimpleQueue[int]"


def _begin_child(steps: "SimpleQueue[int]") -> None:
    """Set up a child: Ctrl-C is the parent's affair."""
    global _steps  # noqa: PLW0603 - how a pool hands a queue to its children
    _steps = steps
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_in_child(piece: Piece) -> Finding | None:
    return check(piece, _steps.put)
