"""Observer: a client that receives status and weights, and holds no lease.

    CONNECTING ──Welcome──▶ CONNECTED ──Reset, or a silent server──▶ CONNECTING
    either ──Refused, Done, LeaveRequested, or the connect timeout──▶ ENDED

What was sent before the last Hello, or to it again, arrives while it is connecting and is ignored.
"""

from manychar.protocol import messages
from manychar.protocol.client_session import CONNECTED, CONNECTING, ENDED, ClientMachine
from manychar.protocol.effects import Effect, Finish, Show
from manychar.protocol.events import rows
from manychar.protocol.messages import Reset, Status, Unbanned, Weights, Welcome


class Observer(ClientMachine):
    """The machine of one observer."""

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        if self.session.is_stale(welcome):
            return []
        self.session.enter(welcome, now)
        self.phase = CONNECTED
        return self.session.end_of_wait()

    def _show(self, message: Status | Weights | Unbanned, now: float) -> list[Effect]:
        return [Show(message)]

    def _done(self, done: messages.Done, now: float) -> list[Effect]:
        self.phase = ENDED
        return [Finish(done.code, done.reason or "the run has ended")]


_EARLY = (Status, Weights, Unbanned, messages.Alive, Reset)

Observer.table = {
    **ClientMachine.table,
    **rows((CONNECTING,), (Welcome,), Observer._welcome, CONNECTING, CONNECTED),
    **rows((CONNECTING,), _EARLY, Observer._ignore),
    **rows((CONNECTED,), (Welcome,), Observer._welcome, CONNECTED),
    **rows((CONNECTED,), (Status, Weights, Unbanned), Observer._show),
    **rows((CONNECTING, CONNECTED), (messages.Done,), Observer._done, ENDED),
}
