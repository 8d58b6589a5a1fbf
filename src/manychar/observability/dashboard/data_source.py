"""Fills a History, in a thread of its own: from a live server, or from a run directory.

A live server is watched as any observer does: it knows no more of this page than of `status`. A
run directory is read, and read again where it has changed, so it may be finished or still growing.
"""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from manychar.network.endpoints import is_endpoint
from manychar.network.keys import ClientKey
from manychar.numerics.activations import activations
from manychar.numerics.model import Parameters
from manychar.observability.dashboard.run_history import History, Judgement, Moment, Point
from manychar.observability.model_source import training_sample
from manychar.observability.observer_client import ENDED_WELL, ObserverClient, model_of
from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import RUN_FAILED, UserError
from manychar.protocol.effects import Finish, Log
from manychar.protocol.messages import Weights, Welcome
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.metrics import METRICS_NAME, read_metrics
from manychar.storage.run_directory import is_served, open_run
from manychar.storage.validation_log import VALIDATION_NAME, is_over, read_validation_losses

logger = logging.getLogger(__name__)


SAMPLE_LENGTH = 300
TURN_SECONDS = 0.1
PATIENCE_AFTER_LOSS = 600.0
LOOK_EVERY = 2.0
MOST_CHECKPOINTS = 12


class Feed:
    """A thread that fills a History until it is stopped."""

    def __init__(self, work: Callable[[threading.Event], None], history: History) -> None:
        self._work = work
        self._history = history
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End in good order."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work(self._stopped)
        except UserError as error:
            logger.error(str(error))
            self._history.notice(str(error))
            self._history.know(live=False, state=str(error))
        except BaseException as error:
            self._history.know(live=False, state=f"a fault of this page: {error!r}")
            raise


class Live:
    """A live server, watched. The first visit is made where it is built: it may be refused."""

    def __init__(
        self,
        endpoint: str,
        key: ClientKey | None,
        history: History,
        *,
        connect_timeout: float,
    ) -> None:
        """Wait for the first status. Raises UserError after `connect_timeout` seconds."""
        self._endpoint, self._key, self._history = endpoint, key, history
        self._client = ObserverClient(endpoint, key, connect_timeout=connect_timeout)
        while not history.view().points:
            if (end := self._turn()) is not None:
                self._client.close()
                raise UserError(end.reason, code=end.code or RUN_FAILED)

    def __call__(self, stopped: threading.Event) -> None:
        """Watch until the run ends or `stopped` is set; knock again where the server is lost."""
        try:
            while not stopped.is_set():
                if (end := self._turn()) is None:
                    continue
                if not self._client.connecting:
                    self._history.know(live=False, state=_ending(end))
                    return
                self._history.notice(end.reason)
                self._client.connect(PATIENCE_AFTER_LOSS)
        finally:
            self._client.close()

    def _turn(self) -> Finish | None:
        """Take what has come; return how the run ended, once it has."""
        client = self._client
        client.socket.poll(int(1000 * TURN_SECONDS))
        for event in client.turn():
            if isinstance(event, Snapshot):
                self._show(event)
            elif isinstance(event, Log):
                self._history.notice(event.text)
            elif client.welcome is not None:
                self._history.moment(moment_of(client.welcome, event))
        if client.connecting and self._history.view().points:
            self._history.know(state=f"waiting for the server at {self._endpoint}")
        return client.end

    def _show(self, snapshot: Snapshot) -> None:
        history, status, size = self._history, snapshot.status, snapshot.dimensions
        if not history.view().points:
            self._client.request_weights()
        history.begin(status.run, _facts(dataclasses.asdict(size)))
        history.point(
            Point(
                step=status.step,
                seconds=status.seconds,
                characters=status.characters,
                nats=status.loss / size.seq_length,
                smooth=snapshot.nats,
            )
        )
        if status.validated is not None and status.validation is not None:
            history.judgement(Judgement(status.validated, status.validation))
        if status.first < status.total:
            history.roster(snapshot.workers, time.monotonic())
        waiting_for = status.waiting_for or ("" if snapshot.working else "a worker: none is here")
        history.know(
            live=True,
            state=f"waiting for {waiting_for}" if waiting_for else "training",
            steps=status.steps,
            best=status.best,
            counts=dict(status.counts),
            checkpoint=(status.checkpoint, time.time() - status.checkpoint_age),
        )


class Directory:
    """A run directory, read again where it has changed. Raises UserError where it is none."""

    def __init__(self, path: Path, history: History) -> None:
        self._run = open_run(path)
        self._history = history
        self._seen: dict[Path, int] = {}
        self._served: bool | None = None
        history.begin(self._run.run, _facts(dataclasses.asdict(self._run.definition)))
        self._read_course()

    def __call__(self, stopped: threading.Event) -> None:
        """Read what is new until `stopped` is set."""
        while not stopped.is_set():
            self.read(stopped.is_set)
            stopped.wait(LOOK_EVERY)

    def read(self, stopped: Callable[[], bool] = bool) -> None:
        """Read what is new, once; break off where `stopped` says so."""
        self._read_course()
        self._read_checkpoints(stopped)

    def _read_course(self) -> None:
        metrics, validation = (self._run.path / name for name in (METRICS_NAME, VALIDATION_NAME))
        served, before = is_served(self._run.path), self._served
        self._served = served
        if not any([self._has_changed(metrics), self._has_changed(validation), served != before]):
            return
        points = [self._point(values) for values in read_metrics(self._run.path)]
        validated = [
            Judgement(*verdict) for verdict in sorted(read_validation_losses(self._run).items())
        ]
        self._history.course(points, validated)
        steps, last = self._run.operation.steps, points[-1].step if points else 0
        self._history.know(
            steps=steps,
            live=served,
            state=self._state(last),
            best=min(validated, key=lambda one: (one.nats, one.step)).step if validated else None,
        )

    def _state(self, last: int) -> str:
        if self._served:
            return f"on disk up to step {last:,}"
        if 0 < self._run.operation.steps <= last:
            return "finished"
        if is_over(self._run, last):
            return f"finished at step {last:,}: no better for long enough"
        return f"stopped after step {last:,}; manychar train --resume goes on"

    def _point(self, values: dict[str, Any]) -> Point:
        characters = self._run.definition.seq_length
        return Point(
            step=int(values["step"]),
            seconds=float(values.get("seconds", 0.0)),
            characters=int(values["characters"]),
            nats=float(values["loss"]) / characters,
            smooth=float(values["smooth_loss"]) / characters,
        )

    def _read_checkpoints(self, stopped: Callable[[], bool]) -> None:
        checkpoints = list_checkpoints(self._run.checkpoints)
        if checkpoints:
            step, newest = checkpoints[-1]
            with contextlib.suppress(OSError):
                self._history.know(checkpoint=(step, newest.stat().st_mtime))
        for _, path in reversed(_spread(checkpoints, MOST_CHECKPOINTS)):
            if self._has_changed(path) and not stopped():
                self._read_checkpoint(path)

    def _read_checkpoint(self, path: Path) -> None:
        try:
            checkpoint = self._run.read(path)
        except UserError as error:
            self._history.notice(str(error))
            return
        state, seed = checkpoint.state, self._run.definition.seed
        moment = _moment(state.parameters, checkpoint.vocabulary, seed=seed, step=state.step)
        self._history.moment(moment)

    def _has_changed(self, path: Path) -> bool:
        """Whether a file has another size than when this was last asked."""
        try:
            size = path.stat().st_size
        except OSError:
            return False
        before = self._seen.get(path)
        self._seen[path] = size
        return size != before


def moment_of(welcome: Welcome, weights: Weights) -> Moment:
    """Return what a live server's weights write: the sample that its own progress shows, longer."""
    parameters, vocabulary = model_of(welcome, weights)
    return _moment(parameters, vocabulary, seed=welcome.seed, step=weights.version)


def _moment(parameters: Parameters, vocabulary: str, *, seed: int, step: int) -> Moment:
    text = training_sample(parameters, vocabulary, seed=seed, step=step, length=SAMPLE_LENGTH)
    id_of = {character: i for i, character in enumerate(vocabulary)}
    start = "\n" if "\n" in id_of else vocabulary[0]  # what the sample was begun with
    ids = np.array([id_of[character] for character in start + text], np.intp)
    return Moment(step, text, activations(parameters, ids)[1:].astype(np.float32))


def _facts(values: dict[str, Any]) -> dict[str, str]:
    names = {
        "hidden": "hidden units",
        "seq_length": "characters a step",
        "shards": "shards",
        "streams": "streams a shard",
        "dtype": "precision",
    }
    return {shown: str(values[name]) for name, shown in names.items() if name in values}


def _ending(end: Finish) -> str:
    return end.reason if end.code in ENDED_WELL else f"failed: {end.reason}"


def _spread(entries: list[Any], most: int) -> list[Any]:
    """Return at most `most` of the entries, spread evenly, the first and the last among them."""
    if len(entries) <= most:
        return entries
    return [entries[round(i * (len(entries) - 1) / (most - 1))] for i in range(most)]


def open_feed(
    source: str, key: ClientKey | None, *, connect_timeout: float
) -> tuple[History, Feed]:
    """Return a History of a live server's endpoint or a run directory, and what fills it.

    Raises UserError where there is nothing to watch.
    """
    history = History(source)
    work: Live | Directory
    if is_endpoint(source):
        work = Live(source, key, history, connect_timeout=connect_timeout)
    else:
        work = Directory(Path(source), history)
    return history, Feed(work, history)
