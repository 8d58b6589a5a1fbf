"""Standard streams that are closed from the start, or that the reader closes."""

import os
from pathlib import Path

import pytest

from tests.commands import SMALL, Commands
from tests.parameters import others_long

CLOSED = {"in": "<&-", "out": ">&-", "err": "2>&-", "in and err": "<&- 2>&-"}
CLOSED |= {"out and err": ">&- 2>&-", "all": "<&- >&- 2>&-"}
ALONE = ("--steps", "12", "--workers", "1", "--sample-every", "4", "--run-dir", "run")
WITH_DATA = ["evaluate {run} {text} --json", "verify {run} --to 5", "runs .", "--help"]


def closing(which: str) -> tuple[str, ...]:
    return ("sh", "-c", f'exec "$@" {CLOSED[which]}', "sh")


@pytest.mark.parametrize("which", others_long(CLOSED, ordinary=2))
def test_no_message_gets_into_the_data(manychar: Commands, trained: Path, which: str) -> None:
    sample = ("sample", str(trained), "--length", "20", "--seed", "1")
    text = manychar.run(*sample).out
    done = manychar.start(*sample, before=closing(which)).end()
    assert (done.code, done.out) == ((2, "") if ">&-" in CLOSED[which].split() else (0, text))
    done = manychar.start("sample", "nowhere", before=closing(which)).end()
    assert (done.code, done.out) == (2, "")


@pytest.mark.parametrize("words", others_long(WITH_DATA, ordinary=1))
def test_data_that_cannot_be_written_is_an_error(
    manychar: Commands, text: Path, trained: Path, words: str
) -> None:
    done = manychar.start(
        *words.format(run=trained, text=text).split(), before=closing("out")
    ).end()
    assert (done.code, done.last_line) == (2, "manychar: standard output: bad file descriptor")


@pytest.mark.long
@pytest.mark.parametrize("which", ["err", "out", "all"])
def test_no_message_gets_into_a_file(manychar: Commands, text: Path, which: str) -> None:
    done = manychar.start("train", str(text), *SMALL, *ALONE, before=closing(which)).end()
    assert done.code == 0, done
    assert all(line.startswith("--- step") for line in done.out.splitlines()[:1])
    checked = manychar.run("verify", "run")
    assert checked.code == 0, checked.err


def test_a_text_from_a_closed_stream_is_empty(manychar: Commands) -> None:
    done = manychar.start("train", "-", before=closing("in")).end()
    assert done.code == 2
    assert "standard input: the text is empty" in done.err


def test_the_api_has_no_log_in_the_output(manychar: Commands, trained: Path) -> None:
    script = f"import manychar; print(manychar.Run({str(trained)!r}).verify(to=5))"
    done = manychar.start(program=("-c", script), before=closing("err")).end()
    assert (done.code, done.out) == (0, "True\n"), done


@pytest.mark.parametrize("closed", others_long([(0,), (0, 1, 2)], ordinary=1))
def test_the_api_needs_no_standard_streams(
    manychar: Commands, trained: Path, closed: tuple[int, ...]
) -> None:
    """A pipe to a child must not get the descriptor that is one of the child's own there."""
    script = f"""
import os, manychar
for descriptor in {closed}:
    os.close(descriptor)
text = manychar.load("run").sample(5, seed=1)
with open("sampled", "w") as file:
    print(len(text), file=file)
"""
    done = manychar.start(program=("-c", script)).end()
    assert (done.code, done.err) == (0, "")
    assert (manychar.directory / "sampled").read_text() == "5\n"


COMMANDS = ["--help", "train --help", "--version", "sample {run}", "doctor"]
WITH_DATA = ["runs .", "plan", "verify {run}", "train --print-config", "keys list K --json"]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_reader_that_has_enough_is_no_error(
    manychar: Commands, trained: Path, words: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = manychar.start(*words.format(run=trained).split(), stdout=writing).end()
    os.close(writing)
    assert done.code == 0, done
    assert "roken" not in done.err
    assert "Traceback" not in done.err


@pytest.mark.long
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [*COMMANDS, *WITH_DATA])
def test_a_full_disk_is_named(manychar: Commands, trained: Path, words: str) -> None:
    assert manychar.run("keys", "create", "K").code == 0
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = manychar.start(*words.format(run=trained).split(), stdout=full.fileno()).end()
    assert done.code == 2, "3 is a failed run, or a server that does not answer"
    assert done.last_line == "manychar: standard output: no space left on device"
