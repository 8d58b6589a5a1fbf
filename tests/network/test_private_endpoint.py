"""The endpoint of `train`: who holds its keys or is this user connects; another user does not."""

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from manychar.network.dealer import Dealer
from manychar.network.endpoints import IPC_PATH_LENGTH
from manychar.network.keys import read_client_key
from manychar.network.private_endpoint import OBSERVER, PrivateEndpoint, private_endpoint
from manychar.network.router import Received, Router
from manychar.processes.errors import UserError
from manychar.protocol.messages import KeyRole
from tests.commands import until
from tests.conftest import Require

NOBODY = 65534
WORKERS = ("worker-1", "worker-2")
CONNECT = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
READ = "import sys; open(sys.argv[1], 'rb').read()"
AS_ANOTHER = f"import os, socket; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); "


@pytest.fixture(params=["ipc", "tcp"])
def endpoint(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PrivateEndpoint]:
    """A private endpoint below a directory that every user can enter, as /tmp is."""
    long = "x" * (IPC_PATH_LENGTH if request.param == "tcp" else 1)
    with tempfile.TemporaryDirectory() as top:
        directory = Path(top, long)
        directory.mkdir()
        for path in (directory, directory.parent):
            path.chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", str(directory))
        with private_endpoint(WORKERS) as made:
            assert made.bind.startswith(f"{request.param}://")
            yield made
        assert not list(directory.iterdir())


@pytest.fixture
def router(endpoint: PrivateEndpoint) -> Iterator[Router]:
    """A server that listens there."""
    listening = Router(endpoint.bind, None, endpoint.keys)
    yield listening
    listening.close()


def said(router: Router, dealer: Dealer) -> str:
    """Send until the server has heard it, and return whose key it came with."""

    def heard() -> Received | None:
        if router.authenticator is not None:
            router.authenticator.answer()
        dealer.send([b"hello"])
        return router.receive()

    received = until(heard, "a message")
    dealer.close()
    assert received.frames == [b"hello"]
    return received.owner.name if received.owner else ""


@pytest.mark.parametrize("name", [*WORKERS, OBSERVER])
def test_its_clients_connect(router: Router, endpoint: PrivateEndpoint, name: str) -> None:
    path = endpoint.client_key(name)
    key = read_client_key(path) if path else None
    assert said(router, Dealer(router.endpoint, key)) == (name if key else "")
    if key:
        assert key.role is (KeyRole.OPERATOR if name == OBSERVER else KeyRole.WORKER)


def test_its_files_are_in_a_directory_of_this_user_alone(
    router: Router, endpoint: PrivateEndpoint
) -> None:
    inside = endpoint.keys or Path(router.endpoint.removeprefix("ipc://"))
    assert stat.S_IMODE(inside.parent.stat().st_mode) == 0o700
    assert inside.exists()


def test_another_user_can_neither_connect_nor_read(
    router: Router, endpoint: PrivateEndpoint, require: Require
) -> None:
    require(os.getuid() == 0, "only root can become another user")
    path = endpoint.client_key(WORKERS[0])
    program, what = (READ, str(path)) if path else (CONNECT, router.endpoint.removeprefix("ipc://"))
    assert failure_of(program, what) == b"", "this user can"
    assert b"PermissionError" in failure_of(AS_ANOTHER + program, what)
    if path is None:
        return
    stranger = Dealer(router.endpoint)

    with pytest.raises(UserError, match="it asks for a key"):
        until(lambda: stranger.send([b"hello"]), "the refusal")
    assert router.receive() is None
    stranger.close()


def failure_of(program: str, argument: str) -> bytes:
    """Run a program and return what it says on its standard error."""
    command = [sys.executable, "-c", program, argument]
    return subprocess.run(command, capture_output=True, check=False).stderr
