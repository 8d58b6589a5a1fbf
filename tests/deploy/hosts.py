"""Several hosts on one machine: network namespaces on a bridge, each with addresses of its own."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.commands import Commands, Ended, Running

NAMES = Path("/etc/netns")


class Host:
    """One namespace. What stands in its hosts file can be changed while processes run in it."""

    def __init__(self, prefix: str, name: str, number: int, manychar: Commands) -> None:
        self.namespace = f"{prefix}{name}"
        self.four, self.six = f"10.231.7.{number}", f"fd31:7::{number:x}"
        self.directory = manychar.directory / name
        self.directory.mkdir()
        self._manychar = manychar
        self._hosts = NAMES / self.namespace / "hosts"
        self._hosts.parent.mkdir(parents=True)
        self.knows()

    def knows(self, *lines: str) -> None:
        """Say which names this host can look up: lines of its hosts file."""
        self._hosts.write_text("\n".join(("127.0.0.1 localhost", *lines)) + "\n")

    def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "manychar")) -> Running:
        """Start a command on this host, in its directory."""
        inside = ("ip", "netns", "exec", self.namespace)
        return self._manychar.start(
            *arguments, program=program, before=inside, directory=self.directory
        )

    def run(self, *arguments: str) -> Ended:
        """Run a command on this host to its end; it must end well."""
        done = self.start(*arguments).end()
        assert done.code == 0, done.err
        return done

    def link(self, state: str) -> None:
        """Cut this host off, or heal the link: `down` or `up`."""
        _ip("-n", self.namespace, "link", "set", "eth0", state)

    def limit(self, mbits: float) -> bool:
        """Give its link a rate, in each direction; return whether the kernel can."""
        shape = ("root", "tbf", "rate", f"{mbits}mbit", "burst", "32kb", "latency", "100ms")
        ends = (("-n", self.namespace), "eth0"), ((), f"{self.namespace}-p")
        commands = (["tc", *where, "qdisc", "add", "dev", name, *shape] for where, name in ends)
        return not any(
            subprocess.run(command, capture_output=True, check=False).returncode
            for command in commands
        )

    def plug_in(self, bridge: str) -> None:
        """Make the namespace, and connect it."""
        outside = f"{self.namespace}-p"
        _ip("netns", "add", self.namespace)
        _ip(
            *("link", "add", outside, "type", "veth"),
            *("peer", "name", "eth0", "netns", self.namespace),
        )
        _ip("link", "set", outside, "master", bridge, "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        self.link("up")
        _ip("-n", self.namespace, "address", "add", f"{self.four}/24", "dev", "eth0")
        _ip("-n", self.namespace, "address", "add", f"{self.six}/64", "dev", "eth0", "nodad")

    def unplug(self) -> None:
        """Be gone."""
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("netns", "delete", self.namespace)
        shutil.rmtree(self._hosts.parent, ignore_errors=True)


@contextlib.contextmanager
def network(manychar: Commands, *names: str) -> Iterator[list[Host]]:
    """Yield hosts on one bridge; all of it is gone at the end."""
    prefix = f"m{secrets.token_hex(3)}"
    bridge = f"{prefix}br"
    hosts = [Host(prefix, name, number + 1, manychar) for number, name in enumerate(names)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("link", "set", bridge, "up")
        for host in hosts:
            host.plug_in(bridge)
        yield hosts
    finally:
        for host in hosts:
            host.unplug()
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", bridge)


def can_be_made() -> bool:
    """Whether this process may make hosts here."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"m{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
