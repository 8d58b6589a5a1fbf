"""What the tests of real processes share: a small text, small runs, a watch over every process."""

from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from tests.runtime.commands import SMALL, Commands

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "home"]


def small_text() -> str:
    """Return some thousand characters in lines of eight words."""
    drawn, chosen = 1, []
    for _ in range(960):
        drawn = drawn * 1_103_515_245 % 2**31 + 12_345
        chosen.append(WORDS[(drawn >> 8) % len(WORDS)])
    lines = [" ".join(chosen[i : i + 8]) for i in range(0, len(chosen), 8)]
    return "\n".join(lines) + "\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A file of small_text()."""
    path = tmp_path / "text.txt"
    path.write_text(small_text(), encoding="utf-8")
    return path


@pytest.fixture
def manychar(tmp_path: Path) -> Iterator[Commands]:
    """The command line in an empty directory; the test fails if a process is left behind."""
    directory = tmp_path / "here"
    directory.mkdir()
    commands = Commands(directory)
    try:
        yield commands
    finally:
        commands.close()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 300 steps with checkpoints at 0, 150 and 300; not to be written to."""
    directory = tmp_path_factory.mktemp("small")
    (directory / "text.txt").write_text(small_text(), encoding="utf-8")
    commands = Commands(directory)
    done = commands.run(
        *("train", "text.txt", *SMALL, "--steps", "300", "--checkpoint-every", "150"),
        *("--run-dir", "run", "--workers", "1"),
    )
    commands.close()
    assert done.code == 0, done.err
    return directory / "run"


@pytest.fixture
def trained(manychar: Commands, finished_run: Path) -> Path:
    """A copy of finished_run that is the test's own, and far from its text."""
    return copytree(finished_run, manychar.directory / "run")
