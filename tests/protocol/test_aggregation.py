"""What a unit's result is to the run as it stands, what is kept of it, and what it is summed to."""

import itertools
import math
import weakref
from typing import Any

import numpy as np
import pytest

from manychar.numerics.clipped_adagrad import NotFiniteError
from manychar.numerics.tree_reduction import Range, cover
from manychar.protocol import aggregation
from manychar.protocol.aggregation import STEPS_COMPARED, Aggregation
from manychar.protocol.counters import Counter
from manychar.protocol.messages import UnitResult
from manychar.protocol.unit_payload import digest, folded_digest
from tests.protocol.stage import computed, flip, hidden_of, nodes_of, unit_result
from tests.simulation.reference import Reference, bytes_of, reference

SHARDS = 5
ALL = (0, SHARDS - 1)


class Case:
    """The steps of a tiny run, and the right results for it."""

    def __init__(self, *, step: int = 0, limit: float = 12) -> None:
        self.known: Reference = reference(SHARDS, 2, 11)
        state = self.known.states[step]
        self.aggregation = Aggregation(
            self.known.definition, self.known.streams, state, limit=limit
        )

    def result(self, shards: Range, step: int, **changes: Any) -> UnitResult:
        """Return the right result, but for the changes."""
        return unit_result(self.known, *shards, step, **changes)

    def assess(self, shards: Range, step: int, **changes: Any) -> Counter | None:
        """Return what a result is to the run."""
        result = self.result(shards, step, **changes)
        return self.aggregation.assess(result)

    def accept(
        self, *units: Range, step: int = 0, sender: str = "ann", **changes: Any
    ) -> list[int]:
        """Accept the results of some ranges; return the shards that are accepted by them."""
        new = []
        for shards in units:
            assert self.assess(shards, step, **changes) is None
            result = self.result(shards, step, **changes)
            new += self.aggregation.accept(result, (sender, sender))
        return new

    def advance_to(self, step: int, *, by: tuple[Range, ...] = (ALL,)) -> None:
        """Accept and apply everything up to the state `step`, in these ranges."""
        for each in range(self.aggregation.state.step, step):
            self.accept(*by, step=each)
            self.aggregation.apply()

    def is_right(self) -> bool:
        """Whether the state is that of the single process."""
        state = self.aggregation.state
        return bytes_of(state) == self.known.state_bytes[state.step]


@pytest.mark.parametrize(
    "units",
    [
        *itertools.permutations([(0, 0), (1, 3), (4, 4)]),
        *itertools.permutations([(0, 2), (3, 4)]),
        [(3, 3), (1, 1), (0, 0), (4, 4), (2, 2)],
        [ALL],
    ],
    ids=str,
)
def test_any_cut_in_any_order_gives_the_states_of_the_single_process(units: list[Range]) -> None:
    case = Case()
    for _ in range(5):
        case.advance_to(case.aggregation.state.step + 1, by=tuple(units))
        assert case.is_right()


# Overlaps: a range that holds others, lies in another, or crosses it.


@pytest.mark.parametrize("first", [(a, b) for a in range(SHARDS) for b in range(a, SHARDS)])
@pytest.mark.parametrize("second", [(a, b) for a in range(SHARDS) for b in range(a, SHARDS)])
def test_what_overlaps_replaces_parts_or_lies_in_a_whole_and_the_bits_stay(
    first: Range, second: Range
) -> None:
    case = Case()
    assert case.accept(first) == [*range(first[0], first[1] + 1)]
    missing = [i for i in range(second[0], second[1] + 1) if case.aggregation.is_missing(i)]
    if missing:
        assert case.accept(second) == missing
    else:
        assert case.assess(second, 0) is not None
    for shard in case.aggregation.missing():
        case.accept((shard, shard))
    assert case.aggregation.complete
    case.aggregation.apply()
    assert case.is_right()


def test_a_node_replaces_the_sums_below_it_and_keeps_the_first_senders_of_their_shards() -> None:
    case = Case()
    case.accept((1, 1), sender="ann")
    assert case.accept((0, 3), sender="bob") == [0, 2, 3]
    senders = case.aggregation.accepted(0, ALL)
    assert [who for (who, _), claim in senders if 1 in claim] == ["ann"]
    assert [who for (who, _), claim in senders if (0, 3) in claim] == ["bob"]
    assert [who for (who, _), claim in senders if (1, 1) in claim] == ["ann"]
    right = nodes_of(case.known, case.result((0, 3), 0))[0, 3]
    assert case.aggregation._sums.nodes[0, 3].tobytes() == right


def test_a_delivered_sum_is_taken_as_it_came_where_parts_of_it_were_here() -> None:
    case = Case()
    case.accept((0, 0), (2, 2))
    case.accept((0, 3), sums=[flip(each) for each in case_sums(case, (0, 3))])
    assert case.aggregation._sums.nodes[0, 3].tobytes() == flip(case_sums(case, (0, 3))[0])


def test_a_delivered_node_in_a_complete_one_is_no_summand() -> None:
    case = Case()
    case.accept((0, 3))
    wrong = [flip(case_sums(case, (3, 4))[0]), *case_sums(case, (3, 4))[1:]]
    assert case.accept((3, 4), sums=wrong) == [4]
    case.aggregation.apply()
    assert case.is_right()


def case_sums(case: Case, shards: Range) -> list[bytes]:
    """Return the right sums of a range's cover."""
    return [bytes(each) for each in case.result(shards, 0).payload.sums]


# The order of checks: step, inputs, shards that are here, finite.


def test_only_the_step_of_the_state_is_open_and_none_at_the_limit() -> None:
    case = Case(step=3, limit=5)
    assert case.assess((0, 1), 3) is None
    assert case.assess((0, 1), 4) is Counter.UNITS_NOT_OPEN
    case.accept((0, 1), step=3)
    assert case.aggregation.missing() == [2, 3, 4]
    assert case.assess((0, 1), 3) is Counter.UNITS_REPEATED
    case.accept((2, 4), step=3)
    case.aggregation.apply()
    case.advance_to(5)
    assert case.aggregation.closed
    assert case.assess(ALL, 5) is Counter.UNITS_NOT_OPEN
    assert not case.aggregation.missing()


def test_a_run_that_is_closed_wants_no_more_of_its_open_step() -> None:
    case = Case(step=3)
    case.aggregation.close()
    assert case.assess((0, 1), 3) is Counter.UNITS_NOT_OPEN
    assert not case.aggregation.missing()


@pytest.mark.parametrize(
    "changes",
    [
        {"weights_digest": bytes(4)},
        {"digests": [bytes(4)] * 2},
        {"digests": [digest(reference(SHARDS, 2, 11).hidden[0][0]), bytes(4)]},
    ],
    ids=["weights", "hidden states", "the last shard's hidden state"],
)
def test_what_was_computed_from_another_state(changes: dict[str, Any]) -> None:
    case = Case()
    assert case.assess((0, 1), 0, **changes) is Counter.UNITS_FROM_WRONG_STATE
    case.accept((0, 1))
    assert case.assess((0, 1), 0, **changes) is Counter.UNITS_FROM_WRONG_STATE


def test_its_step_comes_before_its_inputs_and_these_before_a_repeat() -> None:
    case = Case()
    wrong = {"weights_digest": bytes(4), "losses": [math.nan] * 2}
    assert case.assess((0, 1), 1, **wrong) is Counter.UNITS_NOT_OPEN
    assert case.assess((0, 1), 0, **wrong) is Counter.UNITS_FROM_WRONG_STATE
    case.accept((0, 0))
    assert case.assess((0, 1), 0, losses=[math.nan] * 2) is Counter.UNITS_CONFLICTING


def test_where_a_shard_that_is_here_differs_nothing_of_the_unit_is_taken() -> None:
    case = Case()
    case.accept((1, 1))
    losses = list(case.result((0, 2), 0).payload.losses)
    losses[1] += 1
    assert case.assess((0, 2), 0, losses=losses) is Counter.UNITS_CONFLICTING
    assert case.aggregation.missing() == [0, 2, 3, 4]


# Repeats.


def test_a_repeat_differs_in_any_of_its_parts() -> None:
    case = Case()
    case.accept((1, 3))
    right = case.result((1, 3), 0)
    for place in range(3):
        losses, hidden = list(right.payload.losses), hidden_of(right)
        losses[place] = math.nextafter(losses[place], 0)
        hidden[place] = flip(hidden[place])
        assert case.assess((1, 3), 0, losses=losses) is Counter.UNITS_CONFLICTING
        assert case.assess((1, 3), 0, hidden=hidden) is Counter.UNITS_CONFLICTING
    for place in range(2):
        sums = list(right.payload.sums)
        sums[place] = flip(sums[place])
        assert case.assess((1, 3), 0, sums=sums) is Counter.UNITS_CONFLICTING
    assert case.assess((1, 3), 0, lease=9, seconds=1.0) is Counter.UNITS_REPEATED


@pytest.mark.parametrize("applied", [False, True])
def test_a_repeat_with_another_cut_compares_its_shards_and_the_nodes_that_are_the_same(
    *, applied: bool
) -> None:
    case = Case()
    case.accept((0, 1), (2, 4))
    if applied:
        case.aggregation.apply()
        case.aggregation.compute_digests()
    same, other = case_sums(case, (2, 4)), case_sums(case, (0, 3))
    assert cover(SHARDS, (2, 4)) == ((2, 3), (4, 4))
    assert case.assess((4, 4), 0) is Counter.UNITS_REPEATED
    assert case.assess((4, 4), 0, sums=[flip(same[1])]) is Counter.UNITS_CONFLICTING
    assert case.assess((0, 3), 0, sums=[flip(other[0])]) is Counter.UNITS_NOT_COMPARED
    assert case.assess((3, 3), 0) is Counter.UNITS_NOT_COMPARED, "counted as not compared"
    assert case.assess((3, 3), 0, losses=[0.0]) is Counter.UNITS_CONFLICTING
    assert case.assess((3, 3), 0, hidden=[flip(case.known.hidden[1][3])]) is (
        Counter.UNITS_CONFLICTING
    )


def test_the_sums_that_the_server_formed_are_compared_with_nobody_s() -> None:
    case = Case()
    case.accept((0, 0), (1, 1))
    claims = [claim for _, claim in case.aggregation.accepted(0, ALL)]
    assert not any((0, 1) in claim for claim in claims)
    assert case.assess((0, 1), 0, sums=[flip(case_sums(case, (0, 1))[0])]) is (
        Counter.UNITS_NOT_COMPARED
    )


def test_repeats_add_nothing_to_what_is_kept() -> None:
    case = Case()
    case.accept((0, 1), (2, 4))
    kept = case.aggregation.accepted(0, ALL)
    for shards in itertools.combinations_with_replacement(range(SHARDS), 2):
        case.assess(shards, 0)
    assert case.aggregation.accepted(0, ALL) == kept
    assert len(kept) <= SHARDS + 2 * SHARDS - 1


def test_repeats_are_compared_for_a_stated_number_of_steps() -> None:
    case = Case()
    case.advance_to(STEPS_COMPARED + 1)
    assert case.assess(ALL, 0) is Counter.UNITS_NOT_COMPARED
    assert case.assess(ALL, 1) is Counter.UNITS_REPEATED


def test_fewer_steps_are_compared_where_their_inputs_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(aggregation, "INPUT_BYTES", 0)
    case = Case()
    case.advance_to(3)
    assert case.aggregation.steps_compared == 1
    assert case.assess(ALL, 1) is Counter.UNITS_NOT_COMPARED
    assert case.assess(ALL, 2) is Counter.UNITS_REPEATED
    assert case.aggregation.first_from({"ann"}, at_most=3) == 0, "senders are remembered for longer"


def test_what_was_applied_before_this_server_began_is_not_compared() -> None:
    assert Case(step=4).assess(ALL, 3) is Counter.UNITS_NOT_COMPARED


def test_the_senders_of_sums_and_of_shards_are_remembered() -> None:
    case = Case()
    case.accept((0, 2), sender="ann")
    case.accept((0, 3), sender="bob")
    case.accept((4, 4), sender="eve")
    case.aggregation.apply()
    case.accept(ALL, step=1, sender="dan")
    first_from = case.aggregation.first_from
    assert [first_from({who}, at_most=9) for who in ("ann", "bob", "eve", "dan", "x")] == [
        *[0] * 3,
        1,
        9,
    ]


# Frames.


@pytest.mark.parametrize("frames_kept", [0, 4])
def test_few_frames_of_past_steps_are_held_and_of_the_others_their_checksums(
    frames_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case()
    result = case.result(ALL, 0)
    monkeypatch.setattr(aggregation, "KEPT_BYTES", frames_kept * len(result.payload.pack()))
    received = np.frombuffer(result.payload.sums[0], np.uint8).copy()
    kept = weakref.ref(received)
    case.aggregation.accept(case.result(ALL, 0, sums=[received.data]), ("ann", "ann"))
    del received
    case.aggregation.apply()
    assert kept() is not None
    for step in range(1, frames_kept + 1):
        case.aggregation.compute_digests()
        assert kept() is not None
        case.advance_to(step + 1)
    case.aggregation.compute_digests()
    assert kept() is None
    ((_, claim),) = [each for each in case.aggregation.accepted(0, ALL) if ALL in each[1]]
    assert claim[ALL] == folded_digest(case_sums(case, ALL)[0])


def test_a_hidden_state_is_no_view_of_a_received_frame() -> None:
    case = Case()
    received = bytearray(case.result(ALL, 0).payload.hidden)
    payload = case.result(ALL, 0).payload._replace(hidden=received)
    case.aggregation.accept(case.result(ALL, 0, payload=payload), ("ann", "ann"))
    case.aggregation.apply()
    received[:] = bytes(len(received))
    assert case.is_right()


# Not finite.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["losses", "hidden"])
def test_a_loss_or_hidden_state_that_is_not_finite_is_not_accepted(part: str, value: float) -> None:
    case = Case()
    right = case.result((0, 2), 0)
    changed: list[Any] = list(right.payload.losses) if part == "losses" else hidden_of(right)
    if part == "losses":
        changed[1] = value
    else:
        array = np.frombuffer(changed[1], np.float32).copy()
        array[3] = value
        changed[1] = array.tobytes()
    assert case.assess((0, 2), 0, **{part: changed}) is Counter.UNITS_NOT_FINITE
    assert len(case.aggregation.missing()) == SHARDS


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_sum_that_is_not_finite_is_found_when_it_would_be_applied(value: float) -> None:
    case = Case()
    sums = case_sums(case, (2, 4))
    array = np.frombuffer(sums[0], np.float32).copy()
    array[3] = value
    case.accept((2, 4), sums=[array.tobytes(), sums[1]], sender="eve")
    case.accept((0, 1), sender="ann")
    with pytest.raises(NotFiniteError):
        case.aggregation.apply()
    assert case.aggregation.not_finite() == [(("eve", "eve"), (2, 3))]
    assert case.aggregation.state.step == 0
    assert case.is_right()


def test_a_sum_that_overflows_is_nobody_s() -> None:
    case = Case()
    for shards in ((0, 3), (4, 4)):
        largest = np.full_like(np.frombuffer(case_sums(case, shards)[0], np.float32), 3e38)
        case.accept(shards, sums=[largest.tobytes()])
    with pytest.raises(NotFiniteError):
        case.aggregation.apply()
    assert case.aggregation.not_finite() == []


def test_large_finite_hidden_states_are_finite() -> None:
    case = Case()
    hidden = [bytes(each) for each in hidden_of(case.result(ALL, 0))]
    large = np.full_like(np.frombuffer(hidden[0], np.float32), 1e30).tobytes()
    assert case.assess(ALL, 0, hidden=[large, *hidden[1:]]) is None


# Computed again, and committed.


def test_a_unit_that_was_accepted_can_be_computed_again() -> None:
    case = Case()
    case.advance_to(6)
    case.accept((0, 0), step=6)
    for shard, step in [(0, 6), (1, 5), (2, 1)]:
        own = computed(case.aggregation.compute_again(shard, step), case.known)
        piece = case.known.pieces[shard, step]
        claim = {shard: (piece.loss.hex(), digest(piece.hidden))}
        assert (own.loss, own.hidden) == (piece.loss, piece.hidden)
        assert (("ann", "ann"), claim) in case.aggregation.accepted(step, (shard, shard))


def test_a_unit_that_is_too_old_is_gone() -> None:
    case = Case()
    case.advance_to(STEPS_COMPARED + 1)
    with pytest.raises(KeyError):
        case.aggregation.compute_again(0, 0)
    with pytest.raises(KeyError):
        case.aggregation.accepted(0, ALL)


def test_a_result_waits_for_its_step_and_leaves_the_hidden_state_of_the_step() -> None:
    case = Case()
    case.accept((0, 2))
    assert case.aggregation.state.hidden[0].tobytes() == case.known.hidden[0][0]
    assert not case.aggregation.complete
    case.accept((3, 4))
    case.aggregation.apply()
    assert case.aggregation.state.hidden[0].tobytes() == case.known.hidden[1][0]
    assert not case.aggregation.complete
