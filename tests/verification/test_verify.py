"""verify, of a run that goes on meanwhile; that it finds what differs is in tests/fleet."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from manychar.storage.append_log import AppendLog, Extent, LogReader
from manychar.storage.checkpoint import checkpoint_path
from manychar.storage.journal import JOURNAL_NAME, JournalContents, ServerStart
from manychar.storage.run_directory import open_run
from manychar.verification import verify
from manychar.verification.replay import replay
from manychar.verification.verify import Finding, compare, plan
from tests.commands import Commands


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
    for each in records:
        wrong.append(each | ({"digest": "0" * 8} if each.get("step") == 200 else {}))
    wrong.close()
    assert compare(todo, processes=1) == Finding(200, "the weights, by the journal")


def test_a_checkpoint_that_was_pruned_meanwhile_is_not_compared(trained: Path) -> None:
    run = open_run(trained)
    todo = plan(run, begin=0, end=150)
    checkpoint_path(run.checkpoints, 150).unlink()
    assert compare(todo, processes=1) is None


def test_no_step_is_computed_twice_where_a_live_run_prunes_its_checkpoints(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked = open_run(trained), []
    pieces = plan(run, begin=0, end=200).pieces
    assert [piece.end for piece in pieces] == [150, 200]
    checkpoint_path(run.checkpoints, 150).unlink()
    right = replay

    def counted(run: Any, steps: int, *state: Any) -> Any:
        asked.append(steps)
        return right(run, steps, *state)

    # The numerics of this process are not pinned: its bits may be others.
    monkeypatch.setattr(verify, "first_difference", lambda *_: "")
    monkeypatch.setattr(JournalContents, "digest", lambda *_: None)
    monkeypatch.setattr(verify, "replay", counted)
    assert verify.check(trained, pieces) is None
    assert asked == [0, 150, 50]  # 0: the first state


def test_one_that_begins_earlier_says_so(trained: Path) -> None:
    run = open_run(trained)
    assert plan(run, begin=150, end=200).remark == ""
    assert plan(run, begin=160, end=200).remark == "no checkpoint of step 160: from 150"


def test_steps_without_a_record_are_not_counted_as_compared(
    manychar: Commands, trained: Path
) -> None:
    """As where a journal was removed, and the run resumed from the checkpoint of step 150."""
    run = open_run(trained)
    first, *steps = LogReader(trained / JOURNAL_NAME)
    term = max(each["term"] for each in steps)
    sha256 = run.read(checkpoint_path(run.checkpoints, 150)).sha256
    journal = AppendLog(trained / JOURNAL_NAME, Extent())
    later = [each for each in steps if each["step"] > 150]
    for record in (first, ServerStart(term, 150, sha256), *later):
        journal.append(record)
    journal.close()
    done = manychar.run("verify", "run")
    assert done.out == "the same bits: 150 steps, 3 checkpoints; 150 steps without a record\n"
    what = "no record of 150 steps from 1 to 150: of these, only the checkpoints are compared"
    assert done.err.splitlines()[0] == f"run/{JOURNAL_NAME}: {what}"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "the same bits: 300 steps, no checkpoint after that of step 0\n"),
        (("--to", "0"), "the same bits: 0 steps, no checkpoint after that of step 0\n"),
    ],
)
def test_a_run_with_the_first_checkpoint_alone_is_not_said_to_have_others(
    manychar: Commands, trained: Path, flags: tuple[str, ...], said: str
) -> None:
    for path in trained.glob("checkpoints/step-*"):
        if path.name != "step-000000000.safetensors":
            path.unlink()
    done = manychar.run("verify", "run", *flags)
    assert (done.code, done.out) == (0, said), done.err


class CommandOfSomeSteps:
    """Says that it has computed all steps but one, as one process of `verify` does."""

    def __init__(
        self, *_: str, given: bytes, on_progress: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self._steps = sum(end - begin for begin, end in json.loads(given))
        self._on_progress = on_progress

    def output(self) -> list[str]:
        self._on_progress({"step": self._steps - 1})
        return ["null"]

    def kill(self) -> None:
        pass


def test_the_progress_counts_the_steps_of_all_processes(
    trained: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verify, "Command", CommandOfSomeSteps)
    monkeypatch.setattr(verify, "LINE_EVERY", 0.0)
    caplog.set_level("INFO")
    assert compare(plan(open_run(trained), begin=0, end=200), processes=2) is None
    assert caplog.messages == ["verify: 149 of 200 steps", "verify: 198 of 200 steps"]
