"""`manychar health`: one line and an exit code, for a probe; from real servers and a sham one."""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from manychar.network import keys
from manychar.network.router import Router, Unreachable
from manychar.observability.health import Health, judge
from manychar.observability.observer_client import Standing
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.messages import (
    Dimensions,
    Hello,
    KeyRole,
    Report,
    Roster,
    Weights,
    Welcome,
    WorkerStats,
)
from tests.commands import SMALL, Commands

DIMENSIONS = Dimensions(
    vocabulary_size=3, hidden=2, seq_length=3, streams=1, shards=2, dtype="float32"
)


def worker(name: str, *, leases: int = 1, late: float = 0.0) -> WorkerStats:
    return WorkerStats(name, "host", "working", leases, 0, 0, 9.0, 1.0, 1.0, late)


def report(step: int, term: int = 1) -> Report:
    return Report(
        run="run-1",
        term=term,
        step=step,
        steps=12_000,
        loss=1.0,
        smooth_loss=1.0,
        characters=0,
        seconds=1.0,
        workers=(),
        standing_by=0,
        counts={},
        checkpoint=0,
        checkpoint_age=0.0,
        validated=None,
        validation=None,
        best=None,
    )


def standing(step: int, *workers: WorkerStats, term: int = 1, waiting: str = "") -> Standing:
    return Standing(DIMENSIONS, report(step, term), workers, waiting)


@pytest.mark.parametrize(
    ("now", "when", "expected"),
    [
        (standing(7, worker("a", late=1.0)), "early", None),
        (
            standing(8, worker("a", late=1.0)),
            "early",
            Health("step 8 of 12,000: it advances, with 1 worker"),
        ),
        (
            standing(3, worker("a"), worker("b"), term=2),
            "early",
            Health("step 3 of 12,000: it advances, with 2 workers"),
        ),
        (
            standing(7, worker("a", leases=0), waiting="a worker: none is here"),
            "early",
            Health("step 7 of 12,000: it waits for a worker: none is here"),
        ),
        (
            standing(7, worker("a", late=9.6), worker("b")),
            "in vain",
            Health("step 7 of 12,000: it has waited 10 s for a"),
        ),
        (
            standing(7, *(worker(name, late=8.0) for name in "abcdefg")),
            "in vain",
            Health("step 7 of 12,000: it has waited 8 s for a, b, c, d, e and 2 more"),
        ),
        (
            standing(7, worker("a"), waiting="the held-out loss of step 6"),
            "early",
            Health("step 7 of 12,000: it waits for the held-out loss of step 6"),
        ),
        (
            standing(7, worker("a")),
            "in vain",
            Health(
                "step 7 of 12,000: it does not advance, and does not say for whom it waits",
                well=False,
            ),
        ),
    ],
)
def test_what_is_well(now: Standing, when: str, expected: Health | None) -> None:
    assert judge(standing(7, worker("a")), now, in_vain=when == "in vain") == expected


def test_a_live_run_with_keys_from_none_to_well(manychar: Commands, text: Path) -> None:
    keys.create(manychar.directory / "keys")
    probe = keys.add(manychar.directory / "keys", "probe", KeyRole.OBSERVER)
    server = manychar.start(
        *("server", str(text), "--run-dir", "run", *SMALL, "--keys", "keys"),
        *("--bind", "tcp://127.0.0.1:0", "--steps", "0", "--sample-every", "0"),
    )
    endpoint = server.wait_for(r"manychar worker (tcp://\S+) --key FILE")[1]
    lonely = manychar.run("health", endpoint, "--key", str(probe))
    assert (lonely.code, lonely.err) == (0, "")
    assert lonely.out == "step 0: it waits for a worker: none is here\n"

    helper = manychar.start("worker", endpoint, "--key", "keys/worker.key")
    server.wait_for("worker has joined")
    well = manychar.run("health", endpoint, env={"MANYCHAR_KEY": probe.read_text()})
    assert (well.code, well.err) == (0, "")
    assert "it advances, with 1 worker\n" in well.out

    stranger = manychar.run("health", endpoint, "--connect-timeout", "1")
    assert (stranger.code, stranger.out) == (3, "")
    assert stranger.err.count("\n") == 1
    assert "no server" in stranger.err
    assert "it wants a key" in stranger.err

    server.send(15)
    assert server.end().code == 75
    assert helper.end().code == 75
    gone = manychar.run("health", endpoint, "--key", str(probe), "--connect-timeout", "1")
    assert (gone.code, gone.out) == (3, "")
    assert gone.err == f"manychar: gave up: no server at {endpoint} for 1 s (--connect-timeout)\n"


class Sham(threading.Thread):
    """A server that answers, and does nothing else: one worker holds a lease, nobody is late."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.router = Router("tcp://127.0.0.1:0", DIMENSIONS)
        self.over = threading.Event()

    def run(self) -> None:
        peers = set()
        while not self.over.wait(0.05):
            while (received := self.router.receive()) is not None:
                peers.add(received.peer)
                try:
                    knocks = isinstance(decode(received.frames, DIMENSIONS), Hello)
                except WireError:
                    continue
                if knocks:
                    self._greet(received.peer)
            with contextlib.suppress(Unreachable):  # who has seen enough has gone
                for peer in peers:
                    self._show(peer)

    def _greet(self, peer: bytes) -> None:
        welcome = Welcome(
            run="run-1",
            term=1,
            steps=12_000,
            dimensions=DIMENSIONS,
            numerics="portable",
            seed=0,
            silence=60.0,
            vocabulary=b"abc",
        )
        size = DIMENSIONS.parameters_bytes
        weights = Weights(run="run-1", term=1, version=7, weights=bytes(size), units=(), ids=())
        for message in (welcome, weights):
            self.router.send(peer, encode(message))

    def _show(self, peer: bytes) -> None:
        roster = Roster(run="run-1", term=1, first=0, total=1, waiting="", workers=(worker("a"),))
        for message in (report(7), roster):
            self.router.send(peer, encode(message))


@pytest.fixture
def sham() -> Iterator[Sham]:
    sham = Sham()
    sham.start()
    try:
        yield sham
    finally:
        sham.over.set()
        sham.join()
        sham.router.close()


def test_a_server_that_answers_and_stands_still_is_not_well(manychar: Commands, sham: Sham) -> None:
    found = manychar.run("health", sham.router.endpoint, "--connect-timeout", "1")
    assert found.code == 1, found.err
    assert (
        found.out == "step 7 of 12,000: it does not advance, and does not say for whom it waits\n"
    )


def test_what_the_disk_did_not_take_is_said() -> None:
    now = standing(8, worker("a"))
    counts = {"gradients_repeated": 2, "journal_not_written": 1, "checkpoints_not_written": 6}
    now = dataclasses.replace(now, report=dataclasses.replace(now.report, counts=counts))
    found = judge(standing(7, worker("a")), now, in_vain=False)
    assert found == Health(
        "step 8 of 12,000: it advances, with 1 worker; journal_not_written: 1;"
        " checkpoints_not_written: 6"
    )
