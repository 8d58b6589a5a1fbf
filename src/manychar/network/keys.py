"""Keys for machines that do not trust their network: a directory for the server, a file a client.

    DIR/server.key     the server's own key pair; it stays there
    DIR/clients.json   who may connect: name, role, public key, and whether it was revoked
    DIR/NAME.key       for NAME's machine: NAME's key pair, and the server's public key

A CURVE key (ZeroMQ RFC 26) is 32 bytes, written as 40 characters of Z85 (RFC 32). Files with a
secret in them are readable by their owner alone, or refused.
"""

import contextlib
import dataclasses
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zmq

from manychar.processes.errors import REFUSED_FOR_SAFETY, UserError, user_errors
from manychar.processes.subcommand import as_pasted, program
from manychar.protocol.messages import KeyRole
from manychar.storage.atomic_files import all_or_nothing, lock_file, make_directories, replace_file

SERVER_NAME, CLIENTS_NAME, SUFFIX = "server.key", "clients.json", ".key"
FIRST_CLIENT = "worker"
FORMAT = 1
LOCKED_WITHIN = 5.0  # seconds
CREDENTIALS = "CREDENTIALS_DIRECTORY"
SEE_HELP = "see `manychar keys --help`"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}", re.ASCII)
_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", re.ASCII)
_NUMBER = re.compile(r"-[0-9]+\Z")
_FIELDS = {"name": _NAME, "role": _NAME, "public": _KEY, "secret": _KEY, "server": _KEY}


@dataclasses.dataclass(frozen=True)
class ServerKey:
    """The server's key pair."""

    public: str
    secret: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class ClientKey:
    """A client's key pair, its name and role, and the server's public key."""

    name: str
    role: KeyRole
    public: str
    secret: str = dataclasses.field(repr=False)
    server: str


@dataclasses.dataclass(frozen=True)
class Client:
    """An entry of the list: a client that may connect, or may not any more."""

    name: str
    role: KeyRole
    public: str
    revoked: bool = False


def create(directory: Path) -> Path:
    """Create the directory with the server's key and a first worker's; return the worker's file.

    A server's key that has lost its list of clients is kept, and so are clients' keys beside it.
    """
    with all_or_nothing() as made:
        create_server(directory, made)
        if FIRST_CLIENT in {client.name for client in read_clients(directory)}:
            return directory / f"{FIRST_CLIENT}{SUFFIX}"
        return add(directory, FIRST_CLIENT, KeyRole.WORKER)


def create_server(directory: Path, made: list[Path]) -> None:
    """Create the directory with the server's key and a list of clients; add what is new to `made`.

    Raises UserError where there are keys already.
    """
    with user_errors(directory, "choose another directory"):
        make_directories(directory, made, 0o700)
    with _locked(directory):
        if (directory / CLIENTS_NAME).exists():
            raise UserError(f"{directory}: there are keys in it already; choose another directory")
        if not os.path.lexists(directory / SERVER_NAME):
            made.append(directory / SERVER_NAME)
            public, secret = (half.decode() for half in zmq.curve_keypair())
            _write(directory / SERVER_NAME, {"public": public, "secret": secret}, mode=0o600)
        listed = [dataclasses.asdict(client) for client in _clients_with_files(directory)]
        made.append(directory / CLIENTS_NAME)
        _write(directory / CLIENTS_NAME, {"clients": listed}, mode=0o644)  # last: it is complete


def _clients_with_files(directory: Path) -> list[Client]:
    """Return the clients whose keys for this server are in the directory: none was revoked."""
    server = read_server_key(directory).public
    paths = sorted(path for path in directory.glob(f"*{SUFFIX}") if path.name != SERVER_NAME)
    keys = {path: read_client_key(path) for path in paths}
    own = (key for path, key in keys.items() if (key.server, key.name) == (server, path.stem))
    return [Client(key.name, key.role, key.public) for key in own]


def add(directory: Path, name: str, role: KeyRole) -> Path:
    """Create a client's key; return its file. A revoked name may be used again."""
    if f"{name}{SUFFIX}" == SERVER_NAME:
        raise UserError(f"{name} is the server's own name here; choose another")
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no client's name; allowed: 1 to 48 of A-Z a-z 0-9 . _ -")
    with all_or_nothing() as made, _changed_clients(directory) as clients:
        base = _NUMBER.sub("", name)  # several processes of a key are its name and a number
        taken = {client.name for client in clients if not client.revoked}
        if name in taken:
            command = f"`{program()} keys revoke {as_pasted(directory)} {name}` revokes it"
            raise UserError(f"{directory}: {name} has a key already; {command}")
        if alike := [other for other in taken if name == _NUMBER.sub("", other) or other == base]:
            both = f"{name} and {alike[0]} could call themselves by one name"
            raise UserError(f"{directory}: {both}; choose another")
        public, secret = (half.decode() for half in zmq.curve_keypair())
        if os.path.lexists(path := directory / f"{name}{SUFFIX}"):
            raise UserError(f"{path}: there already; move it elsewhere")
        key = ClientKey(name, role, public, secret, read_server_key(directory).public)
        _write(path, dataclasses.asdict(key), mode=0o600)
        made.append(path)
        clients.append(Client(name, role, public))
    return path


def revoke(directory: Path, name: str) -> None:
    """Revoke a client's key; a running server notices."""
    with _changed_clients(directory) as clients:
        valid = [client for client in clients if client.name == name and not client.revoked]
        if not valid:
            command = f"`{program()} keys list {as_pasted(directory)}` lists them"
            raise UserError(f"{directory}: no client {name} with a key; {command}")
        clients[clients.index(valid[0])] = dataclasses.replace(valid[0], revoked=True)
    (directory / f"{name}{SUFFIX}").unlink(missing_ok=True)


def read_clients(directory: Path) -> list[Client]:
    """Return the clients, revoked ones too. Raises UserError as every function here that reads."""
    path = directory / CLIENTS_NAME
    content = _read(path, advice=SEE_HELP if os.path.lexists(path) else _how_to_list(directory))
    with user_errors(path):
        modes = directory.stat().st_mode | path.stat().st_mode
    if modes & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"{directory}: others can write in it, and add themselves:"
            f" chmod -R go-w {as_pasted(directory)}",
            code=REFUSED_FOR_SAFETY,
        )
    with _reading(path, f"; {_how_to_list(directory, 'move it away, and ')}"):
        listed = _parsed(content)["clients"]
        return [Client(**_checked(each), revoked=bool(each["revoked"])) for each in listed]


def read_server_key(directory: Path) -> ServerKey:
    """Return the server's key; UserError where it is missing, damaged, or others can read it."""
    path = directory / SERVER_NAME
    content = _read(path)
    with _reading(path):
        key = ServerKey(**_checked(_parsed(content)))
        _check_private(path)
        if zmq.curve_public(key.secret.encode()).decode() != key.public:
            raise ValueError("a secret that does not go with its public key")
        return key


def read_client_key(path: Path) -> ClientKey:
    """Return a client's key from its file."""
    key = client_key_from_text(_read(path), path)
    _check_private(path)
    return key


def client_key_from_text(text: bytes, source: Path | str) -> ClientKey:
    """Return a client's key from the content of such a file."""
    with _reading(source):
        values = _parsed(text)
        if "clients" in values:
            other = "this is the list of clients, not a key: see `manychar keys add --help`"
            raise UserError(f"{source}: {other}")
        if {"secret", "server"} & values.keys() == {"secret"}:
            other = "this is a server's own key, not a client's: see `manychar keys add --help`"
            raise UserError(f"{source}: {other}")
        return ClientKey(**_checked(values))


@contextlib.contextmanager
def _reading(source: Path | str, advice: str = "") -> Iterator[None]:
    """Raise UserError for whatever is wrong with the content of a file."""
    try:
        yield
    except (KeyError, TypeError, ValueError):
        fault = "not a file of keys of this manychar, or damaged"
        raise UserError(f"{source}: {fault}{advice}") from None


def _parsed(data: bytes) -> dict[str, Any]:
    values = json.loads(data)
    if type(values) is not dict or values.get("format") != FORMAT:
        raise ValueError("format")
    return values


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names, roles and keys among the values; a missing one is a TypeError later."""
    checked = {field: values[field] for field in _FIELDS if field in values}
    for field, value in checked.items():
        if type(value) is not str or not _FIELDS[field].fullmatch(value):
            raise ValueError(field)
    return checked | ({"role": KeyRole(checked["role"])} if "role" in checked else {})


@contextlib.contextmanager
def _changed_clients(directory: Path) -> Iterator[list[Client]]:
    """Hold the list of clients, locked, and write it back if no exception was raised."""
    with _locked(directory):
        clients = read_clients(directory)
        yield clients
        listed = [dataclasses.asdict(client) for client in clients]
        _write(directory / CLIENTS_NAME, {"clients": listed}, mode=0o644)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with user_errors(directory, SEE_HELP):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            lock_file(descriptor, within=LOCKED_WITHIN)
        yield


def _write(path: Path, values: dict[str, Any], *, mode: int) -> None:
    """Write a file, whole or not at all, that has its mode from its first byte on."""
    content = json.dumps({"format": FORMAT, **values}, indent=1) + "\n"
    with user_errors(path):
        replace_file(path, content.encode(), mode)


def _read(path: Path, *, advice: str = SEE_HELP) -> bytes:
    with user_errors(path, advice):
        try:
            return path.read_bytes()
        except NotADirectoryError:
            raise UserError(f"{path.parent}: not a directory of keys") from None


def _how_to_list(directory: Path, first: str = "") -> str:
    """Return what to do where there is no list of clients, or where it is damaged: `first`."""
    create = f"`{program()} keys create {as_pasted(directory)}` makes"
    if os.path.lexists(directory / SERVER_NAME):
        return f"put a copy there, or {first}{create} a new list and keeps {SERVER_NAME}"
    return f"{first}{create} keys"


def _check_private(path: Path) -> None:
    """Raise UserError where others can read a file with a secret.

    systemd gives a service's credentials to that service alone, but may say that the group can
    read them: that is the mask of an access list with the service's user in it.
    """
    credentials = os.environ.get(CREDENTIALS)
    with user_errors(path, SEE_HELP):
        is_credential = credentials and path.resolve().parent == Path(credentials).resolve()
        mode = path.stat().st_mode
    if stat.S_ISREG(mode) and mode & (0o037 if is_credential else 0o077):
        wrong = "others can read this secret: chmod 600 it, and better make a new key"
        raise UserError(f"{path}: {wrong}", code=REFUSED_FOR_SAFETY)
