"""Where a view comes from: the directory of a finished run, or a live server that may be lost."""

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from manychar.observability.dashboard import data_source, html
from manychar.observability.dashboard.data_source import (
    DataSource,
    FinishedRun,
    LiveServer,
    open_source,
)
from manychar.observability.dashboard.view import View
from manychar.observability.snapshot import Snapshot
from manychar.processes.errors import UserError
from manychar.storage.checkpoint import checkpoint_path
from manychar.storage.run_directory import locked, open_run
from tests.commands import SMALL, Commands, until
from tests.logs import write_losses
from tests.observability.test_observer_client import snapshot_of

READ = ("--lease-timeout", "0.5", "--checkpoint-every", "50")


def read(path: Path) -> View:
    """Read a run directory as it is: the logs, and each checkpoint."""
    source = FinishedRun(path)
    for _ in range(4):
        source.turn()
    return source.view


@pytest.mark.long
def test_a_finished_run_is_read_whole(trained: Path) -> None:
    view = read(trained)
    lines = (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    assert len(view.history.points) == len(lines)
    assert view.history.points[-1].smooth_loss == last["smooth_loss_nats_per_character"]
    assert (view.live, view.activity, view.steps) == (False, "at step 300", 300)
    assert [sample.step for sample in view.samples] == [0, 150, 300]
    for sample in view.samples:
        assert sample.states.shape == (len(sample.text), 8)
    assert np.abs(view.samples[-1].states).max() > 0.5
    assert view.checkpoint is not None
    assert view.checkpoint[0] == 300


def test_a_view_of_what_has_not_changed_is_the_same(trained: Path) -> None:
    source = FinishedRun(trained)
    for _ in range(4):
        source.turn()
    view = source.view
    source.turn()
    assert source.view is view


def test_validation_losses_are_read_and_the_best_is_named(trained: Path) -> None:
    write_losses(trained, {150: 1.5, 300: 1.7})
    with (trained / "validation.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step":4')
    view = read(trained)
    assert view.history.validation_losses == ((150, 1.5), (300, 1.7))
    assert view.best == 150


def test_a_torn_line_and_a_damaged_checkpoint_are_passed_over(
    trained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = trained / "metrics.jsonl"
    count = len(metrics.read_text(encoding="utf-8").splitlines())
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 400, "lo')
    path = checkpoint_path(trained / "checkpoints", 150)
    path.write_bytes(path.read_bytes()[:-9])
    view = read(trained)
    assert len(view.history.points) == count
    assert [sample.step for sample in view.samples] == [0, 300]
    assert [str(path) in line for line in caplog.messages] == [True]


def test_an_unreadable_validation_log_is_one_line(trained: Path) -> None:
    log = trained / "validation.jsonl"
    log.unlink(missing_ok=True)
    log.mkdir()
    with pytest.raises(UserError, match=r"validation\.jsonl"):
        FinishedRun(trained)


def test_a_run_that_has_a_server_is_watched_through_it(trained: Path) -> None:
    with locked(open_run(trained)), pytest.raises(UserError, match="is starting"):
        open_source(str(trained), None, connect_timeout=1.0)
    assert isinstance(open_source(str(trained), None, connect_timeout=1.0), FinishedRun)


class ClientOf:
    """An observer client that brings the given snapshots, one a turn."""

    end, connecting = None, False

    def __init__(self, *snapshots: Snapshot) -> None:
        self.socket = SimpleNamespace(poll=lambda _: 0)
        self._snapshots = list(snapshots)

    def turn(self) -> list[Snapshot]:
        return [self._snapshots.pop(0)]

    def request(self, kind: object) -> None:
        pass


def validated(snapshot: Snapshot) -> Snapshot:
    status = dataclasses.replace(
        snapshot.status, validated=10, validation_loss_nats_per_character=2.0
    )
    return dataclasses.replace(snapshot, status=status)


def test_a_workers_figures_are_recent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a run with validation."""
    client = ClientOf(validated(snapshot_of(10.0)), validated(snapshot_of(12.0, computing=0.9)))
    monkeypatch.setattr(data_source, "ObserverClient", lambda *_, **__: client)
    source = LiveServer("tcp://server:1", None, connect_timeout=1.0)
    source.turn()
    assert source.view.history.validation_losses == ((10, 2.0),)
    assert source.view.workers[0][5:9] == ["200", "90%", "40%", "10%"]


def test_a_relay_is_in_the_table_of_workers_and_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = snapshot_of(10.0)
    (ann,) = now.workers
    rack = ann._replace(name="rack"), ann._replace(relay="rack"), ann._replace(name="bob")
    client = ClientOf(now, dataclasses.replace(now, workers=rack))
    monkeypatch.setattr(data_source, "ObserverClient", lambda *_, **__: client)
    source = LiveServer("tcp://server:1", None, connect_timeout=1.0)
    source.turn()
    assert len(source.view.workers) == 3
    assert "<dt>workers</dt><dd>2</dd>" in html.figures(source.view)


@pytest.mark.long
def test_a_lost_server_is_waited_for_and_found_again(
    manychar: Commands, text: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "manychar")
    endpoint = f"ipc://{tmp_path}/s"
    run = ("--run-dir", "run", "--bind", endpoint, "--steps", "0")
    server = manychar.start("server", str(text), *SMALL, *READ, *run)
    server.wait_for("listens on|manychar worker")
    worker = manychar.start("worker", endpoint, "--name", "left")
    source = LiveServer(endpoint, None, connect_timeout=60.0)

    def view() -> View:
        source.turn()
        return source.view

    until(lambda: view().workers, "what a worker did")
    until(lambda: (known := view().checkpoint) and known[0] >= 50, "a checkpoint")
    server.send(9)
    server.end()
    until(lambda: view().activity == "waiting for the server", "its loss")
    again = manychar.start("server", "--resume", "run", "--bind", endpoint)
    until(lambda: view().activity == "training", "the run going on")
    steps = [point.step for point in source.view.history.points]
    assert steps == sorted(set(steps))
    assert manychar.run("stop", endpoint).code == 0
    until(lambda: not view().live, "the end")
    again.end()
    worker.end()
    source.close()


def test_a_fault_is_shown_and_not_swallowed() -> None:
    class Broken(DataSource):
        def update(self) -> None:
            raise RuntimeError("broken")

    source = Broken("run")
    with pytest.raises(RuntimeError, match="broken"):
        source.turn()
    assert (source.view.live, source.view.activity) == (False, "broken")
