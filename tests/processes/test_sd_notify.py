"""What a service manager is told, by real processes, over a real datagram socket."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from manychar.network.keys import create, read_client_key
from manychar.processes.errors import UserError
from tests.commands import GENEROUS, SMALL, Commands

ALIVE_EVERY = 0.5


class Manager:
    """A service manager's ear."""

    def __init__(self, path: Path) -> None:
        self.heard: list[str] = []
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(path))
        self._ear.settimeout(GENEROUS)
        self.environment = {
            "NOTIFY_SOCKET": str(path),
            "WATCHDOG_USEC": str(int(ALIVE_EVERY * 1e6)),
        }

    def hear(self, start: str) -> str:
        """Wait for a word that begins so."""
        while True:
            self.heard.append(self._ear.recv(4096).decode())
            if self.heard[-1].startswith(start):
                return self.heard[-1]

    def is_silent_for(self, seconds: float) -> bool:
        """Whether nothing is said for so long, after what was on its way."""
        self._ear.settimeout(0)
        try:
            while self._ear.recv(4096):
                pass
        except BlockingIOError:
            pass
        self._ear.settimeout(seconds)
        try:
            self._ear.recv(4096)
        except TimeoutError:
            return True
        finally:
            self._ear.settimeout(GENEROUS)
        return False

    def close(self) -> None:
        self._ear.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    ear = Manager(tmp_path / "notify")
    yield ear
    ear.close()


def test_a_server_and_a_worker(manychar: Commands, text: Path, manager: Manager) -> None:
    flags = (*SMALL, "--steps", "0", "--run-dir", "run", "--bind", "tcp://127.0.0.1:0")
    server = manychar.start("server", str(text), *flags, env=manager.environment)
    ready = manager.hear("READY=1")
    endpoint = ready.partition("STATUS=listening on ")[2]
    for _ in range(3):
        manager.hear("WATCHDOG=1")
    worker = manychar.start("worker", endpoint, "--name", "ann", env=manager.environment)
    assert manager.hear("READY=1") == f"READY=1\nSTATUS=working for {endpoint}"
    assert manager.hear("STATUS=step").endswith(", 1 worker")
    worker.send(signal.SIGTERM)
    manager.hear("STOPPING=1")
    assert worker.end().code == 75
    server.send(signal.SIGTERM)
    manager.hear("STOPPING=1")
    assert server.end().code == 75


@pytest.mark.long
def test_a_server_whose_loop_stands_gives_no_sign_of_life(
    manychar: Commands, text: Path, manager: Manager
) -> None:
    flags = (*SMALL, "--steps", "0", "--run-dir", "run", "--bind", "tcp://127.0.0.1:0")
    server = manychar.start("server", str(text), *flags, env=manager.environment)
    manager.hear("WATCHDOG=1")
    os.kill(server.pid, signal.SIGSTOP)
    assert manager.is_silent_for(4 * ALIVE_EVERY)
    os.kill(server.pid, signal.SIGCONT)
    manager.hear("WATCHDOG=1")
    server.send(signal.SIGTERM)
    server.end()


@pytest.mark.long
def test_the_watchdog_of_another_process_is_left_alone(
    manychar: Commands, text: Path, manager: Manager
) -> None:
    flags = (*SMALL, "--steps", "0", "--run-dir", "run", "--bind", "tcp://127.0.0.1:0")
    env = {**manager.environment, "WATCHDOG_PID": "1"}
    server = manychar.start("server", str(text), *flags, env=env)
    manager.hear("READY=1")
    worker = manychar.start("worker", manager.heard[-1].partition("on ")[2])
    for _ in range(2):
        manager.hear("STATUS=step")
    for running in (server, worker):
        running.send(signal.SIGTERM)
        running.end()
    manager.hear("STOPPING=1")
    assert not [word for word in manager.heard if "WATCHDOG" in word]


def test_a_credential_may_say_that_its_group_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = create(tmp_path / "KEYS")
    path.chmod(0o440)
    with pytest.raises(UserError, match="others can read this secret"):
        read_client_key(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    with pytest.raises(UserError, match="others can read this secret"):
        read_client_key(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(path.parent))
    assert read_client_key(path).name == "worker"
    path.chmod(0o444)
    with pytest.raises(UserError, match="others can read this secret"):
        read_client_key(path)
