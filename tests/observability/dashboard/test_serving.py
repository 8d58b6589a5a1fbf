"""Who may ask for the page, and what the command says where it cannot serve it."""

import contextlib
import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Commands
from tests.observability.dashboard.serving import serve

REFUSED_FOR_SAFETY = 78
HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw==",
}
LINE, POLLING = (
    f"/_nicegui_ws/socket.io/?EIO=4&transport={way}" for way in ("websocket", "polling")
)


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


def test_another_site_is_answered_neither_page_nor_data(address: tuple[str, int]) -> None:
    status, policy, body = asked(address, "/")
    assert (status, b"manychar" in body) == (200, True)
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    host, port = address
    for name in (f"localhost:{port}", host, "localhost", f"[::1]:{port}"):
        assert asked(address, "/", Host=name)[0] == 200, name
    for name in ("evil.example", f"evil.example:{port}", f"{host}.evil.example", "10.0.0.1", "["):
        status, _, body = asked(address, "/", Host=name)
        assert (status, b"manychar" in body) == (400, False), name
        assert asked(address, LINE, **HANDSHAKE, Host=name)[0] in (400, 403), name
    assert asked(address, LINE, **HANDSHAKE, Origin=f"http://{host}:{port}")[0] == 101
    others = ("http://evil.example", f"http://{host}:9999", f"http://localhost:{port}", "null")
    for origin in others:
        assert asked(address, LINE, **HANDSHAKE, Origin=origin)[0] in (400, 403), origin
        assert asked(address, POLLING, Origin=origin)[0] == 400, origin
    assert asked(address, POLLING)[0] == 200


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
    port = int(url.rstrip("/").rpartition(":")[2])
    assert asked(("127.0.0.1", port), "/", Host="node7:8577")[0] == 200
    page.interrupt()
    page.end()


def test_a_port_that_is_taken_is_named(manychar: Commands, finished_run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = manychar.run("dashboard", str(finished_run), "--port", str(port))
    said = "address already in use; choose another --port or --host"
    assert (done.code, done.err) == (2, f"manychar: cannot listen on 127.0.0.1:{port}: {said}\n")


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
