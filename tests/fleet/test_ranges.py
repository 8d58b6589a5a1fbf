"""Ranges follow the workers' speeds in real fleets: as fast as may be, the same bits, and said."""

import contextlib
import itertools
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from manychar.observability.observer_client import ObserverClient
from manychar.observability.snapshot import Snapshot
from manychar.protocol.worker_tally import WorkerStats
from manychar.verification.equivalence import slowed
from tests.commands import GENEROUS, SMALL, Commands, Running, until
from tests.fleet.test_fleet import expect_same_bits

SHARDS = 16
WINDOW = 2.0  # seconds over which a speed is measured
SLOW_WORKER = """
import pathlib, runpy, sys, time
from manychar.fleet import worker_process
pin, seconds = worker_process.pin, pathlib.Path(sys.argv[sys.argv.index("--name") + 1])
def pin_and_slow_down(numerics):
    pin(numerics)
    from manychar.fleet import engine
    right = engine.compute_shard
    def slow(*arguments):
        time.sleep(float(seconds.read_text()))
        return right(*arguments)
    engine.compute_shard = slow
worker_process.pin = pin_and_slow_down
runpy.run_module("manychar", run_name="__main__")
"""
SOON_MEASURED = """
import runpy
from manychar.protocol import worker_speed
worker_speed.MEASURE_EVERY = 0.5
runpy.run_module("manychar", run_name="__main__")
"""


class ByHand:
    """A server and two workers, whose seconds for a shard the test sets: each sleeps so long."""

    def __init__(
        self,
        manychar: Commands,
        text: Path,
        *flags: str,
        program: tuple[str, ...] = ("-m", "manychar"),
        **seconds: float,
    ) -> None:
        self.manychar = manychar
        self._text = text
        self.run = manychar.directory / "run"
        self.server = manychar.start(
            *("server", str(text), "--run-dir", "run", "--bind", "tcp://127.0.0.1:0"),
            *("--steps", "0", "--shards", str(SHARDS), *flags),
            program=program,
        )
        self.endpoint = self.server.wait_for(r"manychar worker (tcp://\S+)")[1]
        self.workers: dict[str, Running] = {}
        for name, each in seconds.items():
            self.join(name, each)

    def join(self, name: str, seconds: float) -> None:
        self.set(name, seconds)
        arguments = ("worker", self.endpoint, "--name", name)
        self.workers[name] = self.manychar.start(*arguments, program=("-c", SLOW_WORKER))

    def set(self, name: str, seconds: float) -> None:
        path = self.manychar.directory / name
        path.with_suffix(".new").write_text(str(seconds))
        path.with_suffix(".new").replace(path)

    def snapshots(self) -> Generator[Snapshot]:
        """Yield what an observer sees, for as long as a test may wait."""
        client = ObserverClient(self.endpoint, connect_timeout=GENEROUS)
        with contextlib.closing(client):
            for _ in itertools.count():
                yield from (each for each in client.turn() if isinstance(each, Snapshot))
                assert client.end is None, client.end
                client.socket.poll(20)

    def wait_until(self, true: Callable[[dict[str, WorkerStats]], object]) -> Snapshot:
        """Wait until it is true of the workers, by name."""
        snapshots = self.snapshots()
        with contextlib.closing(snapshots):

            def found() -> Snapshot | None:
                snapshot = next(snapshots)
                return snapshot if true({each.name: each for each in snapshot.workers}) else None

            return until(found, self.server.described)

    def stop(self) -> None:
        """Have the run stopped, and compare its bits."""
        assert self.manychar.run("stop", self.endpoint).code == 0
        assert self.server.end().code == 75
        assert {worker.end().code for worker in self.workers.values()} == {75}
        expect_same_bits(self.run, self._text)


def reached(found: float, least: float) -> bool:
    print(f"{found:.2f}")
    return found >= least


def efficiency(fleet: ByHand) -> Generator[float]:
    """Yield a run's speed by the sum of its workers' speeds, over one window after the other."""
    before: Snapshot | None = None
    for now in fleet.snapshots():
        before = before or now
        seconds = now.status.seconds - before.status.seconds
        if seconds >= WINDOW:
            speed = SHARDS * (now.status.step - before.status.step) / seconds
            yield speed / sum(1 / worker.shard_seconds for worker in now.workers)
            before = now


def test_a_worker_at_a_fifth_of_the_speed_costs_little(manychar: Commands, text: Path) -> None:
    fleet = ByHand(manychar, text, *SMALL, fast=0.002, slow=0.01)
    fleet.wait_until(lambda of: len(of) == 2 and of["fast"].shards >= 13 and of["slow"].shards >= 1)
    found = efficiency(fleet)
    with contextlib.closing(found):
        until(lambda: next(found) >= 0.85, "85 % of the sum of the workers' speeds")
    fleet.stop()


@pytest.mark.long
def test_a_worker_that_only_costs_gets_nothing_beside_a_new_one_and_comes_back(
    manychar: Commands, text: Path
) -> None:
    fleet = ByHand(manychar, text, *SMALL, program=("-c", SOON_MEASURED), fast=0.002, slow=0.002)
    fleet.wait_until(lambda of: {"fast", "slow"} == {n for n in of if of[n].shards >= 6})
    fleet.set("slow", 0.2)
    fleet.server.wait_for(r"slow takes \S+ s for a shard: it gets none, a step without it is short")
    seen = fleet.wait_until(lambda of: of["slow"].state == "slow" and of["fast"].shards == SHARDS)
    assert seen.working == ["fast"]
    assert not seen.status.idle_workers, "slow is another state, with another remedy"
    fleet.join("new", 0.002)
    fleet.wait_until(lambda of: "new" in of and of["new"].shards >= 6)
    fleet.set("slow", 0.002)
    fleet.wait_until(lambda of: all(each.shards >= 4 for each in of.values()))
    fleet.stop()


@pytest.mark.long
def test_a_worker_that_is_stopped_most_of_the_time_costs_little(
    manychar: Commands, text: Path
) -> None:
    """It is stopped for real. A step takes longer than a stop: tests/benchmarks/README.md."""
    text.write_text(4 * text.read_text())
    fleet = ByHand(manychar, text, "--hidden", "512", "--streams", "32", fast=0.0, slow=0.0)
    fleet.wait_until(lambda of: {"fast", "slow"} == {n for n in of if of[n].shards >= 4})
    slow = fleet.workers["slow"].process
    with slowed(lambda: slow, running=0.02, stopped=0.08):
        fleet.wait_until(lambda of: of["slow"].straggling > 0.3 or of["slow"].shards <= 3)
        fleet.wait_until(lambda of: of["slow"].shards <= 3)
        found = efficiency(fleet)
        with contextlib.closing(found):
            until(lambda: reached(next(found), 0.85), "85 % of the sum of the workers' speeds")
    fleet.wait_until(lambda of: of["slow"].shards >= 4)
    fleet.stop()
