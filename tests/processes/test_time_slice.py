import os
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from manychar.processes.time_slice import LONGEST_SLICE_NS, make_way


def knows_slices() -> bool:
    """Whether this is a Linux that lets a thread ask for long slices, and shows them."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    new = release is not None and tuple(map(int, release.groups())) >= (6, 12)
    return sys.platform == "linux" and new and Path("/proc/self/sched").exists()


@pytest.mark.skipif(not knows_slices(), reason="this system knows no slices: nothing to ask for")
def test_a_thread_that_computes_asks_for_long_slices() -> None:
    found: list[str] = []

    def compute() -> None:
        make_way()
        found.append(Path(f"/proc/self/task/{threading.get_native_id()}/sched").read_text())

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    slices = re.search(r"se\.slice +: +(\d+)", found[0])
    assert slices
    assert int(slices[1]) == LONGEST_SLICE_NS


@pytest.mark.skipif(not knows_slices(), reason="this system knows no slices: nothing to ask for")
def test_how_nice_it_is_stays_the_users() -> None:
    program = (
        "import os; os.nice(7); from manychar.processes.time_slice import make_way; make_way();"
        "print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["7", str(os.SCHED_OTHER)]


@pytest.mark.parametrize("machine", ["another", "x86_64"])
def test_where_it_is_not_known_nothing_happens(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "another")
    monkeypatch.setattr(platform, "machine", lambda: machine)
    make_way()
