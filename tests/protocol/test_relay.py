"""Stories of one relay: what it hands on, up and down, and whom it refuses."""

import dataclasses
from typing import Any, TypeVar

import pytest

from manychar.protocol import status_report
from manychar.protocol.client_session import HELLO_EVERY, ClientPhase
from manychar.protocol.counters import Counter
from manychar.protocol.effects import ComputeFingerprint, Effect, Finish, Level, Log, Send
from manychar.protocol.events import (
    DeadlinePassed,
    FingerprintComputed,
    LeaveRequested,
    PeerLost,
    Received,
)
from manychar.protocol.messages import (
    RELAYS,
    WIRE_VERSION,
    Done,
    Grant,
    Heartbeat,
    Hello,
    Message,
    NewWeights,
    Ready,
    Refused,
    Reset,
    Revoke,
    UnitResult,
    Welcome,
)
from manychar.protocol.relay import Relay
from manychar.protocol.run_spec import dimensions_of
from tests.simulation.reference import Reference, reference

M = TypeVar("M")
ABOVE: Any = {"run_id": "run", "term": 3, "session": 99}
KNOWN: Reference = reference(4, 2, 14)
SIZE = dimensions_of(KNOWN.definition, len(KNOWN.vocabulary))


def hello(name: str, **machine: str) -> Hello:
    return Hello(wire=WIRE_VERSION, role="worker", name=name, instance=f"i-{name}", machine=machine)


def welcome(**changes: Any) -> Welcome:
    message = Welcome(
        **ABOVE,
        dimensions=SIZE,
        numerics="portable",
        seed=0,
        silence=2.0,
        vocabulary=b"",
        fingerprint="same",
        libraries={},
    )
    return dataclasses.replace(message, **changes)


class Stage:
    """A relay, and all that it sends: `up`, and `down` by peer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.machine = Relay(hello("r"), server="tcp://above:1", connect_timeout=60.0, now=0.0)
        self.up: list[Message] = []
        self.down: dict[bytes, list[Message]] = {}
        self.others: list[Effect] = []

    def handle(self, event: Any) -> None:
        for effect in self.machine.handle(event, self.now):
            match effect:
                case Send(message, None):
                    self.up.append(message)
                case Send(message, bytes(peer)):
                    self.down.setdefault(peer, []).append(message)
                case ComputeFingerprint():
                    self.handle(FingerprintComputed("relay", {}, 0.0))
                case _:
                    self.others.append(effect)

    def from_above(self, message: Message) -> None:
        self.handle(Received(message))

    def from_below(self, peer: bytes, message: Message) -> None:
        self.handle(Received(message, peer))

    @property
    def below(self) -> Any:
        """The run, term and session in which its members are."""
        return self.machine.below.spec.run_and_term

    def join(self, peer: bytes) -> None:
        """Have a worker join, and the relay tell of it."""
        self.from_below(peer, hello(peer.decode()))
        ready = Ready(**self.below, fingerprint="same", libraries={}, longest_piece=0.0)
        self.from_below(peer, ready)
        for _ in range(2):
            self.now += 0.2
            self.handle(DeadlinePassed())

    def grant(self, first: int, last: int, *, lease: int = 1, step: int = 0) -> Grant:
        """Have the server grant a run of a lease of the same shards."""
        ids = [KNOWN.streams.batch_at(i, step).ids.tobytes() for i in range(first, last + 1)]
        grant = Grant(
            **ABOVE,
            number=lease,
            lease=lease,
            lease_first=first,
            lease_last=last,
            first=first,
            last=last,
            step=step,
            fresh=KNOWN.streams.is_fresh(step),
            weights=KNOWN.weights[step],
            hidden=b"".join(KNOWN.hidden[step][first : last + 1]),
            ids=b"".join(ids),
        )
        self.from_above(grant)
        return grant

    def deliver(self, peer: bytes, asked: Grant | NewWeights) -> None:
        """Have a worker deliver the unit that it was asked for."""
        like = UnitResult(
            **self.below,
            lease=asked.lease,
            first=0,
            last=0,
            step=asked.step,
            weights_digest=b"1234",
            seconds=0.0,
            payload=KNOWN.payload(0, 0, 0),
        )
        result = KNOWN.result(like, asked.step, asked.first, asked.last)
        self.from_below(peer, dataclasses.replace(result, lease=asked.lease, seconds=0.5))

    def asked(self, peer: bytes, kind: type[M]) -> M:
        """Return the newest message of this kind to a peer."""
        return [each for each in self.down[peer] if isinstance(each, kind)][-1]

    def sent_up(self, kind: type[M]) -> list[M]:
        return [each for each in self.up if isinstance(each, kind)]


@pytest.fixture
def stage() -> Stage:
    """A relay that is admitted."""
    stage = Stage()
    stage.from_above(welcome())
    return stage


@pytest.fixture
def pair(stage: Stage) -> Stage:
    """The same with two workers, which share the shards 0 … 3 of step 0."""
    stage.join(b"a")
    stage.join(b"b")
    stage.grant(0, 3)
    return stage


def test_it_admits_nobody_before_it_is_admitted() -> None:
    stage = Stage()
    stage.from_below(b"a", hello("a"))
    assert not stage.down
    stage.from_above(welcome())
    assert stage.machine.below.dimensions == SIZE
    stage.from_below(b"a", hello("a"))
    told = stage.asked(b"a", Welcome)
    assert told == dataclasses.replace(welcome(relays="i-r"), session=stage.below["session"])
    assert told.session != 99


def test_its_heartbeat_counts_its_workers(pair: Stage) -> None:
    assert [beat.workers for beat in pair.sent_up(Heartbeat)][-1] == 2
    pair.handle(PeerLost(b"a"))
    pair.now += 0.2
    for _ in range(2):
        pair.handle(DeadlinePassed())
    assert [beat.workers for beat in pair.sent_up(Heartbeat)][-1] == 1


def test_two_units_below_are_one_above(pair: Stage) -> None:
    grants = [pair.asked(peer, Grant) for peer in (b"a", b"b")]
    assert [(grant.first, grant.last) for grant in grants] == [(0, 1), (2, 3)]
    assert {bytes(grant.weights) for grant in grants} == {KNOWN.weights[0]}
    pair.deliver(b"b", grants[1])
    assert not pair.sent_up(UnitResult)
    pair.deliver(b"a", grants[0])
    (result,) = pair.sent_up(UnitResult)
    assert result == dataclasses.replace(KNOWN.result(result, 0, 0, 3), lease=1, seconds=0.5)


def test_its_speed_is_that_of_one_of_its_workers(stage: Stage) -> None:
    for peer in (b"a", b"b", b"c"):
        stage.join(peer)
    stage.grant(0, 1)  # one of them has none
    for peer in (b"a", b"b"):
        stage.deliver(peer, stage.asked(peer, Grant))
    assert stage.sent_up(UnitResult)[0].seconds == pytest.approx(0.5)


def test_weights_alone_go_down_as_weights_alone(pair: Stage) -> None:
    for peer in (b"a", b"b"):
        pair.deliver(peer, pair.asked(peer, Grant))
    ids = b"".join(KNOWN.streams.batch_at(i, 1).ids.tobytes() for i in range(4))
    new = NewWeights(
        **ABOVE, number=2, lease=1, first=0, last=3, step=1, fresh=False, weights=KNOWN.weights[1],
        ids=ids,
    )  # fmt: skip
    pair.from_above(new)
    for peer in (b"a", b"b"):
        assert bytes(pair.asked(peer, NewWeights).weights) == KNOWN.weights[1]
        pair.deliver(peer, pair.asked(peer, NewWeights))
    assert pair.sent_up(UnitResult)[-1].payload.pack() == KNOWN.payload(1, 0, 3).pack()


def test_it_knows_no_loss_and_says_nothing_of_divergence(
    pair: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_report, "LOSS_STEPS", 1)
    monkeypatch.setattr(status_report, "STEPS_OF_FEW_STREAMS", 1)
    report = pair.machine.below.status_report
    definition = dataclasses.replace(report._spec.definition, warmup=1)
    monkeypatch.setattr(report, "_spec", dataclasses.replace(report._spec, definition=definition))
    for step in range(6):
        pair.grant(0, 1, step=step)
    logs = [each for each in pair.others if isinstance(each, Log)]
    assert not [each for each in logs if each.level is not Level.INFO]


def test_it_takes_no_sum_apart(pair: Stage) -> None:
    for peer in (b"a", b"b"):
        pair.deliver(peer, pair.asked(peer, Grant))
    pair.from_above(Revoke(**ABOVE, lease=1))
    pair.grant(1, 1, lease=2)
    first, second = pair.sent_up(UnitResult)
    assert (second.lease, second.first, second.last) == (2, 0, 1)
    assert second.payload.pack() == KNOWN.payload(0, 0, 1).pack()
    assert first.lease == 1


def test_a_unit_of_a_revoked_lease_is_passed_up(pair: Stage) -> None:
    grant = pair.asked(b"a", Grant)
    pair.from_above(Revoke(**ABOVE, lease=1))
    assert pair.asked(b"a", Revoke).lease == grant.lease
    pair.deliver(b"a", grant)
    (result,) = pair.sent_up(UnitResult)
    assert (result.lease, result.first, result.last, result.session) == (0, 0, 1, 99)


def test_another_term_above_is_another_session_below(pair: Stage) -> None:
    before = pair.below
    pair.from_above(welcome(term=4))
    assert pair.asked(b"a", Reset).run_and_term == pair.below != before
    pair.join(b"a")
    assert not pair.machine.below.membership.leases


@pytest.mark.parametrize(
    ("event", "code", "reason"),
    [
        (LeaveRequested(75, "told to"), 75, "told to"),
        (Received(Refused(reason="no")), 3, "the server refused this relay: no"),
    ],
)
def test_its_members_end_with_it(pair: Stage, event: Any, code: int, reason: str) -> None:
    pair.handle(event)
    assert pair.asked(b"a", Done) == Done(**pair.below, code=code, reason=f"the relay r: {reason}")
    assert pair.machine.phase is ClientPhase.ENDED


def test_its_members_end_when_it_finds_no_server_any_more(pair: Stage) -> None:
    pair.from_above(Reset(**ABOVE))
    pair.now += 61.0
    pair.handle(DeadlinePassed())
    assert pair.asked(b"b", Done).reason.startswith("the relay r: no server at tcp://above:1 for")


def test_the_end_of_the_run_is_that_of_its_members(pair: Stage) -> None:
    pair.from_above(Done(**ABOVE, code=0, reason="finished"))
    assert pair.asked(b"b", Done) == Done(**pair.below, code=0, reason="finished")
    assert pair.others[-1] == Finish(0, "finished")


def test_another_version_is_refused(stage: Stage) -> None:
    stage.from_below(b"a", dataclasses.replace(hello("a"), wire=WIRE_VERSION + 1))
    assert "its wire version is" in stage.asked(b"a", Refused).reason


def test_other_arithmetic_is_refused(stage: Stage) -> None:
    stage.from_below(b"a", hello("a"))
    ready = Ready(**stage.below, fingerprint="other", libraries={}, longest_piece=0.0)
    stage.from_below(b"a", ready)
    assert "its arithmetic gives other bits" in stage.asked(b"a", Refused).reason


def test_an_observer_is_told_where_the_server_is(stage: Stage) -> None:
    stage.from_below(b"o", dataclasses.replace(hello("o"), role="observer"))
    assert stage.asked(b"o", Refused).reason == "this is a relay: connect to tcp://above:1"


def test_a_relay_with_this_one_below_it_is_refused() -> None:
    stage = Stage()
    stage.from_below(b"x", hello("x", **{RELAYS: "i-x i-y i-r"}))
    reason = "a cycle of relays: r is above and below it; give one of them the server's ENDPOINT"
    assert stage.asked(b"x", Refused).reason == reason
    assert stage.others == [Log(f"x was refused: {reason}", Level.WARNING)]
    assert stage.machine.below.counts[Counter.CLIENTS_REFUSED] == 1


def test_a_relay_below_itself_ends_with_one_line() -> None:
    stage = Stage()
    stage.from_below(b"x", hello("r", **{RELAYS: "i-r"}))
    why = "a relay cannot work for itself: give it the server's ENDPOINT, or choose another --bind"
    assert stage.others == [Finish(3, f"tcp://above:1: {why}")]
    assert stage.machine.deadline() is None


def test_a_relay_that_is_refused_says_that_it_is_one() -> None:
    stage = Stage()
    stage.from_above(Refused(reason="banned"))
    assert stage.others == [Finish(3, "the server refused this relay: banned")]


def test_a_relay_names_those_below_it_to_those_above() -> None:
    stage = Stage()
    stage.from_below(b"x", hello("x", **{RELAYS: "i-x i-y"}))
    stage.now += HELLO_EVERY
    stage.handle(DeadlinePassed())
    assert stage.sent_up(Hello)[-1].machine[RELAYS] == "i-r i-x i-y"


def test_a_relay_that_finds_itself_above_ends() -> None:
    stage = Stage()
    stage.from_above(welcome(relays="i-q i-r"))
    (finish,) = stage.others
    assert isinstance(finish, Finish)
    assert (finish.code, finish.reason[:17]) == (3, "a cycle of relays")


def test_it_says_that_it_is_connected_again(stage: Stage) -> None:
    stage.now += 4.0
    stage.handle(DeadlinePassed())
    stage.from_above(welcome())
    lines = [(each.text, each.level) for each in stage.others if isinstance(each, Log)]
    lost, connected = lines
    assert lost[0].endswith("has sent nothing for 4 s: connecting again")
    assert connected == ("connected to tcp://above:1", Level.INFO)


def test_a_member_that_has_seen_a_newer_server_makes_it_connect_again(pair: Stage) -> None:
    beat = Heartbeat(**pair.below | {"term": 4}, longest_piece=0.0, heard=0, units=())
    pair.from_below(b"a", beat)
    assert pair.machine.phase is ClientPhase.CONNECTING
    assert [type(each) for each in pair.down[b"a"][-2:]] == [Revoke, Reset]
