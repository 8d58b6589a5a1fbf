"""What fills a history: a run directory that may still grow, a live server that may be lost."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from manychar.observability.dashboard.data_source import Directory, Feed, open_feed
from manychar.observability.dashboard.run_history import History
from manychar.storage.checkpoint import checkpoint_path
from manychar.storage.run_directory import locked, open_run
from tests.commands import SMALL, Commands, until
from tests.logs import write_losses

READ = ("--lease-timeout", "0.5", "--checkpoint-every", "50")


def read(path: Path) -> History:
    """Read a run directory once, as it is."""
    history = History(str(path))
    Directory(path, history).read()
    return history


def test_a_finished_run_is_read_whole(trained: Path) -> None:
    view = read(trained).view()
    lines = (trained / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    assert len(view.points) == len(lines)
    assert view.points[-1].smooth == pytest.approx(last["smooth_loss"] / 5)
    assert (view.live, view.state, view.steps) == (False, "finished", 300)
    assert [moment.step for moment in view.moments] == [0, 150, 300]
    for moment in view.moments:
        assert moment.states.shape == (len(moment.text), 8)
    assert np.abs(view.moments[-1].states).max() > 0.5
    assert view.checkpoint is not None
    assert view.checkpoint[0] == 300


def test_held_out_losses_are_read_and_the_best_is_named(trained: Path) -> None:
    write_losses(trained, {150: 1.5, 300: 1.7})
    with (trained / "validation.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step":4')
    view = read(trained).view()
    assert [(one.step, one.nats) for one in view.validated] == [(150, 1.5), (300, 1.7)]
    assert view.best == 150


def test_a_torn_line_and_a_damaged_checkpoint_are_passed_over(trained: Path) -> None:
    metrics = trained / "metrics.jsonl"
    count = len(metrics.read_text(encoding="utf-8").splitlines())
    with metrics.open("a", encoding="utf-8") as file:
        file.write('{"step": 400, "lo')
    path = checkpoint_path(trained / "checkpoints", 150)
    path.write_bytes(path.read_bytes()[:-9])
    view = read(trained).view()
    assert len(view.points) == count
    assert [moment.step for moment in view.moments] == [0, 300]
    assert [str(path) in notice for notice in view.notices] == [True]


def test_a_run_that_grows_is_read_again(trained: Path) -> None:
    metrics, checkpoints = trained / "metrics.jsonl", trained / "checkpoints"
    whole = metrics.read_text(encoding="utf-8")
    metrics.write_text(whole.splitlines(keepends=True)[0], encoding="utf-8")
    kept = checkpoint_path(checkpoints, 300).read_bytes()
    checkpoint_path(checkpoints, 300).unlink()
    history, feed = open_feed(str(trained), None, connect_timeout=1.0)
    feed.start()
    try:
        until(lambda: len(history.view().moments) == 2, "the checkpoints that are there")
        assert not history.view().live
        assert history.view().state == "stopped after step 100; manychar train --resume goes on"
        with locked(open_run(trained)):
            until(lambda: history.view().live, "the run going on")
            checkpoint_path(checkpoints, 300).write_bytes(kept)
            metrics.write_text(whole, encoding="utf-8")
            until(lambda: len(history.view().moments) == 3, "the last checkpoint")
        until(lambda: history.view().state == "finished", "the end of the run")
    finally:
        feed.stop()


def test_a_lost_server_is_waited_for_and_found_again(
    manychar: Commands, text: Path, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/s"
    run = ("--run-dir", "run", "--bind", endpoint, "--steps", "0")
    server = manychar.start("server", str(text), *SMALL, *READ, *run)
    server.wait_for("listens on|manychar worker")
    worker = manychar.start("worker", endpoint, "--name", "left")
    history, feed = open_feed(endpoint, None, connect_timeout=60.0)
    feed.start()
    try:
        until(lambda: history.view().intervals, "what a worker did")
        until(lambda: (known := history.view().checkpoint) and known[0] >= 50, "a checkpoint")
        server.send(9)
        server.end()
        until(lambda: "has sent nothing" in "".join(history.view().notices), "word of its loss")
        again = manychar.start("server", "--resume", "run", "--bind", endpoint)
        until(lambda: history.view().state == "training", "the run going on")
        steps = [point.step for point in history.view().points]
        assert steps == sorted(set(steps))
        assert manychar.run("stop", endpoint).code == 0
        until(lambda: not history.view().live, "the end")
        again.end()
        worker.end()
    finally:
        feed.stop()


def test_a_fault_of_the_feed_is_shown_and_not_swallowed() -> None:
    history = History("run")
    heard: list[object] = []

    def fail(_: threading.Event) -> None:
        raise RuntimeError("broken")

    before, threading.excepthook = threading.excepthook, lambda args: heard.append(args.exc_value)
    try:
        feed = Feed(fail, history)
        feed.start()
        feed.stop()
    finally:
        threading.excepthook = before
    view = history.view()
    assert not view.live
    assert "broken" in view.state
    assert [str(one) for one in heard] == ["broken"]
