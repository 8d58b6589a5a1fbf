"""Who may ask for the page, and what the command says where it cannot serve it."""

import asyncio
import contextlib
import http.client
import socket
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest

from manychar.observability.dashboard.request_guard import RequestGuard
from tests.commands import Commands
from tests.observability.dashboard.serving import serve

REFUSED_FOR_SAFETY = 78
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
}
LINE = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


def refused(kind: str, *, anywhere: bool = False, **headers: str) -> bool:
    """Ask a guard with nothing but headers; return whether what is behind it was not asked."""
    passed: list[str] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        passed.append(scope["type"])

    async def receive() -> MutableMapping[str, Any]:
        return {}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    sent: list[MutableMapping[str, Any]] = []
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(
        RequestGuard(behind, any_host=anywhere)({"type": kind, "headers": pairs}, receive, send)
    )
    assert bool(passed) != bool(sent)
    return not passed


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_only_a_loopback_name_is_answered(kind: str) -> None:
    for host in ("localhost:8577", "127.0.0.1:8577", "127.9.9.9", "[::1]:8577", "localhost"):
        assert not refused(kind, host=host), host
    for host in (
        "evil.example",
        "evil.example:8577",
        "127.0.0.1.evil.example",
        "10.0.0.1",
        "",
        "[",
    ):
        assert refused(kind, host=host), host
    assert refused(kind)
    assert not refused(kind, host="node7:8577", anywhere=True)


@pytest.mark.parametrize("anywhere", [False, True])
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_no_other_page_is_answered(kind: str, anywhere: bool) -> None:  # noqa: FBT001
    host = "127.0.0.1:8577"
    assert not refused(kind, host=host, origin="http://127.0.0.1:8577", anywhere=anywhere)
    for origin in ("http://evil.example", "http://127.0.0.1:9999", "http://localhost:8577", "null"):
        assert refused(kind, host=host, origin=origin, anywhere=anywhere), origin


@pytest.fixture
def address(manychar: Commands, finished_run: Path) -> Iterator[tuple[str, int]]:
    url, page = serve(manychar, str(finished_run))
    host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
    yield host, int(port)
    page.interrupt()
    assert page.end().code == 130


def asked(address: tuple[str, int], path: str, **headers: str) -> tuple[int, str, bytes]:
    """Return (status, content security policy, body) of what is answered."""
    connection = http.client.HTTPConnection(*address, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = b"" if answer.status == 101 else answer.read()
        answer.close()
        return answer.status, answer.headers.get("content-security-policy", ""), body


def test_the_guard_stands_before_page_and_websocket(address: tuple[str, int]) -> None:
    status, policy, body = asked(address, "/")
    assert (status, b"manychar" in body) == (200, True)
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        status, _, body = asked(address, "/", **headers)
        assert (status, b"manychar" in body) == (403, False)
        assert asked(address, LINE, **HANDSHAKE, **headers)[0] == 403
    here = f"http://{address[0]}:{address[1]}"
    assert asked(address, LINE, **HANDSHAKE, Origin=here)[0] == 101


@pytest.mark.long
def test_it_listens_on_loopback_unless_told_otherwise(
    manychar: Commands, finished_run: Path
) -> None:
    done = manychar.run("dashboard", str(finished_run), "--host", "0.0.0.0", "--port", "0")  # noqa: S104
    assert done.code == REFUSED_FOR_SAFETY
    assert done.out == ""
    assert "--insecure" in done.last_line
    assert done.err.count("\n") == 1
    url, page = serve(manychar, str(finished_run), "--host", "0.0.0.0", "--insecure")  # noqa: S104
    assert url.startswith("http://0.0.0.0:")
    page.wait_for("everyone who can reach")
    page.interrupt()
    page.end()


def test_a_port_that_is_taken_is_named(manychar: Commands, finished_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = manychar.run("dashboard", str(finished_run), "--port", str(port))
    assert done.code == 2
    assert f"127.0.0.1:{port}" in done.last_line
    assert "--port" in done.last_line
    assert done.err.count("\n") == 1


@pytest.mark.long
def test_nothing_to_watch_is_said_in_one_line(manychar: Commands, tmp_path: Path) -> None:
    nowhere = manychar.run("dashboard", str(tmp_path / "none"), "--port", "0")
    assert (nowhere.code, nowhere.err.count("\n")) == (2, 1)
    assert "not a run directory" in nowhere.last_line
    nobody = manychar.run(
        *("dashboard", f"ipc://{tmp_path}/nobody", "--port", "0", "--connect-timeout", "0.5")
    )
    assert nobody.code == 3
    assert "no server at ipc://" in nobody.last_line


def test_without_the_extra_it_says_what_to_install(
    manychar: Commands, finished_run: Path, tmp_path: Path
) -> None:
    absent = tmp_path / "absent" / "nicegui"
    absent.mkdir(parents=True)
    words = "raise ModuleNotFoundError('no', name='nicegui')"
    (absent / "__init__.py").write_text(words, encoding="utf-8")
    done = manychar.run("dashboard", str(finished_run), env={"PYTHONPATH": str(absent.parent)})
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "pip install 'manychar[dashboard]'" in done.last_line
