"""What a server and a relay do however they listen: the collection of garbage, once a minute."""

import gc
import time

import pytest

from manychar.fleet.listener import COLLECT_EVERY, Listener
from manychar.network.event_loop import EventLoop


def test_garbage_is_collected_at_the_start_and_once_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collected: list[float] = []
    listener, now = Listener(), time.monotonic()
    monkeypatch.setattr(gc, "collect", lambda: collected.append(time.monotonic()))
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with EventLoop() as listener.loop:
        listener.collect_regularly()
        assert len(collected) == 1
        listener.loop.turn(0)
        assert len(collected) == 2, "before anything has filled the free lists"
        assert listener.collect_at == pytest.approx(now + COLLECT_EVERY, abs=10)
        listener.collect_at = now
        listener.loop.turn(1)
        assert len(collected) == 3
