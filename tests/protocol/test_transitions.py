"""The tables of transitions: what they do not name is an error, and loud."""

import dataclasses
from typing import Any

import pytest

from manychar.protocol import events
from manychar.protocol.aggregation import Aggregation
from manychar.protocol.client_session import ClientPhase
from manychar.protocol.effects import Effect, Finish
from manychar.protocol.events import ProtocolError
from manychar.protocol.lifecycle import RunPhase
from manychar.protocol.messages import Goodbye, Heartbeat, Hello, Stop, UnitResult, Welcome
from manychar.protocol.server import ParameterServer
from manychar.protocol.worker import Worker
from tests.protocol.stage import IN_RUN, Stage, hello, only, said
from tests.simulation.planted import plant_handler


def test_an_event_that_the_table_does_not_name_is_a_protocol_error() -> None:
    stage = Stage()
    with pytest.raises(ProtocolError, match="Started to a server that is training"):
        stage.server.handle(events.Started(), 0.0)
    with pytest.raises(ProtocolError, match="LeaveRequested to a server that is training"):
        stage.server.handle(events.LeaveRequested(0, "enough"), 0.0)


def test_a_phase_that_the_row_does_not_name_is_a_protocol_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ends(*_: Any) -> None:
        stage.server.lifecycle.phase = RunPhase.FINISHED

    monkeypatch.setattr(Aggregation, "compute_digests", ends)
    stage = Stage()
    with pytest.raises(ProtocolError, match="MailboxEmpty led from training to finished"):
        stage.server.handle(events.MailboxEmpty(), 0.0)


def test_a_peers_state_that_the_row_does_not_name_is_a_protocol_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgets(self: ParameterServer, member: Any, message: Stop, now: float) -> None:
        del self.membership.members[member.peer]

    monkeypatch.setattr(ParameterServer, "_stop_by_operator", forgets)
    stage = Stage()
    stage.hello("olga", "observer")
    with pytest.raises(ProtocolError, match="Stop led from observing to unknown"):
        stage.tell("olga", Stop(**IN_RUN))


def test_a_clients_state_that_the_row_does_not_name_is_a_protocol_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ends(self: Worker, event: events.HeartbeatDue, now: float) -> list[Effect]:
        self.phase = ClientPhase.ENDED
        return []

    plant_handler(monkeypatch, Worker, "_heartbeat", ends)
    worker = Worker(hello("ann"), server="there", connect_timeout=5.0, now=0.0)
    with pytest.raises(ProtocolError, match="HeartbeatDue led from connecting to ended"):
        worker.handle(events.HeartbeatDue(), 0.0)


def test_once_a_server_has_finished_nothing_changes_how() -> None:
    stage = Stage(steps=1, shards=1)
    stage.join("ann")
    stage.deliver("ann", 0)
    only(stage.server.handle(events.CheckpointWritten(1), 0.0), Finish)
    for event in (
        events.CheckpointWritten(1, "no space left on device"),
        events.ValidationFailed("it died"),
        events.StopRequested(75, "stopped", 5.0),
        events.DeadlinePassed(),
        events.Received(hello("bob"), b"bob"),
    ):
        assert stage.server.handle(event, 1.0) == []


def test_time_in_which_a_process_was_stopped_is_nobodys_silence() -> None:
    stage = Stage(lease_timeout=2.0)
    stage.join("ann")
    stage.server.handle(events.Suspended(60.0), 60.0)
    assert "reassigned" not in said(stage.server.handle(events.DeadlinePassed(), 60.0))
    assert "the shards of ann are reassigned" in said(
        stage.server.handle(events.DeadlinePassed(), 62.1)
    )


def test_time_in_which_a_client_was_stopped_is_no_silence_of_the_server() -> None:
    worker = Worker(hello("ann"), server="there", connect_timeout=5.0, now=0.0)
    worker.handle(events.Suspended(60.0), 60.0)
    assert not [e for e in worker.handle(events.DeadlinePassed(), 60.0) if isinstance(e, Finish)]
    assert [e for e in worker.handle(events.DeadlinePassed(), 65.0) if isinstance(e, Finish)]


def test_the_tables_name_every_event_and_every_message_of_a_member() -> None:
    server = Stage().server
    for phase in RunPhase:
        if phase not in (RunPhase.STARTING, RunPhase.FINISHED):
            assert (phase, events.Received) in server._event_rows()
    named = {kind for _, kind in server._message_rows()}
    assert {UnitResult, Heartbeat, Goodbye, Stop} <= named
    assert Hello not in named
    assert {kind for _, kind in Worker.table} >= {Welcome, events.Computed}
    assert all(dataclasses.is_dataclass(kind) for _, kind in Worker.table)
