"""The exchange alone: a real server, and real workers that compute nothing."""

import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path

from tests.benchmarks.plan import Plan
from tests.benchmarks.program import HERE, Program
from tests.benchmarks.running import Process, growth, manychar, operation, sizes
from tests.benchmarks.task import Task


@dataclasses.dataclass(frozen=True)
class IdleFleet:
    """A run's sizes, and whose processes; they are started anew each round."""

    plan: Plan
    task: Task
    workers: int = 2
    program: Program = HERE

    def started(self, stack: contextlib.ExitStack) -> tuple[Path, list[Process]]:
        """Return a run directory, and its server and workers; they end with the stack."""
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=self.plan.scratch))
        run_dir = Path(folder) / "run"
        arguments = [
            *("server", str(self.plan.text), "--bind", "tcp://127.0.0.1:*", "--child"),
            *sizes(self.task),
            *operation(run_dir),
        ]
        server = manychar(*arguments, program=self.program, speaks=True)
        stack.enter_context(server)
        endpoint = json.loads(server.listen())["endpoint"]
        idle = self.program.idle_worker(self.task.numerics)
        workers = [
            stack.enter_context(Process([*idle, endpoint, f"idle-{i}"], program=self.program))
            for i in range(self.workers)
        ]
        return run_dir, [server, *workers]

    def measure(self, turn: int) -> float:
        """Return steps a second, the start left out; `turn` does not matter."""
        with contextlib.ExitStack() as stack:
            run_dir, processes = self.started(stack)
            grown, *_ = growth(run_dir, processes, self.plan.seconds)
        return grown["step"] / grown["seconds"]


class ServerThread(IdleFleet):
    """The same, but the figure is the time of the server's main thread on a core."""

    def measure(self, turn: int) -> float:
        """Return µs a step, as the system's scheduler counts them."""
        with contextlib.ExitStack() as stack:
            run_dir, processes = self.started(stack)
            pid = processes[0].process.pid
            schedstat = Path(f"/proc/{pid}/task/{pid}/schedstat")
            grown, before, after = growth(
                run_dir,
                processes,
                self.plan.seconds,
                read=lambda: int(schedstat.read_text(encoding="ascii").split()[0]),
            )
        return float(after - before) / grown["step"] / 1e3
