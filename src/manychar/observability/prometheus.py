"""A run's figures for Prometheus, at http://127.0.0.1:PORT/metrics."""

import contextlib
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError, because
from manychar.protocol.messages import Dimensions, Status, WorkerStats

LOOPBACK = "127.0.0.1"
STATES = ("working", "standby", "silent")
_GAUGES = {
    "step": "Steps that are applied",
    "steps": "Steps in all, 0 for no end",
    "checkpoint": "Step of the newest checkpoint on disk",
    "validation": "Validation loss of the newest validated checkpoint, nats a character",
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
    """An exporter: holds the newest figures, and answers whoever scrapes them."""

    def __init__(self, port: int, dimensions: Dimensions) -> None:
        """Listen on loopback. Raises UserError where the port is taken."""
        self._size = dimensions
        self._snapshot: Snapshot | None = None
        self._characters = 0
        self._heard_at = time.monotonic()
        registry = CollectorRegistry()
        registry.register(self)
        with _refusing(port):
            self._server, self._thread = start_http_server(port, LOOPBACK, registry)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def status(self, snapshot: Snapshot) -> None:
        """Keep the newest figures."""
        before = self._snapshot.status.characters if self._snapshot else 0
        self._characters += max(0, snapshot.status.characters - before)
        self._snapshot = snapshot
        self._heard_at = time.monotonic()

    def sample(self, step: int, text: str) -> None:
        """Do nothing: a sample is not a figure."""

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield the families of figures as they are now."""
        if (snapshot := self._snapshot) is not None:
            yield from self._of_run(snapshot.status)
            yield from _of_workers(snapshot.workers)

    def _of_run(self, report: Status) -> Iterator[Metric]:
        for name, text in _GAUGES.items():
            if (value := getattr(report, name)) is not None:
                yield _gauge(name, text, value)
        for name in ("loss", "smooth_loss"):
            nats = getattr(report, name) / self._size.seq_length
            yield _gauge(name, "Training loss, nats a character", nats)
        silence = time.monotonic() - self._heard_at
        age = report.checkpoint_age + silence
        yield _gauge("checkpoint_age_seconds", "Since that one was written", age)
        yield _gauge("silence_seconds", "Since the server was last heard", silence)
        text = "Characters that were trained on, steps that were done again included"
        yield CounterMetricFamily("manychar_characters", text, value=self._characters)
        dropped = CounterMetricFamily("manychar_dropped", "Dropped or done again", labels=["what"])
        for what, count in report.counts.items():
            dropped.add_metric([what], count)
        yield dropped


def _of_workers(workers: Sequence[WorkerStats]) -> Iterator[Metric]:
    counted = Counter(worker.state for worker in workers)
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
    for worker in workers:
        who = [worker.name, worker.host]
        leases.add_metric(who, worker.leases)
        late.add_metric(who, worker.late)
        units.add_metric(who, worker.units)
        for doing in ("computing", "exchanging", "waiting"):
            seconds.add_metric([*who, doing], getattr(worker, doing))
    yield from (leases, late, units, seconds)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"manychar_{name}", text, value=value)
