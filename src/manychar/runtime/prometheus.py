"""A run's figures for Prometheus, at http://127.0.0.1:PORT/metrics."""

import socket
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from manychar.protocol.messages import Attendance, Dimensions, Report
from manychar.runtime.errors import UserError, because

LOOPBACK = "127.0.0.1"
_GAUGES = {
    "step": "Steps that are applied",
    "steps": "Steps in all, 0 for no end",
    "checkpoint": "Step of the newest checkpoint on disk",
    "checkpoint_age": "Seconds since it was written",
    "validation": "Held-out loss of the newest judged checkpoint, nats a character",
    "judged": "Its step",
    "best": "Step of the best checkpoint",
    "standing_by": "Workers without a shard",
}


class Metrics:
    """A sink: holds the newest figures, and answers whoever scrapes them."""

    def __init__(self, port: int, dimensions: Dimensions) -> None:
        """Listen on loopback. Raises UserError where the port is taken."""
        self._size = dimensions
        self._report: Report | None = None
        self._workers: tuple[Attendance, ...] = ()
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, LOOPBACK, registry)
        except (OSError, OverflowError) as error:
            why = because(error) if isinstance(error, OSError) else str(error)
            raise UserError(f"--metrics-port {port}: {why}; choose another") from None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def report(self, report: Report) -> None:
        """Take how the run stands."""
        self._report = report

    def workers(self, workers: tuple[Attendance, ...]) -> None:
        """Take how each worker has spent its time."""
        self._workers = workers

    def sample(self, step: int, text: str) -> None:
        """Pass over: a sample is no figure."""

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield the families of figures as they are now."""
        if (report := self._report) is None:
            return
        for name, text in _GAUGES.items():
            if (value := getattr(report, name)) is not None:
                yield GaugeMetricFamily(f"manychar_{name}", text, value=value)
        for name, loss in (("loss", report.loss), ("smooth_loss", report.smooth_loss)):
            text = "Training loss, nats a character"
            yield GaugeMetricFamily(f"manychar_{name}", text, value=loss / self._size.seq_length)
        yield CounterMetricFamily(
            "manychar_characters", "Characters that were trained on", value=report.characters
        )
        dropped = CounterMetricFamily("manychar_dropped", "Dropped or done again", labels=["what"])
        for what, count in report.counts.items():
            dropped.add_metric([what], count)
        yield dropped
        yield from self._of_workers()

    def _of_workers(self) -> Iterator[Metric]:
        labels = ["worker", "host"]
        leases = GaugeMetricFamily("manychar_worker_shards", "Shards that it holds", labels=labels)
        late = GaugeMetricFamily(
            "manychar_worker_late_seconds",
            "How long the run's step has waited for it",
            labels=labels,
        )
        units = CounterMetricFamily(
            "manychar_worker_gradients", "Gradients of it that counted", labels=labels
        )
        seconds = CounterMetricFamily(
            "manychar_worker_seconds", "How it spent its time", labels=[*labels, "doing"]
        )
        for worker in self._workers:
            who = [worker.name, worker.host]
            leases.add_metric(who, worker.leases)
            late.add_metric(who, worker.late)
            units.add_metric(who, worker.units)
            for doing, spent in time_of(worker).items():
                seconds.add_metric([*who, doing], spent)
        yield from (leases, late, units, seconds)


def require_free(port: int) -> None:
    """Raise UserError where nobody could listen at this port."""
    try:
        socket.create_server((LOOPBACK, port)).close()
    except (OSError, OverflowError) as error:
        why = because(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"--metrics-port {port}: {why}; choose another") from None


def time_of(worker: Attendance) -> dict[str, float]:
    """Return the seconds of a worker by what it did."""
    rest = max(0.0, worker.present - worker.computing - worker.waiting)
    return {"computing": worker.computing, "exchanging": rest, "waiting": worker.waiting}
