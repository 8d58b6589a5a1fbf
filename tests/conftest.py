"""Options of the test run, and what the tests of real processes share."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree

import pytest

from manychar.processes.signals import STOPS
from tests.commands import SMALL, Commands
from tests.texts import small_text

SCHEDULES, LONG_SCHEDULES = 300, 2_400
HOSTILE = 1
SOAK_MINUTES = 60.0

Require = Callable[[object, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedules",
        type=int,
        metavar="N",
        help="schedules of the simulated world"
        f" (default {SCHEDULES:,}, with --long {LONG_SCHEDULES:,})",
    )
    parser.addoption(
        "--long",
        action="store_true",
        help="also run the tests that are marked long, and more schedules",
    )
    parser.addoption(
        "--long=soak",  # a name of its own, so that `--long FILE` takes no file for a value
        action="store_true",
        dest="soak",
        help="run the soak alone: an hour of a fleet that is killed at random at first",
    )
    parser.addoption(
        "--soak-minutes",
        type=float,
        default=SOAK_MINUTES,
        metavar="N",
        help=f"how long the soak takes, without its computation in one process"
        f" (default {SOAK_MINUTES:g})",
    )
    parser.addoption(
        "--hostile",
        type=int,
        default=HOSTILE,
        metavar="N",
        help="how much hostility: N times 20,000 headers, 2,000 files and 200 connections"
        f" (default {HOSTILE})",
    )
    parser.addoption(
        "--systemd",
        action="store_true",
        help="also boot a systemd in namespaces of its own and run its units (root, 20 s)",
    )
    parser.addoption(
        "--require-all",
        action="store_true",
        help="a test that this machine cannot run fails, where it would be skipped",
    )


def pytest_configure(config: pytest.Config) -> None:
    for number in STOPS:  # a shell without job control has its background processes ignore some
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if config.getoption("--schedules") is None:
        config.option.schedules = LONG_SCHEDULES if config.getoption("--long") else SCHEDULES


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked long, unless it is asked for; the soak is run alone."""
    long, soak = config.getoption("--long"), config.getoption("soak")

    def is_left_out(item: pytest.Item) -> bool:
        if soak or item.get_closest_marker("soak"):
            return not (soak and item.get_closest_marker("soak"))
        return not long and item.get_closest_marker("long") is not None

    left_out = [item for item in items if is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not is_left_out(item)]


@pytest.fixture
def soak_minutes(request: pytest.FixtureRequest) -> float:
    minutes: float = request.config.getoption("--soak-minutes")
    return minutes


@pytest.fixture
def require(request: pytest.FixtureRequest) -> Require:
    """Return `require(condition, reason)`: without the condition the test is skipped, or fails."""

    def require(condition: object, reason: str) -> None:
        if condition:
            return
        if request.config.getoption("--require-all"):
            pytest.fail(f"--require-all: {reason}")
        pytest.skip(reason)

    return require


@pytest.fixture(scope="session")
def hostile(request: pytest.FixtureRequest) -> int:
    """Return how many times the ordinary amount of hostility is wanted."""
    times: int = request.config.getoption("--hostile")
    return times


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
