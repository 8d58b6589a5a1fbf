"""Stories of an observer, and of the session that it shares with the worker."""

import dataclasses
from typing import Any

import pytest

from manychar.protocol.client_session import ClientPhase
from manychar.protocol.effects import Finish, Log, Show
from manychar.protocol.events import DeadlinePassed, LeaveRequested, PeerError, Received
from manychar.protocol.messages import (
    Alive,
    Done,
    Goodbye,
    Grant,
    Heartbeat,
    Hello,
    NewWeights,
    Refused,
    Reset,
    Weights,
    Welcome,
)
from manychar.protocol.observer import Observer
from manychar.protocol.run_spec import dimensions_of
from tests.protocol.stage import IN_RUN, SESSION, TERM, hello, only, said, status
from tests.simulation.reference import reference

KNOWN = reference(2, 1, 11)
WELCOME = Welcome(
    **IN_RUN,
    dimensions=dimensions_of(KNOWN.definition, len(KNOWN.vocabulary)),
    numerics="portable",
    seed=0,
    silence=2.0,
    vocabulary=KNOWN.vocabulary.encode(),
    fingerprint="same",
    libraries={},
)
STATUS = status()


def watching() -> Observer:
    observer = Observer(hello("olga", "observer"), server="there", connect_timeout=5.0, now=0.0)
    observer.handle(Received(WELCOME), 0.0)
    return observer


def test_it_connects_and_observes() -> None:
    observer = Observer(hello("olga", "observer"), server="there", connect_timeout=5.0, now=0.0)
    assert only(observer.handle(DeadlinePassed(), 0.0), Hello).role == "observer"
    assert observer.handle(Received(WELCOME), 0.1) == []
    assert observer.phase is ClientPhase.CONNECTED
    assert observer.dimensions == WELCOME.dimensions
    assert only(observer.handle(DeadlinePassed(), 0.1), Heartbeat).units == ()
    assert observer.deadline() == 0.6


def test_it_shows_status_and_weights() -> None:
    observer = watching()
    weights = Weights(**IN_RUN, version=1, weights=KNOWN.weights[1])
    assert only(observer.handle(Received(STATUS), 0.1), Show).message == STATUS
    assert only(observer.handle(Received(weights), 0.1), Show).message == weights
    assert observer.handle(Received(Alive(**IN_RUN)), 0.1) == []


def test_it_passes_over_another_term_and_goes_with_a_new_one() -> None:
    observer = watching()
    assert observer.handle(Received(dataclasses.replace(STATUS, term=TERM + 1)), 0.1) == []
    assert only(observer.handle(Received(Reset(**IN_RUN | {"term": TERM + 1})), 0.1), Hello)
    observer.handle(Received(dataclasses.replace(WELCOME, term=TERM + 1)), 0.2)
    assert observer.handle(Received(WELCOME), 0.3) == []
    assert observer.handle(Received(Reset(**IN_RUN)), 0.3) == []
    assert only(observer.handle(Received(dataclasses.replace(STATUS, term=TERM + 1)), 0.4), Show)


def test_a_server_of_another_session_of_the_term_is_another_server() -> None:
    observer = watching()
    other: dict[str, Any] = {"session": SESSION + 1}
    assert observer.handle(Received(dataclasses.replace(STATUS, **other)), 0.1) == []
    observer.handle(Received(dataclasses.replace(WELCOME, **other)), 0.2)
    assert observer.handle(Received(STATUS), 0.3) == []
    assert only(observer.handle(Received(dataclasses.replace(STATUS, **other)), 0.4), Show)


def test_a_silent_server_is_called_until_the_connect_timeout() -> None:
    observer = watching()
    observer.handle(Received(STATUS), 0.0)
    assert "has sent nothing for 4 s: connecting again" in said(
        observer.handle(DeadlinePassed(), 4.0)
    )
    assert observer.phase is ClientPhase.CONNECTING
    assert only(observer.handle(DeadlinePassed(), 4.0), Hello)
    assert "waiting for a server at there, for 3 s more" in said(
        observer.handle(DeadlinePassed(), 6.0)
    )
    assert only(observer.handle(DeadlinePassed(), 9.0), Finish).code == 3
    assert observer.deadline() is None


def test_it_says_that_a_wait_has_ended() -> None:
    observer = Observer(hello("olga", "observer"), server="there", connect_timeout=60.0, now=0.0)
    assert "waiting for a server at there" in said(observer.handle(DeadlinePassed(), 2.0))
    assert observer.handle(Received(WELCOME), 2.1) == [Log("connected to there")]
    assert observer.handle(Received(WELCOME), 2.1) == [], "it is said once"
    assert "connecting again" in said(observer.handle(DeadlinePassed(), 6.1))
    later = dataclasses.replace(WELCOME, term=TERM + 1)
    assert observer.handle(Received(later), 6.2) == [Log("connected to there")]


def test_a_reset_without_a_wait_says_nothing() -> None:
    observer = watching()
    assert said(observer.handle(Received(Reset(**IN_RUN)), 0.1)) == ""
    assert observer.handle(Received(WELCOME), 0.2) == []


@pytest.mark.parametrize(
    ("message", "finish"),
    [
        (Refused(reason="no"), Finish(3, "the server refused this observer: no")),
        (Done(**IN_RUN, code=75, reason="stopped"), Finish(75, "stopped")),
    ],
)
def test_the_server_ends_it(message: Refused | Done, finish: Finish) -> None:
    observer = watching()
    assert observer.handle(Received(message), 0.1) == [finish]
    assert observer.handle(Received(STATUS), 0.2) == []
    assert observer.handle(DeadlinePassed(), 9.0) == []


def test_it_says_goodbye() -> None:
    assert only(watching().handle(LeaveRequested(0, "enough"), 0.1), Goodbye).reason == "enough"


@pytest.mark.parametrize("kind", [Grant, NewWeights])
def test_work_is_not_for_observers(kind: type[Grant | NewWeights]) -> None:
    numbers = dict.fromkeys(("number", "lease", "first", "last", "step"), 0)
    of_unit: dict[str, Any] = {**numbers, "fresh": True}
    of_grant: dict[str, Any] = (
        {"lease_first": 0, "lease_last": 0, "hidden": b""} if kind is Grant else {}
    )
    work = kind(**IN_RUN, **of_unit, **of_grant, weights=b"", ids=b"")
    with pytest.raises(PeerError, match=f"{kind.__name__} to a client that is connected"):
        watching().handle(Received(work), 0.1)
