"""The server's own share of the computing: a worker's machine that is fed by function calls.

While the kernel computes, its progress callback lets the server's loop handle what has come, so
that the loop is deaf for no longer than TURN_EVERY and the longest piece between two calls. What
the server's machine sends to this worker waits in a queue until that machine has returned.
"""

import collections
import math
import time
from collections.abc import Callable

from manychar.fleet.engine import Engine
from manychar.network.client_identity import make_hello
from manychar.protocol import effects, events
from manychar.protocol.member import OWN_PEER, SHARE_NAME
from manychar.protocol.messages import Message, Role
from manychar.protocol.worker import WorkerInServer


class ServerShare:
    """The worker within a server; `deliver` hands a message of it to the server's machine."""

    def __init__(self, engine: Engine, deliver: Callable[[events.Received], object]) -> None:
        now = time.monotonic()
        self.machine = WorkerInServer(
            make_hello(Role.WORKER, SHARE_NAME), server="", connect_timeout=1e9, now=now
        )
        self._engine = engine
        self._deliver = deliver
        self._mailbox: collections.deque[Message] = collections.deque()

    def receive(self, message: Message) -> None:
        self._mailbox.append(message)

    def read_mailbox(self) -> None:
        while self._mailbox:
            self.handle(events.Received(self._mailbox.popleft()))

    def compute(self, serve: Callable[[], float]) -> bool:
        """Compute a unit, if any is wanted; return whether one was.

        `serve` lets the server's loop turn, and returns when it wants to be called again.
        """
        self.read_mailbox()
        wanted = False
        while following := self.machine.handle(events.MailboxEmpty(), time.monotonic()):
            wanted = True
            for effect in following:
                self._carry_out(effect, serve)
            if not self.machine.has_unit:
                break
            self.read_mailbox()
        return wanted

    def handle(self, event: events.Event) -> None:
        now = time.monotonic()
        self.machine.session.heard_at = now  # who calls is not silent, however long a piece took
        for effect in self.machine.handle(event, now):
            self._carry_out(effect)

    def _carry_out(
        self, effect: effects.Effect, serve: Callable[[], float] = lambda: math.inf
    ) -> None:
        match effect:
            case effects.Send(message):
                self._deliver(events.Received(message, OWN_PEER))
            case effects.Compute():
                self.handle(self._engine.compute(effect, serve))
            case effects.ComputeFingerprint():
                self.handle(self._engine.compute_fingerprint())
            case _:  # the server logs, and ends, by itself
                pass
