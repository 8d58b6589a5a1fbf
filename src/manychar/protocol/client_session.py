"""The client's side of a connection: Hello until welcome, heartbeats, and noticing a silent server.

    connecting ──Welcome──▶ connected ──Reset, or a silent server──▶ connecting

A session keeps its (run, term) when the server falls silent, so that a server which only paused
finds its client unchanged; a welcome to another run or term is a new session.

`ClientMachine` is what Worker and Observer have in common: `handle` by a table of transitions.
"""

import enum
from typing import ClassVar

from manychar.protocol import events, messages
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.effects import RUN_FAILED, Effect, Finish, Level, Log, Send
from manychar.protocol.events import DeadlinePassed, PeerError, ProtocolError, Received, Table, rows
from manychar.protocol.messages import Heartbeat, Hello, Message, Reset, RunAndTerm, Welcome

HELLO_EVERY = 0.2
FIRST_REPORT_AFTER = 2.0
REPORT_EVERY = 30.0
HEARTBEATS_PER_SILENCE = 4
LONGEST_INTERVAL = 5.0  # seconds: a broken connection is noticed at the next heartbeat
SERVER_SILENCES = 2


# Many attributes: what is due when, and what was said of it, belong to one connection.
class ClientSession:
    """One client's session with a server. Times are seconds of any steady clock."""

    def __init__(self, hello: Hello, *, server: str, connect_timeout: float, now: float) -> None:
        self.hello = hello
        self.server = server
        self._connect_timeout = connect_timeout
        self.welcome: Welcome | None = None
        self.connecting = True
        self.connecting_since = now
        self._next_hello = now
        self._next_report = now + FIRST_REPORT_AFTER
        self.next_heartbeat = self._heartbeat_at = now
        self.heard_at = now
        self._has_reported = False  # that it waits for the server
        self.is_idle = False  # a worker that had no range at its last heartbeat

    @property
    def interval(self) -> float:
        """How long after what this client last sent a heartbeat is due, in seconds."""
        if self.is_idle:
            return LONGEST_INTERVAL
        return min(self.welcomed().silence / HEARTBEATS_PER_SILENCE, LONGEST_INTERVAL)

    def sent_heartbeat(self, now: float) -> None:
        self._heartbeat_at = now
        self.next_heartbeat = now + self.interval

    def sent_unit(self, now: float) -> None:
        """Count a unit as a heartbeat; what only a heartbeat says is sent now and then, too."""
        self.next_heartbeat = min(now + self.interval, self._heartbeat_at + LONGEST_INTERVAL)

    def note_range(self, now: float) -> None:
        """Note that this worker has a range: the next heartbeat may be due sooner."""
        self.is_idle = False
        self.next_heartbeat = min(self.next_heartbeat, now + self.interval)

    def belongs(self, run_and_term: RunAndTerm) -> bool:
        return self.welcome is not None and self.welcome.run_and_term == run_and_term

    def concerns(self, message: Message) -> bool:
        """Whether the message is for this (run, term), or comes before there is one."""
        if isinstance(message, Hello | Welcome | messages.Refused | Reset):
            return True
        return self.belongs(message.run_and_term)

    def is_stale(self, message: Welcome | Reset) -> bool:
        """Whether a message is from an earlier term of the run than this session has been in."""
        known = self.welcome
        return known is not None and message.run_id == known.run_id and message.term < known.term

    def enter(self, welcome: Welcome, now: float) -> bool:
        """Note the welcome; return whether this is another run or term than the one before."""
        new = not self.belongs(welcome.run_and_term)
        self.welcome = welcome
        self.connecting = False
        self.next_heartbeat = now
        return new

    def end_of_wait(self) -> list[Effect]:
        """Return the line that a wait for the server has ended, where that wait was logged."""
        has_reported, self._has_reported = self._has_reported, False
        return [Log(f"connected to {self.server}")] if has_reported else []

    def connect(self, now: float) -> None:
        """Note that the server is lost, and send Hello at the next tick."""
        if not self.connecting:
            self.connecting = True
            self.connecting_since = now
            self._next_report = now + FIRST_REPORT_AFTER
        self._next_hello = now

    def tick(self, now: float, unreachable: str = "") -> list[Effect]:
        """Do what is due: send Hello, report the wait, time out, or notice a silent server."""
        if self.connecting:
            waited = now - self.connecting_since
            return self._tick_connecting(now, waited, unreachable)
        if now < self._silent_at:
            return []
        silence = self._silent_at - self.heard_at
        self.connect(now)
        self._has_reported = True
        text = f"the server at {self.server} has sent nothing for {silence:g} s: connecting again"
        return [Log(text, Level.WARNING)]

    def _tick_connecting(self, now: float, waited: float, unreachable: str) -> list[Effect]:
        if waited >= self._connect_timeout:
            reason = f"no server at {self.server} for {waited:.0f} s (--connect-timeout)"
            return [Finish(RUN_FAILED, f"{reason}: {unreachable or 'no answer'}")]
        effects: list[Effect] = []
        if now >= self._next_hello:
            self._next_hello = now + HELLO_EVERY
            effects.append(Send(self.hello))
        if now >= self._next_report:
            self._next_report, self._has_reported = now + REPORT_EVERY, True
            left = self._connect_timeout - waited
            text = f"waiting for a server at {self.server}, for {left:.0f} s more"
            effects.append(Log(text, Level.INFO if self.welcome is None else Level.WARNING))
        return effects

    def deadline(self) -> float:
        if self.connecting:
            return min(self._next_hello, self._next_report)
        return min(self.next_heartbeat, self._silent_at)

    @property
    def _silent_at(self) -> float:
        """When the server has been silent for too long: it answers heartbeats."""
        return self.heard_at + SERVER_SILENCES * max(self.welcomed().silence, self.interval)

    def welcomed(self) -> Welcome:
        if self.welcome is None:
            raise RuntimeError("connected without a welcome")
        return self.welcome


class ClientPhase(enum.StrEnum):
    """The phase of a client."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    ENDED = "ended"


CONNECTING, CONNECTED, ENDED = ClientPhase
NOT_ENDED = (CONNECTING, CONNECTED)


class ClientMachine:
    """A client of the server. Each role adds its own rows to the table."""

    table: ClassVar[Table]

    def __init__(self, hello: Hello, *, server: str, connect_timeout: float, now: float) -> None:
        self.session = ClientSession(hello, server=server, connect_timeout=connect_timeout, now=now)
        self.phase = CONNECTING

    @property
    def dimensions(self) -> Dimensions | None:
        """The run's dimensions, once they are known: what the codec needs."""
        return self.session.welcome.dimensions if self.session.welcome else None

    def deadline(self) -> float | None:
        return None if self.phase is ENDED else self.session.deadline()

    def handle(self, event: events.Event, now: float) -> list[Effect]:
        """Return the effects; PeerError for a message that the table does not name."""
        if self.phase is ENDED:
            return []
        fact = event.message if isinstance(event, Received) else event
        row = self.table.get((self.phase, type(fact)))
        if row is None:
            what = f"{type(fact).__name__} to a client that is {self.phase.value}"
            raise PeerError(what) if isinstance(event, Received) else ProtocolError(what)
        if isinstance(event, Received):
            self.session.heard_at = now
            if not self.session.concerns(event.message):
                return []
        before = self.phase
        effects: list[Effect] = row.handler(self, fact, now)
        if row.next_states or self.phase is not before:
            row.check(fact, before=before, after=self.phase)
        return effects

    def _deadline_passed(self, event: DeadlinePassed, now: float) -> list[Effect]:
        effects = self.session.tick(now, event.unreachable)
        if self.session.connecting and self.phase is CONNECTED:
            self.phase = CONNECTING
        if any(isinstance(effect, Finish) for effect in effects):
            self.phase = ENDED
        return effects + self._heartbeat(event, now)

    def _heartbeat(self, event: DeadlinePassed | events.HeartbeatDue, now: float) -> list[Effect]:
        session = self.session
        if session.connecting or now < session.next_heartbeat:
            return []
        heartbeat = self._progress(session.welcomed().run_and_term)
        session.sent_heartbeat(now)
        return [Send(heartbeat)]

    def _progress(self, run_and_term: RunAndTerm) -> Heartbeat:
        return Heartbeat(**run_and_term, longest_piece=0.0, heard=0, units=())

    def _leave(self, event: events.LeaveRequested, now: float) -> list[Effect]:
        self.phase = ENDED
        finish = Finish(event.code, event.reason)
        if (welcome := self.session.welcome) is None:
            return [finish]
        reason = messages.one_line(event.reason)
        return [Send(messages.Goodbye(**welcome.run_and_term, reason=reason)), finish]

    def _suspended(self, event: events.Suspended, now: float) -> list[Effect]:
        """Do not count the time in which this process was stopped as silence of the server."""
        self.session.heard_at = now
        self.session.connecting_since += event.seconds
        return []

    def _reset(self, message: Reset, now: float) -> list[Effect]:
        if self.session.is_stale(message):
            return []
        self.phase = CONNECTING
        self.session.connect(now)
        return self.session.tick(now)

    def _refused(self, refused: messages.Refused, now: float) -> list[Effect]:
        self.phase = ENDED
        hello = self.session.hello
        role = "relay" if messages.RELAYS in hello.machine else hello.role
        return [Finish(RUN_FAILED, f"the server refused this {role}: {refused.reason}")]

    def _ignore(self, fact: object, now: float) -> list[Effect]:
        """Do nothing: it was heard, or is older than the last Hello."""
        return []


ClientMachine.table = {
    **rows(NOT_ENDED, (messages.Refused,), ClientMachine._refused, ENDED),
    **rows(NOT_ENDED, (events.LeaveRequested,), ClientMachine._leave, ENDED),
    **rows(NOT_ENDED, (events.Suspended,), ClientMachine._suspended),
    **rows((CONNECTING,), (DeadlinePassed,), ClientMachine._deadline_passed, CONNECTING, ENDED),
    **rows((CONNECTED,), (DeadlinePassed,), ClientMachine._deadline_passed, CONNECTED, CONNECTING),
    **rows((CONNECTED,), (Reset,), ClientMachine._reset, CONNECTED, CONNECTING),
    **rows((CONNECTED,), (messages.Alive,), ClientMachine._ignore),
}
