"""Where a run that is watched is passed on to, beside the person at the screen.

Whoever watches (the parent of a fleet, or `manychar follow`) tells every sink what it is told: the
server knows of none of them.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from manychar.protocol.messages import Attendance, Dimensions, Report, Roster
from manychar.runtime.extras import needing, require


class Sink(Protocol):
    """One place that a run is passed on to."""

    def report(self, report: Report) -> None:
        """Take how the run stands."""

    def workers(self, workers: tuple[Attendance, ...]) -> None:
        """Take how each worker has spent its time."""

    def sample(self, step: int, text: str) -> None:
        """Take what the weights of a step write."""

    def close(self) -> None:
        """Pass on what is left, and end."""


class Pages:
    """Puts together the rosters that come in several messages."""

    def __init__(self) -> None:
        self._workers: list[Attendance] = []

    def take(self, roster: Roster) -> tuple[Attendance, ...] | None:
        """Return all workers when the last page is there."""
        self._workers = [*self._workers[: roster.first], *roster.workers]
        return tuple(self._workers) if len(self._workers) == roster.total else None


def check(*, tensorboard: Path | None = None, metrics_port: int | None = None) -> None:
    """Raise UserError for a sink that could not be had, before anything is begun for it."""
    if tensorboard is not None:
        require("tensorboardX", "tensorboard", "--tensorboard")
    if metrics_port is not None:
        require("prometheus_client", "prometheus", "--metrics-port")
        from manychar.runtime.prometheus import require_free  # noqa: PLC0415 - an extra

        require_free(metrics_port)


@contextlib.contextmanager
def sinks(
    dimensions: Dimensions, *, tensorboard: Path | None = None, metrics_port: int | None = None
) -> Iterator[list[Sink]]:
    """Yield the sinks that are asked for; they are closed at the end.

    Raises UserError for what is not installed, or cannot be written or listened at.
    """
    with contextlib.ExitStack() as stack:
        found: list[Sink] = []
        if tensorboard is not None:
            with needing("tensorboard", "--tensorboard"):
                from manychar.runtime.tensorboard import EventFiles  # noqa: PLC0415 - an extra

            found.append(
                stack.enter_context(contextlib.closing(EventFiles(tensorboard, dimensions)))
            )
        if metrics_port is not None:
            with needing("prometheus", "--metrics-port"):
                from manychar.runtime.prometheus import Metrics  # noqa: PLC0415 - an extra

            found.append(Metrics(metrics_port, dimensions))
            stack.callback(found[-1].close)
        yield found
