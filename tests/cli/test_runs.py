"""What is listed of runs that have no live server."""

import os
from contextlib import closing
from pathlib import Path

import pytest
import typer

from manychar.cli.runs import runs
from manychar.processes.errors import UserError
from manychar.storage.append_log import AppendLog, Extent
from manychar.storage.journal import (
    METRICS_NAME,
    AppliedStep,
    ServerStart,
    continue_journal,
    read_journal,
)
from tests.storage.test_run_directory import made


def expect_incomplete(directory: Path) -> None:
    with pytest.raises(typer.Exit) as ended:
        runs(directory)
    assert ended.value.exit_code == 2


@pytest.mark.parametrize(
    ("loss", "shown"),
    [
        (5.487e29, "5.487e+29 nats a character  stopped, its newest checkpoint is that of step 0,"),
        (0.5, "0.5000 nats a character"),
    ],
)
def test_a_loss_above_that_of_the_untrained_model_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], loss: float, shown: str
) -> None:
    run = made(tmp_path / "run", steps=9_000)
    losses = {"loss_nats_per_character": loss, "smooth_loss_nats_per_character": 0.5}
    record = {"step": 8_000, "characters": 1, "seconds": 1.0, "workers": 1, **losses}
    with closing(AppendLog(run.path / METRICS_NAME, Extent())) as metrics:
        metrics.append(record)
    runs(tmp_path)
    out = capsys.readouterr().out
    assert f"run  step 8,000  loss {shown}" in out
    assert out.endswith(", diverges\n") == (loss > 1)


def test_a_run_that_was_killed_is_at_the_last_step_of_its_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `verify` has it: its metrics have every hundredth step."""
    run = made(tmp_path / "run", steps=9_000)
    with closing(continue_journal(run.path, run.run_id, read_journal(run.path, run.run_id))) as log:
        log.append(ServerStart(1, 0, "ab"))
        for step in range(1, 43):
            log.append(AppliedStep(1, step, 1.0, "ab"))
    runs(tmp_path)
    assert "run  step 42  no loss yet  stopped, its newest" in capsys.readouterr().out


def test_a_terminal_is_sent_no_control_sequence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "a\x1b[31mb")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    runs(tmp_path)
    assert "\x1b" not in capsys.readouterr().out


def test_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "a\nb")
    (tmp_path / "c\nd").mkdir()
    (tmp_path / "c\nd" / "config.json").write_text("{}", encoding="utf-8")
    expect_incomplete(tmp_path)
    one, other = capsys.readouterr().out.splitlines()
    assert one == rf"{tmp_path}/a\x0ab  step 0  no loss yet  stopped"
    assert other == rf"{tmp_path}/c\x0ad/config.json: damaged or altered: 'definition' is missing"


def test_a_run_that_has_lost_its_checkpoints_is_said_to_have_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    with closing(continue_journal(run.path, run.run_id, read_journal(run.path, run.run_id))) as log:
        log.append(ServerStart(1, 0, "ab"))
        log.append(AppliedStep(1, 1, 1.0, "ab"))
    for path in run.checkpoints.iterdir():
        path.unlink()
    runs(tmp_path)
    assert capsys.readouterr().out.endswith("  stopped, no checkpoint\n")


def test_what_cannot_be_read_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so the refusal is that of `scandir`."""
    made(tmp_path / "run")
    (tmp_path / "hidden").mkdir()
    scandir = os.scandir

    def refuses(path: os.PathLike[str] | str) -> object:
        if Path(path).name == "hidden":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuses)
    expect_incomplete(tmp_path)
    listed, named = capsys.readouterr().out.splitlines()
    assert listed.endswith("  stopped")
    assert named == f"{tmp_path}/hidden: permission denied"
    with pytest.raises(UserError, match=r"hidden: permission denied$"):
        runs(tmp_path / "hidden")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: not a directory$"):
        runs(tmp_path / "file")
    with pytest.raises(UserError, match=r"nowhere: no runs below it$"):
        runs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", b"", "config.json: damaged or altered: it is empty\n"),
        ("config.json", b"{\n", "altered: it is not JSON from line 2, column 1, on\n"),
        ("config.json", b"\xff", "altered: it is not UTF-8\n"),
        ("config.json", b"[]", "altered: its values are not those of a run\n"),
        (
            "metrics.jsonl",
            b"{}\n",
            "loss unknown  stopped; {run}/metrics.jsonl: damaged at byte 0 of 3: wrong checksum\n",
        ),
        ("metrics.jsonl", b'{"step": 100', "metrics.jsonl: damaged at byte 0 of 12: torn record\n"),
        ("validation.jsonl", b"{}\n", "{run}/validation.jsonl: damaged at byte 0 of 3: wrong"),
        ("journal.jsonl", b"{}\n", "stopped; {run}/journal.jsonl: damaged at byte 0 of 3: wrong"),
    ],
)
def test_a_damaged_file_is_named_and_the_list_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, said: str
) -> None:
    run = made(tmp_path / "a")
    made(tmp_path / "b")
    (run.path / name).write_bytes(content)
    expect_incomplete(tmp_path)
    damaged, whole = capsys.readouterr().out.splitlines(keepends=True)
    assert said.format(run=run.path) in damaged
    assert whole == f"{tmp_path}/b  step 0  no loss yet  stopped\n"


def test_the_torn_end_of_a_server_that_was_killed_is_no_damage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    with closing(continue_journal(run.path, run.run_id, read_journal(run.path, run.run_id))) as log:
        log.append(ServerStart(1, 0, "ab"))
    with (run.path / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"term":1,"st')
    runs(tmp_path)
    assert capsys.readouterr().out.endswith("run  step 0  no loss yet  stopped\n")
