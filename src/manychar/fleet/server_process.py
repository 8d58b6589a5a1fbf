"""The server's shell: poll, give the machine what came, carry out its effects.

One thread, but for the writing of checkpoints and for asking the judge. A machine lives for one
term; where a wrong gradient had been applied, the next term begins from a checkpoint before it, on
the same socket.
"""

import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zmq

from manychar.fleet.engine import Engine
from manychar.fleet.validation_process import (
    Gone,
    News,
    Restart,
    ValidationProcess,
    ValidationResult,
)
from manychar.network.authenticator import Authenticator
from manychar.network.connection_limit import raise_limit
from manychar.network.router import Received as Delivery
from manychar.network.router import Router, Unreachable
from manychar.numerics.training_step import TrainingState
from manychar.processes import log
from manychar.processes.errors import (
    INTERRUPTED,
    RUN_FAILED,
    STOPPED,
    STOPPING,
    UserError,
    because,
)
from manychar.processes.parent_death import has_parent
from manychar.processes.sd_notify import Notifier
from manychar.processes.signals import SelfPipe
from manychar.protocol.admission import as_words
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
    Validated,
    ValidationFailed,
    Warned,
)
from manychar.protocol.messages import Message, Peer, Report, Weights
from manychar.protocol.run_spec import RunSpec
from manychar.protocol.server import ParameterServer
from manychar.storage.checkpoint_writer import Writer
from manychar.storage.journal import Step, weights_digest
from manychar.storage.recovery import ResumePoint, recover
from manychar.storage.run_directory import RunDirectory, locked, raise_term
from manychar.storage.validation_log import (
    VALIDATION_NAME,
    append_validation_loss,
    keep_best,
    unvalidated,
)

logger = logging.getLogger(__name__)


SECONDS_TO_END_A_STEP = 5.0
FLUSH_EVERY = 1.0
MESSAGES_A_TURN = 1000


@dataclasses.dataclass(frozen=True)
class Screen:
    """Where the server shows how it stands: a report, the weights, and its endpoint."""

    report: Callable[[Report], None]
    weights: Callable[[Weights], object]
    bound: Callable[[str], None]


def serve(
    directory: RunDirectory,
    endpoint: str,
    screen: Screen,
    keys: Path | None = None,
) -> Finish:
    """Serve a run until it ends, and return how it ended. `keys` say who may come.

    Raises UserError where the directory is damaged or held by another, the endpoint is taken, or
    this machine's arithmetic is not the run's.
    """
    router: Router | None = None
    outcome: Finish | ResumeBefore = ResumeBefore(2**62, {})
    asked: Finish | None = None
    raise_limit()
    with locked(directory), contextlib.ExitStack() as stack:
        wake, notifier = SelfPipe(), Notifier()
        stack.callback(wake.close)
        stack.enter_context(wake.catching(signal.SIGINT, signal.SIGTERM))
        while isinstance(outcome, ResumeBefore):
            term = raise_term(directory)
            with _begun(directory, term, outcome.step) as beginning:
                run, engine = _run(directory, term, beginning, outcome)
                directory = _claim(directory, run)
                machine = ParameterServer(run, now=time.monotonic())
                if router is None:
                    router = Router(endpoint, machine.dimensions, keys)
                    stack.callback(router.close)
                    screen.bound(router.endpoint)
                    notifier.ready(f"listening on {router.endpoint}")
                with (
                    Writer(directory, beginning, wake) as writer,
                    ValidationProcess(directory, wake) as judge,
                ):
                    loop = _Loop(
                        machine=machine,
                        engine=engine,
                        directory=directory,
                        beginning=beginning,
                        router=router,
                        writer=writer,
                        judge=judge,
                        screen=screen,
                        wake=wake,
                        notifier=notifier,
                        asked=asked,
                    )
                    outcome = loop.run()
                    directory, asked = loop.directory, machine.lifecycle.asked
    return outcome


@contextlib.contextmanager
def _begun(directory: RunDirectory, term: int, not_after: int) -> Iterator[ResumePoint]:
    try:
        beginning = recover(directory, term, not_after=not_after)
    except OSError as error:
        raise UserError(f"{directory.path}: {because(error)}") from None
    try:
        yield beginning
    finally:
        for log in (beginning.journal, beginning.metrics):
            try:
                log.close()
            except OSError as error:
                logger.warning(f"{log.path.name}: {because(error)}")


def _run(
    directory: RunDirectory, term: int, beginning: ResumePoint, back: ResumeBefore
) -> tuple[RunSpec, Engine]:
    """Return the run as this term takes it up, and what computes here."""
    vocabulary, streams = directory.streams()
    run = RunSpec(
        run=directory.run,
        term=term,
        definition=directory.definition,
        operation=directory.operation,
        streams=streams,
        vocabulary=vocabulary,
        state=beginning.checkpoint.state,
        fingerprint="",
        libraries={},
        banned={**directory.facts.banned, **back.banned},
        seconds_before=beginning.seconds,
        validation_losses=beginning.validation_losses,
        unvalidated=unvalidated(
            directory, beginning.validation_losses, beginning.checkpoint.state.step
        ),
    )
    engine = Engine(run.dimensions)
    fingerprint = engine.compute_fingerprint()
    run = dataclasses.replace(
        run, fingerprint=fingerprint.fingerprint, libraries=fingerprint.libraries
    )
    return run, engine


def _claim(directory: RunDirectory, run: RunSpec) -> RunDirectory:
    """Hold this machine's arithmetic against the run's, and note it where the run is new.

    Raises UserError where they differ and that was not allowed.
    """
    facts = directory.facts
    if not facts.fingerprint:
        libraries = dict(run.libraries)
        facts = dataclasses.replace(facts, fingerprint=run.fingerprint, libraries=libraries)
    elif facts.fingerprint != run.fingerprint:
        if not directory.operation.allow_mixed_numerics:
            raise UserError(
                f"this machine's arithmetic gives other bits than the run's: here"
                f" {as_words(run.libraries)}; the run began with {as_words(facts.libraries)};"
                " serve it on such a machine, or add --allow-mixed-numerics",
                code=RUN_FAILED,
            )
        facts = dataclasses.replace(facts, mixed=True)
    directory = dataclasses.replace(directory, facts=facts)
    try:
        directory.write_config()
    except OSError as error:
        raise UserError(f"{directory.path}: {because(error)}") from None
    return directory


@dataclasses.dataclass(kw_only=True)
class _Loop:
    """Poll -> machine -> carry out its effects, for one term."""

    machine: ParameterServer
    engine: Engine
    directory: RunDirectory
    beginning: ResumePoint
    router: Router
    writer: Writer
    judge: ValidationProcess
    screen: Screen
    wake: SelfPipe
    notifier: Notifier
    asked: Finish | None
    outcome: Finish | ResumeBefore | None = None
    flush_at: float = 0.0

    def run(self) -> Finish | ResumeBefore:
        """Go round until the machine has finished."""
        poller = zmq.Poller()
        poller.register(self.router.socket, zmq.POLLIN)
        poller.register(self.wake.fileno(), zmq.POLLIN)
        if (door := self.router.authenticator) is not None:
            poller.register(door.socket, zmq.POLLIN)
        self._handle(Started())
        if self.asked is not None:  # before the way back that led here
            self._stop(self.asked.code, self.asked.reason)
        while self.outcome is None:
            ready = dict(poller.poll(self._milliseconds()))
            if self.wake.fileno() in ready:
                self._woken()
            if door is not None:
                self._answer(door)
            self._read_mailbox()
            self._handle(MailboxEmpty())
            self._tick()
        return self.outcome

    def _answer(self, door: Authenticator) -> None:
        """Let in, or keep out, who is shaking hands."""
        if refused := door.answer():
            self._handle(Dropped(Counter.HANDSHAKES_REFUSED, refused))

    def _milliseconds(self) -> int:
        if (deadline := self.machine.deadline()) is None:
            return 0
        return max(0, int(1000 * (deadline - time.monotonic())) + 1)

    def _tick(self) -> None:
        now = time.monotonic()
        self.notifier.alive()
        if (deadline := self.machine.deadline()) is not None and now >= deadline:
            self._handle(DeadlinePassed())
            self.router.connection_limit.enforce()
        if now >= self.flush_at:
            self.flush_at = now + FLUSH_EVERY
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

    def _woken(self) -> None:
        for number in self.wake.take():
            if not has_parent():  # a parent says so itself
                logger.info(STOPPING)
            if number == signal.SIGINT:
                endless = self.machine.run.operation.steps == 0
                self._stop(0 if endless else INTERRUPTED, "stopped by Ctrl-C")
            else:
                self._stop(STOPPED, "stopped by SIGTERM")
        for step, failure in self.writer.news():
            self._handle(CheckpointFailed(step, failure) if failure else CheckpointSaved(step))
        for news in self.judge.news():
            self._handle_validation(news)

    def _handle_validation(self, news: News) -> None:
        match news:
            case ValidationResult(step, None, why_not):
                self._handle(NotValidated(step, why_not))
            case ValidationResult(step, float() as nats):
                self._log_validation(step, nats)
            case Restart(text):
                self._handle(Warned(text))
            case Gone(reason):
                self._handle(ValidationFailed(reason))

    def _log_validation(self, step: int, nats: float) -> None:
        """Log a validation loss before it counts: the next server has to decide in the same way."""
        try:
            append_validation_loss(self.directory, step, nats)
        except OSError as error:
            why = f"{VALIDATION_NAME}: {because(error)}"
            if self.machine.early_stopping.depends_on(step):
                self._handle(ValidationFailed(why))
                return
            self._handle(Dropped(Counter.VALIDATIONS_NOT_WRITTEN, reason=why))
        self._handle(Validated(step, nats))

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
                    self.judge.ask(step)
                case KeepBest(step):
                    self._to_disk(Counter.BEST_NOT_WRITTEN, keep_best, self.directory, step)
                case Log(text, level):
                    logger.log(log.NUMBERS[level], text)
                case Show(Report() as report):
                    self.screen.report(report)
                    self.notifier.status(f"step {report.step:,}, {len(report.workers)} workers")
                case Show(Weights() as weights):
                    self.screen.weights(weights)
                case Record(report):
                    self._to_disk(Counter.METRICS_NOT_WRITTEN, self._record, report)
                case Compute():
                    self._compute(effect)
                case Remember(changes):
                    self._change_facts(changes)
                case Finish() | ResumeBefore():
                    self.outcome = effect
                case _:
                    raise RuntimeError(f"a server's shell cannot carry out {effect}")

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

    def _record(self, report: Report) -> None:
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
