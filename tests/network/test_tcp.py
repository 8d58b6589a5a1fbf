"""The kernel's counts of a connection's bytes, and its end from outside."""

import contextlib
import os
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from manychar.network import tcp
from manychar.network.flood import _NO_CONNECTION

pytestmark = pytest.mark.skipif(not tcp.COUNTS, reason="only Linux counts the bytes")


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Have this process open no file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    held: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        assert held
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in held:
            os.close(descriptor)


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection."""
    address = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    with socket.create_server((address, 0), family=request.param) as server:
        there = socket.create_connection(server.getsockname()[:2])
        here, _ = server.accept()
    there.settimeout(30.0)
    with here, there:
        yield here, there


def test_what_was_read_is_counted(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    there.sendall(bytes(1000))
    assert len(here.recv(400, socket.MSG_WAITALL)) == 400
    assert tcp.counts(here.fileno()) == (1000, 400, True)
    assert len(here.recv(600, socket.MSG_WAITALL)) == 600
    assert tcp.counts(here.fileno()) == (1000, 1000, True)


def test_what_comes_between_two_answers_is_not_taken_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    came, unread = iter([100, 160, 220, 220]), iter([60, 120, 120])
    monkeypatch.setattr(tcp, "_came", lambda _: next(came))
    monkeypatch.setattr(tcp, "_unread", lambda _: next(unread))
    assert tcp.counts(7) == (220, 100, True)
    came, unread = iter(range(100, 150, 10)), iter([80, 90, 100, 110])
    assert tcp.counts(7) == (140, 20, False)


def test_a_connection_is_ended_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    there.sendall(bytes(1000))
    assert here.recv(1000, socket.MSG_WAITALL)
    ender = tcp.Ender()
    assert ender.reset(here.fileno(), at_least=1001) == ""
    there.sendall(bytes(10))
    with no_more_files():
        address = ender.reset(here.fileno(), at_least=1000)
    assert address.endswith(f":{there.getsockname()[1]}")
    with pytest.raises(ConnectionResetError):
        there.recv(1)
    ender.close()


def test_what_is_no_connection_any_more_costs_no_descriptor(tmp_path: Path) -> None:
    ender = tcp.Ender()
    with (tmp_path / "file").open("wb") as file:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            with pytest.raises(OSError, match="88"):
                ender.reset(file.fileno(), at_least=0)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
    ender.close()


@pytest.mark.parametrize("made", [lambda: socket.socket(socket.AF_UNIX), socket.socket])
def test_another_kind_has_no_counts(made: Callable[[], socket.socket]) -> None:
    with made() as other:
        if other.family == socket.AF_INET:
            descriptor = other.detach()
            socket.close(descriptor)
        else:
            descriptor = other.fileno()
        with pytest.raises(OSError, match=r"Errno (9|88|95)") as raised:
            tcp.counts(descriptor)
    assert raised.value.errno in _NO_CONNECTION
