"""Whatever anyone sends or leaves on disk: no crash, no hang, no growth, and the same bits.

`--hostile 50` makes it 1,000,000 headers, 150,000 files and 10,000 connections, up to 500 at once.
"""

import contextlib
import json
import math
import random
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from manychar.network import keys
from manychar.network.connection_limit import raise_limit
from manychar.network.dealer import Dealer
from manychar.processes.errors import UserError
from manychar.protocol.codec import WireError, decode, encode
from manychar.protocol.events import Malformed, PeerError, Received
from manychar.protocol.messages import WIRE_VERSION, Hello, KeyRole, Message
from manychar.protocol.packed_header import NO_MAP
from manychar.storage.checkpoint import list_checkpoints, read_checkpoint
from manychar.storage.journal import read_journal
from manychar.storage.run_directory import open_run
from tests.commands import Commands, Running, until
from tests.fleet.test_fleet import expect_same_bits
from tests.protocol.stage import Stage, hello, unit_result

# A unit's result is the longest frame by far, so that what keys add to it shows in the limits.
SIZES = ("--hidden", "40", "--seq-length", "5", "--streams", "2")
GROWTH_MIB = 32
HEADERS, FILES, CONNECTIONS, AT_ONCE = 20_000, 2_000, 200, 500


def resident_mib(pid: int | str = "self") -> float:
    """Return a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


@pytest.fixture
def measured(require: Callable[[object, str], None]) -> None:
    """Memory is read from /proc."""
    require(Path("/proc/self/status").exists(), "no /proc here: memory cannot be measured")


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Return the bytes with some of them changed, cut out, or put in."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0 if changed:
                changed[place - 1] ^= 1 << chance.randrange(8)
            case 1:
                changed[place : place + chance.randint(0, 8)] = b""
            case 2:
                changed[place:place] = chance.randbytes(chance.randint(1, 8))
            case _:
                changed[place : place + 8] = chance.choice(
                    [b"\xff" * 8, b"\x00" * 8, b"\xdd\xff\xff\xff\xff", b"\xdf\x7f\xff\xff\xff"]
                )
    return bytes(changed)


VALUES: list[object] = [
    0,
    1,
    -1,
    2**53,
    2**64 - 1,
    1.5,
    math.nan,
    math.inf,
    True,
    None,
    "",
    "x" * 600,
    b"",
    [],
]


def with_another_value(chance: random.Random, header: bytes) -> bytes:
    """Return the header with one field changed, missing, or too many."""
    if header[0] == NO_MAP:
        place = chance.randrange(66, len(header) - 7)  # behind its kind and the run's name
        number = chance.choice([0, 1, 2, 2**53, 2**64 - 1])
        return header[:place] + number.to_bytes(8, "little") + header[place + 8 :]
    values = msgpack.unpackb(header)
    name = chance.choice([*values, "another"])
    if chance.random() < 0.2:
        values.pop(name, None)
    else:
        values[name] = chance.choice([*VALUES, chance.randrange(20), "bob", {"a": {}}])
    packed: bytes = msgpack.packb(values)
    return packed


def noise(chance: random.Random, header: bytes) -> bytes:
    """Return bytes that have nothing to do with the header."""
    return chance.randbytes(chance.randrange(80))


class TestHeaders:
    def test_leave_the_run_as_it_was(self, hostile: int, measured: None) -> None:
        chance = random.Random(hostile)  # noqa: S311
        stage = Stage()
        stage.join("ann")
        stage.hello("eve", "observer")
        stage.deliver("ann", 0)
        results = [unit_result(stage.known, shard, shard, 0) for shard in (0, 1)]
        known: list[Message] = [hello("bob"), *results]
        framed = [[bytes(frame) for frame in encode(message)] for message in known]
        size = stage.server.dimensions
        decode(framed[0], size)
        before, memory = stage.server.state, resident_mib()
        accepted = 0
        for _ in range(hostile * HEADERS):
            header, *frames = chance.choice(framed)
            header = chance.choice([mutated, with_another_value, noise])(chance, header)
            peer = chance.choice([b"ann", b"eve", b"mallory"])
            try:
                message = decode([header, *frames], size)
                stage.server.handle(Received(message, peer), 0.0)
                accepted += 1
            except (WireError, PeerError) as error:
                stage.server.handle(Malformed(peer, str(error)), 0.0)
        assert stage.server.state is before or stage.server.state.step == 1
        assert resident_mib() - memory < GROWTH_MIB
        assert 0 < accepted < hostile * HEADERS


class TestFiles:
    @pytest.mark.long
    @pytest.mark.parametrize("kind", ["checkpoint", "journal", "config"])
    def test_are_refused_in_one_line_or_are_what_they_were(
        self, kind: str, trained: Path, hostile: int, measured: None
    ) -> None:
        chance = random.Random(hostile)  # noqa: S311
        path, read = self._reader(kind, trained)
        original, right = path.read_bytes(), read()
        memory = resident_mib()
        for _ in range(hostile * FILES // 2):
            path.write_bytes(mutated(chance, original))
            with contextlib.suppress(UserError):
                found = read()
                assert kind == "config" or found == right
        assert resident_mib() - memory < GROWTH_MIB

    def _reader(self, kind: str, run: Path) -> tuple[Path, Callable[[], object]]:
        if kind == "checkpoint":
            _, path = max(list_checkpoints(run / "checkpoints"))
            return path, lambda: read_checkpoint(path).sha256
        if kind == "journal":
            path = run / "journal.jsonl"
            run_id = open_run(run).run_id
            whole = path.read_bytes()

            def is_prefix() -> bool:
                trusted = read_journal(run, run_id).extent.length
                return path.read_bytes().startswith(whole[:trusted])

            return path, is_prefix
        return run / "config.json", lambda: open_run(run)


class Fleet:
    """A real server with keys and two real workers, to be disturbed while it trains."""

    def __init__(
        self, manychar: Commands, text: Path, *, program: tuple[str, ...] = ("-m", "manychar")
    ) -> None:
        self.manychar = manychar
        self.run = manychar.directory / "run"
        self.keys = manychar.directory / "keys"
        keys.create(self.keys)
        for name in ("w0", "w1", "gone"):
            keys.add(self.keys, name, KeyRole.WORKER)
        keys.add(self.keys, "me", KeyRole.OPERATOR)
        shutil.copy(self.keys / "gone.key", manychar.directory / "gone.key")
        keys.revoke(self.keys, "gone")
        self.server = manychar.start(
            *("server", str(text), "--run-dir", "run", *SIZES, "--keys", str(self.keys)),
            *("--bind", "tcp://127.0.0.1:0", "--steps", "0"),
            *("--checkpoint-every", "200", "--sample-every", "0"),
            program=program,
        )
        self.endpoint = self.server.wait_for(r"manychar worker (tcp://\S+) --key FILE")[1]
        self.port = int(self.endpoint.rsplit(":", 1)[1])
        self.workers = [self._worker(f"w{i}") for i in range(2)]
        for i in range(2):
            self.server.wait_for(f"w{i} has joined")

    def _worker(self, name: str) -> Running:
        return self.manychar.start(
            *(
                "worker",
                self.endpoint,
                "--key",
                str(self.keys / f"{name}.key"),
                "--connect-timeout",
                "60",
            )
        )

    def connect(self) -> socket.socket:
        """Open a bare TCP connection to the server."""
        visitor = socket.create_connection(("127.0.0.1", self.port), timeout=30.0)
        visitor.settimeout(30.0)
        return visitor

    def end(self, text: Path) -> None:
        """Stop the run when it has come some way, and compare its bits."""
        until(lambda: max(list_checkpoints(self.run / "checkpoints"))[0] > 0, self.server.described)
        stopped = self.manychar.run("stop", self.endpoint, "--key", str(self.keys / "me.key"))
        assert stopped.code == 0, stopped.err
        assert self.server.end().code == 75
        assert [worker.end().code for worker in self.workers] == [75, 75]
        assert expect_same_bits(self.run, text) >= 200


GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + b"\0" * 32


def raw_bytes(fleet: Fleet, chance: random.Random, held: list[socket.socket]) -> None:
    """Send something that is no handshake, or half of one, and stay or go."""
    with contextlib.suppress(OSError):
        visitor = fleet.connect()
        held.append(visitor)
        half = GREETING[: chance.randint(1, len(GREETING))]
        visitor.sendall(
            chance.choice([half, GREETING + chance.randbytes(60), chance.randbytes(99)])
        )
        if chance.random() < 0.5:
            held.pop().close()
        while len(held) > AT_ONCE - 2:  # beside the one that shakes hands
            held.pop(0).close()


REFUSED = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)


def expect_refusal(endpoint: str, key: keys.ClientKey | None) -> None:
    """Connect with a key that is not good, or without one, and wait to be refused."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    if key is not None:
        dealer.setsockopt(zmq.CURVE_SERVERKEY, key.server.encode())
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, key.public.encode())
        dealer.setsockopt(zmq.CURVE_SECRETKEY, key.secret.encode())
    monitor = dealer.get_monitor_socket(REFUSED | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    dealer.connect(endpoint)
    hostile = Hello(wire=WIRE_VERSION, role="worker", name="w0", instance="x", machine={})
    with contextlib.suppress(zmq.Again):  # it may be refused already
        dealer.send_multipart(encode(hostile), zmq.NOBLOCK)
    assert monitor.poll(60_000), "neither accepted nor refused"
    assert recv_monitor_message(monitor)["event"] & REFUSED, "accepted"
    assert not dealer.poll(0), "the server answered a stranger"
    dealer.disable_monitor()
    monitor.close(0)
    dealer.close(0)


def recorded_handshake(fleet: Fleet) -> bytes:
    """Return what a good client sends while it shakes hands: taken down by a relay between."""
    taken = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as relay:
        port = relay.getsockname()[1]
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        key = keys.read_client_key(fleet.keys / "me.key")
        dealer = context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.CURVE_SERVERKEY, key.server.encode())
        dealer.setsockopt(zmq.CURVE_PUBLICKEY, key.public.encode())
        dealer.setsockopt(zmq.CURVE_SECRETKEY, key.secret.encode())
        dealer.connect(f"tcp://127.0.0.1:{port}")
        dealer.send_multipart(
            encode(Hello(wire=WIRE_VERSION, role="observer", name="me", instance="y", machine={}))
        )
        client, _ = relay.accept()
        with client, fleet.connect() as server:
            back = threading.Thread(target=_pump, args=(server, client, None), daemon=True)
            there = threading.Thread(target=_pump, args=(client, server, taken), daemon=True)
            back.start()
            there.start()
            assert dealer.poll(30_000), "the good client was not accepted"
            dealer.close(0)
            context.term()
            there.join(30.0)
    return bytes(taken)


def _pump(source: socket.socket, target: socket.socket, taken: bytearray | None) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65_536):
            if taken is not None:
                taken += piece
            target.sendall(piece)


def handshake_without_keys(port: int) -> socket.socket:
    """Return a connection that has shaken hands as a DEALER does, by hand (ZMTP 3.1, NULL)."""
    visitor = socket.create_connection(("127.0.0.1", port), timeout=30.0)
    visitor.sendall(b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32)
    ready = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
    visitor.sendall(b"\x04" + bytes([len(ready)]) + ready)
    heard = b""
    while b"READY" not in heard:
        heard += visitor.recv(256)
    return visitor


FRAME_WITH_MORE = b"\x01\x00"
LAST_FRAME = b"\x00\x00"


class TestMessagesOfManyFrames:
    @pytest.fixture
    def server(self, manychar: Commands, text: Path) -> Running:
        return manychar.start(
            *("server", str(text), "--run-dir", "run", *SIZES, "--steps", "0"),
            *("--bind", "tcp://127.0.0.1:0", "--checkpoint-every", "200", "--sample-every", "0"),
        )

    def test_are_dropped_and_counted(self, server: Running, manychar: Commands) -> None:
        endpoint = server.wait_for(r"manychar worker (tcp://\S+)")[1]
        with handshake_without_keys(int(endpoint.rsplit(":", 1)[1])) as visitor:
            visitor.sendall(FRAME_WITH_MORE * 5_000 + LAST_FRAME)
            server.wait_for("dropped a message: 5 frames")
        counted = json.loads(manychar.run("status", endpoint, "--json").out)["counts"]
        assert counted["messages_malformed"] == 1
        server.interrupt()
        assert server.end().code == 0


class TestConnections:
    @pytest.mark.long
    def test_without_a_good_key_disturb_nothing(
        self, manychar: Commands, text: Path, hostile: int, measured: None
    ) -> None:
        raise_limit()
        fleet = Fleet(manychar, text)
        chance = random.Random(hostile)  # noqa: S311
        handshake = recorded_handshake(fleet)
        good = keys.read_client_key(fleet.keys / "w0.key")
        revoked = keys.read_client_key(manychar.directory / "gone.key")
        public, secret = zmq.curve_keypair()
        wrong = keys.ClientKey("w0", KeyRole.WORKER, public.decode(), secret.decode(), good.server)
        bad_keys = [None, revoked, wrong]
        memory = 0.0
        held: list[socket.socket] = []
        for number in range(hostile * CONNECTIONS):
            if number == CONNECTIONS // 10:  # the first visitors fill pools of a fixed size
                memory = resident_mib(fleet.server.pid)
            match number % 3:
                case 0:
                    raw_bytes(fleet, chance, held)
                case 1:
                    with contextlib.suppress(OSError), fleet.connect() as visitor:
                        visitor.sendall(handshake)
                        visitor.settimeout(0.05)
                        while visitor.recv(65_536):
                            pass
                case _:
                    expect_refusal(fleet.endpoint, bad_keys[number // 3 % 3])
        for visitor in held:
            visitor.close()
        assert resident_mib(fleet.server.pid) - memory < GROWTH_MIB
        fleet.end(text)
        assert "dropped" not in fleet.server.err, "a frame was delivered"

    @pytest.mark.long
    def test_with_a_key_but_many_faults_are_counted(
        self, manychar: Commands, text: Path, measured: None
    ) -> None:
        fleet = Fleet(manychar, text)
        key = keys.read_client_key(keys.add(fleet.keys, "mallory", KeyRole.WORKER))
        dealer = Dealer(fleet.endpoint, key)
        me = Hello(wire=WIRE_VERSION, role="worker", name="mallory", instance="z", machine={})
        until(lambda: dealer.send(encode(me)), "a connection")
        chance = random.Random(0)  # noqa: S311
        memory = resident_mib(fleet.server.pid)
        for _ in range(2_000):
            dealer.send([chance.randbytes(60), chance.randbytes(1000)])
        fleet.server.wait_for("mallory: dropped a message: ")
        dealer.close()
        me_key = str(fleet.keys / "me.key")
        shown = manychar.run("status", fleet.endpoint, "--json", env={"MANYCHAR_KEY_FILE": me_key})
        assert shown.code == 0, shown.err
        counts = json.loads(shown.out)["counts"]
        assert counts["messages_malformed"] > 100
        assert resident_mib(fleet.server.pid) - memory < GROWTH_MIB
        fleet.end(text)

    @pytest.mark.long
    def test_of_a_worker_end_when_its_key_is_revoked(self, manychar: Commands, text: Path) -> None:
        fleet = Fleet(manychar, text)
        keys.add(fleet.keys, "w2", KeyRole.WORKER)
        extra = fleet._worker("w2")
        fleet.server.wait_for("w2 has joined")
        revoked = manychar.run("keys", "revoke", str(fleet.keys), "w2")
        assert revoked.code == 0, revoked.err
        fleet.server.wait_for("w2 was refused: its key was revoked")
        ended = extra.end()
        assert ended.code == 3
        assert "its key was revoked; manychar keys add makes another" in ended.last_line
        fleet.end(text)

    @pytest.mark.long
    def test_of_an_observer_that_only_listens_ends_too(
        self, manychar: Commands, text: Path
    ) -> None:
        fleet = Fleet(manychar, text)
        key = keys.read_client_key(keys.add(fleet.keys, "ear", KeyRole.OBSERVER))
        dealer = Dealer(fleet.endpoint, key)
        me = Hello(wire=WIRE_VERSION, role="observer", name="ear", instance="z", machine={})
        until(lambda: dealer.send(encode(me)), "a connection")
        assert dealer.socket.poll(30_000)
        keys.revoke(fleet.keys, "ear")
        fleet.server.wait_for("ear was refused: its key was revoked")
        dealer.close()
        fleet.end(text)

    @pytest.mark.long
    def test_that_fail_are_counted_and_logged(self, manychar: Commands, text: Path) -> None:
        fleet = Fleet(manychar, text)
        expect_refusal(fleet.endpoint, None)
        fleet.server.wait_for(
            r"handshakes failed: \d+ \(each attempt of a client counts\): no key, another server's"
        )
        fleet.end(text)

    @pytest.mark.long
    def test_without_end_leave_files_to_write_checkpoints_with(
        self, manychar: Commands, text: Path
    ) -> None:
        few = "import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160));"
        again = "os.execv(sys.executable, [sys.executable, '-m', 'manychar', *sys.argv[1:]])"
        fleet = Fleet(manychar, text, program=("-c", f"{few} {again}"))
        connections: list[socket.socket] = []
        while "all connections are closed; clients" not in fleet.server.err:
            with contextlib.suppress(OSError):
                connections.append(socket.create_connection(("127.0.0.1", fleet.port), timeout=1.0))
        newest = max(list_checkpoints(fleet.run / "checkpoints"))[0]
        until(
            lambda: max(list_checkpoints(fleet.run / "checkpoints"))[0] > newest + 200,
            fleet.server.described,
        )
        for visitor in connections:
            visitor.close()
        fleet.server.wait_for("there is room for connections again")
        fleet.end(text)

    @pytest.mark.long
    def test_are_refused_while_the_list_cannot_be_read(
        self, manychar: Commands, text: Path
    ) -> None:
        fleet = Fleet(manychar, text)
        good = keys.read_client_key(fleet.keys / "me.key")
        listed = fleet.keys / "clients.json"
        content = listed.read_bytes()
        listed.write_bytes(content[:-10])
        expect_refusal(fleet.endpoint, good)
        fleet.server.wait_for("no new connections are accepted: .*damaged")
        listed.unlink()
        expect_refusal(fleet.endpoint, good)
        listed.write_bytes(content)
        listed.chmod(0o666)  # who can write in it can add a key
        expect_refusal(fleet.endpoint, good)
        listed.chmod(0o644)
        fleet.end(text)  # connected peers have stayed, and `stop` is admitted again

    @pytest.mark.long
    def test_that_are_slow_cost_bounded_memory(
        self, manychar: Commands, text: Path, measured: None
    ) -> None:
        fleet = Fleet(manychar, text)
        key = keys.read_client_key(fleet.keys / "me.key")
        dealer = Dealer(fleet.endpoint, key)
        me = Hello(wire=WIRE_VERSION, role="observer", name="me", instance="z", machine={})
        until(lambda: dealer.send(encode(me)), "a connection")
        assert dealer.socket.poll(30_000)
        memory = resident_mib(fleet.server.pid)
        journal = fleet.run / "journal.jsonl"
        for _ in range(3_000):  # it asks and asks, and reads nothing of what it is answered
            dealer.send(encode(me))
        size = journal.stat().st_size
        until(lambda: journal.stat().st_size > size + 10_000, fleet.server.described)
        assert resident_mib(fleet.server.pid) - memory < GROWTH_MIB
        dealer.close()
        fleet.end(text)
