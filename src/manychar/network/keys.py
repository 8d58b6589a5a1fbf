"""Keys for machines that do not trust their network: a directory for the server, a file a client.

    DIR/server.key     the server's own key pair; it stays there
    DIR/clients.json   who may connect: name, role, public key, and whether it was revoked
    DIR/NAME.key       for NAME's machine: NAME's key pair, and the server's public key

A CURVE key (ZeroMQ RFC 26) is 32 bytes, written as 40 characters of Z85 (RFC 32). Files with a
secret in them are readable by their owner alone, or refused.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zmq

from manychar.processes.errors import REFUSED_FOR_SAFETY, UserError, because
from manychar.protocol.messages import KeyRole
from manychar.storage.atomic_files import replace_file

SERVER_NAME, CLIENTS_NAME, SUFFIX = "server.key", "clients.json", ".key"
FIRST_CLIENT = "worker"
FORMAT = 1
CREDENTIALS = "CREDENTIALS_DIRECTORY"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}", re.ASCII)
_KEY = re.compile(r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}", re.ASCII)


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
    """One who may connect, or may not any more."""

    name: str
    role: KeyRole
    public: str
    revoked: bool = False


def create(directory: Path) -> Path:
    """Create the directory with the server's key and a first worker's; return the worker's file.

    Raises UserError where there are keys already.
    """
    create_server(directory)
    return add(directory, FIRST_CLIENT, KeyRole.WORKER)


def create_server(directory: Path) -> None:
    """Create the directory with the server's key alone. Raises UserError as `create` does."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: {because(error)}; choose another directory") from None
    with _locked(directory):
        if (directory / CLIENTS_NAME).exists():
            raise UserError(f"{directory}: there are keys in it already; choose another directory")
        public, secret = _new_pair()
        _write(directory / SERVER_NAME, {"public": public, "secret": secret}, mode=0o600)
        _write_clients(directory, [])  # last: with it, the directory is complete


def add(directory: Path, name: str, role: KeyRole) -> Path:
    """Create a client's key; return its file. A revoked name may be used again.

    Raises UserError for a name that is taken or not allowed.
    """
    if f"{name}{SUFFIX}" == SERVER_NAME:
        raise UserError(f"{name} is the server's own name here; choose another")
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no client's name: it takes 1 to 48 of A-Z a-z 0-9 . _ -")
    with _changed_clients(directory) as clients:
        taken = {client.name for client in clients if not client.revoked}
        if name in taken:
            raise UserError(f"{directory}: {name} has a key already; revoke it first")
        if alike := [other for other in taken if _may_be_called(other, name)]:
            raise UserError(
                f"{directory}: {name} and {alike[0]} could call themselves by one name;"
                " choose another"
            )
        public, secret = _new_pair()
        path = directory / f"{name}{SUFFIX}"
        key = ClientKey(name, role, public, secret, read_server_key(directory).public)
        _write(path, dataclasses.asdict(key), mode=0o600)
        clients.append(Client(name, role, public))
    return path


def _may_be_called(one: str, other: str) -> bool:
    """Whether one of two names is the other and a number, as several processes of a key are."""
    shorter, longer = sorted((one, other), key=len)
    return longer.startswith(f"{shorter}-") and longer[len(shorter) + 1 :].isdecimal()


def revoke(directory: Path, name: str) -> None:
    """Revoke a client's key; a running server notices. Raises UserError where it is unknown."""
    with _changed_clients(directory) as clients:
        for place, client in enumerate(clients):
            if client.name == name and not client.revoked:
                clients[place] = dataclasses.replace(client, revoked=True)
                break
        else:
            raise UserError(f"{directory}: no client {name} with a key: see `keys list`")
    (directory / f"{name}{SUFFIX}").unlink(missing_ok=True)


def read_clients(directory: Path) -> list[Client]:
    """Return the clients, revoked ones too. Raises UserError for a damaged or missing list."""
    path = directory / CLIENTS_NAME
    _require_own(directory)
    with _reading(path):
        return [
            Client(**_checked(client), revoked=bool(client["revoked"]))
            for client in _parsed(_read(path))["clients"]
        ]


def read_server_key(directory: Path) -> ServerKey:
    """Return the server's key. Raises UserError where it is missing, or others can read it."""
    path = directory / SERVER_NAME
    with _reading(path):
        values = _parsed(_read(path, secret=True))
        key = ServerKey(**_checked(values))
        if zmq.curve_public(key.secret.encode()).decode() != key.public:
            raise ValueError("a secret that does not go with its public key")
        return key


def read_client_key(path: Path) -> ClientKey:
    """Return a client's key from its file. Raises UserError as `read_server_key` does."""
    with _reading(path):
        return ClientKey(**_checked(_parsed(_read(path, secret=True))))


def client_key_from_text(text: str, source: str) -> ClientKey:
    """Return a client's key from the content of such a file. Raises UserError."""
    with _reading(source):
        return ClientKey(**_checked(_parsed(text.encode())))


@contextlib.contextmanager
def _reading(source: Path | str) -> Iterator[None]:
    """Raise UserError for whatever is wrong with the content of a file."""
    try:
        yield
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{source}: not a file of keys of this manychar, or damaged") from None


def _parsed(data: bytes) -> dict[str, Any]:
    values = json.loads(data)
    if type(values) is not dict or values.get("format") != FORMAT:
        raise ValueError("format")
    return values


def _checked(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the names, roles and keys among the values. Raises ValueError and its like."""
    checked: dict[str, Any] = {}
    for field in ("name", "role", "public", "secret", "server"):
        if field not in values:
            continue  # whoever needs it raises TypeError
        value = values[field]
        pattern = {"name": _NAME, "role": _NAME}.get(field, _KEY)
        if type(value) is not str or not pattern.fullmatch(value):
            raise ValueError(field)
        checked[field] = KeyRole(value) if field == "role" else value
    return checked


@contextlib.contextmanager
def _changed_clients(directory: Path) -> Iterator[list[Client]]:
    """Hold the list of clients, locked, and write it back if no exception was raised."""
    with _locked(directory):
        clients = read_clients(directory)
        yield clients
        _write_clients(directory, clients)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UserError(f"{directory}: {because(error)}; make it with `keys create`") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _new_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _write_clients(directory: Path, clients: list[Client]) -> None:
    values = {"clients": [dataclasses.asdict(client) for client in clients]}
    _write(directory / CLIENTS_NAME, values, mode=0o644)


def _write(path: Path, values: dict[str, Any], *, mode: int) -> None:
    """Write a file that has its mode from its first byte on.

    Raises UserError where it cannot be written; then nothing is left of it.
    """
    try:
        content = json.dumps({"format": FORMAT, **values}, indent=1)
        replace_file(path, content.encode() + b"\n", mode)
    except OSError as error:
        raise UserError(f"{path}: {because(error)}") from None


def _require_own(directory: Path) -> None:
    """Raise UserError where others could add themselves to the list of clients."""
    try:
        modes = [path.stat().st_mode for path in (directory, directory / CLIENTS_NAME)]
    except OSError:
        return  # reading it says what is wrong
    if any(mode & (stat.S_IWGRP | stat.S_IWOTH) for mode in modes):
        raise UserError(
            f"{directory}: others can write in it, and add themselves: chmod -R go-w it",
            code=REFUSED_FOR_SAFETY,
        )


def _read(path: Path, *, secret: bool = False) -> bytes:
    """Read a small file. Raises UserError where it is none, or others can read a secret."""
    try:
        mode = path.stat().st_mode
        others = 0o037 if _is_credential(path) else 0o077
        if secret and stat.S_ISREG(mode) and mode & others:
            raise UserError(
                f"{path}: others can read this secret: chmod 600 it, and better make a new key",
                code=REFUSED_FOR_SAFETY,
            )
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {because(error)}; see `manychar keys --help`") from None


def _is_credential(path: Path) -> bool:
    """Whether systemd gave the file to this service alone; its group may be said to read it.

    What it says there is the mask of an access list with this service's user in it.
    """
    directory = os.environ.get(CREDENTIALS)
    return directory is not None and path.resolve().parent == Path(directory).resolve()
