"""TensorBoard's event files of a run: losses, speed, held-out loss, samples."""

import math
from pathlib import Path

from tensorboardX import SummaryWriter

from manychar.protocol.messages import Attendance, Dimensions, Report
from manychar.runtime.errors import UserError, because

FLUSH_EVERY = 2


class EventFiles:
    """A sink: writes a point for each report, against the step."""

    def __init__(self, directory: Path, dimensions: Dimensions) -> None:
        """Begin a new event file in the directory. Raises UserError."""
        self._seq_length = dimensions.seq_length
        self._before: Report | None = None
        self._judged: int | None = None
        try:
            self._writer = SummaryWriter(str(directory), flush_secs=FLUSH_EVERY)
        except OSError as error:
            raise UserError(f"--tensorboard {directory}: {because(error)}") from None

    def report(self, report: Report) -> None:
        """Write the losses, in nats a character, and the speed since the report before."""
        before, self._before = self._before, report
        if before is None or report.step > before.step:
            smooth = report.smooth_loss / self._seq_length
            self._add("loss/smooth_nats", smooth, report.step)
            self._add("loss/smooth_bits", smooth / math.log(2), report.step)
            if math.isfinite(report.loss):
                self._add("loss/step_nats", report.loss / self._seq_length, report.step)
        if before is not None and report.seconds > before.seconds and report.step > before.step:
            speed = (report.characters - before.characters) / (report.seconds - before.seconds)
            self._add("characters_per_second", speed, report.step)
        if report.validation is not None and report.judged != self._judged:
            self._judged = report.judged
            self._add("loss/held_out_nats", report.validation, report.judged)

    def _add(self, name: str, value: float, step: int | None) -> None:
        self._writer.add_scalar(name, value, step)

    def workers(self, workers: tuple[Attendance, ...]) -> None:
        """Write how many workers there are."""
        if self._before is not None:
            self._add("workers", float(len(workers)), self._before.step)

    def sample(self, step: int, text: str) -> None:
        """Write a sample, as it is: indented, so that it is no Markdown."""
        indented = "\n".join(f"    {line}" for line in text.splitlines())
        self._writer.add_text("sample", indented, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
