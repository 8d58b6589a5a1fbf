"""Stories of a wrong result that came through a relay: at the server, and at the relay."""

import dataclasses
from typing import Any

import pytest

from manychar.protocol.effects import Effect, RememberBans, ResumeBefore
from manychar.protocol.events import PeerLost
from manychar.protocol.member import OWN_PEER, PeerState
from manychar.protocol.messages import (
    RELAYS,
    Ban,
    Blame,
    Dispute,
    Grant,
    Heartbeat,
    Ready,
    Refused,
    UnitResult,
    Welcome,
)
from manychar.protocol.server import TICK
from manychar.protocol.unit_payload import digest, folded_digest, pack_digests
from tests.protocol import test_relay
from tests.protocol.stage import IN_RUN, Stage, flip, hello, only, sent
from tests.simulation.reference import Reference

WRONG = "it computed step 0, shards 0 … 1 wrongly"
LIMIT = 4.0  # on the silence of a relay with a level of relays, its own
WHERE: Any = {"step": 0, "first": 0, "last": 1}


def join_relay(stage: Stage, name: str, workers: int = 2) -> list[Effect]:
    """Let a relay come, with so many workers below it."""
    stage.tell(name, dataclasses.replace(hello(name), machine={RELAYS: f"i-{name}"}))
    stage.ready(name, fingerprint="relay")
    return stage.tell(name, heartbeat_of_relay(workers))


def heartbeat_of_relay(workers: int) -> Heartbeat:
    """Return what a relay says that has so many workers."""
    levels = min(workers, 1)
    return Heartbeat(**IN_RUN, longest_piece=0.0, heard=0, units=(), workers=workers, levels=levels)


def right_digests(known: Reference) -> bytes:
    """Return what is right of shards 0 and 1 at step 0."""

    def of(each: Any) -> object:
        if isinstance(each, tuple):
            return folded_digest(known.sums[0][each])
        piece = known.pieces[each, 0]
        return piece.loss.hex(), digest(piece.hidden)

    return pack_digests(known.definition.shards, (0, 1), of)


# At the server.


@pytest.fixture
def asked() -> tuple[Stage, list[Effect]]:
    """A server that has found a relay's result wrong, and what it does about it."""
    stage = Stage()
    join_relay(stage, "r")
    stage.join("bob")
    piece = stage.known.pieces[0, 0]
    losses = [piece.loss + 1, stage.known.pieces[1, 0].loss]
    stage.deliver("r", (0, 1), losses=losses)
    return stage, stage.compute(stage.deliver("bob", (0, 1), 0))


def test_a_relay_that_was_wrong_is_asked_for_the_worker(asked: tuple[Stage, list[Effect]]) -> None:
    stage, effects = asked
    right = right_digests(stage.known)
    assert sent(effects, Dispute, "r") == [Dispute(**IN_RUN, **WHERE, digests=right)]
    assert not [effect for effect in effects if isinstance(effect, RememberBans)]
    stage.tell("r", Blame(**IN_RUN, **WHERE, name="w7", key="k7"))
    effects = stage.wait(TICK, "bob")
    assert only(effects, RememberBans).banned == {"w7": WRONG, "k7": WRONG}
    assert only(effects, ResumeBefore).step == 1
    assert [ban.name for ban in sent(effects, Ban, "r")] == ["w7", "k7"]


def test_a_relay_that_names_no_worker_is_banned(asked: tuple[Stage, list[Effect]]) -> None:
    asked[0].tell("r", Blame(**IN_RUN, **WHERE, name="", key=""))
    effects = asked[0].wait(TICK, "bob")
    assert only(effects, RememberBans).banned == {"r": WRONG}


def test_a_relay_that_does_not_answer_is_asked_again_and_banned(
    asked: tuple[Stage, list[Effect]],
) -> None:
    stage = asked[0]
    effects = stage.wait(LIMIT - 0.2, "r", "bob")
    assert len(sent(effects, Dispute, "r")) > 2
    assert not [effect for effect in effects if isinstance(effect, RememberBans)]
    effects = stage.wait(0.3, "r", "bob")
    assert only(effects, RememberBans).banned == {"r": WRONG}


def test_a_silent_relay_is_asked_too() -> None:
    stage = Stage()
    join_relay(stage, "r")
    stage.join("bob")
    losses = [stage.known.pieces[0, 0].loss + 1, stage.known.pieces[1, 0].loss]
    stage.deliver("r", (0, 1), losses=losses)
    stage.wait(LIMIT, "bob")
    assert stage.member("r").state is PeerState.SILENT
    effects = stage.compute(stage.deliver("bob", (0, 1), 0))
    assert sent(effects, Dispute, "r")
    stage.tell("r", Blame(**IN_RUN, **WHERE, name="w7", key="k7"))
    effects = stage.wait(TICK, "bob")
    assert only(effects, RememberBans).banned == {"w7": WRONG, "k7": WRONG}


def test_a_relay_that_is_gone_is_banned(asked: tuple[Stage, list[Effect]]) -> None:
    stage = asked[0]
    stage.server.handle(PeerLost(b"r"), stage.now)
    assert only(stage.wait(0.1, "bob"), RememberBans).banned == {"r": WRONG}


def test_whom_nobody_asked_bans_nobody(asked: tuple[Stage, list[Effect]]) -> None:
    stage = asked[0]
    stage.tell("bob", Blame(**IN_RUN, **WHERE, name="ann", key="ann"))
    stage.tell("r", Blame(**IN_RUN, **WHERE | {"step": 1}, name="ann", key="ann"))
    stage.wait(TICK, "bob")
    assert not stage.server.admission.banned


def test_a_relay_is_told_of_all_bans() -> None:
    stage = Stage(banned={"ann": "she computed wrongly"})
    told = [(ban.name, ban.reason) for ban in sent(join_relay(stage, "r"), Ban, "r")]
    assert told == [("ann", "she computed wrongly")]


def test_with_relays_the_server_does_not_compute() -> None:
    stage = Stage()
    own = OWN_PEER.decode()
    stage.tell(own, hello("server"))
    stage.ready(own)
    join_relay(stage, "r", workers=0)
    assert stage.ranges_of(own) == [(0, 1)]
    join_relay(stage, "r")
    assert (stage.ranges_of(own), stage.ranges_of("r")) == ([], [(0, 1)])
    stage.server.handle(PeerLost(b"r"), stage.now)
    assert stage.ranges_of(own) == [(0, 1)]


# At the relay.


def delivered(*, b_is_right: bool) -> test_relay.Stage:
    """A relay whose workers a and b have delivered shards 0 and 1 of step 0."""
    stage = test_relay.Stage()
    stage.from_above(test_relay.welcome())
    stage.join(b"a")
    stage.join(b"b")
    stage.grant(0, 1)
    stage.deliver(b"a", stage.asked(b"a", Grant))
    grant = stage.asked(b"b", Grant)
    like = UnitResult(
        **stage.below,
        lease=grant.lease,
        first=1,
        last=1,
        step=0,
        weights_digest=b"1234",
        seconds=0.5,
        payload=test_relay.KNOWN.payload(0, 1, 1),
    )
    result = test_relay.KNOWN.result(like, 0, 1, 1)
    if not b_is_right:
        sums = tuple(flip(each) for each in result.payload.sums)
        result = dataclasses.replace(result, payload=result.payload._replace(sums=sums))
    stage.from_below(b"b", result)
    assert stage.sent_up(UnitResult)
    return stage


def dispute(stage: test_relay.Stage) -> None:
    right = right_digests(test_relay.KNOWN)
    stage.from_above(Dispute(**test_relay.ABOVE, **WHERE, digests=right))


@pytest.mark.parametrize("b_is_right", [False, True])
def test_a_relay_names_the_worker_or_itself(*, b_is_right: bool) -> None:
    stage = delivered(b_is_right=b_is_right)
    dispute(stage)
    name = "" if b_is_right else "b"
    assert stage.sent_up(Blame) == [Blame(**test_relay.ABOVE, **WHERE, name=name, key=name)]


def test_a_relay_asks_the_relay_below_it() -> None:
    stage = delivered(b_is_right=False)
    stage.machine.below.membership.members[b"b"].is_relay = True
    dispute(stage)
    assert not stage.sent_up(Blame)
    asked = stage.asked(b"b", Dispute)
    assert (asked.run_and_term, asked.digests) == (stage.below, right_digests(test_relay.KNOWN))
    for name, named in (("w9", "w9"), ("", "b")):
        stage.from_below(b"b", Blame(**stage.below, **WHERE, name=name, key=name))
        assert stage.sent_up(Blame)[-1] == Blame(**test_relay.ABOVE, **WHERE, name=named, key=named)


def test_a_relay_enforces_a_ban_and_passes_it_down() -> None:
    stage = delivered(b_is_right=True)
    relay = test_relay.hello("c", **{RELAYS: "i-c"})
    stage.from_below(b"c", relay)
    stage.from_below(
        b"c", Ready(**stage.below, fingerprint="relay", libraries={}, longest_piece=0.0)
    )
    for _ in range(2):
        stage.from_above(Ban(**test_relay.ABOVE, name="b", reason="wrong"))
    assert stage.asked(b"b", Refused).reason == "banned: wrong"
    assert stage.down[b"c"].count(Ban(**stage.below, name="b", reason="wrong")) == 1
    stage.from_below(b"B", test_relay.hello("b"))
    assert stage.asked(b"B", Refused).reason == "banned: wrong"
    stage.from_above(Ban(**test_relay.ABOVE, name="b", reason=""))
    assert stage.down[b"c"][-1] == Ban(**stage.below, name="b", reason="")
    stage.from_below(b"B", test_relay.hello("b"))
    assert stage.asked(b"B", Welcome)
