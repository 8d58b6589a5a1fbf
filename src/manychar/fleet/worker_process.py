"""The worker's shell, one thread: it reads the mailbox before each shard that it computes.

numpy is imported only after the welcome, because the run says which numerics to pin first. While
the kernel works, its progress callback sends the heartbeats: a computation that hangs is silent.
"""

import contextlib
import dataclasses
import math
import time
from typing import TYPE_CHECKING

from manychar.network.dealer import Dealer
from manychar.network.event_loop import TURN_EVERY, EventLoop
from manychar.network.keys import ClientKey
from manychar.processes import log
from manychar.processes.errors import RUN_FAILED
from manychar.processes.log import logger
from manychar.processes.numerics_pinning import pin
from manychar.processes.parent_death import stopped_by
from manychar.processes.sd_notify import Notifier
from manychar.processes.signals import STOPS
from manychar.protocol import effects, events
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.messages import Hello, Welcome
from manychar.protocol.worker import Worker

if TYPE_CHECKING:
    from manychar.fleet.engine import Engine


def work(
    endpoint: str, hello: Hello, *, connect_timeout: float, key: ClientKey | None = None
) -> effects.Finish:
    """Work for the server at `endpoint` until the run ends, and return how it ended.

    `connect_timeout` is in seconds. Raises UserError for a bad endpoint.
    """
    dealer, now = Dealer(endpoint, key), time.monotonic()
    with contextlib.closing(dealer), EventLoop() as loop:
        machine = Worker(hello, server=endpoint, connect_timeout=connect_timeout, now=now)
        return WorkerLoop(machine=machine, dealer=dealer, loop=loop).run()


@dataclasses.dataclass(kw_only=True)
class WorkerLoop:
    """Hands events to the machine and carries out its effects."""

    machine: Worker
    dealer: Dealer
    loop: EventLoop
    finish: effects.Finish | None = None
    notifier: Notifier = dataclasses.field(default_factory=Notifier)
    engine: "Engine | None" = None

    def register(self) -> None:
        self.loop.on_signal(self._signalled, *STOPS)
        self.loop.on_readable(self.dealer.socket, self._read_mailbox)
        self.loop.on_deadline(self.machine.deadline, self._deadline_passed)
        self.loop.on_suspension(lambda seconds: self.handle(events.Suspended(seconds)))

    def run(self) -> effects.Finish:
        self.register()
        busy = False
        while self.finish is None:
            self.loop.turn(0 if busy else math.inf)
            self.notifier.alive()
            busy = self._compute()
        return self.finish

    def _compute(self) -> bool:
        """Compute what is wanted, for TURN_EVERY at most; return whether more may be."""
        turn_at = time.monotonic() + TURN_EVERY
        while self.handle(events.MailboxEmpty()):
            if time.monotonic() >= turn_at:
                return True
            self._read_mailbox()
        return False

    def _deadline_passed(self) -> None:
        self.handle(events.DeadlinePassed(self.dealer.why_unreachable()))

    def _signalled(self, number: int) -> None:
        self.notifier.stopping()
        self.handle(events.LeaveRequested(STOPS[number], stopped_by(number)))

    def _read_mailbox(self) -> None:
        while self.finish is None and (frames := self.dealer.receive()) is not None:
            try:
                message = decode(frames, self.machine.dimensions, self.machine.expected_weights)
                self.handle(events.Received(message))
            except (WireError, events.PeerError) as error:
                logger.warning(f"dropped a message of the server: {error}")

    def handle(self, event: events.Event) -> bool:
        """Carry out what follows from an event; return whether anything does."""
        following = self.machine.handle(event, time.monotonic())
        for effect in following:
            self.carry_out(effect)
        return bool(following)

    def carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Send(message):
                self.dealer.send(encode(message))
            case effects.Compute() if self.engine is not None:
                self.handle(self.engine.compute(effect, self._heartbeat))
            case effects.ComputeFingerprint(welcome):
                self._compute_fingerprint(welcome)
            case effects.Log(text, level):
                logger.log(log.NUMBERS[level], text)
            case effects.Finish():
                self.finish = effect
            case _:
                raise RuntimeError(f"a worker's shell cannot carry out {effect}")

    def _compute_fingerprint(self, welcome: Welcome) -> None:
        numerics = welcome.numerics
        try:
            pin(numerics)
        except RuntimeError:  # numpy was imported with others
            reason = f"this process has other numerics than {numerics}: start the worker again"
            self.finish = effects.Finish(RUN_FAILED, reason)
            return
        from manychar.fleet.engine import Engine  # noqa: PLC0415 - numpy, now that it is pinned

        self.engine = Engine(welcome.dimensions)
        self.handle(self.engine.compute_fingerprint())
        logger.info(f"joined the run at {self.machine.session.server}")
        self.notifier.ready(f"working for {self.machine.session.server}")

    def _heartbeat(self) -> float:
        """Send a heartbeat from within the computation; return when the next one is due."""
        self.notifier.alive()
        self.handle(events.HeartbeatDue())
        return self.machine.session.next_heartbeat
