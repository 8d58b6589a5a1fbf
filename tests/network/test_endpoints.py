"""What is an endpoint, who can reach it, and where none is taken without keys."""

import socket
from pathlib import Path

import pytest

from manychar.network.dealer import Dealer
from manychar.network.endpoints import (
    IPC_PATH_LENGTH,
    check_endpoint,
    is_endpoint,
    is_local,
    require_safe,
    with_whole_path,
    worker_command,
)
from manychar.processes.errors import REFUSED_FOR_SAFETY, UserError


@pytest.mark.parametrize(
    "endpoint",
    [
        "tcp://127.0.0.1:5577",
        "tcp://127.0.0.1:*",
        "tcp://*:5577",
        "tcp://[::1]:5577",
        "tcp://[::]:*",
        "tcp://host.example:1",
        "tcp://node-7:65535",
        "ipc://a",
        "ipc:///tmp/a b",
        "ipc://" + "x" * IPC_PATH_LENGTH,
    ],
)
def test_those_that_are_ours(endpoint: str) -> None:
    check_endpoint(endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "here",
        "127.0.0.1:5577",
        "tcp://",
        "tcp://:5577",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:port",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:5577/",
        "tcp://127.0.0.1:5577\n",
        "tcp://127.0.0.1 b:5577",
        "tcp://::1:5577",
        "udp://127.0.0.1:5577",
        "inproc://here",
        "ipc://",
        "ipc://@everyone",
        "ipc://" + "x" * (IPC_PATH_LENGTH + 1),
        "ipc://" + "é" * (IPC_PATH_LENGTH // 2 + 1),
    ],
)
def test_those_that_are_not(endpoint: str) -> None:
    with pytest.raises(UserError) as raised:
        check_endpoint(endpoint)
    assert raised.value.code == 2


@pytest.mark.parametrize("to_connect", [False, True])
def test_what_is_wrong_with_them_is_said(*, to_connect: bool) -> None:
    form = "not an endpoint: write it as tcp://HOST:PORT or ipc://PATH"
    form += "; of a live run, `manychar runs` shows it" * to_connect
    for endpoint, line in {
        "tcp://127.0.0.1:99999": "tcp://127.0.0.1:99999: the port is not in 1 … 65,535",
        "tcp://[::1]:65536": "tcp://[::1]:65536: the port is not in 1 … 65,535",
        "tcp://127.0.0.1:٥٥٧٧": f"tcp://127.0.0.1:٥٥٧٧: {form}",
        f"tcp://a:{'9' * 5000}": f"tcp://a:{'9' * 5000}: {form}",
        "here": f"here: {form}",
        "http://here:1": f"http://here:1: {form}",
        "": f"an empty text: {form}",
    }.items():
        with pytest.raises(UserError) as raised:
            check_endpoint(endpoint, to_connect=to_connect)
        assert str(raised.value) == line


def test_the_path_of_a_socket_is_made_whole_where_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert with_whole_path("ipc://here") == f"ipc://{tmp_path}/here"
    others = f"ipc://{tmp_path}/here", f"ipc://{'a' * IPC_PATH_LENGTH}", "tcp://127.0.0.1:1"
    assert tuple(map(with_whole_path, others)) == others


def test_a_url_is_no_path() -> None:
    sources = "tcp://a:1", "ipc://a", "http://a", "runs/a", "a:b"
    assert list(map(is_endpoint, sources)) == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("endpoint", "fault"),
    [
        ("tcp://127.0.0.1:0", "the port on which a server listens"),
        ("tcp://127.0.0.1:*", "the port on which a server listens"),
        ("tcp://*:5577", "the host and the port"),
        ("tcp://[fe80::1%nowhere]:5577", "no such address, network interface or name"),
        ("tcp://[fe80::1]:5577", "no such address, network interface or name"),
        ("tcp://[host]:5577", "no such address, network interface or name"),
        ("tcp://[127.0.0.1]:5577", "no such address, network interface or name"),
        ("tcp://300.1.1.1:5577", "no such address, network interface or name"),
        ("tcp://255.255.255.255:5577", "no such address, network interface or name"),
        ("tcp://0xffffffff:5577", "no such address, network interface or name"),
        ("tcp://224.0.0.1:5577", "no such address, network interface or name"),
        ("tcp://[ff02::1%lo]:5577", "no such address, network interface or name"),
        ("tcp://[::ffff:224.0.0.1]:5577", "no such address, network interface or name"),
        ("tcp://a\0b:5577", "no such address, network interface or name"),
        ("tcp://a\x1bb:5577", "no such address, network interface or name"),
        ("ipc://a\0b", "an ipc path has 1 to 107 bytes, none is 0"),
        ("tcp://a..b:5577", "no such address, network interface or name"),
        (f"tcp://{'a' * 64}.example:5577", "no such address, network interface or name"),
    ],
)
def test_those_that_can_never_be_connected_to(endpoint: str, fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        Dealer(endpoint)
    with pytest.raises(UserError, match=fault):
        check_endpoint(endpoint, to_connect=True)


@pytest.mark.parametrize(
    "endpoint", ["tcp://[fe80::1%lo]:5577", "tcp://[::1%1]:1", "tcp://127.1:1"]
)
def test_those_that_may_be_connected_to(endpoint: str) -> None:
    check_endpoint(endpoint, to_connect=True)


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:5577", True),
        ("tcp://127.1.2.3:5577", True),
        ("tcp://[::1]:5577", True),
        ("tcp://localhost:5577", True),
        ("tcp://lo:5577", True),  # the interface
        ("ipc://a", True),
        ("tcp://0.0.0.0:5577", False),
        ("tcp://*:5577", False),
        ("tcp://[::]:5577", False),
        ("tcp://10.0.0.1:5577", False),
        ("tcp://192.168.1.7:5577", False),
        ("tcp://8.8.8.8:5577", False),
        ("tcp://[fe80::1%lo]:5577", False),
        ("tcp://[2001:db8::1]:5577", False),
        ("tcp://host:5577", False),
        ("tcp://localhost.example:5577", False),
        ("tcp://127.0.0.1.example:5577", False),
        ("tcp://eth0:5577", False),
    ],
)
def test_those_that_strangers_can_reach(endpoint: str, *, local: bool) -> None:
    assert is_local(endpoint) is local
    with pytest.raises(UserError, match="--keys and --insecure: give one of them"):
        require_safe(endpoint, keys=True, insecure=True)
    require_safe(endpoint, keys=False, insecure=True)
    if local:
        require_safe(endpoint, keys=False, insecure=False)
    else:
        with pytest.raises(UserError, match=r"keys create KEYS.*--keys KEYS.*--insecure") as raised:
            require_safe(endpoint, keys=False, insecure=False)
        assert raised.value.code == REFUSED_FOR_SAFETY == 78


@pytest.mark.parametrize("bind", ["tcp://0.0.0.0:1", "tcp://[::]:1", "tcp://10.0.0.1:1"])
def test_a_worker_elsewhere_is_told_the_host(bind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "10.0.0.1")
    assert worker_command(bind, keys=False) == "manychar worker tcp://10.0.0.1:1"
    assert worker_command(bind, keys=True) == "manychar worker tcp://10.0.0.1:1 --key FILE"
