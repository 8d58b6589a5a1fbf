"""Schedules of the simulated world: whatever goes wrong, the single process's bytes come out.

The seeds in seeds.txt are always run; `--schedules N` says how many others. A schedule that fails
is printed with the command that repeats it, and is added to seeds.txt.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.simulation.faults import MIXED, Schedule
from tests.simulation.recording import record
from tests.simulation.violation import Violation
from tests.simulation.world import World

SEEDS = Path(__file__).with_name("seeds.txt")
CHUNK = 100
PAIRS = ("other-cut+loss", "moves+worker-crash", "moves+other-cut")
FAILURES_KEPT = 2
KINDS = (
    *(*MIXED, *("mixed",) * 18, *PAIRS, "none", "broken", "broken", "copied"),
    *(*("relayed",) * 4, "relays+broken", "relays+broken+loss"),
)


def kept_seeds() -> list[Schedule]:
    """Return the schedules of seeds.txt."""
    lines = SEEDS.read_text(encoding="utf-8").splitlines()
    return [Schedule.parse(line) for line in lines if line and not line.startswith("#")]


def schedule(number: int) -> Schedule:
    """Return one of all schedules: about half of them mix several faults."""
    return Schedule(number, KINDS[number % len(KINDS)])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "numbers" in metafunc.fixturenames:
        count = metafunc.config.getoption("--schedules")
        chunks = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
        metafunc.parametrize("numbers", chunks, ids=lambda chunk: f"{chunk[0]}-{chunk[-1]}")


def failures_in(schedules: Iterable[Schedule]) -> list[str]:
    """Run the schedules; return a line for each that broke an invariant, and keep it.

    A few are enough: where much is broken, seeds.txt is no place for all of it.
    """
    lines: list[str] = []
    known = kept_seeds()
    for each in schedules:
        if len(lines) == FAILURES_KEPT:
            break
        try:
            World(each).run()
        except Violation as violation:
            path = Path(tempfile.gettempdir()) / f"simulation-{each.kind}-{each.seed}.recording"
            record(each, path)
            lines.append(
                f"{violation}\n    python -m tests.simulation {each}"
                f"\n    python -m tests.simulation replay {path}"
            )
            if each not in known:
                with SEEDS.open("a", encoding="utf-8") as seeds:
                    seeds.write(f"{each}\n")
    return lines


@pytest.mark.parametrize("kept", kept_seeds(), ids=str)
def test_a_seed_that_failed_once(kept: Schedule) -> None:
    assert not failures_in([kept])


def test_schedules(numbers: range) -> None:
    failures = failures_in(map(schedule, numbers))
    assert not failures, "\n" + "\n".join(failures)


def test_the_same_schedule_is_the_same_run() -> None:
    first: list[str] = []
    again: list[str] = []
    World(Schedule(1), transcript=first).run()
    World(Schedule(1), transcript=again).run()
    assert first == again


@pytest.mark.long
def test_a_unit_longer_than_the_limit_is_no_livelock() -> None:
    assert not failures_in(Schedule(seed, "suspended") for seed in range(6))


def test_a_broken_worker_is_found_and_the_run_resumes_earlier() -> None:
    worlds = [World(Schedule(seed, "broken")).run() for seed in range(40)]
    assert sum(world.times_resumed for world in worlds) >= 25
