"""A server and N workers on one machine: starts them, watches them, and ends with every child gone.

The parent is an observer of its own server. What dies is started again; when a process dies at once
again and again, the run is stopped.
"""

import contextlib
import json
import logging
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

import zmq

from manychar.network.client_identity import WITHOUT_KEYS, hello
from manychar.network.dealer import Dealer
from manychar.observability.exporters import Exporter, Pages
from manychar.observability.progress import Display
from manychar.processes import log
from manychar.processes.errors import (
    CRASHED,
    INTERRUPTED,
    RUN_FAILED,
    STOPPED,
    STOPPING,
    UserError,
)
from manychar.processes.signals import SelfPipe
from manychar.processes.supervisor import ProcessSlot, close_pipes, how_it_ended, spawn
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.effects import Effect, Finish, Log, PeerError, Send, Show
from manychar.protocol.messages import Report, Role, Roster, Weights
from manychar.protocol.observer import Observer
from manychar.protocol.run_spec import Operation
from manychar.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)


SECONDS_TO_END = 15.0
OBSERVER_PATIENCE, WORKER_PATIENCE = 60.0, 300.0
LAST_WORDS_WITHIN = 2.0
CHILDS = {**log.FOR_A_PARENT, **WITHOUT_KEYS}


class Fleet:
    """The children of one run. `sinks` are told what the display is, and then `on_report`."""

    def __init__(
        self,
        directory: RunDirectory,
        display: Display,
        on_report: Callable[["Fleet", Report], None] = lambda _fleet, _report: None,
        exporters: Sequence[Exporter] = (),
    ) -> None:
        self._sinks = exporters
        self._pages = Pages()
        self.directory = directory
        self.display = display
        self.workers = [ProcessSlot(f"worker-{i + 1}") for i in range(directory.operation.workers)]
        self._on_report = on_report
        self._endpoint = ""
        self.server = ProcessSlot("the server")
        self._observer: Observer | None = None
        self._dealer: Dealer | None = None
        self._ended: Finish | None = None
        self._wanted_code: int | None = None
        self._code: int | None = None
        self._kill_at = math.inf
        self._complaint = ""
        self._unsaid: list[tuple[str, int]] = []
        self._words = b""
        self._newest: Weights | None = None
        self._stack = contextlib.ExitStack()

    def run(self) -> Finish:
        """Train until the run ends or is stopped; every child is gone when it returns.

        Raises UserError with the server's own words where it could not start.
        """
        with self._stack:
            self._wake = SelfPipe()
            self._stack.callback(self._wake.close)
            self._listen_to_children()
            self._stack.callback(self._end_children)
            self._stack.enter_context(
                self._wake.catching(signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
            )
            self._start_server()
            while self._code is None:
                self._turn()
            if self._newest is not None:
                self._show_sample(self._newest)
        return self._result()

    def _listen_to_children(self) -> None:
        """Make the pipe that all children's standard error goes to."""
        self._hear, self._speak = os.pipe()
        os.set_blocking(self._hear, False)
        self._stack.callback(os.close, self._hear)
        self._stack.callback(os.close, self._speak)

    def _start_server(self) -> None:
        arguments = [
            *("server", "--resume", str(self.directory.path)),
            *("--bind", self._endpoint or "tcp://127.0.0.1:*"),
            *("--child", *_operation_flags(self.directory.operation)),
        ]
        process = spawn(arguments, stdout=subprocess.PIPE, stderr=self._speak, env=CHILDS)
        self.server.taken_by(process, time.monotonic())
        if self._endpoint and self._observer is None:
            self._observer = self._new_observer()

    def _new_observer(self) -> Observer:
        now, me = time.monotonic(), hello(Role.OBSERVER)
        return Observer(me, server=self._endpoint, patience=OBSERVER_PATIENCE, now=now)

    def _turn(self) -> None:
        """Wait for something to happen, and see to it."""
        poller = zmq.Poller()
        poller.register(self._wake.fileno(), zmq.POLLIN)
        poller.register(self._hear, zmq.POLLIN)
        if self._dealer is not None:
            poller.register(self._dealer.socket, zmq.POLLIN)
        elif self.server.process is not None and self.server.process.stdout is not None:
            poller.register(self.server.process.stdout.fileno(), zmq.POLLIN)
        ready = dict(poller.poll(self._milliseconds()))
        if self._hear in ready:
            self._hear_children()
        if self._wake.fileno() in ready:
            self._woken()
        if self._dealer is None:
            self._take_endpoint(ready)
        self._observe()
        self._start_what_is_due()
        if time.monotonic() >= self._kill_at and self.server.process is not None:
            logger.warning(f"the server did not stop within {SECONDS_TO_END:.0f} s: killed")
            self._kill_at = math.inf
            self.server.process.kill()

    def _milliseconds(self) -> int:
        seats = [self.server, *self.workers]
        times = [seat.restart_at for seat in seats if seat.restart_at is not None]
        if self._observer is not None and (deadline := self._observer.deadline()) is not None:
            times.append(deadline)
        wait = min([*times, self._kill_at, time.monotonic() + 1.0]) - time.monotonic()
        return max(0, int(1000 * wait) + 1)

    def _take_endpoint(self, ready: dict[object, int]) -> None:
        """Read where the server listens, watch it, and start the workers."""
        server = self.server.process
        if server is None or server.stdout is None or server.stdout.fileno() not in ready:
            return
        line = server.stdout.readline()
        if not line:
            return  # it ended: SIGCHLD tells
        self._endpoint = json.loads(line)["endpoint"]
        logger.info(f"the server listens on {self._endpoint}")
        self._dealer = Dealer(self._endpoint)
        self._stack.callback(self._dealer.close)
        self._observer = self._new_observer()
        for seat in self.workers:
            self._start_worker(seat)

    def _start_worker(self, seat: ProcessSlot) -> None:
        flags = ["--name", seat.name, "--patience", str(WORKER_PATIENCE), "--child"]
        arguments = ["worker", self._endpoint, *flags]
        process = spawn(arguments, stdout=subprocess.DEVNULL, stderr=self._speak, env=CHILDS)
        seat.taken_by(process, time.monotonic())

    def _start_what_is_due(self) -> None:
        now = time.monotonic()
        if self.server.is_due(now):
            self._start_server()
        for seat in self.workers:
            if seat.is_due(now):
                self._start_worker(seat)

    def _observe(self) -> None:
        if self._observer is None or self._dealer is None:
            return
        while (frames := self._dealer.receive()) is not None:
            try:
                message = decode(frames, self._observer.dimensions)
                effects = self._observer.receive(message, time.monotonic())
                # What a server says to all observers stands in its standard error, too, and more.
                self._carry_out([each for each in effects if not isinstance(each, Log)])
            except (WireError, PeerError) as error:
                logger.warning(f"dropped a message of the server: {error}")
        self._carry_out(self._observer.tick(time.monotonic()))

    def _carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(message) if self._dealer is not None:
                    self._dealer.send(encode(message))
                case Show(Report() as report):
                    self.display.report(report)
                    for sink in self._sinks:
                        sink.report(report)
                    self._on_report(self, report)
                case Show(Weights() as weights):
                    self._take_weights(weights)
                case Show(Roster() as roster):
                    if (workers := self._pages.take(roster)) is not None:
                        for sink in self._sinks:
                            sink.workers(workers)
                case Log(text, level):
                    logger.log(log.NUMBERS[level], text)
                case Finish() if self._observer is not None and self._observer.session.knocking:
                    self._server_hangs(effect.reason)
                case Finish():
                    self._ended = effect
                case _:
                    raise RuntimeError(f"an observer's shell cannot carry out {effect}")

    def _take_weights(self, weights: Weights) -> None:
        """Show a sample where one is due: who greets a server is sent its weights, too."""
        every = self.directory.operation.sample_every
        if every and weights.version % every == 0:
            self._show_sample(weights)
        else:
            self._newest = weights

    def _show_sample(self, weights: Weights) -> None:
        if (text := self.display.weights(weights)) is not None:
            for sink in self._sinks:
                sink.sample(weights.version, text)

    def _server_hangs(self, reason: str) -> None:
        """End a server that does not answer: from its last checkpoint another one goes on."""
        logger.warning(f"{reason}: ending it")
        self._observer = None
        if self.server.process is not None:
            self.server.process.kill()

    def _hear_children(self) -> None:
        """Pass on what children wrote to their standard error, in whole lines."""
        with contextlib.suppress(BlockingIOError):
            while heard := os.read(self._hear, 65_536):
                self._words += heard
        *lines, self._words = self._words.split(b"\n")
        for line in lines:
            self._unsaid.append(log.read(line.decode(errors="replace")))
        if self._endpoint:
            self._say_what_was_heard()

    def _say_what_was_heard(self) -> None:
        for text, level in self._unsaid:
            logger.log(level, text)
        self._unsaid.clear()

    def _woken(self) -> None:
        for number in self._wake.take():
            if number == signal.SIGINT:
                endless = self.directory.operation.steps == 0
                self.stop(0 if endless else INTERRUPTED)
            elif number == signal.SIGTERM:
                self.stop(STOPPED)
        self._bury()

    def stop(self, code: int) -> None:
        """Have the server end its step, write a checkpoint and finish; then exit with `code`."""
        if self._wanted_code is None:
            self._wanted_code = code
            self._kill_at = time.monotonic() + SECONDS_TO_END
            logger.info(STOPPING)
            if self.server.process is not None:
                self.server.process.terminate()
            else:
                self._code = STOPPED

    def _bury(self) -> None:
        """See which children have ended."""
        self._hear_children()
        now = time.monotonic()
        for seat in self.workers:
            if seat.process is not None and seat.process.poll() is not None:
                self._worker_ended(seat, seat.process.returncode, now)
        server = self.server.process
        if server is not None and server.poll() is not None:
            self._hear_the_last_of(server.returncode)
            close_pipes(server)
            self.server.process = None
            self._server_ended(server.returncode, now)

    def _hear_the_last_of(self, code: int) -> None:
        """Take what the server said before it ended: its reason may still be on its way."""
        self._observe()
        deadline = time.monotonic() + LAST_WORDS_WITHIN
        while code >= 0 and self._dealer is not None and self._ended is None:
            left = deadline - time.monotonic()
            if left <= 0 or not self._dealer.socket.poll(int(1000 * left)):
                return
            self._observe()

    def _server_ended(self, code: int, now: float) -> None:
        """Start a server again that crashed: the run goes on from its last checkpoint."""
        crashed = code < 0 or code == CRASHED
        goes_on = self._endpoint and self._ended is None and self._wanted_code is None
        if not (crashed and goes_on):
            self._code = code
        elif given_up := self.server.died(code, now):
            self._complaint = given_up
            self._wanted_code = RUN_FAILED
            self._code = STOPPED
        else:
            pause = self.server.pause
            logger.warning(
                f"the server ended {how_it_ended(code)}: starting it again in {pause:g} s"
            )

    def _worker_ended(self, seat: ProcessSlot, code: int, now: float) -> None:
        if seat.process is not None:
            close_pipes(seat.process)
        seat.process = None
        if code == STOPPED:
            self._observe()  # was the run stopped? Then the server has told its observers, too
        if self._ended is not None or self._wanted_code is not None or code == 0:
            return
        if code == RUN_FAILED:  # refused or given up: another start would end in the same way
            logger.warning(f"{seat.name} ended {how_it_ended(code)}: not started again")
            self._stop_if_nobody_is_left()
        elif given_up := seat.died(code, now):
            self._complaint = given_up
            self.stop(RUN_FAILED)
        else:
            logger.warning(
                f"{seat.name} ended {how_it_ended(code)}: starting it again in {seat.pause:g} s"
            )

    def _stop_if_nobody_is_left(self) -> None:
        if all(seat.is_empty for seat in self.workers):
            self._complaint = "no worker is left"
            self.stop(RUN_FAILED)

    def _end_children(self) -> None:
        """Wait for the children that are left; end those that do not."""
        deadline = time.monotonic() + SECONDS_TO_END
        for seat in (*self.workers, self.server):
            if (process := seat.process) is None:
                continue
            with contextlib.suppress(OSError):
                if process.stdin is not None:
                    process.stdin.close()
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.warning(f"{seat.name} did not end: killed")
                process.kill()
                process.wait()
            close_pipes(process)

    def _result(self) -> Finish:
        code = self._code or 0
        if self._wanted_code is not None and (code < 0 or code in (0, STOPPED)):
            reason = self._complaint if self._wanted_code == RUN_FAILED else "stopped"
            return Finish(self._wanted_code, reason)
        if self._ended is not None and code == self._ended.code:
            return self._ended
        if not self._endpoint and code > 0:
            *before, (last, _) = self._unsaid or [
                ("the server ended without a word", logging.ERROR)
            ]
            self._unsaid = before
            self._say_what_was_heard()
            raise UserError(last.removeprefix("manychar: "), code=code)
        return Finish(
            RUN_FAILED if code else 0, f"the server ended {how_it_ended(code)}" if code else ""
        )


def _operation_flags(operation: Operation) -> list[str]:
    flags = []
    for name in (
        "steps",
        "checkpoint_every",
        "keep_checkpoints",
        "sample_every",
        "sample_length",
        "lease_timeout",
        "on_disk_error",
        "stop_when_no_better",
    ):
        flags += [f"--{name.replace('_', '-')}", str(getattr(operation, name))]
    return [*flags, *(["--allow-mixed-numerics"] if operation.allow_mixed_numerics else [])]
