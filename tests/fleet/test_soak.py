"""A soak: a fleet with a relay runs for long, killed at random in its first quarter; nothing grows.

`pytest --long=soak` runs this test alone, for an hour (`--soak-minutes`), then computes the same
steps in one process. It prints what it has measured.
"""

import dataclasses
import itertools
import json
import random
import signal
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.commands import SMALL, Commands, Running

KILLS = 30
SAMPLE_EVERY = 2.0
SETTLED = 0.3  # of the time; the kills are over after a quarter of it
GROWTH = 2**20  # bytes of anonymous memory an hour, at most
STEP_BYTES = 200  # of journal and metrics
LOG_BYTES = 40_000  # of what a role prints in an hour: progress comes twice a minute
FILES_BEING_WRITTEN = 2
VERIFIED_WITHIN = 7200.0
STEADY = 1.25  # the median step of the last third beside that of the first
SEED = 14


@dataclasses.dataclass
class Role:
    """A process that is started again when it has ended, as a service is."""

    name: str
    manychar: Commands
    arguments: tuple[str, ...]
    starts: int = 0
    running: Running | None = None

    def keep(self) -> None:
        """Start the process, if none runs."""
        if self.running is not None and self.running.process.poll() is None:
            return
        if self.running is not None:
            self.running.end()
        self.running = self.manychar.start(*self.arguments)
        self.starts += 1

    @property
    def pid(self) -> int:
        assert self.running is not None
        return self.running.pid

    def kill(self) -> None:
        assert self.running is not None
        self.running.send(signal.SIGKILL)
        self.running.process.wait()

    def printed(self) -> int:
        assert self.running is not None
        return len(self.running.err) + len(self.running.out)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What one process holds at one time."""

    seconds: float
    memory: int
    descriptors: int


def _sample(pid: int, seconds: float) -> Sample:
    process = Path(f"/proc/{pid}")
    anonymous = (process / "status").read_text().partition("RssAnon:")[2].split()[0]
    return Sample(seconds, 1024 * int(anonymous), len(list((process / "fd").iterdir())))


def slope(samples: Sequence[Sample]) -> float:
    """Return the bytes of memory an hour, by linear regression."""
    times = [each.seconds for each in samples]
    return 3600 * statistics.linear_regression(times, [s.memory for s in samples]).slope


def newest_step(journal: Path) -> int:
    """Return the step of the last record that is whole."""
    with journal.open("rb") as file:
        file.seek(max(0, journal.stat().st_size - 1_000))
        return int(json.loads(file.read().split(b"\n")[-2])["step"])


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def roles_of(manychar: Commands, text: Path) -> list[Role]:
    """Return a server, a worker, a relay and two workers behind it."""
    above, below = (f"tcp://127.0.0.1:{free_port()}" for _ in range(2))
    flags = ("--steps", "0", "--shards", "6", "--sample-every", "0", "--checkpoint-every", "2000")
    served = ("server", str(text), "--run-dir", "run", "--or-resume", "--bind", above)
    commands = {
        "server": (*served, *SMALL, *flags),
        "relay": ("relay", above, "--bind", below),
        **{
            f"worker-{i}": ("worker", to, "--name", f"worker-{i}")
            for i, to in enumerate((above, below, below))
        },
    }
    return [Role(name, manychar, arguments) for name, arguments in commands.items()]


def kill_times(seconds: float) -> Iterator[float]:
    """Yield random times within the first quarter, in order."""
    drawn = random.Random(SEED)  # noqa: S311 - a schedule, not a secret
    yield from sorted(drawn.uniform(0.0, seconds / 4) for _ in range(KILLS))


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_fleet_that_runs_for_long_does_not_grow(
    manychar: Commands, text: Path, soak_minutes: float
) -> None:
    seconds = 60 * soak_minutes
    roles, run = roles_of(manychar, text), manychar.directory / "run"
    due, victims = [*kill_times(seconds)], random.Random(SEED)  # noqa: S311
    samples: dict[str, list[Sample]] = {role.name: [] for role in roles}
    steps: list[tuple[float, int]] = []
    printed: dict[str, int] = {}
    began = time.monotonic()
    while (now := time.monotonic() - began) < seconds:
        for role in roles:
            role.keep()
        if due and now >= due[0]:
            del due[0]
            victims.choice(roles).kill()
            continue
        if now >= SETTLED * seconds:
            printed = printed or {role.name: role.printed() for role in roles}
            steps.append((now, newest_step(run / "journal.jsonl")))
            for role in roles:
                samples[role.name].append(_sample(role.pid, time.monotonic() - began))
        time.sleep(SAMPLE_EVERY)  # the rate of the samples
    for role in roles:
        show(role, samples[role.name], role.printed() - printed[role.name])
    for role in roles:
        expect_no_growth(role, samples[role.name], printed[role.name], hours=seconds / 3600)
    expect_steady(steps)
    expect_bounded(run, steps[-1][1])
    assert sum(role.starts - 1 for role in roles) >= KILLS, [role.starts for role in roles]
    expect_same_bits(manychar, roles)


def show(role: Role, samples: list[Sample], wrote: int) -> None:
    """Print a role's figures, before any of them can fail the test."""
    counts = [each.descriptors for each in samples]
    print(
        f"{role.name}: started {role.starts} times; {samples[-1].memory / 2**20:.1f} MiB,"
        f" {slope(samples) / 2**10:+,.0f} KiB an hour; descriptors {min(counts)} to {max(counts)};"
        f" {wrote:,} bytes printed"
    )


def expect_no_growth(role: Role, samples: list[Sample], printed: int, *, hours: float) -> None:
    """Fail if a role takes more memory or descriptors as time goes by, or prints much."""
    grown, wrote = slope(samples), role.printed() - printed
    counts = [each.descriptors for each in samples]
    assert grown < GROWTH, f"{role.name}: {grown:,.0f} bytes an hour"
    assert max(counts) - min(counts) <= FILES_BEING_WRITTEN, f"{role.name}: {counts}"
    assert wrote < LOG_BYTES * hours, f"{role.name}: {wrote:,} bytes"


def expect_steady(steps: list[tuple[float, int]]) -> None:
    """Fail if steps take longer at the end than at the beginning."""
    rates = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(steps)]
    third = len(rates) // 3
    first, last = statistics.median(rates[:third]), statistics.median(rates[-third:])
    print(f"{steps[-1][1]:,} steps; {first:,.0f} steps a second at first, {last:,.0f} at last")
    assert first < STEADY * last


def expect_bounded(run: Path, steps: int) -> None:
    """Fail if the logs take more than they may a step, or anything else grows with the steps."""
    sizes = {file.name: file.stat().st_size for file in run.rglob("*") if file.is_file()}
    logs = sizes.pop("journal.jsonl") + sizes.pop("metrics.jsonl", 0)
    print(f"{logs / steps:.0f} bytes of journal and metrics a step; else {sum(sizes.values()):,}")
    assert logs < STEP_BYTES * steps
    assert sum(sizes.values()) < 2**20, sizes


def expect_same_bits(manychar: Commands, roles: list[Role]) -> None:
    """Stop the run, and compute it again in one process."""
    endpoint = roles[1].arguments[1]
    assert manychar.run("stop", endpoint).code == 0
    for role in roles:
        assert role.running is not None
        role.running.end()
    again = manychar.run("verify", "run", seconds=VERIFIED_WITHIN)
    print(again.out)
    assert again.code == 0, again.err
