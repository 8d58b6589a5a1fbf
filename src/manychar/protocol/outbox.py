"""The effects of one event at the server, in order, and the copies that all observers get."""

import collections

from manychar.protocol.counters import Counter
from manychar.protocol.effects import Effect, Level, Log, Send, Show
from manychar.protocol.events import Dropped
from manychar.protocol.membership import Membership
from manychar.protocol.messages import Message, Peer, Status, Weights


class Outbox:
    """Collects the effects of an event; `counts` are by Counter."""

    def __init__(self, membership: Membership) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._membership = membership
        self._effects: list[Effect] = []
        self._closed = False

    def count(self, counter: Counter, number: int = 1) -> None:
        self.counts[counter] += number

    def dropped(self, event: Dropped, now: float) -> None:
        self.count(event.counter, event.count)
        if event.reason:
            self.warn(event.reason)

    def add(self, effect: Effect) -> None:
        """Add an effect, which the shell carries out after those added before; none once closed."""
        if not self._closed:
            self._effects.append(effect)

    def close(self) -> None:
        """Ignore further effects: the last ones of this server were added."""
        self._closed = True

    def send(self, peer: Peer, message: Message) -> None:
        self.add(Send(message, peer))

    def send_to_all(self, message: Message) -> None:
        for peer in self._membership.members:
            self.send(peer, message)

    def log(self, text: str, level: Level = Level.INFO) -> None:
        self.add(Log(text, level))

    def warn(self, text: str) -> None:
        self.log(text, Level.WARNING)

    def show(self, *shown: Status | Weights) -> None:
        observers = self._membership.observers()
        for message in shown:
            self.add(Show(message))
            for observer in observers:
                self.send(observer.peer, message)

    def collect(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects
