"""Options of the test run: how much of what can be had without end, and whether a skip fails."""

from collections.abc import Callable

import pytest

SCHEDULES = 2_400
HOSTILE = 1

Require = Callable[[object, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedules",
        type=int,
        default=SCHEDULES,
        metavar="N",
        help=f"schedules of the simulated world (default {SCHEDULES:,})",
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
