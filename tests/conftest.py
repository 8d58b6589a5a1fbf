"""Options of the test run: how many simulated schedules, and whether a skip is a failure."""

from collections.abc import Callable

import pytest

SCHEDULES = 2_400


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--schedules",
        type=int,
        default=SCHEDULES,
        metavar="N",
        help=f"schedules of the simulated world (default {SCHEDULES:,})",
    )
    parser.addoption(
        "--require-all",
        action="store_true",
        help="a test that this machine cannot run fails, where it would be skipped",
    )


@pytest.fixture
def require(request: pytest.FixtureRequest) -> Callable[[object, str], None]:
    """Return `require(condition, reason)`: without the condition the test is skipped, or fails."""

    def require(condition: object, reason: str) -> None:
        if condition:
            return
        if request.config.getoption("--require-all"):
            pytest.fail(f"--require-all: {reason}")
        pytest.skip(reason)

    return require
