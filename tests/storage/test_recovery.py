"""Where a server resumes: the newest checkpoint, that for recovery among them, and the journal."""

import dataclasses
import logging
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from manychar.numerics.training_step import TrainingState, start
from manychar.protocol.effects import Save
from manychar.protocol.events import CheckpointWritten
from manychar.storage import checkpoint_writer
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.checkpoint_writer import MOST_PENDING, Writer
from manychar.storage.journal import AppliedStep
from manychar.storage.recovery import ResumePoint, recover
from manychar.storage.run_directory import RunDirectory
from tests.storage.test_run_directory import made, write_at


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run that keeps two checkpoints."""
    return made(tmp_path / "run", keep_checkpoints=2)


def state_of(run: RunDirectory, step: int) -> TrainingState:
    vocabulary, _ = run.corpus()
    return dataclasses.replace(start(run.definition, len(vocabulary)), step=step)


@contextmanager
def resumed(run: RunDirectory, term: int) -> Iterator[ResumePoint]:
    point = recover(run, term)
    with closing(point.journal), closing(point.metrics):
        yield point


def write(run: RunDirectory, *saves: tuple[int, bool]) -> None:
    """Apply and save steps, one after the other, as a server does."""
    with resumed(run, 1) as point, Writer(run, point, lambda: None) as writer:
        for step, for_recovery in saves:
            point.journal.append(AppliedStep(1, step, 1.0, f"{step:08x}"))
            writer.write(Save(state_of(run, step), for_recovery), lambda: None)
    assert writer.news() == [
        CheckpointWritten(step, for_recovery=for_recovery) for step, for_recovery in saves
    ]


def names(run: RunDirectory) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in run.checkpoints.iterdir())


def test_a_checkpoint_for_recovery_is_in_no_list_and_the_newest_to_resume_from(
    run: RunDirectory,
) -> None:
    write(run, (10, False), (11, True), (12, True))
    assert names(run) == ["recovery", "step-000000000", "step-000000010"]
    assert [step for step, _ in list_checkpoints(run.checkpoints)] == [0, 10]
    assert run.newest_checkpoint()[0].state.step == 12
    assert run.newest_checkpoint(up_to=11)[0].state.step == 10
    with resumed(run, 2) as point:
        assert point.checkpoint.state.step == 12


def test_a_disk_that_is_behind_is_waited_for_and_loses_nothing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, woken = threading.Event(), []
    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", lambda *_: disk.wait(20))
    monkeypatch.setattr(checkpoint_writer, "REPORT_EVERY", 0.01)
    steps = [*range(1, MOST_PENDING + 2)]
    with resumed(run, 1) as point, Writer(run, point, lambda: woken.append(1)) as writer:
        for step in steps:
            writer.write(Save(state_of(run, step)), pytest.fail)
        assert writer.news() == []
        writer.write(Save(state_of(run, 90)), disk.set)
    assert writer.news() == [CheckpointWritten(step) for step in (*steps, 90)]
    assert len(woken) == len(steps) + 1


def test_the_next_regular_one_replaces_it(run: RunDirectory) -> None:
    write(run, (10, False), (11, True), (20, False))
    assert names(run) == ["step-000000000", "step-000000010", "step-000000020"]


def test_one_that_a_crash_has_left_behind_a_newer_one_is_not_resumed_from(
    run: RunDirectory,
) -> None:
    write(run, (11, True))
    write_at(run, 20)
    assert run.newest_checkpoint()[0].state.step == 20


@pytest.mark.parametrize("length", [4, -9])
def test_a_damaged_one_is_set_aside(run: RunDirectory, length: int) -> None:
    write(run, (10, False), (11, True))
    run.recovery.write_bytes(run.recovery.read_bytes()[:length])
    with resumed(run, 2) as point:
        assert point.checkpoint.state.step == 10
    assert "recovery.safetensors.damaged-2" in names(run)


@pytest.mark.parametrize(("before", "step"), [(11, 10), (12, 11)])
def test_one_that_is_wrong_is_set_aside(run: RunDirectory, before: int, step: int) -> None:
    write(run, (10, False), (11, True))
    with resumed(run.with_facts(resume_before=before), 2) as point:
        assert point.checkpoint.state.step == step
    assert ("recovery.safetensors.before-term-2" in names(run)) is (step == 10)


def test_a_restart_says_how_many_steps_are_done_again(
    run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(run, (10, False), (11, True))
    assert not caplog.messages
    run.recovery.unlink()
    with resumed(run, 2):
        pass
    assert caplog.messages == ["resuming from step 10: steps done again: at least 1"]
    with resumed(run, 3):
        pass
    assert len(caplog.messages) == 1
