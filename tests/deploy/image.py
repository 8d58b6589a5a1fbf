"""The image of deploy/container, built and run by buildah, without a registry of images.

Its base is made by mmdebstrap: a Debian with Debian's Python, under the name that the Containerfile
gives its base. Containers get what compose asks for as far as buildah's chroot isolation can: user,
no capability, no new privileges, a read-only root and volumes; no network or memory of their own.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.commands import MARK, Commands, Running
from tests.deploy.recipes import DEPLOY, ROOT

PROGRAMS = ("buildah", "mmdebstrap", "unshare", "setpriv")
CERTIFICATES = "/etc/ssl/certs"
CONTAINERFILE = DEPLOY / "container" / "Containerfile"
PROGRAM = "/opt/manychar/bin/manychar"
BASE_PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
# buildah keeps notes in /run, which stays writable for root.
READ_ONLY_ROOT = """
mount --bind "$1" "$1"
mount --options remount,bind,ro "$1"
mount --types tmpfs --options mode=755 tmpfs "$1/run"
shift
exec "$@"
"""


class MirrorError(Exception):
    """Debian's mirror cannot be reached."""


class Engine:
    """buildah with a storage of its own."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._storage = scratch / "storage"

    def words(self, *words: str) -> list[str]:
        """Return a buildah command."""
        where = ("--root", str(self._storage), "--runroot", str(self._scratch / "state"))
        return ["buildah", *where, *words]

    def environment(self) -> dict[str, str]:
        """Return what each of its commands has to be run with."""
        return {**os.environ, "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(self._scratch)}

    def run(self, *words: str) -> str:
        """Run a buildah command; return what it prints."""
        return self._run(self.words(*words))

    def make_base(self, name: str) -> None:
        """Make a base image of this name; MirrorError where no packages can be had for it."""
        debian = self._scratch / "base.tar"
        wanted = ["--mode=root", "--variant=apt", f"--include={BASE_PACKAGES}"]
        try:
            self._run(["mmdebstrap", *wanted, "bookworm", str(debian)])
        except AssertionError as error:
            if unreachable := re.search(r"E: (Failed to fetch .*)", str(error)):
                raise MirrorError(unreachable[1]) from None
            raise
        base = self.run("from", "scratch").strip()
        self.run("add", base, str(debian), "/")
        self.run("commit", "--rm", base, name)
        debian.unlink()

    def build(self, tag: str) -> None:
        """Build the image as the Containerfile says; pip finds its index as it does here."""
        inherited = [name for name in os.environ if name.startswith("PIP_")]
        self.run(
            *("bud", "--pull-never", "--layers=false", "--tag", tag, "--file", str(CONTAINERFILE)),
            *("--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"),
            *(f"--env={name}" for name in inherited),
            str(ROOT),
        )

    def close(self) -> None:
        """Remove every container and image."""
        with contextlib.suppress(AssertionError):
            self.run("rm", "--all")
        subprocess.run(["umount", str(self._storage / "overlay")], capture_output=True, check=False)
        subprocess.run(["rm", "-rf", str(self._storage)], check=True)

    def _run(self, words: list[str]) -> str:
        done = subprocess.run(
            words, env=self.environment(), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout


class Containers(Commands):
    """The command line in containers, each the next one of a compose file's service."""

    def __init__(
        self, directory: Path, engine: Engine, services: Mapping[str, dict[str, Any]]
    ) -> None:
        super().__init__(directory)
        self._engine = engine
        self._services = services
        self.volumes: dict[str, Path] = {}

    def start(self, *arguments: str, env: dict[str, str] | None = None, **_: Any) -> Running:
        """Start the program as a service does: a worker's if it is a worker, else the server's."""
        service = "worker-1" if arguments[0] == "worker" else "server"
        return self.start_in(service, PROGRAM, *arguments, env=env)

    def start_in(self, service: str, *words: str, env: dict[str, str] | None = None) -> Running:
        """Start a command in a new container of a service."""
        settings = self._services[service]
        assert settings["read_only"] is True
        container = self._engine.run("from", "--pull-never", settings["image"]).strip()
        root = self._engine.run("mount", container).strip()
        ready = ["setpriv", "--no-new-privs", "unshare", "--mount", "sh", "-euc", READ_ONLY_ROOT]
        given = {MARK: self._mark, **settings.get("environment", {}), **(env or {})}
        process = subprocess.Popen(
            [
                *(*ready, "sh", root),
                *self._engine.words("run", "--user", settings["user"]),
                *(f"--cap-drop={name}" for name in settings["cap_drop"]),
                *(f"--volume={volume}" for volume in self._mounted(settings["volumes"])),
                *(container, "--", "env", *(f"{name}={given[name]}" for name in given), *words),
            ],
            env={**self._engine.environment(), MARK: self._mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        running = InContainer(process, self)
        self._started.append(running)
        return running

    def shell(self, service: str, line: str) -> str:
        """Run a line of shell as a service does; return what it prints."""
        done = self.start_in(service, "sh", "-euc", line).end()
        assert done.code == 0, done.err
        return done.out

    def _mounted(self, volumes: list[str]) -> Iterator[str]:
        """Yield a service's volumes with directories of this machine in place of their names."""
        for volume in volumes:
            name, rest = volume.split(":", 1)
            if name not in self.volumes:
                self.volumes[name] = self.directory / name
                self.volumes[name].mkdir()
                os.chown(self.volumes[name], 65532, 65532)  # as a new volume takes it over
            yield f"{self.volumes[name]}:{rest}"


class InContainer(Running):
    """A process in a container; signals go to it alone, as an engine sends them."""

    def __init__(self, process: "subprocess.Popen[bytes]", family: Commands) -> None:
        super().__init__(process)
        self._family = family

    def send(self, number: int) -> None:
        """Send a signal to the program in this container."""
        for pid, words in self._family.family().items():
            with contextlib.suppress(ProcessLookupError):
                if PROGRAM in words[:2] and os.getsid(pid) == self.pid:
                    os.kill(pid, number)
