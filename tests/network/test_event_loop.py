"""The event loop with real sockets, pipes, signals and threads."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import zmq

from manychar.network import event_loop
from manychar.network.event_loop import TURN_EVERY, EventLoop

LONG = 30.0  # seconds that no test waits: something else ends the turn


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    with EventLoop() as made:
        yield made


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_a_socket_and_a_descriptor_are_called_back_while_they_can_be_read(
    loop: EventLoop, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    seen: list[bytes] = []
    with (
        zmq.Context() as context,
        context.socket(zmq.PAIR) as left,
        context.socket(zmq.PAIR) as right,
    ):
        left.bind("inproc://pair")
        right.connect("inproc://pair")
        loop.on_readable(left, lambda: seen.append(left.recv()))
        loop.on_readable(reading, lambda: seen.append(os.read(reading, 1)))
        right.send(b"socket")
        loop.turn(LONG)
        os.write(writing, b"pq")
        loop.turn(LONG)
        loop.turn(LONG)
        assert seen == [b"socket", b"p", b"q"]
        loop.turn(0)
        assert len(seen) == 3


def test_what_was_removed_is_not_called_even_in_the_same_turn(
    loop: EventLoop, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    again = os.dup(reading)
    calls: list[int] = []

    def called(me: int, other: int) -> None:
        calls.append(me)
        loop.remove(other)

    loop.on_readable(reading, lambda: called(reading, again))
    loop.on_readable(again, lambda: called(again, reading))
    os.write(writing, b"x")
    loop.turn(LONG)
    loop.turn(LONG)
    assert len(calls) == 2
    assert len(set(calls)) == 1
    loop.remove(12345)  # unknown: nothing to do
    os.close(again)


def test_deadlines_are_asked_anew_in_each_turn_and_come_after_what_was_read(
    loop: EventLoop, pipe: tuple[int, int]
) -> None:
    reading, writing = pipe
    order: list[str] = []
    due: list[float | None] = [None]

    def passed() -> None:
        order.append("deadline")
        due[0] = None

    loop.on_deadline(lambda: due[0], passed)
    loop.on_readable(reading, lambda: order.append(os.read(reading, 1).decode()))
    loop.turn(0)
    assert order == []
    due[0] = began = time.monotonic() + 0.05
    loop.turn(LONG)
    assert order == ["deadline"]
    assert time.monotonic() >= began
    due[0] = time.monotonic()
    os.write(writing, b"r")
    loop.turn(LONG)
    assert order == ["deadline", "r", "deadline"]


def test_another_thread_wakes_it(loop: EventLoop) -> None:
    woken: list[bool] = []
    loop.on_wake(lambda: woken.append(True))
    thread = threading.Thread(target=loop.wake)
    thread.start()
    loop.turn(LONG)
    thread.join()
    assert woken == [True]
    loop.turn(0)
    assert woken == [True]  # once a wake-up, not for ever


def test_signals_are_called_back_and_their_handlers_restored(pipe: tuple[int, int]) -> None:
    before = signal.getsignal(signal.SIGURG)
    numbers: list[int] = []
    with EventLoop() as loop:
        loop.on_signal(numbers.append, signal.SIGURG, signal.SIGCHLD)
        os.kill(os.getpid(), signal.SIGURG)
        loop.turn(LONG)
        assert numbers == [signal.SIGURG]
        assert signal.getsignal(signal.SIGURG) != before
    assert signal.getsignal(signal.SIGURG) == before


def test_an_exception_of_a_callback_ends_the_turn(loop: EventLoop) -> None:
    def fails() -> None:
        raise ValueError("on purpose")

    loop.on_wake(fails)
    loop.wake()
    with pytest.raises(ValueError, match="on purpose"):
        loop.turn(LONG)


def test_a_sleep_far_past_its_deadline_is_reported(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[float] = []
    loop.on_suspension(late.append)
    loop.turn(0.01)
    assert late == []
    clock = Clock(monkeypatch)
    loop.turn(0)
    late.clear()

    def sleeps(_: int) -> list[object]:
        clock.go_on(3.5)
        return []

    monkeypatch.setattr(loop, "_poller", SimpleNamespace(poll=sleeps))
    loop.turn(0.25)
    assert late == [3.25]


def test_time_off_the_cores_between_two_polls_is_reported(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[float] = []
    loop.on_suspension(late.append)
    clock = Clock(monkeypatch)
    loop.turn(0)
    late.clear()
    clock.go_on(60.0, on_core=59.5)
    loop.turn(0)
    assert late == [], "a long piece of work"
    clock.go_on(60.0, on_core=0.5)
    loop.turn(0)
    assert late == [59.5]
    loop.turn(0)
    assert late == [59.5]


def test_a_suspension_during_a_callback_is_reported_before_deadlines_pass(
    loop: EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    clock = Clock(monkeypatch)
    loop.turn(0)
    clock.go_on(TURN_EVERY)
    due = clock.now
    loop.on_wake(lambda: clock.go_on(3.0))
    loop.on_suspension(lambda late: order.append(f"late by {late:g}"))
    loop.on_deadline(lambda: due, lambda: order.append("a deadline"))
    order.clear()
    loop.wake()
    loop.turn(0)
    assert order == ["late by 3", "a deadline"]


class Clock:
    """The clocks of the loop, which a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.on_core = 100.0
        clocks = {"monotonic": lambda: self.now, "thread_time": lambda: self.on_core}
        monkeypatch.setattr(event_loop, "time", SimpleNamespace(**clocks))

    def go_on(self, seconds: float, *, on_core: float = 0.0) -> None:
        self.now += seconds
        self.on_core += on_core
