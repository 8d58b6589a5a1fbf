"""Where the page's view comes from: a live server, or the directory of a run that has none.

All of it happens in the web server's own thread, in short turns.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from manychar.network.endpoints import is_endpoint
from manychar.network.keys import ClientKey
from manychar.numerics.model import Model, activations
from manychar.numerics.run_definition import Definition
from manychar.observability.dashboard.view import MOST_POINTS, MOST_SAMPLES, Sample, View
from manychar.observability.history import point_of, read_history
from manychar.observability.model_source import model_of, training_sample
from manychar.observability.observer_client import ENDED_WELL, TURN_MS, ObserverClient
from manychar.observability.snapshot import Snapshot
from manychar.observability.status import rows_of
from manychar.processes.errors import RUN_FAILED, UserError
from manychar.processes.log import logger
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.messages import Weights, WeightsRequest
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.run_directory import open_run
from manychar.storage.server_address import is_served
from manychar.storage.validation_log import best_checkpoint

TURN_EVERY = 0.2
SAMPLE_LENGTH = 300
RECONNECT_TIMEOUT = 600.0
FACTS = ("hidden", "seq_length", "streams", "shards", "dtype")


class DataSource:
    """Keeps `view` up to date by a turn every TURN_EVERY seconds."""

    def __init__(self, source: str) -> None:
        self.view = View(source=source)

    def turn(self) -> None:
        """Update the view. A fault is shown, too, and is the last turn of a live run."""
        try:
            self.update()
        except Exception as error:
            self._set(live=False, activity=str(error) or repr(error))
            raise

    def update(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """End the connection to a server, if there is one."""

    def _set(self, **values: Any) -> None:
        self.view = dataclasses.replace(self.view, **values)


class LiveServer(DataSource):
    """A live server. Raises UserError where it sends no status within `connect_timeout` seconds."""

    def __init__(self, source: str, key: ClientKey | None, *, connect_timeout: float) -> None:
        super().__init__(source)
        self._client = ObserverClient(source, key, connect_timeout=connect_timeout)
        while not self.view.run:
            self._client.socket.poll(TURN_MS)
            self._receive()
            if (end := self._client.end) is not None:
                self._client.close()
                raise UserError(end.reason, code=end.code or RUN_FAILED)
        if not is_endpoint(source):
            self._set(history=read_history(open_run(Path(source))).thinned(MOST_POINTS))

    def update(self) -> None:
        """Receive until the run ends; connect again where the server is lost."""
        if not self.view.live:
            return
        self._receive()
        if self._client.connecting:
            self._set(activity="waiting for the server")
        if (end := self._client.end) is None:
            return
        if self._client.connecting:
            self._client.connect(RECONNECT_TIMEOUT)
        else:
            activity = end.reason if end.code in ENDED_WELL else f"failed: {end.reason}"
            self._set(live=False, activity=activity)

    def close(self) -> None:
        self._client.close()

    def _receive(self) -> None:
        for event in self._client.turn():
            if isinstance(event, Snapshot):
                self._show(event)
            elif isinstance(event, Weights) and (welcome := self._client.welcome) is not None:
                model = model_of(welcome, event)
                sample = sample_of(model, seed=welcome.seed, step=event.version)
                self.view = self.view.with_sample(sample)

    def _show(self, snapshot: Snapshot) -> None:
        status = snapshot.status
        if status.run_id != self.view.run:
            self._client.request(WeightsRequest)
        nats = status.validation_loss_nats_per_character
        step = status.validated
        validation = None if step is None or nats is None else (step, nats)
        view = self.view.of_run(status.run_id, _facts(snapshot.dimensions))
        self.view = view.with_point(point_of(snapshot), validation)
        self._set(
            live=True,
            activity=f"waiting for {status.waiting_for}" if status.waiting_for else "training",
            steps=status.steps,
            best=status.best,
            workers=rows_of(snapshot),
            without_relays=len(snapshot.without_relays),
            counts=dict(status.counts),
            checkpoint=(status.checkpoint, time.time() - status.checkpoint_age_seconds),
        )


class FinishedRun(DataSource):
    """A run directory without a server. Raises UserError where it is none, or cannot be read."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._directory = directory = open_run(path)
        checkpoints, history = list_checkpoints(directory.checkpoints), read_history(directory)
        self._unread = checkpoints[-MOST_SAMPLES:]
        last = history.points[-1].step if history.points else 0
        self._set(
            run=directory.run_id,
            facts=_facts(directory.definition),
            history=history.thinned(MOST_POINTS),
            steps=directory.operation.steps,
            live=False,
            activity=f"at step {last:,}",
            best=best_checkpoint(directory, dict(history.validation_losses)),
            checkpoint=(directory.newest_step(), 0.0) if checkpoints else None,
        )

    def update(self) -> None:
        """Read one more checkpoint, the newest first; what cannot be read is logged."""
        if not self._unread:
            return
        step, path = self._unread.pop()
        try:
            checkpoint = self._directory.read(path)
        except UserError as error:
            logger.warning(str(error))
            return
        model = checkpoint.state.parameters, checkpoint.vocabulary
        seed = self._directory.definition.seed
        self.view = self.view.with_sample(sample_of(model, seed=seed, step=step))


def sample_of(model: Model, *, seed: int, step: int) -> Sample:
    """Return the sample that the run itself shows of a step, longer, with its hidden states."""
    parameters, vocabulary = model
    text = training_sample(model, seed=seed, step=step, length=SAMPLE_LENGTH)
    start = max(vocabulary.find("\n"), 0)  # the character that the sample follows
    ids = np.array([start, *map(vocabulary.index, text)], np.intp)
    return Sample(step, text, activations(parameters, ids)[1:].astype(np.float32))


def _facts(of: Definition | Dimensions) -> dict[str, str]:
    return {name: str(getattr(of, name)) for name in FACTS}


def open_source(source: str, key: ClientKey | None, *, connect_timeout: float) -> DataSource:
    """Return what shows a live server's endpoint or a run directory. Raises UserError."""
    if is_endpoint(source) or is_served(Path(source)):
        return LiveServer(source, key, connect_timeout=connect_timeout)
    return FinishedRun(Path(source))
