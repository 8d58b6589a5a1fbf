"""The judge: a process beside the server, at the lowest priority, that reads its checkpoints.

It is asked for the loss of one checkpoint after the other on the text that was held out, and takes
no time from the loop. While it judges it says every second that it lives; one that dies or hangs is
started again and asked again.
"""

import contextlib
import json
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple, Self

from numpy.typing import NDArray

from manychar.numerics.evaluation import evaluate
from manychar.processes.child_process import deaf_to_interrupts
from manychar.processes.errors import UserError, because
from manychar.storage.append_log import AppendLog
from manychar.storage.checkpoint import checkpoint_path
from manychar.storage.run_directory import RunDirectory, open_run
from manychar.storage.validation_log import VALIDATION_NAME, append_result, validation_log

PAUSES = (0.5, 1.0, 2.0, None)  # after each try; after the last one it is given up
LEAST_PRIORITY = 19
AUTOGROUP = Path("/proc/self/autogroup")
BEAT = b"I live"
BEAT_EVERY = 1.0
SILENT_FOR = 30.0  # at the lowest priority a beat may be late


class ValidationResult(NamedTuple):
    """The result of a checkpoint is in the log; `why_not` says why it is not."""

    step: int
    why_not: str = ""


class Restart(NamedTuple):
    """The judge has died, or hung, and is asked again; `text` says so in one line."""

    text: str


class Gone(NamedTuple):
    """The judge has died again and again: no verdict will come any more."""

    reason: str


News = ValidationResult | Restart | Gone


class ValidationProcess:
    """The server's side: asks, and holds the answers until the loop takes them."""

    def __init__(self, directory: RunDirectory, wake: Callable[[], None]) -> None:
        self._path = directory.path
        self._wake = wake
        self._steps: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._starting = threading.Lock()
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None
        self._thread = threading.Thread(target=self._work, name="judge")

    def __enter__(self) -> Self:
        """Start the thread; the process starts when it is first asked."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the process; what it has not said by now is lost."""
        with self._starting:
            self._ended.set()
            if self._process is not None:
                self._process.kill()
        self._steps.put(None)
        self._thread.join()
        self._bury()

    def ask(self, step: int) -> None:
        """Have a checkpoint judged that is on disk."""
        self._steps.put(step)

    def news(self) -> list[News]:
        """Return what has happened since the last call."""
        news = []
        while not self._news.empty():
            news.append(self._news.get())
        return news

    def _work(self) -> None:
        while (step := self._steps.get()) is not None:
            try:
                answer = self._judge(step)
            except Exception as error:  # the loop says it: a run may wait for the verdict
                answer = Gone(repr(error))
            if answer is None:
                return
            self._tell(answer)
            if isinstance(answer, Gone):
                return

    def _tell(self, news: News) -> None:
        self._news.put(news)
        self._wake()

    def _judge(self, step: int) -> ValidationResult | Gone | None:
        """Return what the judge says of a checkpoint; None where the server ends first."""
        for pause in PAUSES:
            with contextlib.suppress(OSError, EOFError):
                return self._ask(step)
            self._bury()
            if self._ended.is_set():
                return None
            if pause is None:
                break
            again = f"starting it again in {pause:g} s"
            self._tell(
                Restart(f"the judge died or hung over the checkpoint of step {step}: {again}")
            )
            if self._ended.wait(pause):
                return None
        return Gone(
            f"its judge died or hung {len(PAUSES)} times over the checkpoint of step {step}"
        )

    def _ask(self, step: int) -> ValidationResult:
        pipe = self._pipe or self._start()
        pipe.send_bytes(str(step).encode())
        while pipe.poll(SILENT_FOR):
            if (answer := pipe.recv_bytes()) != BEAT:
                return ValidationResult(*json.loads(answer))
        raise EOFError  # it hangs

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        with self._starting, theirs:
            if self._ended.is_set():
                raise EOFError
            process = context.Process(target=_serve, args=(self._path, theirs), daemon=True)
            with deaf_to_interrupts():
                process.start()
            self._process, self._pipe = process, ours
        return ours

    def _bury(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        if self._pipe is not None:
            self._pipe.close()
        self._process = self._pipe = None


def _serve(path: Path, pipe: Connection) -> None:
    """Answer, in the judge's own process, until nobody asks any more."""
    os.setsid()  # Ctrl-C is the server's affair
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    _come_last()
    directory = open_run(path)
    validation_ids = directory.streams()[1].validation_ids
    with validation_log(directory) as log, contextlib.suppress(EOFError, OSError):
        while True:
            step = int(pipe.recv_bytes())
            with _beating(pipe):
                why_not = _validate(directory, log, validation_ids, step)
            pipe.send_bytes(json.dumps([step, why_not]).encode())


def _come_last() -> None:
    """Take the lowest priority; Linux may share the cores among sessions first: sched(7)."""
    os.nice(LEAST_PRIORITY)
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(LEAST_PRIORITY))


@contextlib.contextmanager
def _beating(pipe: Connection) -> Iterator[None]:
    """Say again and again, from a thread, that this process lives."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_EVERY):
            pipe.send_bytes(BEAT)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _end_with_the_server() -> None:
    if (server := multiprocessing.parent_process()) is not None:
        server.join()
        os._exit(0)


def _validate(
    directory: RunDirectory, log: AppendLog, validation_ids: NDArray[Any], step: int
) -> str:
    """Append a checkpoint's validation loss to the log; return why that was not possible."""
    try:
        checkpoint = directory.read(checkpoint_path(directory.checkpoints, step))
        nats = evaluate(checkpoint.state.parameters, validation_ids).nats_a_character
        append_result(log, step, checkpoint.sha256, nats)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{VALIDATION_NAME}: {because(error)}"
    return ""
