"""Keys on disk: who may read them, what is in which file, what is refused."""

import errno
import itertools
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from manychar.network import keys
from manychar.network.authenticator import ANSWERS_A_TURN, DOMAIN, ENDPOINT, Authenticator
from manychar.processes.errors import REFUSED_FOR_SAFETY, UserError
from manychar.protocol.messages import KeyRole
from tests.commands import SMALL, Commands, until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    keys.create(tmp_path / "keys")
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_create_makes_a_pair_for_the_server_and_one_for_a_first_worker(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "clients.json",
        "server.key",
        "worker.key",
    ]
    server = keys.read_server_key(folder)
    worker = keys.read_client_key(folder / "worker.key")
    assert (worker.name, worker.role) == ("worker", KeyRole.WORKER)
    assert worker.server == server.public
    assert len({server.public, server.secret, worker.public, worker.secret}) == 4
    (client,) = keys.read_clients(folder)
    assert client == keys.Client("worker", KeyRole.WORKER, worker.public)


@pytest.mark.parametrize("name", ["server.key", "worker.key"])
def test_secrets_are_their_owners_alone_whatever_the_umask(tmp_path: Path, name: str) -> None:
    before = os.umask(0)
    try:
        keys.create(tmp_path / "keys")
    finally:
        os.umask(before)
    assert mode(tmp_path / "keys" / name) == 0o600
    assert mode(tmp_path / "keys") == 0o700


def test_a_client_file_holds_what_it_needs_and_nothing_more(folder: Path) -> None:
    values = json.loads((folder / "worker.key").read_text())
    assert set(values) == {"format", "name", "role", "public", "secret", "server"}
    secret = keys.read_server_key(folder).secret
    assert secret not in (folder / "worker.key").read_text()
    assert secret not in (folder / "clients.json").read_text()
    assert values["secret"] not in (folder / "clients.json").read_text()


def test_secrets_are_not_shown(folder: Path) -> None:
    for key in (keys.read_server_key(folder), keys.read_client_key(folder / "worker.key")):
        assert key.secret not in repr(key)


@pytest.mark.parametrize("name", ["server.key", "worker.key"])
@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o611])
def test_a_secret_that_others_can_read_is_refused(folder: Path, name: str, bits: int) -> None:
    (folder / name).chmod(bits)
    read = {"server.key": keys.read_server_key, "worker.key": keys.read_client_key}[name]
    with pytest.raises(UserError, match="chmod 600") as refusal:
        read(folder if name == "server.key" else folder / name)
    assert refusal.value.code == REFUSED_FOR_SAFETY


def test_keys_are_not_made_over_others(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="keys in it already"):
        keys.create(folder)
    revoke = rf"worker has a key already; `\S*manychar keys revoke {folder} worker` revokes it"
    with pytest.raises(UserError, match=revoke):
        keys.add(folder, "worker", KeyRole.OBSERVER)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_list_that_is_missing_is_made_again_and_no_secret_is_lost(
    manychar: Commands, folder: Path
) -> None:
    """Nor is a key that is in the directory for another server, such as a relay's."""
    keys.add(folder, "me", KeyRole.OPERATOR)
    keys.add(folder, "moved", KeyRole.WORKER).rename(folder.with_name("moved.key"))
    keys.create(folder.with_name("other"))
    other = keys.add(folder.with_name("other"), "relay", KeyRole.WORKER)
    (folder / "relay.key").write_bytes(other.read_bytes())
    (folder / "relay.key").chmod(0o600)
    listed = keys.read_clients(folder)
    (folder / "clients.json").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}

    for words in (("list",), ("add", "olga"), ("revoke", "me")):
        refused = manychar.run("keys", words[0], str(folder), *words[1:])
        assert (refused.code, refused.err) == (
            2,
            f"manychar: {folder / 'clients.json'}: no such file or directory; put a copy there, or"
            f" `manychar keys create {folder}` makes a new list and keeps server.key\n",
        )
    done = manychar.run("keys", "create", str(folder))
    assert done.code == 0, done.err
    assert f"{folder}: server.key is kept; a new list of clients: me, worker\n" in done.err
    assert {path: path.read_bytes() for path in before} == before
    assert keys.read_clients(folder) == sorted(
        (client for client in listed if client.name != "moved"), key=lambda each: each.name
    )


def test_a_list_that_is_made_again_has_a_first_worker_as_a_new_one_has(folder: Path) -> None:
    (folder / "clients.json").unlink()
    (folder / "worker.key").unlink()
    before = keys.read_server_key(folder)
    assert keys.create(folder).name == "worker.key"
    assert keys.read_server_key(folder) == before
    assert [client.name for client in keys.read_clients(folder)] == ["worker"]


def test_what_cannot_be_read_is_not_replaced(folder: Path) -> None:
    (folder / "clients.json").unlink()
    for name in ("worker.key", "server.key"):
        (folder / name).write_text("torn")
        with pytest.raises(UserError, match=f"{name}: not a file of keys"):
            keys.create(folder)
        assert (folder / name).read_text() == "torn"
        assert not (folder / "clients.json").exists()


def test_a_list_that_is_not_made_leaves_the_servers_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    (folder / "clients.json").unlink()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(UserError, match="input/output error"):
        keys.create(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("make", [keys.create, lambda at: keys.add(at, "worker", KeyRole.WORKER)])
def test_no_key_is_made_over_a_file_that_is_no_clients(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    keys.create_server(tmp_path, [])
    if make is keys.create:
        (tmp_path / "clients.json").unlink()
        (tmp_path / "server.key").unlink()
    keys.create(tmp_path / "other")
    (tmp_path / "other" / "worker.key").rename(tmp_path / "worker.key")
    before = (tmp_path / "worker.key").read_bytes()
    with pytest.raises(UserError, match=r"worker\.key: there already; move it elsewhere"):
        make(tmp_path)
    assert (tmp_path / "worker.key").read_bytes() == before
    assert (tmp_path / "server.key").exists() == (make is not keys.create), "begun or not at all"


def test_a_directory_without_keys_says_how_they_are_made(manychar: Commands) -> None:
    (manychar.directory / "KEYS").mkdir()
    for words in (("list", "KEYS"), ("add", "KEYS", "olga")):
        done = manychar.run("keys", *words)
        assert (done.code, done.err) == (
            2,
            "manychar: KEYS/clients.json: no such file or directory; `manychar keys create KEYS`"
            " makes keys\n",
        )


def test_a_revoked_name_can_have_another_key(folder: Path) -> None:
    old = keys.read_client_key(folder / "worker.key")
    keys.revoke(folder, "worker")
    assert not (folder / "worker.key").exists()
    assert [client.revoked for client in keys.read_clients(folder)] == [True]
    listed = rf"no client worker with a key; `\S*manychar keys list {folder}` lists them"
    with pytest.raises(UserError, match=listed):
        keys.revoke(folder, "worker")
    new = keys.read_client_key(keys.add(folder, "worker", KeyRole.OBSERVER))
    assert new.public != old.public
    assert [(c.public, c.revoked) for c in keys.read_clients(folder)] == [
        (old.public, True),
        (new.public, False),
    ]


def test_each_name_is_listed_once_with_its_newest_key(manychar: Commands, folder: Path) -> None:
    for name in ("worker", "olga", "worker"):
        if name == "worker":
            keys.revoke(folder, name)
        new = keys.add(folder, name, KeyRole.OBSERVER)
    keys.revoke(folder, "olga")
    rows = [line.split() for line in manychar.run("keys", "list", str(folder)).out.splitlines()]
    assert [row[:2] for row in rows] == [["worker", "observer"], ["olga", "revoked"]]
    assert rows[0][2] == keys.read_client_key(new).public
    listed = json.loads(manychar.run("keys", "list", str(folder), "--json").out)
    assert [each["public"] for each in listed] == [row[2] for row in rows]


@pytest.mark.parametrize(
    ("role", "hint"),
    [
        ("worker", "manychar worker tcp://… --key own.key; relay takes it, too"),
        (
            "observer",
            "manychar status tcp://… --key own.key; sample, dashboard and follow take it, too",
        ),
        ("operator", "manychar status tcp://… --key own.key; stop and unban take it, too"),
    ],
)
def test_it_is_said_what_a_key_is_for(
    manychar: Commands, folder: Path, role: str, hint: str
) -> None:
    done = manychar.run("keys", "add", str(folder), "own", "--role", role)
    assert done.err == f"{folder / 'own.key'}: move it to its machine; there: {hint}\n"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "x" * 49, "ä", "a b"])
def test_what_is_no_name_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(UserError, match="no client's name"):
        keys.add(folder, name, KeyRole.WORKER)
    assert len(list(folder.iterdir())) == 3


def test_the_servers_own_name_is_no_clients(folder: Path) -> None:
    with pytest.raises(UserError, match="the server's own name"):
        keys.add(folder, "server", KeyRole.WORKER)


@pytest.mark.parametrize(("first", "second"), [("ann", "ann-1"), ("ann-12", "ann")])
def test_no_two_clients_may_call_themselves_alike(folder: Path, first: str, second: str) -> None:
    keys.add(folder, first, KeyRole.WORKER)
    with pytest.raises(UserError, match="could call themselves by one name"):
        keys.add(folder, second, KeyRole.WORKER)
    keys.add(folder, "ann-x", KeyRole.WORKER)
    keys.revoke(folder, first)
    keys.add(folder, second, KeyRole.WORKER)


def test_a_pair_that_is_none_is_refused(folder: Path) -> None:
    path = folder / "server.key"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "secret": "0" * 40}))
    with pytest.raises(UserError, match="not a file of keys"):
        keys.read_server_key(folder)


@pytest.mark.parametrize("name", ["", "clients.json"])
def test_a_list_that_others_can_write_is_refused(folder: Path, name: str) -> None:
    (folder / name).chmod(0o777 if name == "" else 0o666)
    with pytest.raises(UserError, match="others can write in it") as refused:
        keys.read_clients(folder)
    assert refused.value.code == 78


def test_a_full_disk_leaves_no_half_of_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = sorted(folder.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"olga\.key: fsync of .*: no space left on device"):
            keys.add(folder, "olga", KeyRole.OBSERVER)
        fresh = folder.with_name("fresh")
        with pytest.raises(UserError, match=r"fresh: fsync of .*: no space left"):
            keys.create(fresh)
    assert sorted(folder.iterdir()) == before
    assert keys.create(fresh).name == "worker.key", "what was begun can be done again"


@pytest.mark.parametrize("number", range(10))  # two directories, three files and a changed one
def test_refused_keys_leave_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whichever fsync fails: of a file, or of a directory, which has the file's name by then."""
    calls = itertools.count()

    def fails(_: int) -> None:
        if next(calls) >= number:
            raise OSError(errno.EIO, "Input/output error")

    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(UserError, match=r"fsync of .*: input/output error"):
        keys.create(folder.with_name("new") / "keys")
    assert list(folder.parent.iterdir()) == [folder]
    calls = itertools.count()
    if number < 3:  # then the list of clients is whole, and has been replaced
        with pytest.raises(UserError, match=r"fsync of .*: input/output error"):
            keys.add(folder, "olga", KeyRole.OBSERVER)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"format": 1}',
        b'{"format": 2, "clients": []}',
        b'{"format": 1, "clients": 3}',
        b'{"format": 1, "clients": [3]}',
        b'{"format": 1, "clients": [{"name": "../x", "role": "worker", "public": "x"}]}',
        b'{"format": 1, "clients": [{"name": "x", "role": "king", "public": "'
        + b"0" * 40
        + b'"}]}',
    ],
)
def test_a_damaged_file_is_one_line(folder: Path, content: bytes) -> None:
    for name in ("clients.json", "server.key", "worker.key"):
        (folder / name).write_bytes(content)
    for read in (
        lambda: keys.read_clients(folder),
        lambda: keys.read_server_key(folder),
        lambda: keys.read_client_key(folder / "worker.key"),
    ):
        with pytest.raises(UserError, match="damaged") as refused:
            read()
        if "clients.json: " in str(refused.value):
            advice = r"or move it away, and `.* keys create .*` makes a new list and keeps"
            assert re.search(advice, str(refused.value))


def test_the_servers_own_key_is_named_where_a_clients_is_asked_for(folder: Path) -> None:
    with pytest.raises(UserError, match=r"server\.key: this is a server's own key, not a client's"):
        keys.read_client_key(folder / "server.key")


@pytest.mark.parametrize("bits", [0o600, 0o644])
def test_the_list_of_clients_is_named_where_a_key_is_asked_for(folder: Path, bits: int) -> None:
    (folder / "clients.json").chmod(bits)
    expected = (
        r"clients\.json: this is the list of clients, not a key: see `manychar keys add --help`"
    )
    with pytest.raises(UserError, match=expected) as refused:
        keys.read_client_key(folder / "clients.json")
    assert refused.value.code == 2


def test_what_is_no_key_is_not_called_a_secret(folder: Path) -> None:
    (folder / "book.txt").write_text("Once upon a time")
    (folder / "server.key").chmod(0o644)
    for name, said in (("book.txt", "not a file of keys"), ("server.key", "a server's own key")):
        (folder / name).chmod(0o644)
        with pytest.raises(UserError, match=said):
            keys.read_client_key(folder / name)


def test_a_list_that_cannot_be_found_any_more_is_named_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    context = zmq.Context()
    authenticator = Authenticator(context, folder)
    (folder / "clients.json").unlink()
    authenticator.owner_of("")
    authenticator.socket.close(0)
    context.term()
    reason = f"{folder / 'clients.json'}: no such file or directory"
    assert caplog.messages == [f"no new connections are accepted: {reason}"]


def test_a_folder_is_not_taken_for_a_secret(folder: Path) -> None:
    folder.chmod(0o755)
    with pytest.raises(UserError, match="is a directory"):
        keys.read_client_key(folder)


def test_a_missing_file_says_where_to_look(folder: Path) -> None:
    (folder / "server.key").unlink()
    with pytest.raises(UserError, match=r"server\.key: no such file or directory; see `manychar k"):
        keys.read_server_key(folder)


@pytest.mark.parametrize("revoked_first", [True, False])
def test_a_key_that_is_listed_twice_is_revoked(folder: Path, *, revoked_first: bool) -> None:
    (client,) = keys.read_clients(folder)
    listed = json.loads((folder / "clients.json").read_text())
    twice = [*listed["clients"], {**listed["clients"][0], "revoked": True}]
    listed["clients"] = twice[::-1] if revoked_first else twice
    with zmq.Context() as context:
        authenticator = Authenticator(context, folder)
        assert authenticator.owner_of(client.public) == ("worker", KeyRole.WORKER)
        (folder / "clients.json").write_text(json.dumps(listed))
        until(lambda: authenticator.owner_of(client.public) is None, "the key to be revoked")
        authenticator.socket.close(0)


def test_a_key_on_the_command_line_is_not_repeated(manychar: Commands, folder: Path) -> None:
    content = (folder / "worker.key").read_text()
    done = manychar.run("worker", "tcp://127.0.0.1:1", "--key", content)
    assert done.code == 2
    assert "--key takes the name of a file" in done.err
    assert json.loads(content)["secret"] not in done.err + done.out


@pytest.mark.parametrize("command", ["train", pytest.param("equivalence", marks=pytest.mark.long)])
def test_a_key_in_the_environment_is_for_another_server(
    manychar: Commands, text: Path, folder: Path, command: str
) -> None:
    env = {
        "MANYCHAR_KEY": (folder / "worker.key").read_text(),
        "MANYCHAR_KEY_FILE": str(folder / "worker.key"),
        "MANYCHAR_KEYS": str(folder),
    }
    steps = ("--steps", "400", "--checkpoint-every", "200")
    done = manychar.run(command, str(text), *SMALL, *steps, env=env)
    assert done.code == 0, done.err


def test_how_to_go_on_is_said_as_it_was_begun(manychar: Commands, text: Path, folder: Path) -> None:
    flags = ("--keys", str(folder), "--bind", "tcp://127.0.0.2:0", "--run-dir", "run")
    running = manychar.start("server", str(text), *SMALL, *flags)
    running.wait_for("listening")
    running.interrupt()
    said = running.end().err
    assert f"server --bind tcp://127.0.0.2:0 --keys {folder} --resume run" in said


def test_what_would_be_safe_is_said_whole(manychar: Commands, text: Path) -> None:
    done = manychar.run("server", str(text), "--bind", "tcp://*:5577", "--hidden", "9")
    assert done.code == 78
    assert f"then `manychar server {text} --bind 'tcp://*:5577' --hidden 9 --keys KEYS`" in done.err


def test_a_storm_of_handshakes_is_answered_in_portions(folder: Path) -> None:
    """Else the server's loop would answer for as long as strangers ask, and do nothing else."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    authenticator = Authenticator(context, folder)
    asking = context.socket(zmq.DEALER)
    asking.connect(ENDPOINT)
    request = [b"", b"1.0", b"1", DOMAIN, b"127.0.0.1", b"", b"CURVE", bytes(32)]
    asked, each = 2 * ANSWERS_A_TURN + 1, ["127.0.0.1"] * ANSWERS_A_TURN
    for _ in range(asked):
        asking.send_multipart(request)
    refused = []
    for _ in range(4):
        authenticator.answer()
        refused.append(authenticator.take_refused())
    assert refused == [each, each, each[:1], []]
    answers = [asking.recv_multipart()[3] for _ in range(asked)]
    assert answers == [b"400"] * asked
    asking.close(0)
    authenticator.socket.close(0)
    context.term()


def test_the_list_keeps_the_mode_that_it_was_given(tmp_path: Path) -> None:
    keys.create_server(tmp_path, [])
    keys.add(tmp_path, "olga", KeyRole.OBSERVER)
    (tmp_path / "clients.json").chmod(0o640)
    keys.revoke(tmp_path, "olga")
    assert mode(tmp_path / "clients.json") == 0o640
