"""A real Slurm of four nodes on this machine, each with an address of its own.

Controller and nodes are network namespaces on one bridge, which is itself in the controller's: two
clusters side by side do not see each other, and the end of the namespaces is the end of it all.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.commands import LOOK_EVERY, until

NODES = ("n1", "n2", "n3", "n4")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "ip", "nsenter")
CONTROLLER = "control"

# KillOnBadExit and WaitTime end a step when one task ends: no recipe is to rely on their defaults.
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(10.0.0.100)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={scratch}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={scratch}/state
SlurmdSpoolDir={scratch}/spool/%n
SlurmctldPidFile={scratch}/slurmctld.pid
SlurmdPidFile={scratch}/slurmd.%n.pid
SlurmctldLogFile={scratch}/log/slurmctld
SlurmdLogFile={scratch}/log/slurmd.%n
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
SlurmdTimeout=300
InactiveLimit=0
KillWait=5
KillOnBadExit=1
WaitTime=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
{nodes}
PartitionName=all Nodes=n[1-4] Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr={address} Port={port} CPUs=4 RealMemory=16000"


class Cluster:
    """The running cluster; `here` is the directory that all nodes see, and jobs are sent from."""

    def __init__(self, scratch: Path, here: Path) -> None:
        self.here = here
        self._scratch = scratch
        self._prefix = f"manychar-{secrets.token_hex(4)}-"
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Bring the nodes up, and wait until all of them are idle."""
        for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
            (self._scratch / name).mkdir(parents=True)
        self._connect()
        host = socket.gethostname().split(".")[0]
        nodes = [
            _NODE.format(name=node, host=host, address=address_of(node), port=7000 + i)
            for i, node in enumerate(NODES)
        ]
        configuration = _CONFIGURATION.format(
            host=host, scratch=self._scratch, nodes="\n".join(nodes)
        )
        self._configuration.write_text(configuration)
        self._start_munge()
        self._daemon(CONTROLLER, "slurmctld", "-D", "-f", str(self._configuration))
        for node in NODES:
            self.start_node(node)
        until(lambda: self.idle() == list(NODES), self.described)

    def stop(self) -> None:
        """End every process of the cluster and of its jobs, and take the namespaces away."""
        for node in (*NODES, CONTROLLER):
            with contextlib.suppress(subprocess.CalledProcessError):
                self.kill_node(node)
        for daemon in self._daemons:
            daemon.kill()
            daemon.wait()
        for node in (*NODES, CONTROLLER):
            subprocess.run(["ip", "netns", "delete", self._prefix + node], check=False)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._daemon(node, "slurmd", "-D", "-f", str(self._configuration), "-N", node)

    def take_port(self, node: str, port: int) -> None:
        """Have another program listen at a port of a node."""
        program = f"""
import socket, threading
listening = socket.create_server(("{address_of(node)}", {port}))
print("listening", flush=True)
threading.Event().wait()
"""
        self._daemon(node, "python3", "-c", program)
        log = self._scratch / "log" / f"python3.{node}.out"
        until(lambda: "listening" in log.read_text(), lambda: f"a listener: {log.read_text()}")

    def kill_node(self, node: str) -> None:
        """Kill everything that runs on a node, as the end of its power does."""
        while pids := self._pids(node):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for daemon in self._daemons:
                daemon.poll()
            time.sleep(LOOK_EVERY)

    def kill(self, role: str, node: str) -> None:
        """Kill one worker or the server on a node, and nothing else."""

        def found() -> int | None:
            for pid in self._pids(node):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    if b"python" in words[0] and role.encode() in words:
                        return pid
            return None

        os.kill(until(found, f"a {role} on {node}"), signal.SIGKILL)

    def run(self, *command: str) -> str:
        """Run a command where the controller is, and return its output."""
        done = subprocess.run(
            [*self._in(CONTROLLER), *command],
            cwd=self.here,
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.described()}"
        return done.stdout

    def submit(self, *words: str) -> str:
        """Submit a job, and return its number."""
        return self.run("sbatch", "--parsable", *words).strip()

    def output(self, job: str) -> str:
        """Return what a job has written."""
        path = self.here / f"slurm-{job}.out"
        return path.read_text(errors="replace") if path.exists() else ""

    def state(self, job: str) -> dict[str, str]:
        """Return what the controller knows of a job, by its own names."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def change_job(self, job: str, **changes: str) -> None:
        """Have the controller change what it knows of a job."""
        words = [f"{name}={value}" for name, value in changes.items()]
        self.run("scontrol", "update", f"jobid={job}", *words)

    def idle(self) -> list[str]:
        """Return the nodes that wait for work."""
        return self.run("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split()

    def described(self) -> str:
        """Return what the cluster and its jobs have written, for a person."""
        written = [*self.here.glob("slurm-*.out"), *(self._scratch / "log").iterdir()]
        ends = [f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}" for path in written]
        return "\n".join(ends)

    @property
    def _configuration(self) -> Path:
        return self._scratch / "slurm.conf"

    def _connect(self) -> None:
        """Make the namespaces, and a bridge between them."""
        for node in (CONTROLLER, *NODES):
            _run("ip", "netns", "add", self._prefix + node)
            self._ip(node, "link", "set", "lo", "up")
        self._ip(CONTROLLER, "link", "add", "bridge", "type", "bridge")
        self._ip(CONTROLLER, "address", "add", f"{address_of(CONTROLLER)}/24", "dev", "bridge")
        self._ip(CONTROLLER, "link", "set", "bridge", "up")
        for node in NODES:
            peer = ("peer", "name", "eth0", "netns", self._prefix + node)
            self._ip(CONTROLLER, "link", "add", node, "type", "veth", *peer)
            self._ip(CONTROLLER, "link", "set", node, "master", "bridge", "up")
            self._ip(node, "address", "add", f"{address_of(node)}/24", "dev", "eth0")
            self._ip(node, "link", "set", "eth0", "up")

    def _start_munge(self) -> None:
        """Start what proves to the daemons who a user is, with a key and a socket of its own."""
        key = self._scratch / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        self._daemon(
            CONTROLLER,
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            f"--socket={self._scratch}/munge.socket",
            f"--log-file={self._scratch}/log/munged",
            f"--pid-file={self._scratch}/munged.pid",
            f"--seed-file={self._scratch}/munged.seed",
        )
        until((self._scratch / "munge.socket").exists, "munge's socket")

    def _pids(self, node: str) -> list[int]:
        """Return all processes on a node."""
        return [int(pid) for pid in _run("ip", "netns", "pids", self._prefix + node).split()]

    def _daemon(self, node: str, *command: str) -> None:
        with (self._scratch / "log" / f"{command[0]}.{node}.out").open("ab") as log:
            self._daemons.append(
                subprocess.Popen(
                    [*self._in(node), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def _in(self, node: str) -> tuple[str, str]:
        """Return how a command is begun on a node; `ip netns exec` would hide /sys from slurmd."""
        return "nsenter", f"--net=/run/netns/{self._prefix}{node}"

    def _ip(self, node: str, *words: str) -> None:
        _run("ip", "-n", self._prefix + node, *words)

    def _environment(self) -> dict[str, str]:
        programs = str(Path(sys.executable).parent)
        return {
            "HOME": os.environ.get("HOME", "/"),
            "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
            "SLURM_CONF": str(self._configuration),
        }


def address_of(node: str) -> str:
    """Return a node's address."""
    return f"10.0.0.{100 if node == CONTROLLER else 1 + NODES.index(node)}"


@contextlib.contextmanager
def started(scratch: Path, here: Path) -> Iterator[Cluster]:
    """Start a cluster, and leave nothing of it behind."""
    cluster = Cluster(scratch, here)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
