"""What the Python API says: the command line's messages, with arguments in the place of flags."""

import errno
import os
import signal
from pathlib import Path

import pytest

from manychar.processes.errors import UserError, stopping, user_errors
from manychar.processes.subcommand import Command, with_arguments
from tests.commands import SMALL


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("--hidden is 0; allowed: 1", "hidden is 0; allowed: 1"),
        ("a --learning-rate below 3", "a learning_rate below 3"),
        (
            "`manychar keys create KEYS`, or --or-resume",
            "`manychar keys create KEYS`, or or_resume",
        ),
        ("then `manychar server --keys KEYS`", "then `manychar server --keys KEYS`"),
        ("see `manychar train --help`", "see `manychar train --help`"),
        ("--workers 8: no faster than --workers 2,", "workers=8: no faster than workers=2,"),
        ("a run with --validation 0.1 keeps", "a run with validation=0.1 keeps"),
        ("(--unknown=skip leaves them out)", "(unknown='skip' leaves them out)"),
        ("--- step 5 ---, a--b", "--- step 5 ---, a--b"),
        ("standard input: 5,800 characters", "the text: 5,800 characters"),
    ],
)
def test_flags_become_arguments_but_not_in_a_quoted_command(said: str, expected: str) -> None:
    assert with_arguments(said) == expected


def test_a_command_that_is_stopped_from_outside_fails_with_its_own_line(
    text: Path, tmp_path: Path
) -> None:
    """Its line is an error here, though it is none in a log."""
    seen: list[object] = []

    def stop(progress: object) -> None:
        if not seen:  # a second signal would end it at once
            stopped._process.terminate()
        seen.append(progress)

    flags = *SMALL, "--steps", "0", "--run-dir", str(tmp_path / "run"), "--workers", "1"
    stopped = Command("train", str(text), *flags, on_progress=stop)
    with pytest.raises(UserError, match=r"^the server was stopped by SIGTERM$") as raised:
        list(stopped.output())
    assert raised.value.code == 75


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.ENOSPC, 3), (errno.EDQUOT, 3), (errno.EIO, 3), (errno.ENOENT, 2), (errno.EACCES, 2)],
)
def test_a_fault_of_the_disk_is_no_bad_input(number: int, code: int) -> None:
    """The table of deploy: repair the disk, then restart."""
    with pytest.raises(UserError) as raised, user_errors("RUN/term"):
        raise OSError(number, os.strerror(number))
    assert raised.value.code == code


def test_only_a_key_can_be_pressed_again() -> None:
    assert "press again" in stopping(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert stopping(number).endswith("a checkpoint written")
