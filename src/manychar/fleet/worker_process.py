"""The worker's shell: read the mailbox to its end, compute the next unit, send; one thread.

numpy is imported only after the welcome, because the run says which numerics to pin first. While
the kernel works, its progress callback sends the heartbeats: a computation that hangs is silent.
"""

import dataclasses
import logging
import signal
import time
from typing import TYPE_CHECKING

import zmq

from manychar.network.dealer import Dealer
from manychar.network.keys import ClientKey
from manychar.processes import log
from manychar.processes.errors import INTERRUPTED, RUN_FAILED, STOPPED
from manychar.processes.numerics_pinning import can_pin, pin
from manychar.processes.sd_notify import Notifier
from manychar.processes.signals import SelfPipe
from manychar.processes.time_slice import make_way
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.effects import (
    Compute,
    ComputeFingerprint,
    Effect,
    Finish,
    Log,
    PeerError,
    Send,
)
from manychar.protocol.events import (
    Computed,
    DeadlinePassed,
    Event,
    FingerprintComputed,
    HeartbeatDue,
    LeaveRequested,
    MailboxEmpty,
    Received,
)
from manychar.protocol.messages import Hello
from manychar.protocol.worker import Worker

if TYPE_CHECKING:
    from manychar.fleet.engine import Engine

logger = logging.getLogger(__name__)


def work(
    endpoint: str,
    hello: Hello,
    *,
    patience: float,
    key: ClientKey | None = None,
) -> Finish:
    """Work for the server at `endpoint` until the run ends, and return how it ended.

    `patience` is how long to wait for a server, in seconds. Raises UserError for a bad endpoint.
    """
    wake = SelfPipe()
    dealer = Dealer(endpoint, key)
    try:
        with wake.catching(signal.SIGINT, signal.SIGTERM):
            machine = Worker(hello, server=endpoint, connect_timeout=patience, now=time.monotonic())
            return _Loop(machine, dealer, wake).run()
    finally:
        dealer.close()
        wake.close()


@dataclasses.dataclass
class _Loop:
    """Poll -> machine -> carry out its effects."""

    machine: Worker
    dealer: Dealer
    wake: SelfPipe
    finish: Finish | None = None
    notifier: Notifier = dataclasses.field(default_factory=Notifier)
    engine: "Engine | None" = None

    def run(self) -> Finish:
        """Go round until the machine has finished."""
        poller = zmq.Poller()
        poller.register(self.dealer.socket, zmq.POLLIN)
        poller.register(self.wake.fileno(), zmq.POLLIN)
        busy = False
        while self.finish is None:
            ready = dict(poller.poll(0 if busy else self._milliseconds()))
            if self.wake.fileno() in ready and (signals := self.wake.take()):
                code = INTERRUPTED if signals[0] == signal.SIGINT else STOPPED
                reason = f"stopped by {signal.Signals(signals[0]).name}"
                self.notifier.stopping()
                self._handle(LeaveRequested(code, reason))
            self.notifier.alive()
            self._read_mailbox()
            self._handle(DeadlinePassed())
            effects = self.machine.handle(MailboxEmpty(), time.monotonic())
            busy = bool(effects)
            self._carry_out(effects)
        return self.finish

    def _milliseconds(self) -> int:
        deadline = self.machine.deadline()
        return 0 if deadline is None else max(0, int(1000 * (deadline - time.monotonic())) + 1)

    def _read_mailbox(self) -> None:
        while self.finish is None and (frames := self.dealer.receive()) is not None:
            try:
                message = decode(frames, self.machine.dimensions)
                self._handle(Received(message))
            except (WireError, PeerError) as error:
                logger.warning(f"dropped a message of the server: {error}")

    def _handle(self, event: Event) -> None:
        self._carry_out(self.machine.handle(event, time.monotonic()))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message):
                    self.dealer.send(encode(message))
                case Compute():
                    self._compute(effect)
                case ComputeFingerprint():
                    self._compute_fingerprint(effect)
                case Log(text, level):
                    logger.log(log.NUMBERS[level], text)
                case Finish():
                    self.finish = effect
                case _:
                    raise RuntimeError(f"a worker's shell cannot carry out {effect}")

    def _compute_fingerprint(self, asked: ComputeFingerprint) -> None:
        numerics = asked.welcome.numerics
        if not can_pin(numerics):
            reason = f"this process has other numerics than {numerics}: start the worker again"
            self.finish = Finish(RUN_FAILED, reason)
            return
        pin(numerics)
        from manychar.fleet.engine import Engine  # noqa: PLC0415 - numpy, now that it is pinned

        make_way()
        self.engine = Engine(asked.welcome.dimensions)
        self._handle(FingerprintComputed(self.engine.compute_fingerprint()))
        logger.info(f"joined the run at {self.machine.session.server}")
        self.notifier.ready(f"working for {self.machine.session.server}")

    def _compute(self, unit: Compute) -> None:
        if self.engine is None:
            raise RuntimeError("a unit before the fingerprint")
        result = self.engine.compute(unit, self._heartbeat)
        self._handle(Computed(unit.shard, unit.step, result))

    def _heartbeat(self, now: float) -> float:
        """Send a heartbeat from within the computation; return when the next one is due."""
        self.notifier.alive()
        self._carry_out(self.machine.handle(HeartbeatDue(), now))
        return self.machine.session.next_heartbeat
