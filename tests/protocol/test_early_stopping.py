"""Checkpoints are validated, and where the run ends does not depend on how fast."""

import dataclasses
import math
from typing import Any

import pytest

from manychar.protocol.early_stopping import EarlyStopping
from manychar.protocol.effects import Finish, Level, Log, RecordMetrics, Save, Validate
from manychar.protocol.events import (
    CheckpointWritten,
    DeadlinePassed,
    StopRequested,
    Validated,
    ValidationFailed,
)
from manychar.protocol.messages import Status
from tests.protocol.stage import Stage, only, said, sent


def validated(**operation: Any) -> Stage:
    """Return a server that validates a checkpoint every 2 steps; the first is validated already."""
    stage = Stage(validation_losses={0: 3.0}, checkpoint_every=2, **operation)
    stage.join("ann")
    stage.hello("olga", "observer")
    return stage


def test_a_checkpoint_is_validated_when_it_is_on_disk() -> None:
    stage = validated()
    effects = stage.advance_to(2, "ann")
    assert only(effects, Save).state.step == 2
    assert not [effect for effect in effects if isinstance(effect, Validate)]
    assert only(stage.server.handle(CheckpointWritten(2), stage.now), Validate) == Validate(2)

    effects = stage.server.handle(Validated(2, 2.5), stage.now)
    report = only(effects, Status)
    assert (report.validated, report.validation_loss_nats_per_character, report.best) == (2, 2.5, 2)


def test_a_worse_one_is_not_the_best() -> None:
    stage = validated()
    stage.advance_to(2, "ann")
    stage.server.handle(CheckpointWritten(2), stage.now)
    effects = stage.server.handle(Validated(2, 3.5), stage.now)
    report = only(effects, Status)
    assert (report.validated, report.validation_loss_nats_per_character, report.best) == (2, 3.5, 0)


def test_without_a_validation_text_nothing_is_validated() -> None:
    stage = Stage(checkpoint_every=2)
    stage.join("ann")
    stage.advance_to(2, "ann")
    assert stage.server.handle(CheckpointWritten(2), stage.now) == []


def test_the_decision_on_one_checkpoint_takes_effect_at_the_next() -> None:
    stage = validated(stop_when_no_better=1)
    stage.advance_to(2, "ann")
    stage.server.handle(CheckpointWritten(2), stage.now)
    assert not sent(stage.server.handle(Validated(2, 3.5), stage.now), Finish)
    effects = stage.advance_to(4, "ann")
    assert only(effects, Save).state.step == 4
    stage.server.handle(Validated(4, 1.0), stage.now)
    finish = only(stage.server.handle(CheckpointWritten(4), stage.now), Finish)
    assert finish.code == 0
    assert finish.reason == (
        "stopped early at step 4, as decided one checkpoint before: no better for 1 checkpoint up"
        " to step 2 (--stop-when-no-better); the best checkpoint is that of step 4: 1.0000 nats a"
        " character"
    )


def test_no_step_is_applied_before_the_decision_is_known() -> None:
    stage = validated(stop_when_no_better=1)
    stage.advance_to(4, "ann")
    for shard in range(2):
        stage.deliver("ann", shard, 4)
    assert stage.server.state.step == 4
    (waits,) = [log for log in stage.wait(3.0, "ann") if isinstance(log, Log)]
    assert "waited 1 s for the validation loss of step 2" in waits.text
    assert waits.level is Level.INFO, "training is faster: no fault"
    stage.server.handle(CheckpointWritten(2), stage.now)
    stage.server.handle(Validated(2, 2.5), stage.now)
    assert stage.server.state.step == 5


def test_training_pauses_while_too_many_checkpoints_wait() -> None:
    stage = validated()
    stage.advance_to(8, "ann")  # 2, 4 and 6 wait, and 8 is written
    for shard in range(2):
        stage.deliver("ann", shard, 8)
    assert stage.server.state.step == 8
    stage.server.handle(Validated(2, 2.5), stage.now)
    assert stage.server.state.step == 9


def test_a_late_decision_ends_the_run_where_a_quick_one_does() -> None:
    stage = validated(stop_when_no_better=1)
    stage.advance_to(4, "ann")
    for shard in range(2):
        stage.deliver("ann", shard, 4)
    stage.server.handle(CheckpointWritten(2), stage.now)
    stage.server.handle(CheckpointWritten(4), stage.now)
    effects = stage.server.handle(Validated(2, 3.5), stage.now)
    assert only(effects, RecordMetrics).status.step == 4
    assert stage.server.state.step == 4
    stage.server.handle(CheckpointWritten(4), stage.now)
    finish = only(stage.server.handle(Validated(4, 9.0), stage.now), Finish)
    assert "best checkpoint is that of step 0" in finish.reason


def test_the_last_checkpoint_is_validated_before_the_end() -> None:
    stage = Stage(validation_losses={0: 3.0}, checkpoint_every=0, steps=1)
    stage.join("ann")
    stage.advance_to(1, "ann")
    assert only(stage.server.handle(CheckpointWritten(1), stage.now), Validate) == Validate(1)
    assert "for the validation loss of step 1" in said(stage.wait(2.0, "ann"))
    assert only(stage.server.handle(Validated(1, 2.0), stage.now), Finish).code == 0


def test_who_is_stopped_does_not_wait_for_a_validation_loss() -> None:
    stage = validated(stop_when_no_better=1)
    stage.advance_to(4, "ann")
    stage.server.handle(StopRequested(75, "stopped", stage.now + 5), stage.now)
    assert only(stage.server.handle(CheckpointWritten(4), stage.now), Finish) == Finish(
        75, "stopped"
    )


def test_a_stop_where_training_pauses_at_a_checkpoint_that_is_on_disk() -> None:
    stage = validated()
    stage.advance_to(8, "ann")  # 2, 4 and 6 wait
    stage.server.handle(CheckpointWritten(8), stage.now)
    effects = stage.server.handle(StopRequested(75, "stopped", stage.now + 5), stage.now)
    assert only(effects, Finish) == Finish(75, "stopped")


def test_a_stop_without_a_step_after_a_checkpoint_that_is_on_disk() -> None:
    stage = Stage(checkpoint_every=2)
    stage.join("ann")
    stage.advance_to(2, "ann")
    stage.server.handle(CheckpointWritten(2), stage.now)
    stage.server.handle(StopRequested(75, "stopped", stage.now + 5), stage.now)
    effects = stage.server.handle(DeadlinePassed(), stage.now + 6)
    assert only(effects, Finish) == Finish(75, "stopped")
    assert only(effects, RecordMetrics).status.step == 2


def test_what_a_former_server_did_not_hear_is_asked_again() -> None:
    stage = Stage(
        step=4,
        validation_losses={0: 3.0},
        unvalidated=(2, 4),
        checkpoint_every=2,
        stop_when_no_better=1,
    )
    assert stage.started == [Validate(2), Validate(4)]
    stage.join("ann")
    for shard in range(2):
        stage.deliver("ann", shard, 4)
    assert stage.server.state.step == 4
    stage.server.handle(Validated(2, 2.0), stage.now)
    assert stage.server.state.step == 5


def test_a_run_that_was_over_is_over() -> None:
    stage = Stage(
        step=4,
        validation_losses={0: 1.0, 2: 2.0, 4: 0.5},
        checkpoint_every=2,
        stop_when_no_better=1,
    )
    only(stage.started, Save)
    assert not [effect for effect in stage.started if isinstance(effect, RecordMetrics)]
    assert "no better" in only(stage.server.handle(CheckpointWritten(4), stage.now), Finish).reason


def held(**operation: Any) -> Stage:
    """Return a server at step 4, complete, that awaits the validation loss of step 2."""
    stage = validated(stop_when_no_better=1, **operation)
    stage.advance_to(4, "ann")
    for shard in range(2):
        stage.deliver("ann", shard, 4)
    assert stage.server.state.step == 4
    return stage


def test_a_validation_process_that_is_gone_ends_only_a_run_that_needs_it() -> None:
    stage = validated()
    stage.advance_to(2, "ann")
    effects = stage.server.handle(ValidationFailed("it died"), stage.now)
    assert "not validated any more: it died" in said(effects)
    assert stage.server.handle(CheckpointWritten(2), stage.now) == []
    needing = held()
    assert (
        only(needing.server.handle(ValidationFailed("it died"), needing.now), Save).state.step == 4
    )
    finish = only(needing.server.handle(CheckpointWritten(4), needing.now), Finish)
    assert (finish.code, finish.reason) == (3, "early stopping cannot decide: it died")


def test_at_the_last_step_it_is_known_where_the_run_ends() -> None:
    stage = validated(stop_when_no_better=5, steps=2)
    stage.advance_to(2, "ann")
    stage.server.handle(CheckpointWritten(2), stage.now)
    assert only(stage.server.handle(ValidationFailed("it died"), stage.now), Finish).code == 0


@pytest.mark.parametrize("decides", [0, 1])
def test_a_checkpoint_that_is_not_there(decides: int) -> None:
    stage = validated(stop_when_no_better=decides)
    stage.advance_to(2, "ann")
    stage.server.handle(CheckpointWritten(2), stage.now)
    effects = stage.server.handle(Validated(2, failure="it is gone"), stage.now)
    if decides:
        assert only(effects, Finish).code == 3
    else:
        assert "is not validated: it is gone" in said(effects)
        stage.advance_to(5, "ann")
        assert stage.server.state.step == 5


def test_who_is_stopped_at_the_end_does_not_wait_for_a_validation_loss_either() -> None:
    stage = validated(steps=2)
    stage.advance_to(2, "ann")
    stage.server.handle(CheckpointWritten(2), stage.now)
    finish = stage.server.handle(StopRequested(75, "stopped", stage.now + 5), stage.now)
    assert only(finish, Finish).code == 0
    assert stage.server.state.step == 2


def test_nobody_is_asked_twice() -> None:
    stage = validated()
    stage.advance_to(2, "ann")
    assert stage.server.handle(CheckpointWritten(2), stage.now) == [Validate(2)]
    assert stage.server.handle(CheckpointWritten(2), stage.now) == []


def early_stopping_of(losses: dict[int, float], *, patience: int) -> EarlyStopping:
    """Return that of a run with a checkpoint every 10 steps."""
    server = Stage(validation_losses={}).server
    operation = dataclasses.replace(
        server.spec.operation, checkpoint_every=10, stop_when_no_better=patience
    )
    return EarlyStopping(losses, server.spec.definition, operation)


@pytest.mark.parametrize(
    ("losses", "patience", "ends"),
    [
        ([3.0, 2.0, 2.5, 2.4], 2, 4),
        ([3.0, 2.0, 2.5, 1.9, 2.0, 2.1], 2, 6),
        ([3.0, 3.0, 3.0], 1, 2),
        ([math.inf, math.inf], 1, 2),
        ([3.0, 2.0, 1.0, 0.5], 1, None),
    ],
)
def test_where_it_ends(losses: list[float], patience: int, ends: int | None) -> None:
    early_stopping = early_stopping_of({}, patience=patience)
    over = []
    for number, nats in enumerate(losses):
        over.append(early_stopping.ends_at(10 * number))
        early_stopping.record(10 * number, nats)
    over.append(early_stopping.ends_at(10 * len(losses)))
    assert [number for number, is_over in enumerate(over) if is_over][:1] == [ends][: ends or 0]


def test_checkpoints_between_the_intervals_do_not_count() -> None:
    early_stopping = early_stopping_of({0: 3.0, 7: 4.0, 9: 5.0}, patience=1)
    assert not early_stopping.ends_at(10)
    early_stopping.record(10, 3.5)
    assert early_stopping.ends_at(20)
    assert not early_stopping.ends_at(15)
