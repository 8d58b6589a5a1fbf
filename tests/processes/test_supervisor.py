"""Supervision with real processes: restarts, log lines, stopping, and the end of their parent."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from manychar.network.event_loop import EventLoop
from manychar.processes import child_process, supervisor
from manychar.processes.child_process import ChildProcess
from manychar.processes.supervisor import ProcessSlot, Supervisor

READY = "print('ready', flush=True)\n"
IGNORES_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
WAITS = "import signal; signal.pause()\n"
WRITES = "import sys\nfor i in range(20_000): sys.stderr.write(f'line {i}\\n')\n"
ENDS_WITH_PARENT = (
    "from manychar.processes.parent_death import end_with_parent\nend_with_parent()\n"
)


class Family:
    """A supervisor whose children run Python code, and what it was told of them."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.ends: list[int] = []
        self.failure = ""
        self.errors: list[str] = []
        self.output: list[str] = []
        self.restarts = True
        self.supervisor = Supervisor(
            loop,
            on_end=self._ended,
            on_log=lambda slot, line: self.errors.append(f"{slot.name}: {line}"),
        )

    def start(self, code: str, *, name: str = "a", has_stdin: bool = False) -> ProcessSlot:
        slot = ProcessSlot(
            name=name, arguments=[code], on_line=self.output.append, has_stdin=has_stdin
        )
        self.supervisor.start(slot)
        return slot

    def turn_until(self, true: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60.0
        while not true():
            assert time.monotonic() < deadline, (self.ends, self.output, self.errors[-5:])
            self.loop.turn(1.0)

    def _ended(self, slot: ProcessSlot, code: int) -> None:
        self.ends.append(code)
        if self.restarts:
            self.failure = self.supervisor.restart(slot, code)


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """A family whose pauses are short."""
    monkeypatch.setattr(child_process, "PROGRAM", (sys.executable, "-c"))
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    with EventLoop() as loop:
        family = Family(loop)
        try:
            yield family
        finally:
            family.supervisor.kill()


def test_a_process_that_crashes_is_started_again_and_fails_in_the_end(family: Family) -> None:
    slot = family.start("import sys; sys.exit(70)")
    family.turn_until(lambda: family.failure)
    assert family.ends == [70] * supervisor.QUICK_DEATHS
    assert family.failure.startswith("failed: a ended within 10 s of its start 5 times")
    assert slot.is_empty


def test_the_pause_doubles_up_to_a_limit_and_starts_again_once_a_process_has_settled(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot, settled = ProcessSlot(name="a", arguments=[]), 10.0 + supervisor.SETTLED_AFTER
    now = 0.0
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: now))
    for now, pause in ((1.0, 0.5), (3.0, 1.0), (6.0, 2.0), (10.0, 4.0)):
        slot.started_at = now
        assert family.supervisor.restart(slot, -9) == ""
        assert slot.restart_at == now + pause
    now = settled
    assert family.supervisor.restart(slot, -9) == ""
    assert (slot.restart_at, slot.quick_deaths) == (settled + 0.5, 0)


def test_all_that_a_process_wrote_is_read_before_its_end_is_reported(family: Family) -> None:
    family.restarts = False
    family.start(WRITES + "print('out'); sys.stderr.write('no newline')")
    family.turn_until(lambda: family.ends)
    assert family.errors == [*(f"a: line {i}" for i in range(20_000)), "a: no newline"]
    assert family.output == ["out"]


def test_a_process_reads_what_is_written_to_it_and_has_a_session_of_its_own(family: Family) -> None:
    slot = family.start("print(input(), flush=True)\n" + WAITS, has_stdin=True)
    assert slot.process is not None
    assert slot.process.stdin is not None
    slot.process.stdin.write(b"hello\n")
    slot.process.stdin.flush()
    family.turn_until(lambda: family.output)
    assert family.output == ["hello"]
    assert os.getsid(slot.process.pid) == slot.process.pid


def test_stopping_ends_all_in_good_order_and_starts_none_again(family: Family) -> None:
    slots = [family.start(READY + WAITS, name=name) for name in "ab"]
    family.turn_until(lambda: len(family.output) == len(slots))
    family.supervisor.stop(60.0)
    assert family.ends == [-signal.SIGTERM] * 2
    assert all(slot.is_empty for slot in slots)


def test_a_process_that_does_not_end_is_read_meanwhile_and_killed(
    family: Family, caplog: pytest.LogCaptureFixture
) -> None:
    family.start(IGNORES_SIGTERM + READY + WRITES + WAITS)
    family.turn_until(lambda: family.output)
    family.supervisor.stop(3.0)
    assert family.ends == [-signal.SIGKILL]
    assert family.errors[-1] == "a: line 19999"
    assert "a did not end within 3 s: killed" in caplog.text


def test_a_process_ends_with_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "PROGRAM", (sys.executable, "-c"))
    child = ChildProcess([ENDS_WITH_PARENT + WAITS])
    os.close(child.parent_pipe)  # what the operating system does when the parent ends
    assert child.wait(60.0) == -signal.SIGTERM
    child.communicate()


def test_a_process_that_ignores_sigterm_ends_with_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(child_process, "PROGRAM", (sys.executable, "-c"))
    short = "from manychar.processes import parent_death; parent_death.GRACE = 0.1\n"
    child = ChildProcess([short + IGNORES_SIGTERM + ENDS_WITH_PARENT + WAITS])
    os.close(child.parent_pipe)
    assert child.wait(60.0) == 128 + signal.SIGTERM
    child.communicate()
