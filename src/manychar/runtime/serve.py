"""The server's shell: poll, give the machine what came, carry out its effects.

Checkpoints are written by a thread of their own from states that nobody writes to again; the rest
happens here, in one thread.
"""

import contextlib
import dataclasses
import json
import queue
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Self, TextIO

import zmq

from manychar.numerics.train import State
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.effects import Effect, Finish, PeerError, Record, Save, Say, Send, Show
from manychar.protocol.messages import Peer, Report, Weights
from manychar.protocol.server import Operation, ParameterServer, Run
from manychar.runtime.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    write_checkpoint,
)
from manychar.runtime.compute import Engine
from manychar.runtime.errors import INTERRUPTED, STOPPED, because
from manychar.runtime.parent import Parent
from manychar.runtime.run_directory import METRICS_NAME, RunDirectory, locked, take_up_metrics
from manychar.runtime.transport import Router, Unreachable
from manychar.runtime.wake import Wake

PENDING_CHECKPOINTS = 2
SECONDS_TO_END_A_STEP = 5.0


@dataclasses.dataclass(frozen=True)
class Screen:
    """Where the server shows how it stands: the line, the report, the weights, and the endpoint."""

    say: Callable[[str], None]
    report: Callable[[Report], None]
    weights: Callable[[Weights], None]
    bound: Callable[[str], None]


def serve(directory: RunDirectory, endpoint: str, screen: Screen, parent: Parent) -> Finish:
    """Serve a run until it ends, and return how it ended.

    Raises UserError where the directory is damaged or held by another, or the endpoint is taken.
    """
    with locked(directory) as term, contextlib.ExitStack() as stack:
        checkpoint, complaints = directory.newest_checkpoint()
        for complaint in complaints:
            screen.say(f"not used: {complaint}")
        machine = ParameterServer(_run(directory, term, checkpoint), now=time.monotonic())
        router = Router(endpoint, machine.dimensions)
        stack.callback(router.close)
        wake = Wake()
        stack.callback(wake.close)
        writer = stack.enter_context(_Writer(directory, checkpoint.vocabulary, wake))
        metrics = stack.enter_context((directory.path / METRICS_NAME).open("a", encoding="utf-8"))
        stack.enter_context(wake.catching(signal.SIGINT, signal.SIGTERM))
        screen.bound(router.endpoint)
        return _Loop(machine, router, writer, screen, metrics, parent, wake).run()


def _run(directory: RunDirectory, term: int, checkpoint: Checkpoint) -> Run:
    vocabulary, streams = directory.streams()
    settings = directory.settings
    operation = Operation(
        steps=settings.steps,
        checkpoint_every=settings.checkpoint_every,
        sample_every=settings.sample_every,
        silence=settings.lease_timeout,
        seconds_before=take_up_metrics(directory, checkpoint.state.step),
    )
    run = Run(
        run=directory.run,
        term=term,
        definition=directory.definition,
        operation=operation,
        streams=streams,
        vocabulary=vocabulary,
        state=checkpoint.state,
        fingerprint="",
        libraries={},
    )
    proof = Engine(run.dimensions).prove()
    return dataclasses.replace(run, fingerprint=proof.fingerprint, libraries=proof.libraries)


class _Loop:
    """Poll -> machine -> carry out its effects."""

    def __init__(
        self,
        machine: ParameterServer,
        router: Router,
        writer: "_Writer",
        screen: Screen,
        metrics: TextIO,
        parent: Parent,
        wake: Wake,
    ) -> None:
        self.machine = machine
        self.router = router
        self.writer = writer
        self.screen = screen
        self.metrics = metrics
        self.parent = parent
        self.wake = wake
        self.finish: Finish | None = None

    def run(self) -> Finish:
        """Go round until the machine has finished."""
        poller = zmq.Poller()
        poller.register(self.router.socket, zmq.POLLIN)
        poller.register(self.wake.fileno(), zmq.POLLIN)
        if self.parent.descriptor is not None:
            poller.register(self.parent.descriptor, zmq.POLLIN)
        self._carry_out(self.machine.begin(time.monotonic()))
        while self.finish is None:
            ready = dict(poller.poll(self._milliseconds()))
            if self.wake.fileno() in ready:
                self._woken()
            if self.parent.descriptor in ready and self.parent.is_gone():
                poller.unregister(self.parent.descriptor)
                self._stop(STOPPED, "the process that started this server is gone")
            self._read_mailbox()
            now = time.monotonic()
            if (deadline := self.machine.deadline()) is not None and now >= deadline:
                self._carry_out(self.machine.tick(now))
        return self.finish

    def _milliseconds(self) -> int:
        deadline = self.machine.deadline()
        return 0 if deadline is None else max(0, int(1000 * (deadline - time.monotonic())) + 1)

    def _read_mailbox(self) -> None:
        while self.finish is None and (received := self.router.receive()) is not None:
            peer, frames = received
            now = time.monotonic()
            try:
                message = decode(frames, self.machine.dimensions)
                self._carry_out(self.machine.receive(peer, message, now))
            except (WireError, PeerError) as error:
                self._carry_out(self.machine.malformed(peer, str(error)))

    def _woken(self) -> None:
        for number in self.wake.take():
            if number == signal.SIGINT:
                endless = self.machine.run.operation.steps == 0
                self._stop(0 if endless else INTERRUPTED, "stopped by Ctrl-C")
            else:
                self._stop(STOPPED, "stopped by SIGTERM")
        for step, failure in self.writer.news():
            event = self.machine.save_failed(step, failure) if failure else self.machine.saved(step)
            self._carry_out(event)

    def _stop(self, code: int, reason: str) -> None:
        now = time.monotonic()
        by = now + SECONDS_TO_END_A_STEP
        self._carry_out(self.machine.stop(code, reason, now=now, by=by))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message, to) if to is not None:
                    self._send(to, encode(message))
                case Save(state):
                    self.writer.write(state)
                case Say(text):
                    self.screen.say(text)
                case Show(Report() as report):
                    self.screen.report(report)
                case Show(Weights() as weights):
                    self.screen.weights(weights)
                case Record(report):
                    self._record(report)
                case Finish():
                    self.finish = effect
                case _:
                    raise RuntimeError(f"a server's shell cannot carry out {effect}")

    def _send(self, peer: Peer, frames: list[Any]) -> None:
        try:
            if not self.router.send(peer, frames):
                self.machine.counts["not sent, queue full"] += 1
        except Unreachable:
            self._carry_out(self.machine.unreachable(peer, time.monotonic()))

    def _record(self, report: Report) -> None:
        line = {
            "step": report.step,
            "loss": report.loss,
            "smooth_loss": report.smooth_loss,
            "characters": report.characters,
            "seconds": round(report.seconds, 3),
            "workers": len(report.workers),
        }
        try:
            self.metrics.write(json.dumps(line) + "\n")
            self.metrics.flush()
        except OSError as error:
            self.machine.counts["metrics not written"] += 1
            self.screen.say(f"metrics: {because(error)}")


class _Writer:
    """Writes checkpoints in a thread of its own, in order, and reports each."""

    def __init__(self, directory: RunDirectory, vocabulary: str, wake: Wake) -> None:
        self._directory = directory
        self._vocabulary = vocabulary
        self._wake = wake
        self._states: queue.Queue[State | None] = queue.Queue(PENDING_CHECKPOINTS)
        self._news: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="checkpoints")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._states.put(None)
        self._thread.join()

    def write(self, state: State) -> None:
        """Have a state written; waits where the disk is PENDING_CHECKPOINTS behind."""
        self._states.put(state)

    def news(self) -> list[tuple[int, str]]:
        """Return (step, failure) of what was tried since the last call; no failure is ''."""
        news = []
        while not self._news.empty():
            news.append(self._news.get())
        return news

    def _work(self) -> None:
        while (state := self._states.get()) is not None:
            failure = ""
            try:
                self._write(state)
            except OSError as error:
                failure = because(error)
            except Exception as error:  # the loop says it, and ends the run
                failure = repr(error)
            self._news.put((state.step, failure))
            self._wake.now()

    def _write(self, state: State) -> None:
        directory = self._directory
        path = checkpoint_path(directory.checkpoints, state.step)
        if not path.exists():
            write_checkpoint(path, directory.definition, self._vocabulary, state)
        kept = directory.settings.keep_checkpoints
        old = [path for step, path in list_checkpoints(directory.checkpoints) if step > 0]
        for path in old[:-kept] if kept else []:
            path.unlink()
