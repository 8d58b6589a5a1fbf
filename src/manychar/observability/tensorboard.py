"""TensorBoard's event files of a run: losses, speed, validation loss, samples.

tensorboardX's SummaryWriter writes in a thread behind a queue of ten: on a full disk the thread
ends, and whoever calls it then waits for ever. So its parts are used here, one after the other.
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar, text

from manychar.numerics.loss_units import bits_of
from manychar.observability.history import Point, point_of
from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError, because

logger = logging.getLogger(__name__)


POINT_EVERY, FLUSH_EVERY = 1.0, 5.0


class EventFiles:
    """An exporter: writes a point a second, and the last one, against the step.

    When the disk takes no more it says so, once, and writes no more.
    """

    def __init__(self, directory: Path) -> None:
        """Begin a new event file in the directory. Raises UserError."""
        self._directory = directory
        self._newest: Point | None = None
        self._written: Point | None = None
        self._term: int | None = None
        self._workers: int | None = None
        self._validated: int | None = None
        self._flush_at = 0.0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._writer: Any = EventsWriter(str(directory / "events"), f".{os.getpid()}")
            self._writer.flush()
        except OSError as error:
            raise UserError(f"--tensorboard {directory}: {because(error)}") from None

    def status(self, snapshot: Snapshot) -> None:
        """Write the losses, in nats and bits a character, and the speed since the last point."""
        status = snapshot.status
        if status.term != self._term:  # a server that was started again
            self._begin_at(status.step)
            self._term = status.term
        if status.validated is not None and status.validation is not None:
            self.validation(status.validated, status.validation)
        point = point_of(snapshot)
        self._newest, self._workers = point, len(snapshot.workers)
        if self._written is None or point.seconds >= self._written.seconds + POINT_EVERY:
            self.point(point)

    def validation(self, step: int, nats: float) -> None:
        """Write the validation loss of a checkpoint, once."""
        if step != self._validated:
            self._validated = step
            self._loss("validation", nats, step)

    def _begin_at(self, step: int) -> None:
        """Say that what was written of this step and later ones, before a restart, is past."""
        self._written = self._validated = None
        self._flush_at = 0.0
        self._write(step, session_log=SessionLog(status=SessionLog.START))

    def point(self, report: Point) -> None:
        """Write the losses and the speed at one step."""
        before, self._written = self._written, report
        if math.isfinite(report.loss):
            self._loss("step", report.loss, report.step)
        self._loss("smooth", report.smooth_loss, report.step)
        if self._workers is not None:
            self._scalar("workers", float(self._workers), report.step)
        if before is not None and report.seconds > before.seconds:
            speed = (report.characters - before.characters) / (report.seconds - before.seconds)
            self._scalar("characters_per_second", speed, report.step)
        if report.seconds >= self._flush_at:
            self._flush_at = report.seconds + FLUSH_EVERY
            self._attempt(lambda writer: writer.flush())

    def _loss(self, which: str, nats: float, step: int) -> None:
        self._scalar(f"loss/{which}_nats", nats, step)
        self._scalar(f"loss/{which}_bits", bits_of(nats), step)

    def sample(self, step: int, words: str) -> None:
        """Write a sample, as it is: indented, so that it is no Markdown."""
        indented = "\n".join(f"    {line}" for line in words.splitlines())
        self._write(step, summary=text("sample", indented))

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._write(step, summary=scalar(name, value))

    def _write(self, step: int, **what: Any) -> None:
        event = Event(step=step, wall_time=time.time(), **what)
        self._attempt(lambda writer: writer.write_event(event))

    def _attempt(self, act: Callable[[Any], object]) -> None:
        if self._writer is None:
            return
        try:
            act(self._writer)
        except OSError as error:
            with contextlib.suppress(OSError):
                self._writer.close()
            self._writer = None
            line = f"--tensorboard {self._directory}: {because(error)}: no more is written there"
            logger.warning(line)

    def close(self) -> None:
        """Write what is left."""
        newest, written = self._newest, self._written
        if newest is not None and (written is None or newest.step > written.step):
            self.point(newest)
        self._attempt(lambda writer: writer.close())
