"""The server's loop: messages, results of threads and deadlines in, the machine's effects out.

One thread, except for writing checkpoints and for half of a large update.
"""

import collections
import contextlib
import dataclasses
import math
import os
import signal
import time
from collections.abc import Callable

from manychar.fleet.engine import Engine
from manychar.fleet.listener import Listener
from manychar.fleet.server_share import ServerShare
from manychar.fleet.validation_process import ValidationProcess
from manychar.network.event_loop import TURN_EVERY, EventLoop
from manychar.network.router import Router
from manychar.observability.snapshot import Snapshot, Snapshots
from manychar.processes import log
from manychar.processes.errors import INTERRUPTED, RUN_FAILED, STOPPED, UserError, because, stopping
from manychar.processes.log import logger
from manychar.processes.parent_death import has_parent, stopped_by
from manychar.processes.sd_notify import Notifier
from manychar.protocol import effects, events
from manychar.protocol.counters import Counter
from manychar.protocol.member import OWN_PEER
from manychar.protocol.messages import Grant, Message, NewWeights, Peer, Status, Weights
from manychar.protocol.server import STOP_WITHIN, ParameterServer
from manychar.storage.append_log import AppendLog
from manychar.storage.checkpoint_writer import Writer
from manychar.storage.journal import AppliedStep
from manychar.storage.recovery import ResumePoint
from manychar.storage.run_directory import RunDirectory
from manychar.storage.validation_log import best_checkpoint, read_validation_losses

FLUSH_EVERY = 1.0
SHOWN_WITHIN = 5.0
YIELDS = 4  # of the core, one after each of the next pieces, where a worker was asked for a unit


class _AbandonedError(Exception):
    """The computation is no longer wanted."""


@dataclasses.dataclass(frozen=True)
class Screen:
    """Where the server shows its endpoint, its status, and the weights to sample from.

    With `by_parent`, it is an observer that shows the run.
    """

    on_bound: Callable[[str], None]
    status: Callable[[Snapshot], None] = lambda _: None
    weights: Callable[[Weights], object] = lambda _: None
    by_parent: bool = False


# More methods and attributes than elsewhere: one for each source of events and target of effects.
@dataclasses.dataclass(kw_only=True)
class ServerLoop(Listener):
    """Hands events to the machine and carries out its effects, for one term."""

    machine: ParameterServer
    engine: Engine
    directory: RunDirectory
    resume_point: ResumePoint
    event_log: AppendLog
    router: Router
    screen: Screen
    loop: EventLoop
    compute: bool
    outcome: effects.Finish | effects.ResumeBefore | None = None
    flush_at: float = 0.0

    def __post_init__(self) -> None:
        self.engine.digest_of = self.machine.aggregation.digest_of
        self.notifier = Notifier()
        self.writer = Writer(self.directory, self.resume_point, self.loop.wake)
        self.snapshots = Snapshots()
        self.share = ServerShare(self.engine, self.handle) if self.compute else None
        self.to_compute: collections.deque[effects.Compute] = collections.deque()
        self.lost: collections.deque[Peer] = collections.deque()
        self.share_at = time.monotonic() + SHOWN_WITHIN if self.screen.by_parent else 0.0
        self.validation = ValidationProcess(
            self.directory,
            self.loop,
            on_result=self._read_results,
            on_failure=lambda reason: self.handle(events.ValidationFailed(reason)),
        )

    def run(self, requested_stop: effects.Finish | None) -> effects.Finish | effects.ResumeBefore:
        """Loop until the machine has finished. `requested_stop` came before it began."""
        self._register()
        with self.writer, contextlib.closing(self.validation):
            self.handle(events.Started())
            if requested_stop is not None:
                self._stop(requested_stop.code, requested_stop.reason)
            busy = False
            while self.outcome is None:
                self.loop.turn(0 if busy else math.inf)
                self.handle(events.MailboxEmpty())
                self.notifier.alive()
                busy = self._compute()
        return self.outcome

    def _compute(self) -> bool:
        """Compute a shard that is disputed, or a unit of this server; return whether one was."""
        try:
            if self.to_compute:
                self.handle(self.engine.compute(self.to_compute.popleft(), self._serve))
                return True
            return (
                self.share is not None
                and self._is_shown()
                and self.share.compute(self._serve_share)
            )
        except _AbandonedError:
            return True

    def _is_shown(self) -> bool:
        """Whether the parent is here by now: it is to see the steps of the shortest run, too."""
        if self.share_at and self.machine.membership.observers():
            self.share_at = 0.0
        return time.monotonic() >= self.share_at

    def _serve_share(self) -> float:
        if self.share is not None and self.share.machine.abandons_unit:
            raise _AbandonedError
        return self._serve()

    def _serve(self) -> float:
        """Handle what has come while the kernel computes; return when to look again."""
        self.loop.turn(0)
        self.notifier.alive()
        if self.share is not None:
            self.share.read_mailbox()
        if self.outcome is not None:
            raise _AbandonedError
        return time.monotonic() + TURN_EVERY

    def _register(self) -> None:
        self.loop.on_wake(self._read_written_checkpoints)
        self.listen()
        self.collect_regularly()
        self.loop.on_deadline(self.machine.deadline, self._deadline_passed)
        self.loop.on_deadline(lambda: self.flush_at, self._flush)
        self.loop.on_suspension(self._suspended)

    def signalled(self, number: int) -> None:
        if not has_parent():  # a parent logs it itself
            logger.info(stopping(number))
        if number == signal.SIGINT:
            endless = self.machine.spec.operation.steps == 0
            self._stop(0 if endless else INTERRUPTED, "the server was stopped by Ctrl-C")
        else:
            self._stop(STOPPED, f"the server was {stopped_by(number)}")

    def _stop(self, code: int, reason: str) -> None:
        self.notifier.stopping()
        by = time.monotonic() + STOP_WITHIN
        self.handle(events.StopRequested(code, reason, by))

    def _read_written_checkpoints(self) -> None:
        for written in self.writer.news():
            if not written.failure:
                logger.debug(f"the checkpoint of step {written.step:,} is on disk")
            self.handle(written)

    def _deadline_passed(self) -> None:
        self.handle(events.DeadlinePassed())
        if self.share is not None:
            self.share.handle(events.DeadlinePassed())
        self.router.limit_connections()

    def _suspended(self, seconds: float) -> None:
        self.handle(events.Suspended(seconds))
        if self.share is not None:
            self.share.handle(events.Suspended(seconds))

    def _flush(self) -> None:
        """Once a second: flush the journal, count failed handshakes, look for revoked keys."""
        self.flush_at = time.monotonic() + FLUSH_EVERY
        self.check_keys()
        self._to_disk(Counter.JOURNAL_NOT_WRITTEN, self.resume_point.journal.flush)
        self._to_disk(Counter.EVENTS_NOT_WRITTEN, self.event_log.flush)
        if self.resume_point.journal.is_removed():  # as with the whole directory
            path = self.resume_point.journal.path
            self._stop(RUN_FAILED, f"{path} was removed while the server wrote to it")

    def _read_results(self, step: int, fault: str) -> None:
        """Read the new validation losses; a fault says why that of the step is not in the log."""
        try:
            losses = read_validation_losses(self.directory, self.resume_point.validation)
        except UserError as error:
            losses, fault = {}, str(error)
        for each, nats in losses.items():
            self.handle(events.Validated(each, nats))
        if step in self.machine.early_stopping.awaited:
            fault = fault or "its result is of another checkpoint"
            self.handle(events.Validated(step, failure=fault))

    def carry_out(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Send(message, to) if to is not None:
                self._send(to, message)
            case effects.Append(step, loss):
                digest = self.machine.aggregation.weights_digest.hex()
                record = AppliedStep(self.machine.spec.term, step, loss, digest)
                self.resume_point.journal.append(record)
            case effects.Save():
                self.writer.write(effect, self._wait_for_disk, spare=self._spared())
            case effects.Validate(step):
                self.validation.ask(step)
            case effects.Log(text, level):
                logger.log(log.NUMBERS[level], text)
            case effects.Show(Status() as status):
                self._show(status)
            case effects.Show(Weights() as weights):
                self.screen.weights(weights)
            case effects.RecordMetrics(status):  # the journal is never behind them
                self._to_disk(Counter.JOURNAL_NOT_WRITTEN, self.resume_point.journal.flush)
                self._to_disk(Counter.METRICS_NOT_WRITTEN, self._record, status)
            case effects.Compute():
                self.to_compute.append(effect)
            case effects.RememberBans(banned):
                self.directory = self.directory.with_facts(banned=banned)
                self._to_disk(Counter.CONFIG_NOT_WRITTEN, self.directory.write_config)
            case effects.ResumeBefore(step):
                self.directory = self.directory.with_facts(resume_before=step)
                _write_resume_before(self.directory)
                self.outcome = effect
            case effects.Finish():
                logger.debug(f"the run ends: {effect.reason}")
                self.outcome = effect
            case _:
                raise RuntimeError(f"a server's shell cannot carry out {effect}")

    def _spared(self) -> set[int]:
        """Return the steps of the checkpoints that are kept, however old they are."""
        early_stopping = self.machine.early_stopping
        best = best_checkpoint(self.directory, early_stopping.validation_losses)
        return early_stopping.awaited | ({best} if best is not None else set())

    def _wait_for_disk(self) -> None:
        self.notifier.alive()
        self.handle(events.DiskWaited())

    def _show(self, status: Status) -> None:
        if (snapshot := self.snapshots.add(status, self.machine.dimensions)) is not None:
            self.screen.status(snapshot)
            self.notifier.status(f"step {status.step:,}, {snapshot.with_shards}")

    def _send(self, peer: Peer, message: Message) -> None:
        if peer == OWN_PEER:
            if self.share is not None:
                self.share.receive(message)
            return
        self.send_to(peer, message)
        if self.share is not None and isinstance(message, NewWeights | Grant):
            # Threads that send and receive may be waiting for this core, which computes next:
            # now this process's, then a worker's on the same machine.
            os.sched_yield()
            self.engine.timer.yields = YIELDS

    def _record(self, status: Status) -> None:
        members, holders = self.machine.membership.members, self.machine.membership.holders()
        line = {
            "step": status.step,
            "loss_nats_per_character": status.loss_nats_per_character,
            "smooth_loss_nats_per_character": status.smooth_loss_nats_per_character,
            "characters": status.characters,
            "seconds": round(status.seconds, 3),
            "workers": sum(members[peer].workers for peer in holders),
        }
        self.resume_point.metrics.append(line)
        self.resume_point.metrics.flush()

    def _to_disk(self, counter: Counter, write: Callable[..., None], *arguments: object) -> None:
        """Write what the run can go on without; count a failure, and log the first one."""
        try:
            write(*arguments)
        except OSError as error:
            first = not self.machine.counts[counter]
            what = counter.partition("_")[0]
            reason = f"{what} not written: {because(error)}" if first else ""
            self.handle(events.Dropped(counter, reason=reason))


def _write_resume_before(directory: RunDirectory) -> None:
    """Write the config. Raises UserError: the next server would resume from a wrong checkpoint."""
    try:
        directory.write_config()
    except OSError as error:
        raise UserError(
            f"{directory.path}: {because(error)}: could not note that checkpoints of step"
            f" {directory.facts.resume_before:,} and later are wrong; remove them, then resume the"
            " run",
            code=RUN_FAILED,
        ) from None
