"""A run's figures for Prometheus, at http://127.0.0.1:PORT/metrics."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from manychar.observability.snapshot import Snapshot
from manychar.protocol.messages import WorkerStats

STATES = ("working", "standby", "silent")
Family = GaugeMetricFamily | CounterMetricFamily


class Metrics:
    """An exporter: holds the newest figures, and answers requests for them."""

    def __init__(self, host: str, port: int) -> None:
        """Listen. Raises OSError."""
        self._snapshot: Snapshot | None = None
        self._characters = 0
        self._received_at = time.monotonic()
        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(port, host, registry)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_port)

    def status(self, snapshot: Snapshot) -> None:
        """Keep the newest figures."""
        before = self._snapshot.status.characters if self._snapshot else 0
        self._characters += max(0, snapshot.status.characters - before)
        self._snapshot = snapshot
        self._received_at = time.monotonic()

    def sample(self, step: int, text: str) -> None:
        """Do nothing: a sample is not a figure."""

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        """Yield the families of figures as they are now."""
        if (snapshot := self._snapshot) is None:
            return
        status, silence = snapshot.status, time.monotonic() - self._received_at
        loss = status.loss / snapshot.dimensions.seq_length
        gauges = (
            ("step", "Steps that are applied", status.step),
            ("steps", "Steps of the whole run, 0 for no end", status.steps),
            ("loss", "Training loss of the last step, nats a character", loss),
            ("smooth_loss", "Smoothed training loss, nats a character", snapshot.nats),
            ("checkpoint", "Step of the newest checkpoint on disk", status.checkpoint),
            ("checkpoint_age_seconds", "Age of that checkpoint", status.checkpoint_age + silence),
            ("validation", "Newest validation loss, nats a character", status.validation),
            ("validated", "Step of the newest validation loss", status.validated),
            ("best", "Step of the best checkpoint", status.best),
            ("silence_seconds", "Time since the server's last status", silence),
        )
        for name, text, value in gauges:
            if value is not None:
                yield GaugeMetricFamily(f"manychar_{name}", text, value=value)
        text = "Characters that were trained on, steps that were done again included"
        yield CounterMetricFamily("manychar_characters", text, value=self._characters)
        dropped = CounterMetricFamily("manychar_dropped", "Dropped or done again", labels=["what"])
        yield _filled(dropped, (([what], count) for what, count in status.counts.items()))
        yield from _of_workers(snapshot.workers)


def _of_workers(workers: Sequence[WorkerStats]) -> Iterator[Metric]:
    counted = Counter(worker.state for worker in workers)
    states = sorted({*STATES, *counted})
    by_state = GaugeMetricFamily("manychar_workers", "Workers by state", labels=["state"])
    yield _filled(by_state, (([state], counted[state]) for state in states))
    labels = ("worker", "host")
    shards = GaugeMetricFamily("manychar_worker_shards", "Shards that it holds", labels=labels)
    yield _filled(shards, ((worker[:2], worker.leases) for worker in workers))
    text = "How long the run's step has waited for it"
    late = GaugeMetricFamily("manychar_worker_late_seconds", text, labels=labels)
    yield _filled(late, ((worker[:2], worker.late) for worker in workers))
    text = "Its accepted gradients"
    gradients = CounterMetricFamily("manychar_worker_gradients", text, labels=labels)
    yield _filled(gradients, ((worker[:2], worker.units) for worker in workers))
    text = "How it spent its time"
    seconds = CounterMetricFamily("manychar_worker_seconds", text, labels=[*labels, "doing"])
    for doing in ("computing", "exchanging", "waiting"):
        _filled(seconds, (((*worker[:2], doing), getattr(worker, doing)) for worker in workers))
    yield seconds


def _filled(family: Family, values: Iterable[tuple[Sequence[str], float]]) -> Family:
    for labels, value in values:
        family.add_metric(labels, value)
    return family
