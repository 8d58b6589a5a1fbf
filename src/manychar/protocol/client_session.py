"""What every peer of the server does alike: knock until welcome, beat, notice a silent server.

        knocking ──Welcome──▶ inside ──StartAfresh, or a silent server──▶ knocking

A session keeps its (run, term) when the server falls silent, so that a server which only paused
finds the peer as it was; a welcome to another run or term is a new beginning.
"""

from manychar.protocol.effects import RUN_FAILED, Effect, Finish, Log, Send
from manychar.protocol.messages import (
    Dimensions,
    Heartbeat,
    Hello,
    Level,
    Message,
    Refused,
    Reset,
    Unit,
    Welcome,
)

HELLO_EVERY = 0.2
FIRST_COMPLAINT = 2.0
COMPLAIN_EVERY = 30.0
BEATS_PER_SILENCE = 4
LONGEST_BEAT = 5.0  # seconds: a connection that broke is noticed at the next one
SERVER_SILENCES = 2


class ClientSession:
    """One peer's side of its acquaintance with a server. Times are seconds of any steady clock."""

    def __init__(self, hello: Hello, *, server: str, patience: float, now: float) -> None:
        self.hello = hello
        self.server = server
        self.patience = patience
        self.welcome: Welcome | None = None
        self.knocking = True
        self._knocking_since = now
        self._next_hello = now
        self._next_complaint = now + FIRST_COMPLAINT
        self.next_beat = now
        self._heard_at = now

    @property
    def dimensions(self) -> Dimensions | None:
        """The run's dimensions, once they are known: what the codec needs."""
        return self.welcome.dimensions if self.welcome else None

    def belongs(self, run: str, term: int) -> bool:
        """Whether a message of this run and term concerns this session as it stands."""
        return self.welcome is not None and (self.welcome.run, self.welcome.term) == (run, term)

    def concerns(self, message: Message) -> bool:
        """Whether the message is for this (run, term), or comes before there is one."""
        if isinstance(message, Hello | Welcome | Refused | Reset):
            return True
        return self.belongs(message.run, message.term)

    def is_past(self, message: Welcome | Reset) -> bool:
        """Whether a message is from an earlier term of the run than this session has been in."""
        known = self.welcome
        return known is not None and message.run == known.run and message.term < known.term

    def heard(self, now: float) -> None:
        """Note that the server said something."""
        self._heard_at = now

    def enter(self, welcome: Welcome, now: float) -> bool:
        """Take the welcome; True if it is to another run or term than the one before."""
        new = not self.belongs(welcome.run, welcome.term)
        self.welcome = welcome
        self.knocking = False
        self.next_beat = now
        return new

    def knock(self, now: float) -> None:
        """Be outside again, and say Hello at the next tick."""
        if not self.knocking:
            self.knocking = True
            self._knocking_since = now
            self._next_complaint = now + FIRST_COMPLAINT
        self._next_hello = now

    def tick(self, now: float) -> list[Effect]:
        """Do what is due: say Hello, complain of waiting, give up, or notice silence."""
        if self.knocking:
            return self._tick_outside(now)
        silence = self._welcomed().silence * SERVER_SILENCES
        if now < self._heard_at + silence:
            return []
        self.knock(now)
        text = f"the server at {self.server} has said nothing for {silence:g} s: knocking"
        return [Log(text, Level.WARNING)]

    def _tick_outside(self, now: float) -> list[Effect]:
        waited = now - self._knocking_since
        if waited >= self.patience:
            reason = f"gave up: no server at {self.server} for {waited:.0f} s (--patience)"
            return [Finish(RUN_FAILED, reason)]
        effects: list[Effect] = []
        if now >= self._next_hello:
            self._next_hello = now + HELLO_EVERY
            effects.append(Send(self.hello))
        if now >= self._next_complaint:
            self._next_complaint = now + COMPLAIN_EVERY
            left = self.patience - waited
            text = f"waiting for a server at {self.server}, up to {left:.0f} s"
            effects.append(Log(text, Level.WARNING))
        return effects

    def beat_is_due(self, now: float) -> bool:
        """Whether it is time for a heartbeat."""
        return not self.knocking and now >= self.next_beat

    def beat(
        self,
        now: float,
        *,
        units: tuple[Unit, ...] = (),
        slowest: float = 0.0,
        computing: float = 0.0,
    ) -> list[Effect]:
        """Send a heartbeat if one is due."""
        if not self.beat_is_due(now):
            return []
        welcome = self._welcomed()
        self.next_beat = now + min(welcome.silence / BEATS_PER_SILENCE, LONGEST_BEAT)
        beat = Heartbeat(
            run=welcome.run, term=welcome.term, slowest=slowest, computing=computing, units=units
        )
        return [Send(beat)]

    def deadline(self) -> float:
        """When the next tick or beat is due."""
        if self.knocking:
            return min(self._next_hello, self._next_complaint)
        return min(self.next_beat, self._heard_at + self._welcomed().silence * SERVER_SILENCES)

    def _welcomed(self) -> Welcome:
        if self.welcome is None:
            raise RuntimeError("inside without a welcome")
        return self.welcome
