"""Real sockets: whole messages over tcp and ipc, who is gone is noticed, strangers stay outside."""

import contextlib
import dataclasses
import errno
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import zmq

from manychar.network.connection_limit import raise_limit
from manychar.network.dealer import Dealer
from manychar.network.keys import create, read_client_key
from manychar.network.router import FAILURES_A_READ, Router, Unreachable, messages_queued
from manychar.numerics.corpus import CODE_POINTS
from manychar.numerics.option import options_of
from manychar.numerics.run_definition import Definition
from manychar.numerics.tree_reduction import Range, cover
from manychar.processes.errors import UserError
from manychar.protocol.codec import MAX_FRAMES, decode, encode
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.field_types import DIGEST_BYTES
from manychar.protocol.member import OWN_PEER
from manychar.protocol.messages import Frame, UnitResult
from manychar.protocol.unit_payload import Payload, largest_payload
from tests.commands import until

SIZES = Dimensions(vocabulary_size=5, hidden=3, seq_length=2, streams=2, shards=2, dtype="float32")
WAIT_MS = 60_000
NO_MECHANISM = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"NONE".ljust(20, b"\0") + b"\0" * 32


@pytest.fixture(params=["tcp", "ipc"])
def router(request: pytest.FixtureRequest) -> Iterator[Router]:
    """A bound ROUTER."""
    with TemporaryDirectory(prefix="mc") as directory:
        tcp = request.param == "tcp"
        bound = Router("tcp://127.0.0.1:*" if tcp else f"ipc://{directory}/it", SIZES)
        try:
            yield bound
        finally:
            bound.close()


@pytest.fixture
def dealer(router: Router) -> Iterator[Dealer]:
    """A DEALER that is connected to it."""
    connected = Dealer(router.endpoint)
    try:
        until(lambda: connected.send([b"hello"]), "a connection")
        yield connected
    finally:
        connected.close()


def received(endpoint: Router) -> tuple[bytes, list[bytes]]:
    assert endpoint.socket.poll(WAIT_MS)
    message = endpoint.receive()
    assert message
    return message[0], as_bytes(message[1])


def as_bytes(frames: list[Frame]) -> list[bytes]:
    return [bytes(frame) for frame in frames]


class TestMessages:
    def test_there_and_back(self, router: Router, dealer: Dealer) -> None:
        peer, frames = received(router)
        assert frames == [b"hello"]
        answer = [b"one", b"", bytes(range(256)) * 400]
        assert router.send(peer, answer)
        assert dealer.socket.poll(WAIT_MS)
        back = dealer.receive()
        assert back
        assert as_bytes(back) == answer

    def test_nothing_is_there_at_first(self, router: Router) -> None:
        assert router.receive() is None
        nobody = Dealer(router.endpoint)
        assert nobody.receive() is None
        nobody.close()

    def test_come_in_their_order(self, router: Router, dealer: Dealer) -> None:
        peer, _ = received(router)
        for i in range(100):
            assert router.send(peer, [str(i).encode()])
        got: list[bytes] = []
        while len(got) < 100:
            assert dealer.socket.poll(WAIT_MS)
            while (frames := dealer.receive()) is not None:
                got += as_bytes(frames)
        assert got == [str(i).encode() for i in range(100)]

    def test_two_peers_are_two(self, router: Router, dealer: Dealer) -> None:
        other = Dealer(router.endpoint)
        until(lambda: other.send([b"other"]), "a connection")
        senders: dict[str, bytes] = {}
        for _ in range(2):
            peer, (word,) = received(router)
            senders[word.decode()] = peer
        assert senders["hello"] != senders["other"]
        router.send(senders["other"], [b"for the other"])
        assert other.socket.poll(WAIT_MS)
        back = other.receive()
        assert back
        assert as_bytes(back) == [b"for the other"]
        assert dealer.receive() is None
        other.close()

    def test_large_ones_are_as_they_were_when_they_were_sent(
        self, router: Router, dealer: Dealer
    ) -> None:
        peer, _ = received(router)
        other = Dealer(router.endpoint)
        until(lambda: other.send([b"other"]), "a connection")
        other_peer, _ = received(router)
        one, two = bytearray(b"1" * 100_000), bytearray(b"2" * 100_000)
        for to, frame in ((peer, one), (other_peer, one), (peer, two), (other_peer, one)):
            assert router.send(to, [frame, b"end"])
        one[:] = two[:] = b"0" * 100_000
        for reader, expected in ((dealer, b"12"), (other, b"11")):
            for digit in expected:
                assert reader.socket.poll(WAIT_MS)
                back = reader.receive()
                assert back
                assert as_bytes(back) == [bytes([digit]) * 100_000, b"end"]
        other.close()

    def test_of_a_length_without_reason_end_the_connection(
        self, router: Router, dealer: Dealer
    ) -> None:
        received(router)
        dealer.send([b"x" * 10_000_000])
        assert not router.socket.poll(500)

    def test_of_too_many_frames_are_one_frame_too_long(
        self, router: Router, dealer: Dealer
    ) -> None:
        received(router)
        dealer.send([b""] * 5_000)
        peer, frames = received(router)
        assert len(frames) == MAX_FRAMES + 1
        dealer.send([b"next"])
        assert received(router) == (peer, [b"next"])


def longest_result(size: Dimensions) -> UnitResult:
    """Return a result of the range with the longest payload, of zeros."""
    of_shard = size.hidden_bytes + 8 + DIGEST_BYTES

    def length(shards: Range) -> int:
        count = shards[1] - shards[0] + 1
        return len(cover(size.shards, shards)) * size.parameters_bytes + count * of_shard

    numbers = range(size.shards)
    first, last = max(itertools.combinations_with_replacement(numbers, 2), key=length)
    return UnitResult(
        run_id="a" * 64,
        term=1,
        session=1,
        lease=1,
        first=first,
        last=last,
        step=0,
        weights_digest=bytes(4),
        seconds=1.0,
        payload=Payload(
            (bytes(size.parameters_bytes),) * len(cover(size.shards, (first, last))),
            bytes((last - first + 1) * size.hidden_bytes),
            (0.0,) * (last - first + 1),
            bytes((last - first + 1) * DIGEST_BYTES),
        ),
    )


def test_every_size_that_the_options_allow_can_be_sent(tmp_path: Path) -> None:
    """Larger ones are refused when the run is defined. ZeroMQ's lengths have 63 bits."""
    bounds = {name: most_of(name) for name in ("hidden", "seq_length", "streams", "shards")}
    size = Dimensions(vocabulary_size=CODE_POINTS, dtype="float64", **bounds)
    with contextlib.closing(Router(f"ipc://{tmp_path}/it", size)) as router:
        accepted = router.socket.getsockopt(zmq.MAXMSGSIZE)
        assert isinstance(accepted, int)
        assert largest_payload(size) < accepted < 2**63


def most_of(name: str) -> int:
    most = options_of(Definition)[name][1].most
    assert most is not None
    return int(most)


@pytest.mark.parametrize("with_keys", [False, True])
@pytest.mark.parametrize("hidden", [1, 30])
def test_the_longest_result_of_any_range_passes(
    tmp_path: Path, hidden: int, *, with_keys: bool
) -> None:
    """A frame beyond MAXMSGSIZE ends the connection, and the worker would join for ever."""
    keys = tmp_path / "keys" if with_keys else None
    own = None if keys is None else read_client_key(create(keys))
    for shards in (1, 2, 5, 33) if with_keys else range(1, 34):
        size = dataclasses.replace(SIZES, shards=shards, streams=1, hidden=hidden)
        result = longest_result(size)
        endpoint = f"ipc://{tmp_path}/{shards}"
        with (
            contextlib.closing(Router(endpoint, size, keys)) as router,
            contextlib.closing(Dealer(endpoint, own)) as dealer,
        ):
            frames = encode(result)

            def sent() -> bool:
                if router.authenticator is not None:
                    router.authenticator.answer()
                return dealer.send(frames)  # noqa: B023

            until(sent, "a connection")
            assert decode(received(router)[1], size) == result


def test_no_connection_is_the_server_s_own_share(router: Router, dealer: Dealer) -> None:
    assert received(router)[0] != OWN_PEER
    with (
        zmq.Context() as context,
        context.socket(zmq.DEALER) as forged,
        pytest.raises(zmq.ZMQError),
    ):
        forged.setsockopt(zmq.ROUTING_ID, OWN_PEER)


@pytest.mark.parametrize(
    "said",
    [b"\x01\x00\x02\x00x", b"\xff" + b"\0" * 8 + b"\x7f\x01\x05\x00\x00\x00\x01x"],
    ids=["ZMTP 1.0", "ZMTP 2.0"],
)
def test_a_peer_of_an_old_kind_is_heard_like_any_other(router: Router, said: bytes) -> None:
    with socket.socket(
        socket.AF_UNIX if router.endpoint.startswith("ipc") else socket.AF_INET
    ) as visitor:
        if visitor.family == socket.AF_UNIX:
            visitor.connect(router.endpoint.removeprefix("ipc://"))
        else:
            visitor.connect(("127.0.0.1", int(router.endpoint.rsplit(":", 1)[1])))
        visitor.sendall(said)
        assert received(router)[1] == [b"x"]


@pytest.mark.long
def test_failed_handshakes_that_nobody_counts_do_not_stop_the_rest() -> None:
    """libzmq's thread waits where an event of its monitor has no room."""
    raise_limit()
    router = Router("tcp://127.0.0.1:*", SIZES)
    address = "127.0.0.1", int(router.endpoint.rsplit(":", 1)[1])
    for _ in range(3_000):
        with socket.create_connection(address, timeout=30.0) as stranger:
            stranger.sendall(NO_MECHANISM)
    dealer = Dealer(router.endpoint)
    until(lambda: dealer.send([b"hello"]), "a connection")
    assert received(router)[1] == [b"hello"]
    counts: list[int] = []

    def all_counted() -> bool:
        counts.append(router.failed_handshakes())
        return sum(counts) == 3_000

    until(all_counted, lambda: f"3,000 failures: {counts}")
    assert max(counts) <= FAILURES_A_READ
    dealer.close()
    router.close()


PEER_GONE_WITH_MESSAGES_UNREAD = """
import signal, socket, sys, zmq
from manychar.network import router as module
from tests.network.test_hostile import handshake_without_keys
module.OPTIONS[zmq.HEARTBEAT_IVL] = interval = int(sys.argv[1])
module.OPTIONS[zmq.HEARTBEAT_TIMEOUT] = 60_000  # the visitor answers none
router = module.Router("tcp://127.0.0.1:0", None)
port = int(router.endpoint.rsplit(":", 1)[1])
visitor = handshake_without_keys(port)
visitor.sendall(b"\\x00\\x01x" * 20_000)
while router.socket.poll(0) == 0:
    pass
visitor.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1, 0, 0, 0)) + bytes(4))
visitor.close()
if interval:
    signal.pause()
handshake_without_keys(port).sendall(b"\\x00\\x01y")
while (message := router.receive()) is None or bytes(message.frames[0]) != b"y":
    pass
router.close()
"""


@pytest.mark.long
@pytest.mark.parametrize(("interval", "code"), [(0, 0), (10, -signal.SIGABRT)])
def test_a_peer_that_goes_with_messages_unread_ends_nobody(interval: int, code: int) -> None:
    """libzmq would end the process at its next heartbeat, if the server sent any."""
    command = [sys.executable, "-c", PEER_GONE_WITH_MESSAGES_UNREAD, str(interval)]
    assert subprocess.run(command, check=False, timeout=60.0).returncode == code


def test_no_side_sends_zmtp_heartbeats(router: Router) -> None:
    """One among the unread messages of a connection that is gone would end libzmq's process."""
    dealer = Dealer(router.endpoint)
    for socket_of_it in (router.socket, dealer.socket):
        assert socket_of_it.getsockopt(zmq.HEARTBEAT_IVL) == 0
    dealer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the names of Linux")
def test_the_kernel_itself_notices_a_machine_that_is_gone() -> None:
    router = Router("tcp://127.0.0.1:0", None)
    dealer = Dealer(router.endpoint)
    until(lambda: dealer.send([b"hello"]), "a connection")
    assert router.socket.poll(WAIT_MS)
    frame = router.socket.recv_multipart(copy=False)[-1]
    with socket.socket(fileno=os.dup(int(frame.get(zmq.SRCFD)))) as connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for option, expected in (
            (socket.TCP_KEEPIDLE, 5),
            (socket.TCP_KEEPINTVL, 5),
            (socket.TCP_KEEPCNT, 3),
            (socket.TCP_USER_TIMEOUT, 20_000),
        ):
            assert connection.getsockopt(socket.IPPROTO_TCP, option) == expected
    dealer.close()
    router.close()


class TestWhoIsGone:
    def test_is_noticed(self, router: Router) -> None:
        dealer = Dealer(router.endpoint)
        until(lambda: dealer.send([b"hello"]), "a connection")
        peer, _ = received(router)
        dealer.close()

        def gone() -> bool:
            try:
                router.send(peer, [b"are you there"])
            except Unreachable:
                return True
            return False

        until(gone, "the peer to be unreachable")

    def test_was_never_there(self, router: Router) -> None:
        with pytest.raises(Unreachable):
            router.send(b"nobody", [b"hello"])

    def test_a_dealer_without_a_server_does_not_queue(self) -> None:
        dealer = Dealer("ipc://nobody")
        assert not dealer.send([b"hello"])
        dealer.close()

    def test_comes_back_as_another(self, router: Router) -> None:
        peers = set()
        for _ in range(2):
            dealer = Dealer(router.endpoint)
            until(lambda: dealer.send([b"hello"]), "a connection")  # noqa: B023 - called at once
            peers.add(received(router)[0])
            dealer.close()
        assert len(peers) == 2


class TestBinding:
    def test_where_another_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            with pytest.raises(UserError, match=f"{endpoint}: another program uses it") as raised:
                Router(endpoint, SIZES)
            assert raised.value.code == 2

    def test_with_keys_where_it_cannot_be_ends_all_the_same(self, tmp_path: Path) -> None:
        create(tmp_path / "keys")
        taken = Router("tcp://127.0.0.1:*", None)
        for endpoint in (taken.endpoint, "tcp://192.0.2.1:5577", "tcp://nowhere.invalid:5577"):
            with pytest.raises(UserError, match="cannot bind"):
                Router(endpoint, None, tmp_path / "keys")
        taken.close()

    def test_where_another_listens_on_a_file(self) -> None:
        with TemporaryDirectory(prefix="mc") as directory:
            endpoint = f"ipc://{directory}/it"
            first = Router(endpoint, SIZES)
            try:
                with pytest.raises(UserError, match="another program uses it"):
                    Router(endpoint, SIZES).close()
            finally:
                first.close()
            Router(endpoint, SIZES).close()

    @pytest.mark.parametrize("what", ["file", "directory", "link to a file", "link to nothing"])
    def test_what_is_at_an_ipc_path_and_is_no_socket_stays(self, what: str, tmp_path: Path) -> None:
        path = tmp_path / "it"
        if what == "directory":
            path.mkdir()
        elif what.startswith("link"):
            path.symlink_to("other")
        if what.endswith("file"):
            path.write_text("kept")
        before = path.lstat()
        with pytest.raises(UserError) as raised:
            Router(f"ipc://{path}", SIZES).close()
        reason = "a file or directory is there; choose another --bind"
        assert (str(raised.value), raised.value.code) == (
            f"cannot bind to ipc://{path}: {reason}",
            2,
        )
        assert path.lstat() == before
        assert not what.endswith("file") or path.read_text() == "kept"

    def test_a_socket_that_nobody_listens_on_is_taken_over(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(tmp_path / "it"))
        with contextlib.closing(Router(f"ipc://{tmp_path}/it", SIZES)) as router:
            dealer = Dealer(router.endpoint)
            until(lambda: dealer.send([b"hello"]), "a connection")
            dealer.close()
        assert not (tmp_path / "it").exists()

    def test_a_socket_whose_queue_is_full_is_another_program_s(self, tmp_path: Path) -> None:
        path = str(tmp_path / "it")
        with socket.socket(socket.AF_UNIX) as stopped, contextlib.ExitStack() as stack:
            stopped.bind(path)
            stopped.listen(0)
            error = 0
            while not error:
                visitor = stack.enter_context(socket.socket(socket.AF_UNIX))
                visitor.settimeout(0)
                error = visitor.connect_ex(path)
            with pytest.raises(UserError, match="another program uses it"):
                Router(f"ipc://{path}", SIZES).close()
            assert Path(path).is_socket()

    def test_again_after_it_stopped_listening_leaves_what_has_come_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, most = tmp_path / "it", resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.closing(Router(f"ipc://{path}", SIZES)) as router:
            monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
            router.limit_connections()

            def refuses() -> bool:
                with socket.socket(socket.AF_UNIX) as visitor:
                    return visitor.connect_ex(str(path)) == errno.ECONNREFUSED

            until(refuses, "that libzmq's thread has stopped listening")
            path.unlink()
            path.write_text("kept")
            monkeypatch.setattr(resource, "getrlimit", lambda _: most)
            router.limit_connections()
            assert path.read_text() == "kept"
            path.unlink()
            router.limit_connections()
            dealer = Dealer(router.endpoint)
            until(lambda: dealer.send([b"hello"]), "a connection")
            dealer.close()
        assert not path.exists()

    @pytest.mark.parametrize("keys", [False, True])
    @pytest.mark.parametrize(
        ("endpoint", "reason"),
        [
            (
                "tcp://nosuchhost.invalid:5677",
                "this machine has no such address, name or interface",
            ),
            ("tcp://eth987:5690", "this machine has no such address, name or interface"),
            ("tcp://192.0.2.1:5577", "this machine has no such address, name or interface"),
            ("ipc:///nowhere/at/all", "no such file or directory"),
        ],
    )
    def test_the_reason_names_the_endpoint_once(
        self, endpoint: str, reason: str, tmp_path: Path, *, keys: bool
    ) -> None:
        if keys:
            create(tmp_path / "keys")
        with pytest.raises(UserError) as raised:
            Router(endpoint, SIZES, tmp_path / "keys" if keys else None).close()
        line = f"cannot bind to {endpoint}: {reason}; choose another --bind"
        assert str(raised.value) == line

    def test_at_any_free_port(self) -> None:
        router = Router("tcp://127.0.0.1:*", SIZES)
        assert router.endpoint.startswith("tcp://127.0.0.1:")
        assert int(router.endpoint.rsplit(":", 1)[1]) > 0
        router.close()

    @pytest.mark.parametrize(
        "endpoint", ["ipc:///nowhere/at/all", "tcp://192.0.2.1:*", "tcp://no such host:1"]
    )
    def test_where_nobody_can(self, endpoint: str) -> None:
        with pytest.raises(UserError, match=r"cannot bind|not an endpoint"):
            Router(endpoint, SIZES)

    @pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
    def test_over_ipv6(self) -> None:
        try:
            with socket.create_server(("::1", 0), family=socket.AF_INET6):
                pass
        except OSError:
            pytest.skip("no IPv6 loopback here")
        router = Router("tcp://[::1]:*", SIZES)
        dealer = Dealer(router.endpoint)
        until(lambda: dealer.send([b"hello"]), "a connection")
        assert received(router)[1] == [b"hello"]
        dealer.close()
        router.close()


def test_the_socket_file_goes_with_the_router(tmp_path: Path) -> None:
    with TemporaryDirectory(prefix="mc") as directory:
        router = Router(f"ipc://{directory}/it", SIZES)
        assert list(Path(directory).iterdir())
        router.close()
        assert not list(Path(directory).iterdir())


def test_what_came_in_the_place_of_its_socket_file_stays(tmp_path: Path) -> None:
    router = Router(f"ipc://{tmp_path}/it", SIZES)
    (tmp_path / "it").unlink()
    (tmp_path / "it").write_text("kept")
    router.close()
    assert (tmp_path / "it").read_text() == "kept"


class TestLimits:
    @pytest.mark.parametrize(
        ("sizes", "expected"),
        [
            ({}, 1000),
            ({"hidden": 100, "vocabulary_size": 65}, 724),
            ({"hidden": 2048, "vocabulary_size": 65}, 24),
            ({"hidden": 2048, "vocabulary_size": 65, "shards": 8}, 48),
        ],
    )
    def test_of_what_waits_for_one_peer(self, sizes: dict[str, int], expected: int) -> None:
        assert messages_queued(dataclasses.replace(SIZES, **sizes)) == expected  # type: ignore[arg-type]

    @pytest.mark.long
    def test_a_handshake_that_never_ends_is_ended(self) -> None:
        router = Router("tcp://127.0.0.1:*", SIZES)
        with socket.create_connection(("127.0.0.1", int(router.endpoint.rsplit(":")[-1]))) as half:
            half.settimeout(WAIT_MS / 1000)
            half.sendall(b"\xff\0\0\0")
            received = iter(lambda: half.recv(1000), b"")
            assert b"".join(received).startswith(b"\xff")  # its greeting, then the end
        router.close()


def test_near_the_limit_of_files_all_connections_are_closed_and_clients_connect_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    router, most = Router("tcp://127.0.0.1:*", SIZES), resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.closing(router), contextlib.closing(Dealer(router.endpoint)) as dealer:
        until(lambda: dealer.send([b"hello"]), "a connection")
        monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
        router.limit_connections()
        assert caplog.messages == [
            "too many connections for 1 open files: all connections are closed; clients connect"
            " again when there is room"
        ]
        until(
            lambda: router.receive() is None and not dealer.send([b"beat"]),
            "the end of an admitted client's connection",
        )
        monkeypatch.setattr(resource, "getrlimit", lambda _: most)
        router.limit_connections()
        assert caplog.messages[1] == "there is room for connections again: they are accepted"
        until(lambda: dealer.send([b"hello"]), "a connection")
