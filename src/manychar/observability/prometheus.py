"""A run's figures for Prometheus, at http://127.0.0.1:PORT/metrics."""

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from manychar.processes.errors import UserError, because
from manychar.protocol.messages import Dimensions, Report, WorkerStats

LOOPBACK = "127.0.0.1"
STATES = ("working", "standby", "silent")
_GAUGES = {
    "step": "Steps that are applied",
    "steps": "Steps in all, 0 for no end",
    "checkpoint": "Step of the newest checkpoint on disk",
    "validation": "Held-out loss of the newest judged checkpoint, nats a character",
    "validated": "Its step",
    "best": "Step of the best checkpoint",
}


def require_free(port: int) -> None:
    """Raise UserError where nobody can listen at that port of loopback now."""
    with _refusing(port), socket.create_server((LOOPBACK, port)):
        pass


@contextlib.contextmanager
def _refusing(port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, OverflowError) as error:
        why = because(error) if isinstance(error, OSError) else str(error)
        raise UserError(f"--metrics-port {port}: {why}; choose another") from None


class Metrics:
    """A sink: holds the newest figures, and answers whoever scrapes them."""

    def __init__(self, port: int, dimensions: Dimensions) -> None:
        """Listen on loopback. Raises UserError where the port is taken."""
        self._size = dimensions
        self._report: Report | None = None
        self._workers: tuple[WorkerStats, ...] = ()
        self._characters = 0
        self._reported_at = self._heard_at = time.monotonic()
        registry = CollectorRegistry()
        registry.register(self)
        with _refusing(port):
            self._server, self._thread = start_http_server(port, LOOPBACK, registry)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def report(self, report: Report) -> None:
        """Take how the run stands."""
        before = self._report.characters if self._report else 0
        self._characters += max(0, report.characters - before)
        self._report = report
        self._reported_at = self._heard_at = time.monotonic()

    def workers(self, workers: tuple[WorkerStats, ...]) -> None:
        """Take how each worker has spent its time."""
        self._workers = workers
        self._heard_at = time.monotonic()

    def sample(self, step: int, text: str) -> None:
        """Pass over: a sample is no figure."""

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield the families of figures as they are now."""
        if self._report is not None:
            yield from self._of_run(self._report)
            yield from self._of_workers()

    def _of_run(self, report: Report) -> Iterator[Metric]:
        for name, text in _GAUGES.items():
            if (value := getattr(report, name)) is not None:
                yield _gauge(name, text, value)
        for name in ("loss", "smooth_loss"):
            nats = getattr(report, name) / self._size.seq_length
            yield _gauge(name, "Training loss, nats a character", nats)
        now = time.monotonic()
        age = report.checkpoint_age + now - self._reported_at
        yield _gauge("checkpoint_age_seconds", "Since that one was written", age)
        silence = now - self._heard_at
        yield _gauge("silence_seconds", "Since the server was last heard", silence)
        text = "Characters that were trained on, steps that were done again included"
        yield CounterMetricFamily("manychar_characters", text, value=self._characters)
        dropped = CounterMetricFamily("manychar_dropped", "Dropped or done again", labels=["what"])
        for what, count in report.counts.items():
            dropped.add_metric([what], count)
        yield dropped

    def _of_workers(self) -> Iterator[Metric]:
        counted = Counter(worker.state for worker in self._workers)
        there = GaugeMetricFamily("manychar_workers", "Workers by state", labels=["state"])
        for state in sorted({*STATES, *counted}):
            there.add_metric([state], counted[state])
        yield there
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


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"manychar_{name}", text, value=value)


def time_of(worker: WorkerStats) -> dict[str, float]:
    """Return the seconds of a worker by what it did."""
    rest = max(0.0, worker.present - worker.computing - worker.waiting)
    return {"computing": worker.computing, "exchanging": rest, "waiting": worker.waiting}
