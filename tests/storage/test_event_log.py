"""The events of a run: what is in them, how they are rotated, and where they cannot be written."""

import errno
import json
import logging
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from manychar.processes import log
from manychar.storage import event_log
from manychar.storage.append_log import AppendLog, Extent, LogReader
from manychar.storage.run_directory import open_run
from tests.commands import SMALL, Commands, until

LOGGER = logging.getLogger("manychar.somewhere")


def texts(run: Path, name: str = event_log.EVENTS_NAME) -> list[str]:
    return [record["text"] for record in LogReader(run / name)]


def test_what_is_logged_is_an_event_below_the_level_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MANYCHAR_LOG_LEVEL", "error")
    log.configure()
    assert not log.shows_info()
    with event_log.event_log(tmp_path) as events:
        LOGGER.info("ann has joined")
        LOGGER.debug("the checkpoint of step 4 is on disk")
        LOGGER.warning("[b]ob:x: was refused")
        LOGGER.info("step 4/12", extra={"values": {"step": 4}})  # progress
        events.flush()
    LOGGER.warning("it is over")
    assert capsys.readouterr().err == ""
    found = list(LogReader(tmp_path / "events.jsonl"))
    assert [record["level"] for record in found] == ["info", "debug", "warning"]
    assert found[2]["text"] == "[b]ob:x: was refused"
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", each["time"]) for each in found)


def test_the_file_is_rotated_to_one_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "MOST_BYTES", 1000)
    log.configure()
    for number in range(40):  # each time a new server continues the log
        with event_log.event_log(tmp_path) as events:
            LOGGER.debug(f"event {number}")
            events.flush()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.1.jsonl", "events.jsonl"]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 2_200
    found = texts(tmp_path, "events.1.jsonl") + texts(tmp_path)
    assert 10 < len(found) < 40
    assert found == [f"event {number}" for number in range(40 - len(found), 40)], "in order, whole"


def test_a_rotation_that_failed_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = AppendLog(tmp_path / "events.jsonl", Extent(0, 0), most_bytes=100)
    opened = Path.open

    def full(path: Path, *arguments: Any, **options: Any) -> Any:
        raise OSError(errno.ENOSPC, "no space left on device")

    events.append({"text": "one" * 40})
    monkeypatch.setattr(Path, "open", full)
    for _ in range(2):
        with pytest.raises(OSError, match="no space"):
            events.flush()
    monkeypatch.setattr(Path, "open", opened)
    events.append({"text": "two"})
    events.close()
    assert texts(tmp_path, "events.1.jsonl") == ["one" * 40, "two"]
    assert texts(tmp_path) == []


@pytest.mark.long
def test_a_run_s_events(manychar: Commands, text: Path) -> None:
    flags = ("--workers", "2", "--no-compute", "--steps", "0", "--checkpoint-every", "50")
    running = manychar.start("train", str(text), "--run-dir", "run", *SMALL, *flags)
    run = manychar.directory / "run"
    expected = "of step 50 is on disk", "worker-1 has joined", "worker-2 has joined"
    until(lambda: all(any(e in each for each in texts(run)) for e in expected), "the events")
    running.send(signal.SIGTERM)
    assert running.end().code == 75
    found = texts(run)
    assert found[0] == "term 1 begins with the checkpoint of step 0"
    assert found[-1] == "the run ends: the server was stopped by SIGTERM"
    steps = ("--steps", str(open_run(run).newest_step()))
    done = manychar.run("train", "--resume", "run", *steps, "--workers", "1")
    assert done.code == 0, done.err
    assert any(re.match("term 2 begins with the checkpoint of step ", each) for each in texts(run))
    for line in (run / "events.jsonl").read_text().splitlines():
        assert json.loads(line).keys() == {"time", "level", "text", "crc"}
