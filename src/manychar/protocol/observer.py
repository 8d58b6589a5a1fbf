"""Observer: a client that only watches. It shows status, notices and weights, and holds no lease.

    CONNECTING ──Welcome──▶ OBSERVING ──Reset, or a silent server──▶ CONNECTING
    either ──Refused, Done, LeaveRequested, or the connect timeout──▶ ENDED

The connect timeout counts until the first Status: a server that admits and then sends nothing but
answers to heartbeats is given up like one that does not answer.

What was sent before the last Hello, or to it again, arrives while it is connecting and is ignored.
"""

import enum

from manychar.protocol import events, messages
from manychar.protocol.client_session import ClientMachine, ClientSession
from manychar.protocol.effects import Effect, Finish, Log, Show
from manychar.protocol.events import DeadlinePassed, rows
from manychar.protocol.messages import Hello, Reset, Status, Welcome


class ObserverPhase(enum.Enum):
    """The phase of an observer."""

    CONNECTING = "connecting"
    OBSERVING = "observing"
    ENDED = "ended"


_CONNECTING, _OBSERVING, _ENDED = ObserverPhase


class Observer(ClientMachine[ObserverPhase]):
    """The machine of one observer."""

    def __init__(self, hello: Hello, *, server: str, connect_timeout: float, now: float) -> None:
        session = ClientSession(hello, server=server, connect_timeout=connect_timeout, now=now)
        super().__init__(session, (_CONNECTING, _OBSERVING, _ENDED))

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        if not self.session.is_past(welcome):
            self.session.enter(welcome, now)
            self.session.awaits_status |= self.state is ObserverPhase.CONNECTING
            self.state = ObserverPhase.OBSERVING
        return []

    def _show(
        self, message: Status | messages.Weights | messages.Unbanned, now: float
    ) -> list[Effect]:
        self.session.awaits_status &= not isinstance(message, Status)
        return [Show(message)]

    def _log(self, notice: messages.Notice, now: float) -> list[Effect]:
        return [Log(notice.text, notice.level)]

    def _done(self, done: messages.Done, now: float) -> list[Effect]:
        self.state = ObserverPhase.ENDED
        return [Finish(done.code, done.reason or "the run has ended")]


_EITHER = (_CONNECTING, _OBSERVING)
_EARLY = (Status, messages.Weights, messages.Unbanned, messages.Notice, messages.Alive, Reset)

Observer.table = {
    **rows((_CONNECTING,), (Welcome,), Observer._welcome, _CONNECTING, _OBSERVING),
    **rows((_CONNECTING,), _EARLY, Observer._ignore),
    **rows((_OBSERVING,), (Welcome,), Observer._welcome, _OBSERVING),
    **rows((_OBSERVING,), (Status, messages.Weights, messages.Unbanned), Observer._show),
    **rows((_OBSERVING,), (messages.Notice,), Observer._log),
    **rows((_OBSERVING,), (messages.Alive,), Observer._ignore),
    **rows((_OBSERVING,), (Reset,), Observer._reset, _OBSERVING, _CONNECTING),
    **rows(_EITHER, (messages.Refused,), Observer._refused, _ENDED),
    **rows(_EITHER, (messages.Done,), Observer._done, _ENDED),
    **rows(_EITHER, (events.LeaveRequested,), Observer._leave, _ENDED),
    **rows(_EITHER, (events.Suspended,), Observer._suspended),
    **rows((_CONNECTING,), (DeadlinePassed,), Observer._deadline_passed, _CONNECTING, _ENDED),
    **rows((_OBSERVING,), (DeadlinePassed,), Observer._deadline_passed, *ObserverPhase),
}
