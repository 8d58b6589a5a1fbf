"""What the Python API says: the command line's messages, with arguments in the place of flags."""

import signal

import pytest

from manychar.processes.errors import stopping
from manychar.processes.subcommand import with_arguments


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


def test_only_a_key_can_be_pressed_again() -> None:
    assert "press again" in stopping(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert stopping(number).endswith("a checkpoint written")
