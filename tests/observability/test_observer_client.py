"""Watching a live server: status and its table, logs with levels, samples that follow."""

import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import re
import signal
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manychar.observability.history import point_of
from manychar.observability.observer_client import MOST_WEIGHTS, ObserverClient, find_server
from manychar.observability.progress import BAR_WIDTH, ProgressDisplay, _fitting
from manychar.observability.snapshot import Snapshot, Snapshots
from manychar.observability.status import COLUMNS, as_values, lines_of, rows_of, show
from manychar.processes import log
from manychar.processes.errors import UserError
from manychar.protocol.counters import USUAL
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.effects import Show
from manychar.protocol.messages import Status, Weights
from manychar.protocol.worker_tally import WorkerStats
from manychar.storage.checkpoint import list_checkpoints
from manychar.storage.run_directory import open_run
from tests.commands import SMALL, TWO_WORKERS, Commands, Running, until
from tests.logs import mean_loss
from tests.protocol.stage import IN_RUN, status

ENDLESS = (*SMALL, "--steps", "0", "--sample-every", "0", "--checkpoint-every", "200")


def training(manychar: Commands, text: Path, *more: str) -> tuple[Running, str]:
    """Start an endless run of two workers; return it and its endpoint."""
    running = manychar.start("train", str(text), "--run-dir", "run", *ENDLESS, *TWO_WORKERS, *more)
    endpoint = running.wait_for(r"ipc://\S+")[0]
    for name in ("worker-1", "worker-2"):
        running.wait_for(f"{name} has joined")
    return running, endpoint


def end(running: Running) -> None:
    running.interrupt()
    assert running.end().code == 0


@pytest.mark.long
def test_status_shows_the_workers(manychar: Commands, text: Path) -> None:
    running, endpoint = training(manychar, text, "--validation", "0.1")
    running.wait_for(r"validation \d")
    table = ""

    def all_have_computed() -> bool:
        nonlocal table
        table = manychar.run("status", endpoint).out
        row = r"worker-{} +\S+ +working +\d +[\d.]+ +[\d,]+( +\d+%){{4}}"
        return all(re.search(row.format(number), table) for number in (1, 2))

    until(all_have_computed, lambda: table)
    assert re.search(r"run \S+, term 1: step [\d,]+, [\d,]+ characters/s\n", table)
    assert re.search(r"last checkpoint: step [\d,]+, \d+ s ago", table)
    loss = r"\d\.\d{4,}"
    at = r"\(at step [\d,]+, the best is step [\d,]+\)"
    wanted = f"loss {loss} nats a character, validation loss {loss} {at}, smooth loss {loss}\n"
    assert re.search(wanted, table)
    columns = "worker +host +state +shards +ms/shard +chars/s +compute +exchange +wait +straggler"
    assert re.search(columns, table)

    found = json.loads(manychar.run("status", endpoint, "--json").out)
    for worker in found["workers"]:
        parts = worker["computing"] + worker["exchanging"] + worker["waiting"]
        assert 0.99 < parts < 1.01
        assert worker["shard_seconds"] > 0
        assert worker["gradients"] > 0
    assert found["checkpoint"] >= 0
    assert found["validation_loss_nats_per_character"] > 0

    watched = manychar.start("status", endpoint, "--watch", "--json")

    def steps() -> set[int]:
        return {json.loads(line)["step"] for line in watched.out.split("\n")[:-1]}

    until(lambda: len(steps()) > 1, watched.described)
    end(running)
    assert watched.end().code == 0, "it ends with the run"


@pytest.mark.long
def test_status_names_a_stopped_worker(manychar: Commands, text: Path) -> None:
    running, endpoint = training(manychar, text, "--lease-timeout", "60")
    pid = manychar.find("--name", "worker-1")
    os.kill(pid, signal.SIGSTOP)
    running.wait_for(r"has waited \d+ s for worker-1")
    table = manychar.run("status", endpoint).out
    assert re.search(r"waiting for worker-1 \(shards? \d", table)
    found = json.loads(manychar.run("status", endpoint, "--json").out)
    assert found["waiting_for"].startswith("worker-1 (shard")
    assert re.search(r"worker-1 .* \d+\.\d s", table)
    os.kill(pid, signal.SIGCONT)
    end(running)


@pytest.mark.long
def test_a_sample_follows_the_weights(manychar: Commands, text: Path) -> None:
    running, endpoint = training(manychar, text)
    following = manychar.start("sample", endpoint, "--follow", "--length", "40", "--seed", "1")
    following.wait_for(r"(?s)(--- step [\d,]+ ---\n.*){3}", "out")
    end(running)
    done = following.end()
    assert done.code == 0, done.err
    steps = [int(s.replace(",", "")) for s in re.findall(r"--- step ([\d,]+) ---", done.out)]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("source", ["nowhere", "localhost:5577", "here.txt"])
def test_what_is_neither_a_run_nor_an_endpoint(tmp_path: Path, source: str) -> None:
    (tmp_path / "here.txt").touch()
    with pytest.raises(UserError, match="no such directory, and not an endpoint: write that as"):
        find_server(str(tmp_path / source), None)


def test_only_a_server_can_be_followed(manychar: Commands, trained: Path) -> None:
    done = manychar.run("sample", "run", "--follow")
    assert (done.code, done.err) == (3, "manychar: run: no server is running on it\n")
    done = manychar.run("sample", "run/checkpoints/step-000000000.safetensors", "--follow")
    assert (done.code, "--follow needs a live server" in done.err) == (2, True)


def test_lines_are_json_if_told(manychar: Commands, text: Path) -> None:
    flags = (*SMALL, "--steps", "40", "--workers", "1", "--run-dir", "run")
    done = manychar.run("train", str(text), *flags, "--log-format", "json")
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert {line["level"] for line in lines} == {"info"}, "a normal run warns of nothing"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["time"]) for line in lines)
    assert "server has joined" in [line["text"] for line in lines]
    reports = [line for line in lines if "step" in line]
    assert reports[-1]["step"] == 40
    assert reports[-1]["smooth_loss_nats_per_character"] > 0
    run, before = manychar.directory / "run", 0
    for report in reports:
        step, found = report["step"], report["loss_nats_per_character"]
        if step > before:
            assert found == pytest.approx(mean_loss(run, before + 1, step)), "since the last line"
        before = step


@pytest.mark.long
def test_log_level(manychar: Commands, text: Path) -> None:
    flags = (*SMALL, "--steps", "40", "--workers", "1", "--sample-length", "0")
    env = {"MANYCHAR_LOG_LEVEL": "warning"}
    said = manychar.run("train", str(text), *flags, env=env).err
    assert not re.search("joined|listens|loss |sample from it", said)
    wrong = manychar.run("train", "nowhere.txt", "--log-level", "error", "--log-format", "json")
    line = json.loads(wrong.err)
    assert line["level"] == "error"
    assert line["text"].startswith("manychar: nowhere.txt: no such file")


@pytest.mark.long
def test_a_childs_level_is_kept(manychar: Commands, text: Path) -> None:
    running = manychar.start(
        *("train", str(text), *ENDLESS, "--workers", "2"),
        *("--log-format", "json", "--log-level", "warning", "--run-dir", "run"),
    )
    pid = manychar.find("--name", "worker-1")
    os.kill(pid, signal.SIGKILL)
    found = running.wait_for(r'\{[^\n]*"level": "warning"[^\n]*worker-1 ended by SIGKILL[^\n]*\}')
    assert json.loads(found[0])["text"].endswith("starting it again in 0.5 s")
    end(running)


@pytest.mark.parametrize("command", ["train", "server"])
@pytest.mark.long
def test_a_run_continues_when_its_output_is_closed(
    manychar: Commands, text: Path, command: str
) -> None:
    flags = [*SMALL, "--steps", "1500", "--checkpoint-every", "0", "--run-dir", "run"]
    flags += ["--bind", "ipc://here"] if command == "server" else ["--workers", "1"]
    running = manychar.start(command, str(text), *flags)
    running.wait_for("run directory")
    running.stop_reading("err")
    worker = manychar.start("worker", "ipc://here") if command == "server" else None
    assert running.process.wait(90) == 0
    assert worker is None or worker.end().code == 0
    newest = list_checkpoints(manychar.directory / "run" / "checkpoints")[-1][0]
    assert newest == 1500
    manychar.expect_nobody()


SIZE = Dimensions(vocabulary_size=5, hidden=4, seq_length=10, streams=2, shards=4, dtype="float32")


def snapshot(seconds: float, **figures: Any) -> Snapshot:
    """Return a snapshot of that time: ten steps a second, but for what is given."""
    return Snapshot(SIZE, _status(seconds, **figures), (_worker(seconds),))


def test_the_speed_is_the_runs_also_where_the_worker_that_made_it_has_left() -> None:
    """It is of the last ten seconds; another server's characters are no part of it."""
    found = Snapshots()

    def add(seconds: float, **figures: Any) -> Snapshot:
        idle = (_worker(seconds, shards_per_second=0.0),)
        page = dataclasses.replace(_status(seconds, **figures), first=0, total=1, workers=idle)
        snapshot = found.add(page, SIZE)
        assert snapshot is not None
        return snapshot

    assert add(0.0).speed == 0
    assert [add(float(second)).speed for second in range(1, 15)] == [1000.0] * 14
    stalled = [add(float(second), characters=14_000).speed for second in range(15, 25)]
    assert stalled == [pytest.approx(100.0 * left) for left in range(9, -1, -1)]
    assert add(25.0, term=9, characters=5).speed == 0


def snapshot_of(seconds: float, **values: Any) -> Snapshot:
    """Return a snapshot of that time with a worker of these values."""
    return Snapshot(SIZE, _status(seconds), (_worker(seconds, **values),))


def _status(seconds: float, **figures: Any) -> Status:
    usual = {
        "step": int(10 * seconds),
        "characters": int(1000 * seconds),
        "smooth_loss_nats_per_character": 2.0,
    }
    usual |= {"steps": 0, "checkpoint": 7, "checkpoint_age_seconds": 3_700.0, "seconds": seconds}
    return status(**usual | {"counts": {"units_repeated": 2}} | figures)


def _worker(seconds: float, **values: Any) -> WorkerStats:
    usual = {"gradients": int(10 * seconds), "shard_seconds": 0.05, "shards_per_second": 10.0}
    usual |= {"computing": 0.5, "exchanging": 0.4, "waiting": 0.1}
    known = WorkerStats("ann", "here", "working", 1, 0, 0, *(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
    return known._replace(**usual | values)


def test_one_long_wait_does_not_change_the_time_left(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """20 reports at 100 steps a second, then one that a dead worker kept waiting for a minute."""
    log.configure()
    display = ProgressDisplay(open_run(trained))
    for i in range(21):
        seconds, step = 0.2 * i + 60.0 * (i == 20), 20 * i
        display.status(snapshot(seconds, steps=10_000, step=step, characters=step * 100))
    with display:
        pass
    last = capsys.readouterr().err.splitlines()[-1]
    assert "200 characters/s" in last, "that of the workers, as in the status"
    assert "1 min 36 s left" in last


def test_a_loss_is_that_of_the_steps_since_the_last_line(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one, and that of another term, is what the status says of the last 100 steps."""
    log.configure()
    display = ProgressDisplay(open_run(trained))
    sums = [(1, 10, 2.5, 31.0), (1, 20, 2.5, 47.0), (2, 15, 2.25, 9.0)]
    for term, step, recent, total in sums:
        monkeypatch.setattr(display, "_next_line", 0.0)
        losses = {"loss_nats_per_character": recent, "loss_sum_nats_per_character": total}
        display.status(snapshot(step, term=term, step=step, **losses))
    lines = capsys.readouterr().err.splitlines()
    heads = [line.split("  ")[1] for line in lines]
    assert heads == [f"loss {n:.3f} nats a character" for n in (2.5, 1.6, 2.25)]


@pytest.mark.parametrize("log_every", [None, 60.0])
def test_lines_come_less_often_the_longer_a_run_lasts(
    trained: Path, monkeypatch: pytest.MonkeyPatch, log_every: float | None
) -> None:
    lines: list[float] = []
    now = 1000.0
    monkeypatch.setattr("manychar.observability.progress.time.monotonic", lambda: now)
    display = ProgressDisplay(open_run(trained), log_every)
    monkeypatch.setattr(display, "_line", lambda *_: lines.append(now))
    for tenths in range(864_000):
        now = 1000.0 + tenths / 10
        if now >= display._next_line:
            display.status(snapshot(10.0))
    if log_every:
        assert len(lines) == 86_400 / 60
        return
    assert 2_800 < len(lines) < 3_000, "a day"
    assert lines[1] - lines[0] == pytest.approx(2, abs=0.2)
    assert lines[-1] - lines[-2] == pytest.approx(30, abs=0.2)


def test_the_last_line_has_the_loss_that_run_list_and_metrics_have(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the mean since the line before, which of a short run is all of it."""
    monkeypatch.setenv("TERM", "dumb")
    log.configure()
    with ProgressDisplay(open_run(trained), log_every=60) as display:
        display.status(snapshot(1.0, step=1, loss_sum_nats_per_character=4.0))
        display.status(
            snapshot(2.0, step=101, loss_sum_nats_per_character=304.0, loss_nats_per_character=1.25)
        )
    assert "loss 1.250 nats a character" in capsys.readouterr().err.splitlines()[-1]


def test_loss_and_validation_loss_fit_into_80_columns() -> None:
    display = ProgressDisplay.__new__(ProgressDisplay)
    display._recent = deque()
    losses = {"validation_loss_nats_per_character": 1.75, "validated": 12_000}
    now = snapshot(900.0, **losses, steps=12_500, step=12_500)
    room = 80 - len("12,500/12,500") - BAR_WIDTH - 3
    words = display._words(now, 1.5)
    assert _fitting(words, room).startswith("loss 1.500 nats a character  validation 1.750")
    assert words[1:3] == ["validation 1.750", "(step 12,000)"]
    assert words[-1] == "smooth loss 2.000"
    assert "smooth loss" in display._words(now, math.nan)[-1], "before the first step"
    assert "nan" not in " ".join(display._words(now, math.nan))


def test_the_speed_of_the_run_is_that_of_its_workers() -> None:
    now = snapshot(12.0)
    two = Snapshot(
        SIZE, now.status, (*now.workers, _worker(12.0, name="bob", shards_per_second=15.0))
    )
    assert lines_of(two)[0].endswith(" 500 characters/s"), "2 streams of 10 characters a shard"


def test_a_status_says_that_training_diverges() -> None:
    text = "training diverges with --learning-rate 10: the mean loss"
    assert text in lines_of(snapshot(12.0, divergence=text))


def test_a_worker_s_row_has_its_recent_figures() -> None:
    (row,) = rows_of(snapshot_of(12.0, computing=0.9, exchanging=0.07, waiting=0.03))
    figures = ["1", "50", "200", "90%", "7%", "3%", "0%"]
    assert dict(zip(COLUMNS[3:], row[3:], strict=True)) == dict(
        zip(COLUMNS[3:], [*figures, "", ""], strict=True)
    )
    (row,) = rows_of(snapshot_of(12.0, shard_seconds=0.0, straggling=0.25))
    assert (row[4], row[9]) == ("", "25%"), "not measured yet"


def test_two_workers_of_one_name_have_a_row_each() -> None:
    workers = _worker(12.0, computing=0.9), _worker(12.0, host="there", computing=0.1)
    now = Snapshot(SIZE, _status(12.0), workers)
    assert [(row[1], row[6]) for row in rows_of(now)] == [("here", "90%"), ("there", "10%")]
    assert [worker["host"] for worker in as_values(now)["workers"]] == ["here", "there"]


def test_a_worker_that_is_too_slow_is_named() -> None:
    now = Snapshot(SIZE, _status(1.0), (_worker(1.0), _worker(1.0, name="w1", state="slow")))
    assert "too slow for a shard: w1; a step without it is shorter" in lines_of(now)


def test_the_straggler_is_named_where_the_steps_wait_for_it() -> None:
    def line_of(*straggling: float) -> str:
        workers = [_worker(1.0, name=f"w{i}", straggling=s) for i, s in enumerate(straggling)]
        return Snapshot(SIZE, _status(1.0), tuple(workers)).straggler

    assert line_of(0.02, 0.34) == "waits 34% of the time for w1 alone"
    assert line_of(0.02, 0.05) == ""
    assert line_of(0.9) == "", "there is nobody who waits"
    assert "waits 34% of the time for w1 alone" in lines_of(
        Snapshot(SIZE, _status(1.0), (_worker(1.0), _worker(1.0, name="w1", straggling=0.34)))
    )


@pytest.mark.parametrize(
    ("seconds", "shown", "exchanging", "workers", "hinted"),
    [
        *((20.0, 20.0, 0.6, 2, True), (20.0, 20.0, 0.4, 2, False), (10.0, 20.0, 0.6, 2, False)),
        (20.0, 20.0, 0.6, 1, False),  # there are no fewer
        (9000.0, 10.0, 0.6, 2, False),  # a run that was resumed
    ],
)
def test_a_hint_where_more_workers_do_not_pay(
    trained: Path,
    seconds: float,
    shown: float,
    exchanging: float,
    workers: int,
    *,
    hinted: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure()
    several = tuple(_worker(seconds, name=f"w{i}", exchanging=exchanging) for i in range(workers))
    with ProgressDisplay(open_run(trained)) as display:
        display._began_at -= shown
        for _ in range(3):
            display.status(Snapshot(SIZE, _status(seconds), several))
    hint = "the exchange takes 60% of the time: fewer workers may be as fast; a new run may"
    assert capsys.readouterr().err.count(hint) == hinted


@pytest.fixture(autouse=True)
def _capable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def terminal(width: int) -> Console:
    return Console(
        file=Terminal(), width=width, force_terminal=True, color_system=None, highlight=False
    )


@pytest.mark.parametrize("width", [100, 160])
def test_nothing_is_cut_on_a_terminal(width: int) -> None:
    worker = snapshot_of(10.0, name="a-worker-name", late_seconds=12.0, dropped=1234)
    shown = show(worker, console=terminal(width))
    for part in (*COLUMNS, "a-worker-name", "here", "working", "12.0 s", "1,234", "50%"):
        assert part in shown
    assert max(map(len, shown.splitlines())) <= width


def test_names_are_whole_on_a_narrow_terminal() -> None:
    worker = snapshot_of(10.0, name="n" * 40, late_seconds=12.0, dropped=1234)
    shown = show(worker, console=terminal(60))
    cells = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert "".join(cell for cell in cells if set(cell) == {"n"}) == "n" * 40


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("room", "text"), [(80, "loss 1.5  8 s left"), (17, "loss 1.5"), (7, ""), (-9, "")]
)
def test_no_word_of_the_bar_is_cut(room: int, text: str) -> None:
    """Also where the terminal has become narrower."""
    assert _fitting(["loss 1.5", "8 s left"], room) == text


STRANGE = "node:x:3", "[b]bold[/b]", "a\\\\"
"""Names that rich would show as something else: emoji, markup, a backslash before markup."""


@pytest.mark.parametrize("name", STRANGE)
def test_names_are_shown_as_they_are(
    trained: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = snapshot_of(10.0, name=name, straggling=0.5)
    now = dataclasses.replace(now, workers=(*now.workers, _worker(10.0, name="bob")))
    shown = show(now)
    assert f"for {name} alone" in shown
    assert [name] in [line.split()[:1] for line in shown.splitlines()], "a row of the table"
    screen = Terminal()
    for key, value in {"TERM": "xterm", "COLUMNS": "160"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("sys.stderr", screen)
    log.configure()
    with ProgressDisplay(open_run(trained)) as display:
        display.status(now)
        logging.getLogger("manychar").warning(f"{name} was said")
        until(lambda: f" {name} bob " in screen.getvalue(), screen.getvalue)
    assert f"{name} was said\n" in screen.getvalue()


def test_samples_that_are_left_out_are_counted(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those after step 310, 340 and 350 do not come: the run had 300 steps before."""
    log.configure()
    run = open_run(trained)
    operation = dataclasses.replace(run.operation, sample_every=10, sample_length=3)
    state = run.newest_checkpoint()[0].state
    weights = Weights(
        run_id=run.run_id, term=1, session=1, version=0, weights=state.parameters.flat.tobytes()
    )
    with ProgressDisplay(dataclasses.replace(run, operation=operation)) as display:
        for version in (320, 330, 360, 363):
            display.weights(dataclasses.replace(weights, version=version))
    out, err = capsys.readouterr()
    assert out.count("---\n") == 4
    assert "samples_left_out: 3; give" in err.splitlines()[-1]


def test_what_every_start_leads_to_is_no_count_of_the_progress() -> None:
    display = ProgressDisplay.__new__(ProgressDisplay)
    display._recent = deque()
    counts: dict[str, int] = {**dict.fromkeys(USUAL, 2), "units_conflicting": 3}
    words = display._words(snapshot(5.0, counts=counts), 1.5)
    assert [word for word in words if re.search(r": \d", word)] == ["units_conflicting: 3"]


def test_without_a_worker_there_is_no_speed() -> None:
    """A run that has just begun is not called one without workers: the first is about to join."""
    display = ProgressDisplay.__new__(ProgressDisplay)
    display._recent = deque(map(point_of, (snapshot(4.0), snapshot(5.0))))
    now = snapshot(5.0, steps=100, counts={})
    assert {"200 characters/s", "ann"} <= {*display._words(now, 1.5)}
    silent = (_worker(5.0, state="silent")._replace(shards=0),)
    for workers in ((), silent):
        for waiting_for, words in (("a worker to connect", ["no worker"]), ("", [])):
            waits = _status(5.0, steps=100, waiting_for=waiting_for, counts={})
            shown = display._words(Snapshot(SIZE, waits, workers), 1.5)
            assert shown == ["loss 1.500 nats a character", *words, "smooth loss 2.000"]


def test_status_of_a_waiting_run() -> None:
    lines = lines_of(snapshot(5.0, waiting_for="a worker to connect"))
    assert "waiting for a worker to connect" in lines
    assert "units_repeated: 2 (units that came twice, with the same bytes)" in lines
    assert "last checkpoint: step 7, 1 h 1 min ago" in lines


def test_one_that_falls_behind_draws_samples_of_the_newest_weights() -> None:
    with contextlib.closing(ObserverClient("tcp://127.0.0.1:9", connect_timeout=1.0)) as client:
        came = [Weights(**IN_RUN, version=version, weights=b"") for version in range(5)]
        events = client._events(map(Show, came))
    assert events == came[-MOST_WEIGHTS:]
