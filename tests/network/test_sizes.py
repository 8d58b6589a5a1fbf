"""Files whose size is not what they say: refused before anything of that size is read."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import Commands

HUGE = 60 * 2**30  # of a file with holes in it
ADDRESS_SPACE = 8 * 2**30


def grown(path: Path, size: int = HUGE) -> None:
    """Let a file be as long as no disk has room for."""
    with path.open("r+b") as file:
        file.truncate(size)


def run(manychar: Commands, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a command that can have no more memory than this."""
    return subprocess.run(
        [sys.executable, "-m", "manychar", *arguments],
        cwd=manychar.directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (ADDRESS_SPACE, ADDRESS_SPACE)),
    )


def test_a_checkpoint(manychar: Commands, trained: Path) -> None:
    grown(trained / "checkpoints" / "step-000000300.safetensors")
    done = run(manychar, "sample", "run/checkpoints/step-000000300.safetensors")
    assert done.returncode == 2
    assert "damaged or altered: 64,424,509,440 bytes, where" in done.stderr


def test_a_checkpoint_whose_header_lies_too(manychar: Commands, trained: Path) -> None:
    path = trained / "checkpoints" / "step-000000300.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"hidden\\":8,', b'\\"hidden\\":9,', 1))
    assert path.read_bytes() != data
    done = run(manychar, "sample", str(path))
    assert done.returncode == 2
    assert "damaged or altered" in done.stderr


def test_a_configuration(manychar: Commands, trained: Path) -> None:
    grown(trained / "config.json")
    for command in (["train", "--resume", "run"], ["verify", "run"]):
        done = run(manychar, *command)
        assert done.returncode == 2
        assert "bytes are too many" in done.stderr


def test_a_journal(manychar: Commands, trained: Path) -> None:
    grown(trained / "journal.jsonl")
    done = run(manychar, "verify", "run")
    assert done.returncode == 2
    assert "journal.jsonl: damaged or altered: byte" in done.stderr


def test_metrics_that_are_no_file_are_not_waited_for(manychar: Commands, trained: Path) -> None:
    (trained / "metrics.jsonl").unlink()
    os.mkfifo(trained / "metrics.jsonl")
    done = run(manychar, "plot", "run", "-o", "losses.svg")
    assert done.returncode == 2
    assert "metrics.jsonl: not a regular file" in done.stderr


@pytest.mark.parametrize("written", ["18446744073709551615", "-1", "one", "9" * 10_000])
def test_a_term_that_is_none(manychar: Commands, trained: Path, written: str) -> None:
    (trained / "term").write_text(written)
    done = run(manychar, "train", "--resume", "run", "--steps", "310")
    assert done.returncode == 2
    assert "run/term: " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["config.json", "journal.jsonl", "corpus.bin", "term"])
def test_what_is_no_file_is_not_waited_for(manychar: Commands, trained: Path, name: str) -> None:
    (trained / name).unlink()
    os.mkfifo(trained / name)
    resume = ["train", "--resume", "run", "--steps", "310"]
    for command in [resume, *([["verify", "run"]] if name != "term" else [])]:
        done = run(manychar, *command)
        assert done.returncode == 2
        assert "not a regular file" in done.stderr
