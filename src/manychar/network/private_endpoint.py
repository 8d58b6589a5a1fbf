"""Where the server of `train` listens: other users of the machine can neither connect nor read."""

import contextlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from manychar.network.endpoints import IPC_PATH_LENGTH
from manychar.network.keys import SUFFIX, add, create_server
from manychar.protocol.messages import KeyRole

OBSERVER = "this-user"  # clients that connect by the run directory take its key, too
OBSERVER_KEY = f"{OBSERVER}{SUFFIX}"


class PrivateEndpoint(NamedTuple):
    """What the server is to bind to, and the directory of its keys, where it needs any."""

    bind: str
    keys: Path | None = None
    directory: str = ""

    def bind_of(self, relay: str) -> str:
        """Return what a relay is to bind to, which has the same keys."""
        return self.bind if self.keys is not None else f"{self.bind.rpartition('/')[0]}/{relay}"

    def client_key(self, name: str) -> Path | None:
        """Return the file with the key of one of the clients, or None where it needs none."""
        return self.keys / f"{name}{SUFFIX}" if self.keys is not None else None


@contextlib.contextmanager
def private_endpoint(workers: Collection[str]) -> Iterator[PrivateEndpoint]:
    """Make an endpoint for these workers and an OBSERVER that may stop the run; remove it after.

    `workers` are the names of relays, too. It is an ipc file in a fresh directory of mode 0700.
    Where its path is too long for a socket (a long $TMPDIR), it is loopback TCP, with keys that are
    made for this run in such a directory.
    """
    with TemporaryDirectory(prefix="manychar-") as directory:
        longest = max(("server", *workers), key=len)
        if len(os.fsencode(f"{directory}/{longest}")) <= IPC_PATH_LENGTH:
            yield PrivateEndpoint(f"ipc://{directory}/server", None, directory)
            return
        keys = Path(directory, "keys")
        create_server(keys, [])
        for name in workers:
            add(keys, name, KeyRole.WORKER)
        add(keys, OBSERVER, KeyRole.OPERATOR)
        yield PrivateEndpoint("tcp://127.0.0.1:*", keys, directory)
