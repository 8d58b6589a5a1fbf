"""The validation loss of every checkpoint, from a process of the lowest priority beside the server.

The server writes steps to the process's standard input. The process appends each result to the
validation log and then writes it to its standard output, and an empty line every second as long as
its computation advances. One that crashes or falls silent is started again and asked again.
"""

import collections
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from manychar.fleet.engine import PieceTimer
from manychar.network.event_loop import EventLoop
from manychar.numerics.evaluation import loss_of
from manychar.processes import log
from manychar.processes.errors import UserError, because
from manychar.processes.log import logger
from manychar.processes.supervisor import ProcessSlot, Supervisor
from manychar.storage.append_log import AppendLog
from manychar.storage.checkpoint import checkpoint_path
from manychar.storage.run_directory import RunDirectory, open_run
from manychar.storage.validation_log import VALIDATION_NAME, append_result, validation_log

TRIES = 4  # for one checkpoint
LOWEST_PRIORITY = 19
AUTOGROUP = Path("/proc/self/autogroup")
ALIVE_EVERY = 1.0
SILENT_FOR = 60.0  # at the lowest priority reading a large checkpoint may take that long


class ValidationProcess:
    """The server's side: asks for one checkpoint after the other, and hands over the results.

    `on_result` is called with a step, and why its result is not in the log; `on_failure` when no
    checkpoint will be validated any more.
    """

    def __init__(
        self,
        directory: RunDirectory,
        loop: EventLoop,
        *,
        on_result: Callable[[int, str], object],
        on_failure: Callable[[str], object],
    ) -> None:
        self._on_result = on_result
        self._on_failure = on_failure
        self._supervisor = Supervisor(loop, on_end=self._ended, env=log.FOR_A_PARENT)
        self.slot = ProcessSlot(
            name="the validation process",
            arguments=["validate", str(directory.path)],
            on_line=self._read_line,
            on_start=self._request,
            has_stdin=True,
        )
        self._waiting: collections.deque[int] = collections.deque()
        self._tries = 0
        self._silent_at: float | None = None
        loop.on_deadline(lambda: self._silent_at, self._end_silent)
        loop.on_suspension(self._suspended)

    def ask(self, step: int) -> None:
        """Have a checkpoint that is on disk validated; the process starts at the first one."""
        if self._supervisor.is_stopping:
            return  # it has failed
        self._waiting.append(step)
        if self.slot.is_empty:
            self._supervisor.start(self.slot)
        elif len(self._waiting) == 1:
            self._request()

    def close(self) -> None:
        """End the process; what has no result by now is validated when the run is resumed."""
        self._silent_at = None
        self._supervisor.kill()

    def _request(self) -> None:
        """Ask for the checkpoint that has waited longest: at first, and after a restart again."""
        if self._waiting and self.slot.process is not None:
            self._silent_at = time.monotonic() + SILENT_FOR
            self.slot.write(f"{self._waiting[0]}\n")

    def _read_line(self, line: str) -> None:
        if not line:  # a sign of life
            self._silent_at = time.monotonic() + SILENT_FOR
            return
        step, fault = json.loads(line)
        self._waiting.popleft()
        self._tries, self._silent_at = 0, None
        self._on_result(step, fault)
        self._request()

    def _suspended(self, seconds: float) -> None:
        if self._silent_at is not None:
            self._silent_at += seconds

    def _end_silent(self) -> None:
        self._silent_at = None
        step = self._waiting[0]
        logger.warning(
            "the validation process has sent no sign of life while validating the checkpoint"
            f" of step {step:,}: killed"
        )
        self.slot.signal(signal.SIGKILL)

    def _ended(self, slot: ProcessSlot, code: int) -> None:
        self._silent_at = None
        if self._supervisor.is_stopping:
            return
        self._tries += bool(self._waiting)
        if self._tries >= TRIES:
            what = f"while validating the checkpoint of step {self._waiting[0]:,}"
            failure = f"its process ended {TRIES} times {what}"
        else:
            failure = self._supervisor.restart(slot, code)
        if failure:
            self.close()
            self._on_failure(failure)


def validate(path: Path) -> None:
    """Answer requests, in the process itself, until its standard input ends."""
    os.nice(LOWEST_PRIORITY)
    with contextlib.suppress(OSError):  # Linux may share the cores among sessions first: sched(7)
        AUTOGROUP.write_text(str(LOWEST_PRIORITY))
    directory = open_run(path)
    validation_ids = directory.corpus()[1].validation_ids
    with validation_log(directory) as results:
        for line in sys.stdin:
            fault = _validate(directory, results, validation_ids, int(line))
            print(json.dumps([int(line), fault]), flush=True)


def _sign_of_life() -> float:
    """Write an empty line; return when the next one is due."""
    print(flush=True)
    return time.monotonic() + ALIVE_EVERY


def _validate(directory: RunDirectory, results: AppendLog, ids: NDArray[Any], step: int) -> str:
    """Append a checkpoint's validation loss to the log; return why that was not possible."""
    try:
        checkpoint = directory.read(checkpoint_path(directory.checkpoints, step))
        nats = loss_of(checkpoint.state.parameters, ids, PieceTimer(_sign_of_life))
        append_result(results, step, checkpoint.sha256, nats)
    except UserError as error:
        return str(error)
    except OSError as error:
        return f"{VALIDATION_NAME}: {because(error)}"
    return ""
