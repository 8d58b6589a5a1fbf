"""Many workers on one server: each has a lease soon, none is starved, and the bits are the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from manychar.storage.checkpoint import list_checkpoints, read_checkpoint
from tests.commands import SMALL, Commands, Running, until
from tests.single_process import bits_of
from tests.texts import small_text

ROOT = Path(__file__).parents[2]
PROGRAM = ("-m", "tests.many_workers")
LEASED_WITHIN = 30.0  # the benchmark `many` says how long 1,000 take on quiet cores
NOTICED_WITHIN = 5.0  # a kill: a unit is asked for again after half of the lease timeout
STEPS_COUNTED, UNITS_COUNTED = 10, 2_000


def answer(workers: Running, number: int) -> dict[str, float]:
    """Return what the process of workers has answered to its command of this number."""
    until(lambda: workers.out.count("\n") > number, workers.described)
    found: dict[str, float] = json.loads(workers.out.splitlines()[number])
    return found


def ask(workers: Running, command: str) -> dict[str, float]:
    """Have the process of workers carry out a command, and return its answer."""
    assert workers.process.stdin is not None
    number = workers.out.count("\n")
    workers.process.stdin.write(f"{command}\n".encode())
    workers.process.stdin.flush()
    return answer(workers, number)


def expect_none_starved(workers: Running, count: int) -> None:
    """Count units for some steps: every worker has sent at least half as many as any other.

    A worker may have sent that of the first step before, that of the last one not yet, and one
    again that it was asked for again. A relay tells within a tenth of a second how many workers
    are below: until then one of them may be without a range, and few workers make many steps.
    """
    steps = max(STEPS_COUNTED, UNITS_COUNTED // count)
    ask(workers, "units")  # from here on
    units: dict[str, float] = {}
    while max(units.values(), default=0) < steps:
        for name, sent in ask(workers, "units").items():
            units[name] = units.get(name, 0) + sent
    assert len(units) == count
    assert min(units.values()) >= max(units.values()) / 2, units


def bits_alone(run: Path, steps: int) -> str:
    """Return the hash of the state after some steps, as one process adds up the same results."""
    command = [sys.executable, *PROGRAM, "alone", str(run), str(steps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def long(*values: int) -> ParameterSet:
    return pytest.param(*values, marks=pytest.mark.long)


@pytest.mark.parametrize(("count", "relays"), [(50, 0), long(50, 2), long(1000, 0), long(1000, 16)])
def test_many_workers_share_a_run_and_a_tenth_of_them_is_replaced(
    manychar: Commands, text: Path, count: int, relays: int
) -> None:
    text.write_text(4 * small_text(), encoding="utf-8")
    server = manychar.start(
        *("server", str(text), "--run-dir", "run", "--bind", "tcp://127.0.0.1:0", "--steps", "0"),
        *("--lease-timeout", str(2 * NOTICED_WITHIN)),  # a busy machine makes nobody silent
        *(*SMALL, "--streams", "1", "--shards", str(count)),
    )
    endpoint = server.wait_for(r"manychar worker (tcp://\S+)")[1]
    between = [
        manychar.start("relay", endpoint, "--bind", "tcp://127.0.0.1:0", "--name", f"r{i}")
        for i in range(relays)
    ]
    below = [each.wait_for(r"manychar worker (tcp://\S+)")[1] for each in between]
    workers = manychar.start(
        *(str(count), *(below or [endpoint])),
        program=PROGRAM,
        stdin=subprocess.PIPE,
        directory=ROOT,
    )
    assert answer(workers, 0)["leased"] <= LEASED_WITHIN
    expect_none_starved(workers, count)
    replaced = ask(workers, f"replace {count // 10}")
    assert replaced["leased"] <= NOTICED_WITHIN + LEASED_WITHIN
    expect_none_starved(workers, count)
    assert manychar.run("stop", endpoint).code == 0
    assert [each.end().code for each in (server, *between)] == [75] * (1 + relays)
    assert workers.process.stdin is not None
    workers.process.stdin.close()  # its sockets may drop a server's last message
    assert workers.end().code == 0
    step, path = max(list_checkpoints(manychar.directory / "run" / "checkpoints"))
    assert step >= 2 * STEPS_COUNTED
    assert bits_of(read_checkpoint(path).state) == bits_alone(manychar.directory / "run", step)
