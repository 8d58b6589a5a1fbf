"""What a gradient is to the run as it stands, what is kept of it, and what it is summed to."""

import dataclasses
import math
import weakref
from typing import Any

import numpy as np
import pytest

from manychar.protocol import aggregation
from manychar.protocol.aggregation import STEPS_COMPARED, Aggregation, Assessment, digest_of
from manychar.protocol.events import MailboxEmpty
from manychar.protocol.messages import Gradient, digest
from manychar.protocol.run_spec import dimensions_of
from tests.simulation.network import flip
from tests.simulation.reference import Reference, bytes_of, compute, reference

SHARDS = 3


class Case:
    """The steps of a tiny run, and the right gradients for it."""

    def __init__(self, *, step: int = 0, limit: float = 12) -> None:
        self.known: Reference = reference(SHARDS, 2, 11)
        state = self.known.states[step]
        self.aggregation = Aggregation(
            self.known.definition, self.known.streams, state, limit=limit
        )

    def gradient(self, shard: int, step: int, **changes: Any) -> Gradient:
        """Return the right gradient, but for the changes."""
        piece = self.known.pieces[shard, step]
        right = Gradient(
            run_id="run",
            term=1,
            lease=1,
            shard=shard,
            step=step,
            hidden_digest=digest(self.known.hidden[step][shard]),
            loss=piece.loss,
            gradient=piece.gradient,
            hidden=piece.hidden,
        )
        return dataclasses.replace(right, **changes)

    def accept(self, *units: tuple[int, int]) -> None:
        """Accept the right gradients of some (shard, step)."""
        for shard, step in units:
            gradient = self.gradient(shard, step)
            assert self.aggregation.assess(gradient) is Assessment.WANTED
            self.aggregation.accept(gradient, ("ann", "ann"))

    def advance_to(self, step: int) -> None:
        """Accept and apply everything up to the state `step`."""
        for each in range(self.aggregation.state.step, step):
            self.accept(*((shard, each) for shard in range(SHARDS)))
            self.aggregation.apply()


def test_accepted_in_any_order_of_shards_the_states_are_the_single_process() -> None:
    case = Case()
    for step in range(8):
        order = [(shard, step) for shard in range(SHARDS)]
        case.accept(*order[step % 3 :], *order[: step % 3])
        assert case.aggregation.complete
        case.aggregation.apply()
        assert bytes_of(case.aggregation.state) == case.known.state_bytes[step + 1]


def test_only_the_step_of_the_state_is_open_and_none_at_the_limit() -> None:
    case = Case(step=3, limit=5)
    assess = case.aggregation.assess
    assert assess(case.gradient(0, 3)) is Assessment.WANTED
    assert assess(case.gradient(0, 4)) is Assessment.NOT_OPEN
    case.accept((0, 3))
    assert [case.aggregation.is_missing(shard) for shard in range(SHARDS)] == [False, True, True]
    assert assess(case.gradient(0, 3)) is Assessment.REPEAT
    assert assess(case.gradient(0, 4)) is Assessment.NOT_OPEN
    case.accept((1, 3), (2, 3))
    case.aggregation.apply()
    case.advance_to(5)
    assert case.aggregation.closed
    assert assess(case.gradient(0, 5)) is Assessment.NOT_OPEN
    assert not any(map(case.aggregation.is_missing, range(SHARDS)))


def test_a_run_that_is_closed_wants_no_more_of_its_open_step() -> None:
    case = Case(step=3)
    case.aggregation.close()
    assert case.aggregation.assess(case.gradient(0, 3)) is Assessment.NOT_OPEN
    assert not any(map(case.aggregation.is_missing, range(SHARDS)))


def test_what_was_computed_from_another_state() -> None:
    case = Case()
    wrong = case.gradient(0, 0, hidden_digest=bytes(4))
    assert case.aggregation.assess(wrong) is Assessment.FROM_ANOTHER_STATE
    case.accept((0, 0))
    assert case.aggregation.assess(wrong) is Assessment.FROM_ANOTHER_STATE


def test_a_repeat_differs_in_any_of_its_three_parts() -> None:
    case = Case()
    case.accept((1, 0))
    right = case.gradient(1, 0)
    for wrong in (
        dataclasses.replace(right, loss=math.nextafter(right.loss, 0)),
        dataclasses.replace(right, gradient=flip(right.gradient)),
        dataclasses.replace(right, hidden=flip(right.hidden)),
    ):
        assert case.aggregation.assess(wrong) is Assessment.REPEAT_DIFFERS
        assert digest_of(wrong) != digest_of(right)
    assert case.aggregation.assess(dataclasses.replace(right, lease=9)) is Assessment.REPEAT


def test_repeats_are_compared_for_a_stated_number_of_steps() -> None:
    case = Case()
    case.advance_to(STEPS_COMPARED + 1)
    assert case.aggregation.assess(case.gradient(0, 0)) is Assessment.REPEAT_TOO_OLD
    assert case.aggregation.assess(case.gradient(0, 1)) is Assessment.REPEAT


def test_fewer_steps_are_compared_where_their_inputs_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aggregation, "INPUT_BYTES", 0)
    case = Case()
    case.advance_to(3)
    assert case.aggregation.steps_compared == 1
    assert case.aggregation.assess(case.gradient(0, 1)) is Assessment.REPEAT_TOO_OLD
    assert case.aggregation.assess(case.gradient(0, 2)) is Assessment.REPEAT
    assert case.aggregation.first_from({"ann"}, at_most=3) == 0, "senders are remembered for longer"


def test_the_frames_of_an_accepted_gradient_are_held_until_the_mailbox_is_empty() -> None:
    case = Case()
    gradient = case.gradient(0, 0)
    received = np.frombuffer(gradient.gradient, np.uint8).copy()
    kept = weakref.ref(received)
    changed = dataclasses.replace(gradient, gradient=received.data)
    case.aggregation.accept(changed, ("ann", "ann"))
    del received, changed
    case.accept((1, 0), (2, 0))
    case.aggregation.apply()
    assert kept() is not None
    case.aggregation.mailbox_empty(MailboxEmpty(), 0.0)
    assert kept() is None


def test_no_more_frames_are_held_than_there_are_shards_where_the_mailbox_is_never_empty() -> None:
    case = Case()
    case.advance_to(3)
    assert len(case.aggregation._undigested) <= SHARDS


def test_what_was_applied_before_this_server_began_is_not_compared() -> None:
    case = Case(step=4)
    assert case.aggregation.assess(case.gradient(0, 3)) is Assessment.REPEAT_TOO_OLD


@pytest.mark.parametrize("part", ["loss", "gradient", "hidden"])
def test_what_is_not_finite(part: str) -> None:
    case = Case()
    right = case.gradient(0, 0)
    if part == "loss":
        wrong = dataclasses.replace(right, loss=math.inf)
    else:
        values = np.frombuffer(getattr(right, part), np.float32).copy()
        values[3] = np.nan
        changed: dict[str, Any] = {part: values.tobytes()}
        wrong = dataclasses.replace(right, **changed)
    assert case.aggregation.assess(wrong) is Assessment.NOT_FINITE


def test_a_unit_that_was_accepted_can_be_computed_again() -> None:
    case = Case()
    case.advance_to(6)
    case.accept((0, 6))
    size = dimensions_of(case.known.definition, len(case.known.vocabulary))
    for shard, step in [(0, 6), (1, 5), (2, 1)]:
        unit = case.aggregation.compute_again(shard, step)
        assert compute(unit, size) == case.known.pieces[shard, step]
        assert case.aggregation.accepted(shard, step)[0] == ("ann", "ann")


def test_a_unit_that_is_too_old_is_gone() -> None:
    case = Case()
    case.advance_to(STEPS_COMPARED + 1)
    with pytest.raises(KeyError):
        case.aggregation.compute_again(0, 0)
    with pytest.raises(KeyError):
        case.aggregation.accepted(0, 0)


def test_a_result_waits_for_its_step_and_leaves_the_hidden_state_of_the_step() -> None:
    case = Case()
    case.accept((0, 0))
    assert bytes(case.aggregation.hidden(0)) == case.known.hidden[0][0]
    assert not case.aggregation.complete
    case.accept((1, 0), (2, 0))
    case.aggregation.apply()
    assert bytes(case.aggregation.hidden(0)) == case.known.hidden[1][0]
    assert not case.aggregation.complete
