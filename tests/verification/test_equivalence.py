"""`manychar equivalence`: it passes, it says what it saw, and it can fail."""

import re
import signal
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from manychar.protocol.run_operation import Operation
from manychar.verification.equivalence import Disturbance, turns_for
from tests.commands import SMALL, Commands

# Breaks the arithmetic of the first server that starts, which computes alone: from its 50th shard
# on, one element of the gradient is off by its last bit. Among others it would be caught while it
# trains, but only if a range moves at the right moment.
BROKEN_SERVER = """
import importlib.abc, importlib.util, pathlib, sys

class Saboteur(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "manychar.numerics.kernel":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def load_and_break(module):
            load(module)
            break_arithmetic(module)
        spec.loader.exec_module = load_and_break
        return spec

def break_arithmetic(module):
    import numpy as np
    right = module.Kernel.compute
    calls = 0
    def wrong(*arguments):
        nonlocal calls
        calls += 1
        loss, gradient, hidden = right(*arguments)
        if calls > 50:
            by = gradient.named()["by"]
            by[-1] = np.nextafter(by[-1], by.dtype.type(np.inf))
        return loss, gradient, hidden
    module.Kernel.compute = wrong

if "server" in sys.orig_argv:
    first = pathlib.Path(__file__).with_name("first")
    if not first.exists():
        first.touch()
        sys.meta_path.insert(0, Saboteur())
"""
ROW = re.compile(r"^ *([\d,]+)((?: +[0-9a-f]{16}){4})$", re.MULTILINE)


def rows_of(out: str) -> dict[int, list[str]]:
    """Return the hashes of the table by step."""
    return {int(step.replace(",", "")): hashes.split() for step, hashes in ROW.findall(out)}


def test_all_ways_come_to_the_same_bits(manychar: Commands, text: Path) -> None:
    with TemporaryDirectory(prefix="mc") as scratch:  # short: a socket's path has its limit
        done = manychar.run(
            *("equivalence", str(text), *SMALL),
            *("--steps", "1300", "--checkpoint-every", "600"),
            env={"TMPDIR": scratch},
        )
        assert done.code == 0, done.err
        manychar.expect_nobody()
        assert not list(Path(scratch).iterdir())
    header = done.out.splitlines()[0]
    assert re.fullmatch(
        r" *step +one process +1 worker +2 workers \(worker killed at [\d,]+\)"
        r" +4 workers \(server killed at [\d,]+, a worker slowed, ranges moved\)",
        header,
    )
    rows = rows_of(done.out)
    assert list(rows) == [0, 600, 1200, 1300]
    assert all(len(set(hashes)) == 1 for hashes in rows.values())
    assert len({hashes[0] for hashes in rows.values()}) == 4
    assert done.out.splitlines()[-1].startswith("the same bits")
    assert re.search(r"worker-\d killed with SIGKILL after step [\d,]+", done.err)
    assert "the server ended by SIGKILL: starting it again" in done.err
    assert done.err.count("\nfinished at step 1,300\n") == 3
    assert not list(manychar.directory.iterdir())


@pytest.mark.parametrize("kill", ["worker", "server"])
@pytest.mark.parametrize("step", [4, 20])
def test_nobody_is_killed_too_early_or_after_the_last_step(
    kill: Literal["worker", "server"], step: int
) -> None:
    operation = Operation(steps=20, workers=2, compute=False)
    disturbance = Disturbance(kill=kill, slow=True, operation=operation)
    only = SimpleNamespace(name="worker-1", process=SimpleNamespace(pid=None))
    fleet: Any = SimpleNamespace(server=only, workers=[only])
    status = SimpleNamespace(step=step, counts={})
    seen: Any = SimpleNamespace(status=status, workers=[only], working=["worker-1"])
    disturbance.on_status(seen, fleet)
    assert not disturbance.killed
    assert bool(disturbance.to_slow(fleet)) == (step < 20)
    said = f"only 1 joined, no {kill} killed, no worker slowed, no range moved"
    assert disturbance.result(was_slowed=False) == (said, False)


@pytest.mark.parametrize("kill", ["worker", "server", None])
@pytest.mark.parametrize("slow", [False, True])
def test_the_server_is_slowed_until_all_has_happened(
    kill: Literal["worker", "server"] | None, *, slow: bool
) -> None:
    operation = Operation(steps=20, workers=2, compute=False)
    disturbance = Disturbance(kill=kill, slow=slow, operation=operation)
    process: Any = SimpleNamespace(pid=None)
    fleet: Any = SimpleNamespace(server=SimpleNamespace(name="the server", process=process))
    fleet.workers = [SimpleNamespace(name=f"worker-{i}", process=None) for i in (1, 2)]

    def is_held_when(joined: int, moves: int = 0) -> bool:
        status = SimpleNamespace(step=3, counts={"ranges_moved": moves})
        seen: Any = SimpleNamespace(status=status, workers=fleet.workers[:joined])
        disturbance.on_status(seen, fleet)
        return disturbance.to_hold(fleet) is process

    assert disturbance.to_hold(fleet) is None, "it is still starting"
    for joined in (0, 1, 2):
        assert is_held_when(joined) is (joined < 2 or slow or kill is not None)
    disturbance.killed.append((process, 5))
    assert is_held_when(2) is slow
    assert not is_held_when(2, moves=1)
    assert not is_held_when(2), "a server that was started again counts anew"
    disturbance.joined.pop()
    fleet.server.process = SimpleNamespace(pid=None)
    assert disturbance.to_hold(fleet) is None, "it is starting again"


@pytest.mark.parametrize(
    ("alone", "running", "stopped"), [(0.0, 0.002, 0.098), (5.0, 0.05, 0.05), (50.0, 0.1, 0.0)]
)
def test_a_run_is_slowed_to_ten_seconds(alone: float, running: float, stopped: float) -> None:
    assert turns_for(alone) == pytest.approx({"running": running, "stopped": stopped})


@pytest.mark.parametrize(("moves", "said"), [(0, "no range moved"), (2, "ranges moved")])
def test_a_trial_may_be_whole_without_a_move(moves: int, said: str) -> None:
    """Where there is one shard, say."""
    operation = Operation(steps=20, workers=1, compute=False)
    disturbance = Disturbance(kill=None, slow=True, operation=operation)
    worker = SimpleNamespace(name="worker-1", process=None)
    fleet: Any = SimpleNamespace(server=worker, workers=[worker])
    status = SimpleNamespace(step=3, counts={"ranges_moved": moves})
    disturbance.on_status(SimpleNamespace(status=status, workers=[worker]), fleet)  # type: ignore[arg-type]
    assert disturbance.result(was_slowed=True) == (f"a worker slowed, {said}", True)


# It sees nobody join, and kills nobody.
BLIND = """
import sys
from manychar.processes.numerics_pinning import pin
pin("portable")
from manychar.verification.equivalence import Disturbance, turns_for
Disturbance.on_status = lambda *_: None
from manychar.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


def test_a_trial_that_is_not_whole_is_a_failure(manychar: Commands, text: Path) -> None:
    flags = (*SMALL, "--steps", "3", "--checkpoint-every", "1")
    done = manychar.run("equivalence", str(text), *flags, program=("-c", BLIND))
    assert done.code == 3, done.err
    two = "2 workers (only 0 joined, no worker killed)"
    four = "4 workers (only 0 joined, no server killed, no worker slowed, no range moved)"
    header, *rows = done.out.splitlines()
    assert header.split("  ")[-2:] == [two, four]
    assert len(rows) == 4, "no line that says `the same bits`"
    assert done.last_line == (
        "manychar: the same bits, but not the whole trial: 1 worker (only 0 joined);"
        f" {two}; {four}: give more --steps"
    )


@pytest.mark.long
def test_it_fails_where_one_process_computes_wrong(
    manychar: Commands, text: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(BROKEN_SERVER)
    done = manychar.run(
        *("equivalence", str(text), *SMALL, "--steps", "1300", "--checkpoint-every", "10"),
        env={"PYTHONPATH": str(broken)},
    )
    assert done.code == 1, done.err
    manychar.expect_nobody()
    # It computes all 4 shards of a step.
    said = re.fullmatch(
        r"DIFFERENT: 1 worker differs first at step (\d+), in (m?(?:Wxh|Whh|Why|bh|by))",
        done.out.splitlines()[-1],
    )
    assert said, done.out
    rows = rows_of(done.out)
    assert 50 // 4 < int(said[1]) <= 60
    assert all(rows[step][0] == rows[step][1] for step in rows if step < int(said[1]))
    assert rows[1300][0] != rows[1300][1]
    assert "same bits" not in done.out


def test_ctrl_c_leaves_nothing(manychar: Commands, text: Path, tmp_path: Path) -> None:
    running = manychar.start(
        *("equivalence", str(text), *SMALL, "--steps", "100000", "--checkpoint-every", "50000"),
        env={"TMPDIR": str(tmp_path)},
    )
    running.wait_for("100,000 steps a trial")
    running.interrupt()
    done = running.end()
    assert done.code == 130
    assert "Traceback" not in done.err
    manychar.expect_nobody()
    assert not list(tmp_path.glob("manychar-*")), "its scratch directory is left"


def test_where_it_is_killed_its_slowed_server_ends(
    manychar: Commands, text: Path, tmp_path: Path
) -> None:
    running = manychar.start(
        *("equivalence", str(text), *SMALL, "--steps", "60", "--checkpoint-every", "20"),
        env={"TMPDIR": str(tmp_path)},
    )
    running.wait_for(r"\n2 workers, slowed until the kill\n(.*\n)*worker-\d has joined")
    running.send(signal.SIGKILL)
    running.end()
    manychar.expect_nobody()


@pytest.mark.long
def test_ctrl_c_while_a_fleet_trains(manychar: Commands, text: Path, tmp_path: Path) -> None:
    running = manychar.start(
        *("equivalence", str(text), *SMALL, "--steps", "1500", "--checkpoint-every", "1500"),
        env={"TMPDIR": str(tmp_path)},
    )
    running.wait_for("worker-1 has joined")
    running.interrupt()
    done = running.end()
    assert done.code == 130, done.err
    assert "Traceback" not in done.err
    manychar.expect_nobody()
    assert not list(tmp_path.glob("manychar-*")), "its scratch directory is left"
