"""What the Python API says: the command line's messages, with arguments in the place of flags."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from manychar.processes.errors import UserError, stopping, user_errors
from manychar.processes.subcommand import Command, as_pasted, program, with_arguments
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


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("runs/book", "runs/book"),
        ("my run's", """'my run'"'"'s'"""),
        ("runs/a\nb", r"$'runs/a\x0ab'"),
        ("\x1b[2J'\\", r"$'\x1b[2J\x27\x5c'"),
        ("café \x85\u202e\udcff", r"$'café \xc2\x85\xe2\x80\xae\xff'"),
    ],
)
def test_a_pasted_word_is_on_one_line_and_bash_reads_the_same(word: str, expected: str) -> None:
    assert as_pasted(word) == expected
    assert expected.isprintable()
    words = as_pasted("printf", "%s/", word, "end")
    done = subprocess.run(["bash", "-c", words], capture_output=True, check=True)
    assert done.stdout == os.fsencode(f"{word}/end/")


def test_a_path_that_begins_with_a_hyphen_is_not_pasted_as_a_flag() -> None:
    assert as_pasted("--resume", Path("-r"), Path("a/-r")) == "--resume ./-r a/-r"


def script(directory: Path, target: Path | None = None) -> Path:
    """Make a program of this name that a search finds, or a link to one."""
    directory.mkdir()
    path = directory / "manychar"
    if target:
        path.symlink_to(target)
    else:
        path.touch(mode=0o755)
    return path


def test_the_program_is_named_so_that_it_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = script(tmp_path / "my own")
    other, link = script(tmp_path / "other"), script(tmp_path / "link", own)
    python = own.with_name("python3")
    monkeypatch.setattr(sys, "executable", str(python))
    by_path = f"'{own}'"
    for called, otherwise in (
        ("/lib/manychar/__main__.py", f"'{python}' -m manychar"),
        (str(own), by_path),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        for found, expected in (
            (own, "manychar"),
            (link, "manychar"),
            (other, otherwise),
            (tmp_path / "none" / "manychar", otherwise),
        ):
            monkeypatch.setenv("PATH", str(found.parent))
            assert program() == expected, (called, found)
    monkeypatch.setattr(sys, "argv", ["/lib/pytest/__main__.py"])
    assert program() == "manychar", "another program has called a function of this one"


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
