"""Where a run's server listens: a file in its directory, believed only while the lock is held."""

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

from manychar.processes.errors import UserError
from manychar.storage.atomic_files import replace_file

LOCK_NAME = "lock"
ADDRESS_NAME = "server.json"


class ServerAddress(NamedTuple):
    """A server's endpoint, host and process; where it has keys, the file for one of an observer."""

    endpoint: str
    host: str
    process: int
    key: str | None


def is_served(run: Path) -> bool:
    """Whether a server holds this run directory now."""
    try:
        with (run / LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False


def read_address(run: Path) -> ServerAddress | None:
    """Return where a run's server listens; None where none does yet, or it is another user's."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        if is_served(run):
            return ServerAddress(**json.loads((run / ADDRESS_NAME).read_bytes()))
    return None


def another_server(run: Path) -> UserError:
    """Return the error of who wants to serve a run that a server holds."""
    where = ""
    if (running := read_address(run)) is not None:
        where = f" ({running.endpoint}, process {running.process} on {running.host})"
    return UserError(f"{run}: another server is running on it{where}; wait for it, or stop it")


def write_address(run: Path, endpoint: str, key: Path | None) -> None:
    """Note where this process, which holds the lock, listens; only its user can read it."""
    path = None if key is None else str(key.absolute())
    address = ServerAddress(endpoint, socket.gethostname(), os.getpid(), path)
    replace_file(run / ADDRESS_NAME, json.dumps(address._asdict()).encode(), 0o600)
