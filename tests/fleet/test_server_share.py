"""The server computes a share of the shards: real processes, the same bits, and no deaf loop."""

import collections
import contextlib
import json
import math
import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from manychar.fleet.engine import PieceTimer
from manychar.fleet.server_loop import ServerLoop
from manychar.fleet.server_share import ServerShare
from manychar.observability.observer_client import ObserverClient
from manychar.protocol.effects import Compute, Finish, Send
from manychar.protocol.events import Computed, DeadlinePassed, FingerprintComputed, Received
from manychar.protocol.member import OWN_PEER
from manychar.protocol.messages import Revoke
from manychar.storage.checkpoint import list_checkpoints
from tests.commands import SMALL, Commands, Running, until
from tests.fleet.test_fleet import endless, expect_same_bits, further
from tests.protocol.stage import FINGERPRINT, Stage, computed, unit_result

BY_HAND = ("--run-dir", "run", "--bind", "tcp://127.0.0.1:0", "--steps", "0")


def processes(manychar: Commands, role: str) -> list[list[str]]:
    return [words for words in manychar.family().values() if role in words]


def endpoint_of(server: Running) -> str:
    return server.wait_for(r"manychar worker (tcp://\S+)")[1]


def status(manychar: Commands, endpoint: str) -> dict[str, Any]:
    done = manychar.run("status", endpoint, "--json")
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def test_one_worker_is_the_server_and_is_so_again_after_a_crash(
    manychar: Commands, text: Path
) -> None:
    running = endless(manychar, text, "--workers", "1", "--checkpoint-every", "50")
    assert not processes(manychar, "worker")
    assert "--compute" in processes(manychar, "server")[0]
    os.kill(manychar.find("server"), signal.SIGKILL)
    running.wait_for("(?s)starting it again.*server has joined")
    further(running)
    assert not processes(manychar, "worker")
    running.interrupt()
    done = running.end()
    assert done.code == 0, done.err
    manychar.expect_nobody()
    run = manychar.directory / "run"
    assert expect_same_bits(run, text) >= 50
    assert (run / "term").read_text() == "2\n"


@pytest.mark.parametrize(
    ("flags", "workers", "computes"),
    [
        ("--workers 2 --compute", ["worker-1"], True),
        pytest.param("--workers 1 --no-compute", ["worker-1"], False, marks=pytest.mark.long),
        pytest.param("--workers 3", ["worker-1", "worker-2"], True, marks=pytest.mark.long),
    ],
)
def test_the_server_is_one_of_the_workers_where_it_computes(
    manychar: Commands, text: Path, flags: str, workers: list[str], *, computes: bool
) -> None:
    everyone = [*workers, *["server"] * computes]
    running = endless(manychar, text, *flags.split(), "--shards", "4")
    for name in everyone:
        running.wait_for(f"{name} has joined")
    further(running)
    started = [words[words.index("--name") + 1] for words in processes(manychar, "worker")]
    assert sorted(started) == workers
    assert ("--compute" in processes(manychar, "server")[0]) == computes
    running.send(signal.SIGTERM)
    assert running.end().code == 75
    config = json.loads((manychar.directory / "run" / "config.json").read_text())
    assert config["operation"]["compute"] == computes
    expect_same_bits(manychar.directory / "run", text)


@pytest.mark.long
def test_a_server_that_computes_serves_observers_validation_and_stop(
    manychar: Commands, text: Path
) -> None:
    flags = ("--compute", "--validation", "0.1", "--checkpoint-every", "25")
    server = manychar.start("server", str(text), *BY_HAND, *SMALL, *flags)
    endpoint = endpoint_of(server)
    namesake = manychar.run("worker", endpoint, "--name", "server")
    assert namesake.code == 3
    assert "the name server is that of the server's own share" in namesake.last_line

    def validated() -> dict[str, Any] | None:
        found = status(manychar, endpoint)
        return found if found["validated"] else None

    found = until(validated, "a validation loss")
    (own,) = found["workers"]
    assert (own["name"], own["state"], own["shards"]) == ("server", "working", 4)
    assert 0 < own["longest_piece_seconds"] < 1.0  # other processes may have had the core
    shown = manychar.run("status", endpoint)
    assert (
        "the server computes, too, and answers between two pieces of work: the longest took"
        in shown.out
    )
    stopped = manychar.run("stop", endpoint)
    assert stopped.code == 0, stopped.err
    done = server.end()
    assert done.code == 75, done.err
    assert "resume: manychar server --bind tcp://127.0.0.1:0 --compute --resume run" in done.err
    assert expect_same_bits(manychar.directory / "run", text) >= 25


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 75)], ids=["INT", "TERM"]
)
def test_a_signal_ends_a_server_while_it_computes(
    manychar: Commands, text: Path, number: int, code: int
) -> None:
    """In the middle of a step, which is completed."""
    large = ("--hidden", "512", "--seq-length", "20", "--streams", "20", "--shards", "8")
    server = manychar.start("server", str(text), *BY_HAND, "--compute", *large)
    server.wait_for("server has joined")
    server.send(number)
    assert server.end(seconds=30).code == code
    assert list_checkpoints(manychar.directory / "run" / "checkpoints")


@pytest.mark.long
def test_the_shards_of_a_lost_worker_are_computed_here(manychar: Commands, text: Path) -> None:
    flags = ("--workers", "2", "--compute", "--lease-timeout", "1")
    running = endless(manychar, text, *flags)
    running.wait_for("worker-1 has joined")
    further(running)
    worker = manychar.find("worker-1")
    os.kill(worker, signal.SIGSTOP)
    running.wait_for("the shards of worker-1 are reassigned|worker-1 has left")
    further(running)
    os.kill(worker, signal.SIGCONT)
    running.wait_for("(?s)worker-1 (answers again|has left.*worker-1 has joined)")
    further(running)
    running.interrupt()
    assert running.end().code == 0
    expect_same_bits(manychar.directory / "run", text)


def answered_within(client: ObserverClient) -> float:
    """Return the seconds until a server answers the Hello of an open connection with its status."""
    client.connect(60.0)
    began = time.monotonic()
    while client.connecting:
        client.turn()
        assert client.end is None
        client.socket.poll(5)
    return time.monotonic() - began


@pytest.mark.long
def test_status_is_answered_while_1024_hidden_units_compute(manychar: Commands, text: Path) -> None:
    """Within twice the longest piece between two progress calls, not only between two shards."""
    large = ("--hidden", "1024", "--streams", "64", "--shards", "1")
    server = manychar.start("server", str(text), *BY_HAND, "--compute", *large)
    endpoint = endpoint_of(server)

    def has_computed() -> dict[str, Any] | None:
        found = status(manychar, endpoint)
        return found if found["step"] >= 2 else None

    until(has_computed, "two steps")
    client = ObserverClient(endpoint, connect_timeout=60.0)
    with contextlib.closing(client):
        answered_within(client)  # the connection is made
        answers = []
        for _ in range(60):
            time.sleep(0.02)  # at all moments of some steps
            answers.append(answered_within(client))
    (own,) = status(manychar, endpoint)["workers"]
    bound = max(0.05, 2 * own["longest_piece_seconds"])
    print(f"median {statistics.median(answers):.4f} s, longest {max(answers):.4f} s, bound {bound}")
    assert statistics.median(answers) <= bound
    but_two = sorted(answers)[:-2]  # for which another process had the core
    assert max(but_two) <= max(bound, own["shard_seconds"])
    assert manychar.run("stop", endpoint).code == 0
    assert server.end().code == 75


@pytest.mark.long
def test_nobody_is_accused_of_the_time_in_which_the_machine_was_suspended(
    manychar: Commands, text: Path
) -> None:
    """The server is stopped while its kernel computes, and the worker with it."""
    large = ("--hidden", "300", "--streams", "16", "--shards", "8", "--sample-every", "5")
    server = manychar.start("server", str(text), *BY_HAND, "--compute", *large)
    worker = manychar.start("worker", endpoint_of(server), "--name", "w0")
    server.wait_for("w0 has joined")
    further(server)
    for process in (server, worker):
        process.send(signal.SIGSTOP)
    time.sleep(5.0)  # more than twice the lease timeout
    for process in (server, worker):
        process.send(signal.SIGCONT)
    further(server)
    further(server)
    server.interrupt()
    done = server.end()
    assert done.code == 0
    assert "reassigned" not in done.err
    assert done.err.count("has joined") == 2
    assert worker.end().code == 0


class Within:
    """A server and its share without sockets; `during` is called while a shard is computed."""

    def __init__(self, **operation: Any) -> None:
        self.stage = Stage(**operation)
        self.computed: list[tuple[int, int]] = []
        self.during: Callable[[Callable[[], float]], object] = lambda serve: serve()
        self.share = ServerShare(cast("Any", self), self.deliver)

    def join(self) -> None:
        """Have the share say Hello, and read what its first range is."""
        self.share.handle(DeadlinePassed())
        self.share.read_mailbox()

    def deliver(self, event: Received) -> None:
        for effect in self.stage.server.handle(event, self.stage.now):
            if isinstance(effect, Send) and effect.to == OWN_PEER:
                self.share.receive(effect.message)

    def compute_fingerprint(self) -> FingerprintComputed:
        return FingerprintComputed(FINGERPRINT, {}, 0.01)

    def compute(self, unit: Compute, serve: Callable[[], float]) -> Computed:
        self.during(serve)
        self.computed.append((unit.step, unit.shard))
        return computed(unit, self.stage.known)

    def serve(self) -> float:
        self.share.read_mailbox()
        if self.share.machine.abandons_unit:
            raise InterruptedError
        return 0.0


def test_a_share_trains_alone() -> None:
    within = Within(shards=3, steps=9)
    within.join()
    while within.share.compute(within.serve):
        pass
    known, state = within.stage.known, within.stage.server.state
    assert state.parameters.flat.tobytes() == known.states[9].parameters.flat.tobytes()
    assert within.computed == [(step, shard) for step in range(9) for shard in range(3)]


def test_a_share_abandons_a_shard_of_a_step_that_others_have_completed() -> None:
    within = Within(shards=2, steps=12)
    within.join()
    within.stage.join("ann")

    def another_is_faster(serve: Callable[[], float]) -> None:
        step = within.stage.server.state.step
        within.deliver(Received(unit_result(within.stage.known, 0, 1, step), b"ann"))
        serve()

    within.during = another_is_faster
    with pytest.raises(InterruptedError):
        within.share.compute(within.serve)
    within.during = lambda serve: serve()
    assert within.share.compute(within.serve)
    assert {step for step, _ in within.computed} == {1}


def test_the_mailbox_of_a_share_is_emptied_before_each_shard() -> None:
    """Also where the loop was not due within the shard before."""
    within = Within(shards=2, steps=12)
    within.join()
    within.stage.join("ann")

    def another_is_faster(serve: Callable[[], float]) -> None:
        if within.stage.server.state.step == 0:
            within.deliver(Received(unit_result(within.stage.known, 0, 1, 0), b"ann"))

    within.during = another_is_faster
    assert within.share.compute(within.serve)
    assert within.computed[:2] == [(0, 0), (1, 0)]


def test_a_share_goes_on_however_long_a_piece_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server is not silent then: it is what computes."""
    within = Within(shards=2, steps=12, lease_timeout=0.1)
    monkeypatch.setattr(
        "manychar.fleet.server_share.time.monotonic", lambda: float(within.stage.now)
    )
    within.share = ServerShare(cast("Any", within), within.deliver)
    within.join()

    def long_piece(serve: Callable[[], float]) -> None:
        within.stage.now += 10.0
        within.share.handle(DeadlinePassed())
        serve()

    within.during = long_piece
    assert within.share.compute(within.serve)
    assert within.computed[:2] == [(0, 0), (0, 1)]
    assert within.stage.server.state.step >= 1
    assert len(within.stage.server.membership.members) == 1


def test_a_share_abandons_a_shard_of_a_range_that_it_loses() -> None:
    within = Within(shards=2, steps=12)
    within.join()
    (lease,) = within.stage.server.membership.leases_of(OWN_PEER)

    def lose(serve: Callable[[], float]) -> None:
        revoke = Revoke(**within.stage.server.spec.run_and_term, lease=lease.number)
        within.share.receive(revoke)
        serve()

    within.during = lose
    with pytest.raises(InterruptedError):
        within.share.compute(within.serve)
    assert not within.share.compute(within.serve), "nothing is in hand any more"
    assert not within.computed


def test_a_computation_for_a_conflict_lets_the_loop_turn_and_ends_with_the_run() -> None:
    server = object.__new__(ServerLoop)
    within, turns = Within(), []
    finish = Finish(0, "stopped")

    def turn(at_most: float) -> None:
        turns.append(at_most)
        server.outcome = finish if len(turns) == 3 else None

    server.__dict__ |= {
        "share": None,
        "engine": within,
        "outcome": None,
        "loop": SimpleNamespace(turn=turn),
        "notifier": SimpleNamespace(alive=lambda: None),
        "to_compute": collections.deque([within.stage.server.aggregation.compute_again(0, 0)]),
    }
    within.during = lambda serve: [serve() for _ in range(10)]
    assert server._compute()
    assert turns == [0, 0, 0]
    assert not within.computed
    assert server.outcome is finish


def test_the_core_is_given_up_after_each_of_the_next_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where that is asked for while a shard is computed; what is left is for the next one."""
    given_up: list[int] = []
    monkeypatch.setattr("manychar.fleet.engine.os.sched_yield", lambda: given_up.append(1))
    timer = PieceTimer()

    def ask() -> float:
        timer.yields = 4
        return math.inf

    timer.start(ask)
    for _ in range(3):
        timer()
    assert len(given_up) == 2
    timer.start(lambda: math.inf)
    for _ in range(5):
        timer()
    assert len(given_up) == 4


def test_what_others_take_of_the_core_is_not_time_that_a_shard_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a server that serves and yields would count as slow, and lose its shards."""
    now = [0.0]

    def after(seconds: float) -> float:
        now[0] += seconds
        return math.inf

    monkeypatch.setattr("manychar.fleet.engine.time.monotonic", lambda: now[0])
    monkeypatch.setattr("manychar.fleet.engine.os.sched_yield", lambda: after(3.0))
    timer = PieceTimer(lambda: after(2.0))
    timer.yields = 1
    after(1.0)
    timer()
    assert (timer.others_seconds, timer.longest_piece) == (5.0, 4.0)
    timer.start(lambda: math.inf)
    assert timer.others_seconds == 0.0
