"""The server's loop: messages, results of threads and deadlines in, the machine's effects out.

One thread, but for the writing of checkpoints.
"""

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any

from manychar.fleet.engine import Engine
from manychar.fleet.resume_earlier import note_resume_before
from manychar.fleet.validation_process import ValidationProcess, ValidationResult
from manychar.network.event_loop import EventLoop
from manychar.network.router import Received as Delivery
from manychar.network.router import Router, Unreachable
from manychar.numerics.training_step import TrainingState
from manychar.observability.snapshot import Snapshot, Snapshots
from manychar.processes import log
from manychar.processes.errors import (
    INTERRUPTED,
    STOPPED,
    STOPPING,
    UserError,
    because,
)
from manychar.processes.parent_death import has_parent
from manychar.processes.sd_notify import Notifier
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.counters import Counter
from manychar.protocol.effects import (
    Append,
    Compute,
    Effect,
    Finish,
    KeepBest,
    Log,
    PeerError,
    Record,
    Remember,
    ResumeBefore,
    Save,
    Send,
    Show,
    Validate,
)
from manychar.protocol.events import (
    CheckpointFailed,
    CheckpointSaved,
    Computed,
    DeadlinePassed,
    DiskWaited,
    Dropped,
    Event,
    KeyRevoked,
    MailboxEmpty,
    Malformed,
    NotValidated,
    PeerLost,
    Received,
    Started,
    StopRequested,
    Suspended,
    Validated,
    ValidationFailed,
)
from manychar.protocol.messages import Message, Peer, Status, Weights
from manychar.protocol.server import ParameterServer
from manychar.storage.checkpoint_writer import Writer
from manychar.storage.journal import Step, weights_digest
from manychar.storage.recovery import ResumePoint
from manychar.storage.run_directory import RunDirectory
from manychar.storage.validation_log import keep_best

logger = logging.getLogger(__name__)


SECONDS_TO_END_A_STEP = 5.0
FLUSH_EVERY = 1.0
MESSAGES_A_TURN = 1000


@dataclasses.dataclass(frozen=True)
class Screen:
    """Where the server shows its status, the weights to sample from, and its endpoint."""

    status: Callable[[Snapshot], None]
    weights: Callable[[Weights], object]
    bound: Callable[[str], None]


@dataclasses.dataclass(kw_only=True)
class ServerLoop:
    """Hands events to the machine and carries out its effects, for one term."""

    machine: ParameterServer
    engine: Engine
    directory: RunDirectory
    beginning: ResumePoint
    router: Router
    writer: Writer
    screen: Screen
    loop: EventLoop
    notifier: Notifier
    validation: ValidationProcess = dataclasses.field(init=False)
    outcome: Finish | ResumeBefore | None = None
    flush_at: float = 0.0

    def __post_init__(self) -> None:
        self.snapshots = Snapshots(self.machine.dimensions)
        self.validation = ValidationProcess(
            self.directory,
            self.loop,
            on_result=self._read_results,
            on_failure=self._validation_failed,
        )

    def run(self, asked: Finish | None) -> Finish | ResumeBefore:
        """Loop until the machine has finished. `asked` is a stop that came before it began."""
        self._register()
        self._handle(Started())
        if asked is not None:
            self._stop(asked.code, asked.reason)
        with contextlib.closing(self.validation):
            while self.outcome is None:
                self.loop.turn()
                self._handle(MailboxEmpty())
                self.notifier.alive()
        return self.outcome

    def _register(self) -> None:
        self.loop.on_wake(self._collect_results)
        if (authenticator := self.router.authenticator) is not None:
            self.loop.on_readable(authenticator.socket, self._answer_handshakes)
        self.loop.on_readable(self.router.socket, self._read_mailbox)
        self.loop.on_deadline(self.machine.deadline, self._deadline_passed)
        self.loop.on_deadline(lambda: self.flush_at, self._flush)
        self.loop.on_suspension(lambda seconds: self._handle(Suspended(seconds)))

    def signalled(self, number: int) -> None:
        """Stop: the process was told to."""
        if not has_parent():  # a parent logs it itself
            logger.info(STOPPING)
        if number == signal.SIGINT:
            endless = self.machine.run.operation.steps == 0
            self._stop(0 if endless else INTERRUPTED, "stopped by Ctrl-C")
        else:
            self._stop(STOPPED, "stopped by SIGTERM")

    def _collect_results(self) -> None:
        """Report the checkpoints that the thread has tried to write."""
        for step, failure in self.writer.news():
            self._handle(CheckpointFailed(step, failure) if failure else CheckpointSaved(step))

    def _answer_handshakes(self) -> None:
        if self.router.authenticator is not None and (
            refused := self.router.authenticator.answer()
        ):
            self._handle(Dropped(Counter.HANDSHAKES_REFUSED, refused))

    def _deadline_passed(self) -> None:
        self._handle(DeadlinePassed())
        self.router.connection_limit.enforce()

    def _flush(self) -> None:
        self.flush_at = time.monotonic() + FLUSH_EVERY
        self._check_handshakes_and_keys()
        self._to_disk(Counter.JOURNAL_NOT_WRITTEN, self.beginning.journal.flush)

    def _check_handshakes_and_keys(self) -> None:
        """Count failed handshakes, and notice revoked keys of silent peers."""
        if failed := self.router.failed_handshakes():
            what = f"{failed:,} handshakes failed: no key, another server's, or no peer of ours"
            self._handle(Dropped(Counter.HANDSHAKES_FAILED, failed, what))
        if (door := self.router.authenticator) is None:
            return
        for peer, member in list(self.machine.membership.members.items()):
            if member.owner is not None and not door.still_owns(member.owner):
                self._handle(KeyRevoked(peer))

    def _read_mailbox(self) -> None:
        for _ in range(MESSAGES_A_TURN):
            if self.outcome is not None or (received := self.router.receive()) is None:
                return
            self._receive(received)

    def _receive(self, received: Delivery) -> None:
        peer, owner = received.peer, received.owner
        if received.revoked:
            self._handle(KeyRevoked(peer))
        elif self.machine.is_blocked(peer, time.monotonic(), owner):
            self._handle(Dropped(Counter.MESSAGES_IGNORED))
        else:
            try:
                message = decode(received.frames, self.machine.dimensions)
                self._handle(Received(message, peer, owner))
            except (WireError, PeerError) as error:
                self._handle(Malformed(peer, str(error), owner))

    def _read_results(self, result: ValidationResult) -> None:
        """Take the new validation losses; a fault says why the asked one is not in the log."""
        step, fault = result
        try:
            losses = self.beginning.validation.read()
        except UserError as error:
            losses, fault = {}, str(error)
        for each, nats in losses.items():
            self._handle(Validated(each, nats))
        if step in self.machine.early_stopping.awaited:
            self._handle(NotValidated(step, fault or "its result is of another checkpoint"))

    def _validation_failed(self, reason: str) -> None:
        self._handle(ValidationFailed(reason))

    def _stop(self, code: int, reason: str) -> None:
        self.notifier.stopping()
        self._handle(StopRequested(code, reason, time.monotonic() + SECONDS_TO_END_A_STEP))

    def _handle(self, event: Event) -> None:
        self._carry_out(self.machine.handle(event, time.monotonic()))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message, to) if to is not None:
                    self._send(to, message)
                case Append(step, loss, weights):
                    record = Step(self.machine.run.term, step, loss, weights_digest(weights))
                    self.beginning.journal.append([record])
                case Save(state):
                    self._save(state)
                case Validate(step):
                    self.validation.ask(step)
                case KeepBest(step):
                    self._to_disk(Counter.BEST_NOT_WRITTEN, keep_best, self.directory, step)
                case Log(text, level):
                    logger.log(log.NUMBERS[level], text)
                case Show(Status() as status):
                    self._show(status)
                case Show(Weights() as weights):
                    self.screen.weights(weights)
                case Record(status):
                    self._to_disk(Counter.METRICS_NOT_WRITTEN, self._record, status)
                case Compute():
                    self._compute(effect)
                case Remember(changes):
                    self._change_facts(changes)
                case Finish() | ResumeBefore():
                    self._end(effect)
                case _:
                    raise RuntimeError(f"a server's shell cannot carry out {effect}")

    def _end(self, outcome: Finish | ResumeBefore) -> None:
        if isinstance(outcome, ResumeBefore):
            self.directory = note_resume_before(self.directory, outcome)
        self.outcome = outcome

    def _show(self, status: Status) -> None:
        if (snapshot := self.snapshots.add(status)) is not None:
            self.screen.status(snapshot)
            self.notifier.status(f"step {status.step:,}, {len(snapshot.working)} workers")

    def _save(self, state: TrainingState) -> None:
        self.writer.write(state, self._wait_for_disk, spare=self.machine.early_stopping.awaited)

    def _wait_for_disk(self) -> None:
        self.notifier.alive()
        self._handle(DiskWaited())

    def _send(self, peer: Peer, message: Message) -> None:
        try:
            if not self.router.send(peer, encode(message)):
                self._handle(Dropped(Counter.SENDS_DROPPED))
        except Unreachable:
            self._handle(PeerLost(peer))

    def _compute(self, unit: Compute) -> None:
        result = self.engine.compute(unit, lambda now: now + 1)
        self._handle(Computed(unit.shard, unit.step, result))

    def _change_facts(self, changes: Mapping[str, Any]) -> None:
        """Write to config.json what the run has learned of its workers."""
        facts = dataclasses.replace(self.directory.facts, **changes)
        self.directory = dataclasses.replace(self.directory, facts=facts)
        self._to_disk(Counter.CONFIG_NOT_WRITTEN, self.directory.write_config)

    def _record(self, report: Status) -> None:
        line = {
            "step": report.step,
            "loss": report.loss,
            "smooth_loss": report.smooth_loss,
            "characters": report.characters,
            "seconds": round(report.seconds, 3),
            "workers": len({lease.peer for lease in self.machine.membership.leases.values()}),
        }
        self.beginning.metrics.append([line])
        self.beginning.metrics.flush()

    def _to_disk(self, counter: Counter, write: Callable[..., None], *arguments: object) -> None:
        """Write what can be done without; a failure is counted, and said the first time."""
        try:
            write(*arguments)
        except OSError as error:
            first = not self.machine.counts[counter]
            reason = f"{counter}: {because(error)}" if first else ""
            self._handle(Dropped(counter, reason=reason))
