"""Observer: a peer that only looks. It shows reports, notices and weights, and holds no lease.

state      event                     does
KNOCKING   Welcome                   WATCHING
WATCHING   Report, Roster, Weights,  Show or Log
           Notice
WATCHING   StartAfresh               KNOCKING
any        Refused, Done             Finish, GONE
"""

import enum
from collections.abc import Callable
from typing import Any

from manychar.protocol.client_session import ClientSession
from manychar.protocol.effects import RUN_FAILED, Effect, Finish, Log, PeerError, Send, Show
from manychar.protocol.messages import (
    Alive,
    Dimensions,
    Done,
    Goodbye,
    Hello,
    Message,
    Notice,
    Refused,
    Report,
    Reset,
    Roster,
    Weights,
    Welcome,
    one_line,
)


class ObserverPhase(enum.Enum):
    """Where the observer stands."""

    CONNECTING = "knocking"
    OBSERVING = "watching"
    ENDED = "gone"


class Observer:
    """The machine of one observer. See the table above."""

    def __init__(self, hello: Hello, *, server: str, patience: float, now: float) -> None:
        self.state = ObserverPhase.CONNECTING
        self.session = ClientSession(hello, server=server, patience=patience, now=now)

    @property
    def dimensions(self) -> Dimensions | None:
        """The run's dimensions, once they are known."""
        return self.session.dimensions

    def receive(self, message: Message, now: float) -> list[Effect]:
        """Take a message from the server."""
        if self.state is ObserverPhase.ENDED:
            return []
        handler = _TABLE.get((self.state, type(message)))
        if handler is None:
            raise PeerError(f"{type(message).__name__} to an observer that is {self.state.value}")
        self.session.heard(now)
        return handler(self, message, now) if self.session.concerns(message) else []

    def tick(self, now: float) -> list[Effect]:
        """Knock, beat, and notice a silent server."""
        if self.state is ObserverPhase.ENDED:
            return []
        effects = self.session.tick(now)
        if self.session.knocking:
            self.state = ObserverPhase.CONNECTING
        if any(isinstance(effect, Finish) for effect in effects):
            self.state = ObserverPhase.ENDED
        return effects + self.session.beat(now)

    def deadline(self) -> float | None:
        """When the next tick is due."""
        return None if self.state is ObserverPhase.ENDED else self.session.deadline()

    def leave(self, reason: str) -> list[Effect]:
        """Say goodbye and go."""
        effects: list[Effect] = []
        if self.state is ObserverPhase.OBSERVING and (welcome := self.session.welcome):
            effects = [Send(Goodbye(run=welcome.run, term=welcome.term, reason=one_line(reason)))]
        self.state = ObserverPhase.ENDED
        return [*effects, Finish(0, reason)]

    # What the table's rows do.

    def _welcome(self, welcome: Welcome, now: float) -> list[Effect]:
        if self.session.is_past(welcome):
            return []
        self.session.enter(welcome, now)
        self.state = ObserverPhase.OBSERVING
        return []

    def _show(self, message: Report | Roster | Weights, now: float) -> list[Effect]:
        return [Show(message)]

    def _say(self, notice: Notice, now: float) -> list[Effect]:
        return [Log(notice.text, notice.level)]

    def _pass_over(self, message: Message, now: float) -> list[Effect]:
        """Nothing to do: it was heard, or comes from before the last Hello."""
        return []

    def _reset(self, message: Reset, now: float) -> list[Effect]:
        if self.session.is_past(message):
            return []
        self.state = ObserverPhase.CONNECTING
        self.session.knock(now)
        return self.session.tick(now)

    def _refused(self, refused: Refused, now: float) -> list[Effect]:
        self.state = ObserverPhase.ENDED
        return [Finish(RUN_FAILED, f"the server refused this observer: {refused.reason}")]

    def _done(self, done: Done, now: float) -> list[Effect]:
        self.state = ObserverPhase.ENDED
        return [Finish(done.code, done.reason)]


_Handler = Callable[[Observer, Any, float], list[Effect]]

_TABLE: dict[tuple[ObserverPhase, type[Any]], _Handler] = {
    (ObserverPhase.CONNECTING, Welcome): Observer._welcome,
    (ObserverPhase.OBSERVING, Welcome): Observer._welcome,
    (ObserverPhase.OBSERVING, Report): Observer._show,
    (ObserverPhase.OBSERVING, Roster): Observer._show,
    (ObserverPhase.OBSERVING, Weights): Observer._show,
    (ObserverPhase.OBSERVING, Notice): Observer._say,
    (ObserverPhase.OBSERVING, Alive): Observer._pass_over,
    (ObserverPhase.OBSERVING, Reset): Observer._reset,
    **{
        (ObserverPhase.CONNECTING, late): Observer._pass_over
        for late in (Report, Roster, Weights, Notice, Alive, Reset)
    },
    **{
        (state, end): handler
        for state in (ObserverPhase.CONNECTING, ObserverPhase.OBSERVING)
        for end, handler in ((Refused, Observer._refused), (Done, Observer._done))
    },
}
