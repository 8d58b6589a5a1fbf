"""TensorBoard's event files of a run: losses, speed, validation loss, samples.

tensorboardX's SummaryWriter writes in a thread behind a queue of ten: on a full disk the thread
ends, and the next call blocks forever. So its parts are used here, one after the other.
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

from manychar.observability.history import Point, point_of, recent_speed
from manychar.observability.snapshot import Exporter, Snapshot
from manychar.processes.errors import because

logger = logging.getLogger(__name__)

POINT_EVERY, FLUSH_EVERY = 1.0, 5.0


class EventFiles(Exporter):
    """An exporter: writes a point a second, and the last one, against the step.

    A write that fails is logged, and is the last one.
    """

    def __init__(self, directory: Path) -> None:
        """Begin a new event file in the directory. Raises OSError."""
        self._directory = directory
        self._newest: Point | None = None
        self._written: Point | None = None
        self._term: int | None = None
        self._validated: int | None = None
        self._flush_at = 0.0
        directory.mkdir(parents=True, exist_ok=True)
        self._writer: Any = EventsWriter(str(directory / "events"), f".{os.getpid()}")
        self._writer.flush()

    def status(self, snapshot: Snapshot) -> None:
        """Write the losses, the speed since the last point, and the number of workers."""
        status = snapshot.status
        if status.term != self._term:  # after a restart, TensorBoard drops this step and later ones
            self._term, self._flush_at = status.term, 0.0
            self._written = self._validated = None
            self._write(status.step, session_log=SessionLog(status=SessionLog.START))
        if status.validated is not None and status.validation is not None:
            self.validation(status.validated, status.validation)
        self._newest = point_of(snapshot)
        if self._written is None or status.seconds >= self._written.seconds + POINT_EVERY:
            self._scalar("workers", float(len(snapshot.workers)), status.step)
            self.point(self._newest)

    def validation(self, step: int, nats: float) -> None:
        """Write the validation loss of a checkpoint, once."""
        if step != self._validated:
            self._validated = step
            self._scalar("loss/validation_nats", nats, step)

    def point(self, point: Point) -> None:
        before, self._written = self._written, point
        if math.isfinite(point.loss):
            self._scalar("loss/step_nats", point.loss, point.step)
        self._scalar("loss/smooth_nats", point.smooth_loss, point.step)
        if before is not None and (speed := recent_speed([before, point])) is not None:
            self._scalar("characters_per_second", speed, point.step)
        if point.seconds >= self._flush_at:
            self._flush_at = point.seconds + FLUSH_EVERY
            self._attempt(lambda writer: writer.flush())

    def sample(self, step: int, words: str) -> None:
        """Write a sample, indented: as it is, not as Markdown."""
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
        newest, written = self._newest, self._written
        if newest is not None and (written is None or newest.step > written.step):
            self.point(newest)
        self._attempt(lambda writer: writer.close())
