"""Long work is shown: a line every two seconds, or a bar; short work is not."""

import io
import logging
import sys

import pytest

from manychar.processes import work_progress as module
from manychar.processes.work_progress import can_draw, work_progress

MB = 10**6


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_say_how_far_it_is(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "manychar")
    with work_progress("reading it") as show:
        for done in range(10):
            show(done * MB, 20 * MB)
            clock.now += 0.5
        show(30 * MB, 0)
        clock.now += 9
        show(4_000 * MB, 0)
    lines = ["20% of 20 MB", "40% of 20 MB", "4,000 MB"]
    assert [record.getMessage() for record in caplog.records] == [
        f"reading it: {line}" for line in lines
    ]


@pytest.mark.parametrize(("columns", "wide"), [("69", False), ("70", True)])
def test_a_narrow_terminal_gets_lines(
    monkeypatch: pytest.MonkeyPatch, columns: str, *, wide: bool
) -> None:
    logging.getLogger("manychar").setLevel(logging.INFO)
    monkeypatch.setattr(sys, "stderr", Terminal())
    for name, value in {"TERM": "xterm", "COLUMNS": columns}.items():
        monkeypatch.setenv(name, value)
    assert can_draw() is wide


@pytest.mark.parametrize("total", [0, 20 * MB])
def test_a_terminal_gets_a_bar(clock: Clock, monkeypatch: pytest.MonkeyPatch, total: int) -> None:
    logging.getLogger("manychar").setLevel(logging.INFO)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert can_draw()
    with work_progress("reading it") as show:
        show(1, total)
        assert terminal.getvalue() == ""
        clock.now += 3
        show(10 * MB, total)
    shown = terminal.getvalue()
    assert ("50%" if total else "reading it: 10 MB") in shown
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is there again
