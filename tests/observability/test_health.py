"""`manychar health`: one line and an exit code, for a probe; from real servers and a fake one."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manychar.network import keys
from manychar.network.router import Router, Unreachable
from manychar.observability.snapshot import Snapshot
from manychar.observability.status import Health, health_of
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.messages import Done, Hello, KeyRole, Welcome
from manychar.protocol.worker_tally import WorkerStats
from tests.commands import SMALL, Commands
from tests.protocol.stage import status

DIMENSIONS = Dimensions(
    vocabulary_size=3, hidden=2, seq_length=3, streams=1, shards=2, dtype="float32"
)


def worker(name: str, *, shards: int = 1, late: float = 0.0) -> WorkerStats:
    return WorkerStats(name, "host", "working", shards, 0, 0, 0.1, late, *(0.0, 0.0, 0.0, 0.0, 0.0))


def snapshot(step: int, *workers: WorkerStats, **figures: Any) -> Snapshot:
    figures = {"run_id": "run-1", "term": 1, "steps": 12_000, **figures}
    return Snapshot(DIMENSIONS, status(step=step, **figures), workers)


NOBODY = "nothing accepts connections there"
RACK = (
    worker("rack"),
    worker("a")._replace(relay="rack"),
    worker("c")._replace(relay="rack"),
    worker("idle", shards=0)._replace(relay="rack"),
    worker("b"),
)
"""A relay that holds shards, and the workers: one of those below it is idle."""


@pytest.mark.parametrize(
    ("now", "when", "expected"),
    [
        (snapshot(7, worker("a", late=1.0)), "time left", None),
        (
            snapshot(8, worker("a", late=1.0)),
            "time left",
            Health("step 8/12,000: it advances, with 1 worker"),
        ),
        (
            snapshot(3, worker("a"), worker("b"), term=2),
            "time left",
            Health("step 3/12,000: it advances, with 2 workers"),
        ),
        (snapshot(8, *RACK), "time left", Health("step 8/12,000: it advances, with 3 workers")),
        (
            snapshot(7, worker("a", shards=0), waiting_for="a worker to connect"),
            "time left",
            Health("step 7/12,000: it waits for a worker to connect"),
        ),
        (
            snapshot(7, worker("a", late=9.6), worker("b")),
            "expired",
            Health("step 7/12,000: it has waited 10 s for a"),
        ),
        (
            snapshot(7, *(worker(name, late=8.0) for name in "abcdefg")),
            "expired",
            Health("step 7/12,000: it has waited 8 s for a, b, c, d, e and 2 more"),
        ),
        (
            snapshot(7, worker("a"), waiting_for="the validation loss of step 6"),
            "time left",
            Health("step 7/12,000: it waits for the validation loss of step 6"),
        ),
        (
            snapshot(7, worker("a")),
            "expired",
            Health("step 7/12,000: it does not advance, and gives no reason", healthy=False),
        ),
    ],
)
def test_health_of_two_snapshots(now: Snapshot, when: str, expected: Health | None) -> None:
    assert health_of(snapshot(7, worker("a")), now, expired=when == "expired") == expected


@pytest.mark.long
def test_health_of_a_live_run_with_keys(manychar: Commands, text: Path) -> None:
    keys.create(manychar.directory / "keys")
    probe = keys.add(manychar.directory / "keys", "probe", KeyRole.OBSERVER)
    server = manychar.start(
        *("server", str(text), "--run-dir", "run", *SMALL, "--keys", "keys"),
        *("--bind", "tcp://127.0.0.1:0", "--steps", "0", "--sample-every", "0"),
    )
    endpoint = server.wait_for(r"manychar worker (tcp://\S+) --key FILE")[1]
    waiting = manychar.run("health", endpoint, "--key", str(probe))
    assert (waiting.code, waiting.err) == (0, "")
    assert waiting.out == "step 0: it waits for a worker to connect\n"

    helper = manychar.start("worker", endpoint, "--key", "keys/worker.key")
    server.wait_for("worker has joined")
    well = manychar.run("health", endpoint, env={"MANYCHAR_KEY": probe.read_text()})
    assert (well.code, well.err) == (0, "")
    assert "it advances, with 1 worker\n" in well.out

    stranger = manychar.run("health", endpoint)  # at once: not after its connect timeout
    assert (stranger.code, stranger.out) == (3, "")
    assert stranger.err.startswith(
        f"manychar: {endpoint} refuses the handshake: it asks for a key: --key FILE"
    )
    assert stranger.err.count("\n") == 1

    server.send(15)
    assert server.end().code == 75
    assert helper.end().code == 75
    gone = manychar.run("health", endpoint, "--key", str(probe), "--connect-timeout", "1")
    assert (gone.code, gone.out) == (3, "")
    assert gone.err == f"manychar: no server at {endpoint} for 1 s (--connect-timeout): {NOBODY}\n"


class FakeServer(threading.Thread):
    """A server that answers, and does nothing else: one worker holds a lease, nobody is late."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.router = Router("tcp://127.0.0.1:0", DIMENSIONS)
        self.over = threading.Event()
        self.done: Done | None = None

    def run(self) -> None:
        peers = set()
        while not self.over.wait(0.05):
            while (received := self.router.receive()) is not None:
                peers.add(received.peer)
                try:
                    is_hello = isinstance(decode(received.frames, DIMENSIONS), Hello)
                except WireError:
                    continue
                if is_hello:
                    self._welcome(received.peer)
            for peer in peers:
                with contextlib.suppress(Unreachable):  # an observer that has left
                    self._show(peer)

    def _welcome(self, peer: bytes) -> None:
        welcome = Welcome(
            run_id="run-1",
            term=1,
            session=7,
            dimensions=DIMENSIONS,
            numerics="portable",
            seed=0,
            silence=60.0,
            vocabulary=b"abc",
            fingerprint="same",
            libraries={},
        )
        self.router.send(peer, encode(welcome))

    def _show(self, peer: bytes) -> None:
        page = status(term=1, step=7, steps=12_000, total=1, workers=(worker("a"),))
        self.router.send(peer, encode(self.done or page))


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    fake = FakeServer()
    fake.start()
    try:
        yield fake
    finally:
        fake.over.set()
        fake.join()
        fake.router.close()


def test_a_server_that_answers_and_does_not_advance_is_not_healthy(
    manychar: Commands, fake: FakeServer
) -> None:
    found = manychar.run("health", fake.router.endpoint, "--connect-timeout", "1")
    assert found.code == 1, found.err
    assert found.out == "step 7/12,000: it does not advance, and gives no reason\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_standard_output_that_cannot_be_written_is_not_taken_for_the_runs_state(
    manychar: Commands, fake: FakeServer
) -> None:
    timeout = ("--connect-timeout", "1")
    reading, broken = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        for output, said in ((full.fileno(), "no space left on device"), (broken, "")):
            health = manychar.start("health", fake.router.endpoint, *timeout, stdout=output).end()
            lines = f"manychar: standard output: {said}\n" if said else ""
            assert (health.code, health.err) == (1, lines), "as where it can be written"
        status = manychar.start("status", fake.router.endpoint, stdout=full.fileno()).end()
        watched = ("status", fake.router.endpoint, "--watch")
        assert manychar.start(*watched, stdout=full.fileno()).end().code == 2
    os.close(broken)
    assert (status.code, status.err) == (2, "manychar: standard output: no space left on device\n")


def test_failed_writes_are_shown() -> None:
    counts = {"units_repeated": 2, "journal_not_written": 1, "metrics_not_written": 6}
    now = snapshot(8, worker("a"), counts=counts)
    found = health_of(snapshot(7, worker("a")), now, expired=False)
    assert found == Health(
        "step 8/12,000: it advances, with 1 worker; journal_not_written: 1; metrics_not_written: 6"
    )


@pytest.mark.parametrize(("reason", "said"), [("", "the run has ended"), ("over", "over")])
def test_stop_of_a_run_that_is_ending_says_how_it_ended(
    manychar: Commands, fake: FakeServer, reason: str, said: str
) -> None:
    fake.done = Done(run_id="run-1", term=1, session=7, code=0, reason=reason)
    stopped = manychar.run("stop", fake.router.endpoint)
    assert (stopped.code, stopped.out, stopped.err) == (0, "", f"{said}\n")
