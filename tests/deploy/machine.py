"""A machine with a systemd as its process 1, in namespaces: what is done in it is not seen outside.

Its /etc, /opt, /root, /tmp, /var/lib and /var/tmp begin as they are here, and what is changed in
them is gone at the end. Of all that a machine starts by itself it has the journal alone.
"""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.commands import GENEROUS, until

PROGRAMS = ("systemctl", "unshare", "nsenter", "setpriv", "findmnt")
SYSTEMD = Path("/lib/systemd/systemd")
ROOT = Path(__file__).parents[2]
BOOT = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
for changed in /etc /opt /root /tmp /var/lib /var/tmp; do
  mkdir -p /run/changed$changed/upper /run/changed$changed/work
  chmod --reference=$changed /run/changed$changed/upper
  mount -t overlay overlay $changed -o \
    lowerdir=$changed,upperdir=/run/changed$changed/upper,workdir=/run/changed$changed/work
done
chmod 755 /root  # a Python in it can then be run by others, too
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
rm -rf /etc/systemd/system
mkdir -p /etc/systemd/system /run/kit
for wanted in /lib/systemd/system/*.target.wants/*; do
  case $wanted in *journald*) ;; *) ln -sf /dev/null /etc/systemd/system/${wanted##*/};; esac
done
mount --make-rshared /  # as systemd makes it where it is not in a container: credentials need it
export container=other
exec /lib/systemd/systemd --log-level=notice --log-target=journal --unit=basic.target
"""


class Machine:
    """A machine that is up."""

    def __init__(self, init: int) -> None:
        self.init = init
        self.root = Path(f"/proc/{init}/root")

    def run(self, command: str, *, given: str = "", code: int = 0) -> str:
        """Run a line of bash in /run/kit; it must end with this code. Return what it says."""
        inside = ["nsenter", "--target", str(self.init), "--mount", "--pid", "--cgroup"]
        inside += ["--uts", "--ipc", "--net", "bash", "-c", f"cd /run/kit && {command}"]
        try:
            done = subprocess.run(
                inside, input=given, capture_output=True, text=True, timeout=GENEROUS, check=False
            )
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{command} did not end: {self.journal()}") from None
        said = done.stdout + done.stderr
        assert done.returncode == code, f"{command}: {done.returncode}: {said}{self.journal()}"
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run(f"systemctl show --property={name} --value '{unit}'")

    def wait_until(self, unit: str, name: str, value: str) -> None:
        """Wait until a unit has this property."""
        until(
            lambda: self.show(unit, name) == value,
            lambda: f"{name}={value} of {unit}: {self.show(unit, name)}\n{self.journal()}",
        )

    def journal(self) -> str:
        """Return what the units said, newest last."""
        inside = ["nsenter", "--target", str(self.init), "--mount", "--pid"]
        command = ["journalctl", "--no-pager", "--quiet", "--output=short-monotonic"]
        command += ["--identifier=manychar", "--identifier=systemd", "--lines=200"]
        return subprocess.run(
            [*inside, *command], capture_output=True, text=True, check=False
        ).stdout


def why_not() -> str:
    """Return why no machine can be had here; nothing if one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a machine of its own takes Linux, and root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or not SYSTEMD.exists():
        return f"a machine of its own takes systemd and {', '.join(missing) or 'nothing else'}"
    return "" if _cgroups() else "a machine of its own takes cgroup2 mounted somewhere"


@contextlib.contextmanager
def started(log: Path) -> Iterator[Machine]:
    """Yield a machine; everything in it is ended, and all of it is gone, at the end."""
    cgroups = _cgroups()
    assert cgroups
    group = cgroups / f"manychar-{secrets.token_hex(4)}"
    group.mkdir()
    enter = f'echo $$ > {group}/cgroup.procs; exec "$@"'
    namespaces = ["--mount", "--mount-proc", "--cgroup", "--uts", "--ipc", "--net", "--pid"]
    command = ["unshare", *namespaces, "--fork", "--kill-child", "bash", "-c", BOOT]
    with log.open("wb") as console:
        outside = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "bash", "-c", enter, "bash", *command],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
    try:
        yield _booted(outside, log)
    finally:
        outside.kill()
        outside.wait()
        until(lambda: _is_removed(group), f"the end of all processes in {group}")


def _booted(outside: "subprocess.Popen[bytes]", log: Path) -> Machine:
    """Wait until its process 1 has started all it is to start."""
    children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")

    def is_up() -> Machine | None:
        assert outside.poll() is None, f"it did not start: {log.read_text()}"
        init = children.read_text().split()
        if not init or Path(f"/proc/{init[0]}/comm").read_text() != "systemd\n":
            return None
        asked = ["nsenter", "--target", init[0], "--mount", "--pid", "systemctl"]
        state = subprocess.run(
            [*asked, "is-system-running"], capture_output=True, text=True, check=False
        )
        return Machine(int(init[0])) if state.stdout in {"running\n", "degraded\n"} else None

    return until(is_up, lambda: f"a machine to be up: {log.read_text()}")


def _cgroups() -> Path | None:
    """Return where cgroup2 is mounted."""
    command = ["findmnt", "--noheadings", "--output=TARGET", "--types=cgroup2"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return Path(found[0]) if found else None


def _is_removed(group: Path) -> bool:
    """Remove a control group and those in it; whether that was possible."""
    for directory, *_ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):  # its processes are still ending
            Path(directory).rmdir()
    return not group.exists()
