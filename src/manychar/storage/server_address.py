"""Where a run's server listens: a file in its directory, believed only while the lock is held."""

import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import NamedTuple

from manychar.processes.errors import RUN_FAILED, UserError, because, user_errors
from manychar.processes.subcommand import as_pasted, program
from manychar.storage.atomic_files import replace_file
from manychar.storage.file_format import CONFIG_NAME

LOCK_NAME = "lock"
ADDRESS_NAME = "server.json"


class ServerAddress(NamedTuple):
    """A server's endpoint, host and process; where it has keys, the file for one of an observer."""

    endpoint: str
    host: str
    process: int
    key: str | None


def is_served(run: Path) -> bool:
    """Whether a server holds this run directory now, as far as this user can tell."""
    with contextlib.suppress(OSError):
        return _is_locked(run)
    return False


def _is_locked(run: Path) -> bool:
    """Whether a server holds this run directory now. Raises OSError where that cannot be told."""
    try:
        with (run / LOCK_NAME).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def read_address(run: Path) -> ServerAddress | None:
    """Return where a run's server listens; None where none does yet, or it is another user's."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        if is_served(run):
            with (run / ADDRESS_NAME).open("rb") as file:
                return ServerAddress(**json.load(file))
    return None


def another_server(run: Path) -> UserError:
    """Return the error for a process that is to serve a run which another server holds."""
    where = key = ""
    if (running := read_address(run)) is not None:
        where = f" ({running.endpoint}, process {running.process} on {running.host})"
        key = " --key FILE" * (running.key is not None and not Path(running.key).exists())
    command = f"`{program()} stop {as_pasted(run)}{key}`"
    return UserError(f"{run}: another server is running on it{where}; wait for it, or {command}")


def no_server(run: Path) -> UserError:
    """Return the error for a client that needs a server where `read_address` found none.

    Raises UserError where the directory cannot be read.
    """
    with user_errors(run):
        is_run = (run / CONFIG_NAME).exists()
    if not is_run:
        return UserError(f"{run}: no run in it: it has no {CONFIG_NAME}")
    path, text = run / LOCK_NAME, "no server is running on it"
    try:
        if _is_locked(run):
            path = run / ADDRESS_NAME
            path.open("rb").close()
            text = f"a server holds it, but {path.name} is damaged: give its ENDPOINT"
    except FileNotFoundError:
        text = (
            "a server holds it, but does not listen: it is starting or ending, or"
            f" {path.name} was removed: give its ENDPOINT"
        )
    except OSError as error:
        text = f"{because(error)}; its server is another user's: give its ENDPOINT"
        return UserError(f"{path}: {text}", code=RUN_FAILED)
    return UserError(f"{run}: {text}", code=RUN_FAILED)


def write_address(run: Path, endpoint: str, key: Path | None) -> None:
    """Note where this process, which holds the lock, listens; only its user can read it."""
    path = None if key is None else str(key.absolute())
    address = ServerAddress(endpoint, socket.gethostname(), os.getpid(), path)
    replace_file(run / ADDRESS_NAME, json.dumps(address._asdict()).encode(), 0o600)
