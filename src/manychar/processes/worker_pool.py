"""Several workers of this machine for a server elsewhere: one process each, ended together."""

import contextlib
import logging
import signal
import subprocess
import time
from pathlib import Path

from manychar.processes.errors import INTERRUPTED, RUN_FAILED, STOPPED
from manychar.processes.signals import SelfPipe
from manychar.processes.supervisor import Process, close_pipes, how_it_ended, spawn

logger = logging.getLogger(__name__)


SECONDS_TO_END = 10.0


def work_together(
    endpoint: str,
    name: str,
    *,
    processes: int,
    patience: float,
    key_file: Path | None,
) -> int:
    """Run `processes` workers until all have ended, and return the largest exit code."""
    wake = SelfPipe()
    code = 0
    with contextlib.closing(wake), wake.catching(signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        crew = {
            f"{name}-{i + 1}": _worker(endpoint, f"{name}-{i + 1}", patience, key_file)
            for i in range(processes)
        }
        while crew:
            wake.wait()
            for number in wake.take():
                if number in (signal.SIGINT, signal.SIGTERM):
                    code = INTERRUPTED if number == signal.SIGINT else STOPPED
                    _end(crew)
            for member, process in list(crew.items()):
                if process.poll() is not None:
                    del crew[member]
                    if process.returncode not in (0, STOPPED):
                        logger.warning(f"{member} ended {how_it_ended(process.returncode)}")
                    close_pipes(process)
                    ended = process.returncode if process.returncode >= 0 else RUN_FAILED
                    code = max(code, ended)
    return code


def _worker(endpoint: str, name: str, patience: float, key_file: Path | None) -> Process:
    key = [] if key_file is None else ["--key", str(key_file)]
    return spawn(["worker", endpoint, "--name", name, "--patience", str(patience), *key, "--child"])


def _end(crew: dict[str, Process]) -> None:
    for process in crew.values():
        process.terminate()
    deadline = time.monotonic() + SECONDS_TO_END
    for process in crew.values():
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
