"""A run's figures for Prometheus, at http://HOST:PORT/metrics."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from manychar.network.endpoints import bracketed
from manychar.observability.snapshot import Snapshot
from manychar.processes.log import logger
from manychar.protocol import counters
from manychar.protocol.status_report import WORKERS_A_SECOND
from manychar.protocol.worker_tally import WorkerStats

STATES = ("working", "idle", "slow", "silent")
LABELS = ("worker", "host", "relay")
SILENT_AFTER = 10.0  # seconds: then what is known of the workers is out of date
LOSS = "loss_nats_per_character"
VALIDATION_LOSS, SMOOTH_LOSS = f"validation_{LOSS}", f"smooth_{LOSS}"


class Metrics:
    """Holds the newest figures, and answers requests for them."""

    def __init__(self, host: str, port: int) -> None:
        """Listen. Raises OSError."""
        self._snapshot: Snapshot | None = None
        self._characters = 0
        self._received_at = time.monotonic()
        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(port, host, registry)
        self._url = f"http://{bracketed(host)}:{self.port}/metrics"

    @property
    def port(self) -> int:
        return int(self._server.server_port)

    def status(self, snapshot: Snapshot) -> None:
        if self._snapshot is None:  # not before there is a run
            logger.info(f"figures for Prometheus: {self._url}")
        before = self._snapshot.status.characters if self._snapshot else 0
        self._characters += max(0, snapshot.status.characters - before)
        self._snapshot = snapshot
        self._received_at = time.monotonic()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def collect(self) -> Iterator[Metric]:
        if (snapshot := self._snapshot) is None:
            return
        status, silence = snapshot.status, time.monotonic() - self._received_at
        age = status.checkpoint_age_seconds + silence
        gauges = (
            ("step", "Steps that are applied", status.step),
            ("steps", "Steps of the whole run, 0 for no end", status.steps),
            (LOSS, "Mean loss of the last 100 steps at most", status.loss_nats_per_character),
            (VALIDATION_LOSS, "The newest", status.validation_loss_nats_per_character),
            (SMOOTH_LOSS, "As in min-char-rnn", status.smooth_loss_nats_per_character),
            ("checkpoint", "Step of the newest checkpoint on disk", status.checkpoint),
            ("checkpoint_age_seconds", "Age of that checkpoint", age),
            ("validated", "Step of the newest validation loss", status.validated),
            ("best", "Step of the best checkpoint", status.best),
            ("silence_seconds", "Time since the server's last status", silence),
        )
        for name, text, value in gauges:
            if value is not None:
                yield GaugeMetricFamily(f"manychar_{name}", text, value=value)
        text = "Characters trained on, repeated steps included"
        yield CounterMetricFamily("manychar_characters", text, value=self._characters)
        dropped = CounterMetricFamily("manychar_dropped", "Dropped or done again", labels=["what"])
        for what in sorted({*counters.Counter, *status.counts}):  # 0, too: for `increase`
            dropped.add_metric([what], status.counts.get(what, 0))
        yield dropped
        page_interval = len(snapshot.workers) / WORKERS_A_SECOND
        if silence < SILENT_AFTER + page_interval:
            yield from _of_workers(snapshot.workers, snapshot.without_relays)


def _of_workers(
    workers: Sequence[WorkerStats], without_relays: Sequence[WorkerStats]
) -> Iterator[Metric]:
    by_state = GaugeMetricFamily("manychar_workers", "Workers by state", labels=["state"])
    counts = Counter(each.state for each in without_relays)
    for state in sorted({*STATES, *counts}):
        by_state.add_metric([state], counts[state])
    text = "How long the run's step has waited for it"
    late = GaugeMetricFamily("manychar_worker_late_seconds", text, labels=LABELS)
    shards = GaugeMetricFamily("manychar_worker_shards", "Shards that it holds", labels=LABELS)
    text = "Its accepted gradients"
    gradients = CounterMetricFamily("manychar_worker_gradients", text, labels=LABELS)
    text = "Shares of its last ten seconds"
    shares = GaugeMetricFamily("manychar_worker_share", text, labels=[*LABELS, "doing"])
    alike: dict[tuple[str, str, str], list[WorkerStats]] = {}
    for worker in workers:  # two of one name and host would make a series twice
        alike.setdefault((worker.name, worker.host, worker.relay), []).append(worker)
    for labels, each in alike.items():
        late.add_metric(labels, max(worker.late_seconds for worker in each))
        shards.add_metric(labels, sum(worker.shards for worker in each))
        gradients.add_metric(labels, sum(worker.gradients for worker in each))
        for doing in ("computing", "exchanging", "waiting", "straggling"):
            mean = sum(getattr(worker, doing) for worker in each) / len(each)
            shares.add_metric([*labels, doing], mean)
    yield from (by_state, late, shards, gradients, shares)
