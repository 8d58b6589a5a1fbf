"""verify, of a run that goes on meanwhile; that it finds what differs is in tests/fleet."""

from pathlib import Path

from manychar.storage.append_log import AppendLog, Extent, LogReader
from manychar.storage.checkpoint import checkpoint_path
from manychar.storage.journal import JOURNAL_NAME
from manychar.storage.run_directory import open_run
from manychar.verification.verify import Finding, compare, plan


def test_a_checkpoint_that_was_pruned_meanwhile_is_computed_from_an_earlier_one(
    trained: Path,
) -> None:
    run = open_run(trained)
    todo = plan(run, begin=150, end=200)
    (piece,) = todo.pieces
    assert (piece.begin, piece.end) == (150, 200)
    checkpoint_path(run.checkpoints, 150).unlink()
    assert compare(todo, processes=1) is None
    records = [*LogReader(trained / JOURNAL_NAME)]
    wrong = AppendLog(trained / JOURNAL_NAME, Extent())
    wrong.append(
        each | ({"digest": "0" * 8} if each.get("step") == 200 else {}) for each in records
    )
    wrong.close()
    assert compare(todo, processes=1) == Finding(200, "the weights, by the journal")


def test_a_checkpoint_that_was_pruned_meanwhile_is_not_compared(trained: Path) -> None:
    run = open_run(trained)
    todo = plan(run, begin=0, end=150)
    checkpoint_path(run.checkpoints, 150).unlink()
    assert compare(todo, processes=1) is None
