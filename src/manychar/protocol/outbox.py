"""What one event has the server do: effects in order, and what all observers are told."""

import collections

from manychar.protocol.counters import Counter
from manychar.protocol.effects import Effect, Log, Send, Show
from manychar.protocol.membership import Membership
from manychar.protocol.messages import Level, Message, Notice, Peer, Status, Weights, one_line
from manychar.protocol.run_spec import RunSpec

COUNTS_KEPT = 100


class Outbox:
    """Collects the effects of an event; `counts` are by Counter, and by COUNTER:SENDER."""

    def __init__(self, run: RunSpec, membership: Membership) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._run = run
        self._membership = membership
        self._effects: list[Effect] = []
        self._closed = False

    def count(self, counter: Counter, number: int = 1) -> None:
        """Count events; the status shows it."""
        self.counts[counter] += number

    def count_against(self, sender: str, counter: Counter) -> None:
        """Count it in total and by sender, for at most COUNTS_KEPT entries."""
        self.count(counter)
        theirs = f"{counter}:{sender}"
        if theirs in self.counts or len(self.counts) < COUNTS_KEPT:
            self.counts[theirs] += 1

    def add(self, effect: Effect) -> None:
        """Have the shell do this after what was added before; nothing, once closed."""
        if not self._closed:
            self._effects.append(effect)

    def close(self) -> None:
        """Take no more effects: the last ones of this server were added."""
        self._closed = True

    def send(self, peer: Peer, message: Message) -> None:
        """Send to one peer."""
        self.add(Send(message, peer))

    def send_to_all(self, message: Message) -> None:
        """Send to every peer."""
        for peer in self._membership.members:
            self.send(peer, message)

    def notice(self, text: str, level: Level = Level.INFO) -> None:
        """Log one line, here and at every observer."""
        self.add(Log(text, level))
        run, term = self._run.run, self._run.term
        self._send_to_observers(Notice(run=run, term=term, level=level, text=one_line(text)))

    def warn(self, text: str) -> None:
        """Log a warning, here and at every observer."""
        self.notice(text, Level.WARNING)

    def show(self, message: Status | Weights) -> None:
        """Show it, here and at every observer."""
        self.add(Show(message))
        self._send_to_observers(message)

    def _send_to_observers(self, message: Message) -> None:
        for observer in self._membership.observers():
            self.send(observer.peer, message)

    def collect(self) -> list[Effect]:
        """Return the effects, and begin anew."""
        effects, self._effects = self._effects, []
        return effects
