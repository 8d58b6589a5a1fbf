"""What a terminal is shown: it is drawn on if it can move its cursor, and else gets plain lines."""

import os
from pathlib import Path

import pytest

from tests.commands import SMALL, Commands
from tests.parameters import others_long

TRAIN = (*SMALL, "--steps", "40", "--workers", "1", "--sample-every", "20", "--run-dir", "run")
ESCAPE = "\x1b"


def shown_on_terminal(manychar: Commands, *words: str, env: dict[str, str]) -> str:
    """Run a command on a terminal, and return all that it wrote."""
    master, terminal = os.openpty()
    running = manychar.start(*words, stdout=terminal, stderr=terminal, env=env)
    os.close(terminal)
    written = b""
    try:
        while piece := os.read(master, 65_536):
            written += piece
    except OSError:  # the end of a terminal, on Linux
        pass
    os.close(master)
    assert running.end().code == 0, written
    return written.decode().replace("\r\n", "\n")


def expect_all_said(shown: str) -> None:
    for line in ("run directory: run", "joined", "--- step 40 ---", "step 40/40", "finished at"):
        assert line in shown


@pytest.mark.parametrize(
    "env",
    others_long(
        [
            *({"TERM": name} for name in ("vt52", "dumb", "unknown", "")),
            {"TERM": "dumb", "FORCE_COLOR": "1"},
        ]
    ),
    ids=str,
)
def test_one_that_cannot_move_its_cursor_gets_plain_lines(
    manychar: Commands, text: Path, env: dict[str, str]
) -> None:
    shown = shown_on_terminal(manychar, "train", str(text), *TRAIN, env=env)
    expect_all_said(shown)
    assert "step 0/40" in shown
    assert ESCAPE not in shown


@pytest.mark.long
@pytest.mark.parametrize("columns", ["0", "1", "15", "80"])
def test_nothing_that_is_said_depends_on_the_width(
    manychar: Commands, text: Path, columns: str
) -> None:
    env = {"TERM": "xterm", "COLUMNS": columns}
    shown = shown_on_terminal(manychar, "train", str(text), *TRAIN, env=env)
    expect_all_said(shown)
    is_drawn = columns in ("0", "80")  # a bar would be cut on the others
    assert (f"{ESCAPE}[?25h" in shown) is is_drawn, "the cursor is there again"


def test_a_file_gets_no_bar_whatever_is_forced(manychar: Commands, text: Path) -> None:
    env = {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "0"}
    done = manychar.run("train", str(text), *TRAIN, env=env)
    expect_all_said(done.out + done.err)
    assert ESCAPE not in done.out + done.err


def test_help_has_a_width(manychar: Commands) -> None:
    done = manychar.run("train", "--help", env={"COLUMNS": "0"})
    assert "--learning-rate" in done.out
