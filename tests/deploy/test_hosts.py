"""The README's recipe for two machines, as it is written there, on three hosts with bad links."""

import itertools
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from manychar.fleet.capacity import Fleet, predict
from manychar.protocol.dimensions import Dimensions
from manychar.storage.checkpoint import list_checkpoints, read_checkpoint
from tests.commands import SMALL, Commands, until
from tests.conftest import Require
from tests.deploy.hosts import Host, can_be_made, network
from tests.single_process import bits_alone, bits_of

README = Path(__file__).parent.parent.parent / "README.md"
SMALL_RUN = (*SMALL, "--run-dir", "run", "--steps", "0", "--checkpoint-every", "100")
SLOW_LINK = str(Path(__file__).with_name("slow_link.py"))
SECONDS_LATE, BYTES_A_SECOND = "0.02", "2000000"


def recipe() -> list[list[str]]:
    """Return the recipe's three commands, without the program's name."""
    section = README.read_text(encoding="utf-8").split("## On two machines")[1]
    section = section.split("\n## ")[0].split("Where many workers feed one server, a relay")[0]
    blocks = "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))
    commands = [shlex.split(line) for line in blocks.splitlines()]
    assert [command[:2] for command in commands] == [
        ["manychar", "keys"],
        ["manychar", "server"],
        ["manychar", "worker"],
    ]
    return [command[1:] for command in commands]


def expect_the_bits_of_one_process(run: Path, text: Path) -> int:
    """Compare the newest checkpoint with one process's state; return its step."""
    step, path = list_checkpoints(run / "checkpoints")[-1]
    assert bits_of(read_checkpoint(path).state) == bits_alone(text, run, step)[step]
    return step


def gradients(serves: Host) -> dict[str, int]:
    """Return the number of gradients that each worker has had accepted."""
    done = serves.run(*("status", f"tcp://{serves.four}:5577", "--key", "KEYS/watch.key", "--json"))
    assert done.code == 0, done.err
    return {worker["name"]: worker["gradients"] for worker in json.loads(done.out)["workers"]}


@pytest.mark.long
def test_the_recipe_on_three_hosts(manychar: Commands, text: Path, require: Require) -> None:
    require(can_be_made(), "network namespaces need root and iproute2")
    create, serve, work = recipe()
    with network(manychar, "serves", "near", "far") as (serves, near, far):
        shutil.copy(text, serves.directory / "text.txt")
        serves.run(*create)
        shutil.copy(serves.directory / "KEYS" / "worker.key", near.directory / "worker.key")
        serves.run("keys", "add", "KEYS", "distant")
        serves.run("keys", "add", "KEYS", "watch", "--role", "observer")
        shutil.move(serves.directory / "KEYS" / "distant.key", far.directory / "worker.key")

        # A worker that comes first, and cannot even look the server up yet.
        early = near.start(*work)
        early.wait_for("SERVER: .* asking again")
        server = serves.start(*serve, *SMALL_RUN)
        server.wait_for("listening")
        # One of the name's addresses is nobody's, one is not served, one is right.
        near.knows("10.231.7.99 SERVER", f"{serves.six} SERVER", f"{serves.four} SERVER")
        early.wait_for(re.escape(f"SERVER: trying tcp://{serves.four}:5577"))
        server.wait_for(r"worker-\d has joined")

        # Another one behind a slow and narrow link.
        link = (f"{serves.four}", "5577", SECONDS_LATE, BYTES_A_SECOND)
        slow = far.start("127.0.0.2", "5577", *link, program=(SLOW_LINK,))
        slow.wait_for("listening", "out")
        far.knows("127.0.0.2 SERVER")
        late = far.start(*work)
        for number in (1, 2, 3, 4):
            server.wait_for(f"worker-{number} has joined")
            server.wait_for(f"distant-{number} has joined")

        near.link("down")
        cut_off = [f"worker-{number}" for number in (1, 2, 3, 4)]
        for name in cut_off:
            server.wait_for(f"{name} (are reassigned|has left)")
        near.link("up")
        for name in cut_off:
            server.wait_for(rf"(?s){name} (are|has left).*{name} (answers again|has joined)")
        # They are heard again; wait until they hear the server again, too, before it ends.
        seen = dict.fromkeys(cut_off, 0) | gradients(serves)

        def advanced() -> bool:
            now = dict.fromkeys(cut_off, 0) | gradients(serves)
            for name in cut_off:
                seen[name] = min(seen[name], now[name])  # one that joins again counts anew
            return all(now[name] > seen[name] + 1 for name in cut_off)

        until(advanced, lambda: f"gradients after {seen}: {gradients(serves)}")
        server.interrupt()
        assert server.end().code == 0
        assert late.end().code == 0
        assert early.end().code == 0
        slow.interrupt()
        slow.end()
    assert expect_the_bits_of_one_process(serves.directory / "run", text) > 0


@pytest.mark.long
def test_ipv6(manychar: Commands, text: Path, require: Require) -> None:
    require(can_be_made(), "network namespaces need root and iproute2")
    with network(manychar, "serves", "works") as (serves, works):
        shutil.copy(text, serves.directory / "text.txt")
        serves.run("keys", "create", "KEYS")
        shutil.copy(serves.directory / "KEYS" / "worker.key", works.directory / "worker.key")
        server = serves.start(
            *("server", "text.txt", "--bind", f"tcp://[{serves.six}]:5577", "--keys", "KEYS"),
            *SMALL_RUN,
        )
        server.wait_for("listening")
        works.knows(f"{serves.six} server.six")
        flags = ("--key", "worker.key")
        by_address = works.start(
            "worker", f"tcp://[{serves.six}]:5577", "--name", "worker-1", *flags
        )
        by_name = works.start("worker", "tcp://server.six:5577", "--name", "worker-2", *flags)
        server.wait_for("worker-1 has joined")
        server.wait_for("worker-2 has joined")
        server.interrupt()
        assert server.end().code == by_address.end().code == by_name.end().code == 0
    expect_the_bits_of_one_process(serves.directory / "run", text)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_step_over_a_slow_link_takes_as_long_as_planned(
    manychar: Commands, text: Path, require: Require, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """With workers that compute nothing; the figures are in deploy/README.md."""
    require(can_be_made(), "network namespaces need root and iproute2")
    monkeypatch.setenv("PYTHONPATH", str(README.parent))
    size = Dimensions(
        vocabulary_size=len({*text.read_text(encoding="utf-8")}),
        hidden=512,
        seq_length=25,
        streams=1,
        shards=workers,
        dtype="float32",
    )
    planned = predict(Fleet(size=size, workers=workers, gbits=0.2, keys=False, shard_seconds=1e-4))
    with network(manychar, "serves", "near", "far") as (serves, near, far):
        require(serves.limit(200), "the kernel cannot limit a link: no tbf")
        endpoint = f"tcp://{serves.four}:5577"
        server = serves.start(
            *("server", str(text), "--bind", endpoint, "--insecure", "--run-dir", "run"),
            *("--hidden", "512", "--streams", "1", "--shards", str(workers), "--steps", "0"),
            *("--checkpoint-every", "0", "--sample-every", "0", "--lease-timeout", "60"),
        )
        server.wait_for("listening")
        idle = ("-m", "tests.benchmarks.idle_worker")
        works = [
            host.start(endpoint, f"idle-{number}", program=idle)
            for number, host in zip(range(workers), itertools.cycle((near, far)), strict=False)
        ]

        def status(beyond: int = -1) -> dict[str, Any] | None:
            found = json.loads(serves.run("status", endpoint, "--json").out)
            joined = sum(worker["shards"] > 0 for worker in found["workers"])
            return found if joined == workers and found["step"] > beyond else None

        first = until(status, server.described)
        last = until(lambda: status(first["step"] + 12), server.described)
        assert last is not None
        seconds = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
        for each in (server, *works):
            each.process.kill()
            each.end()
    print(f"{workers} workers: {1000 * seconds:.0f} ms, planned {1000 * planned.seconds:.0f} ms")
    assert seconds == pytest.approx(planned.seconds, rel=0.2)


def test_hosts_leave_nothing(manychar: Commands, require: Require) -> None:
    require(can_be_made(), "network namespaces need root and iproute2")
    with network(manychar, "one") as (host,):
        assert isinstance(host, Host)
        assert Path(f"/run/netns/{host.namespace}").exists()
    assert not Path(f"/run/netns/{host.namespace}").exists()
    assert not Path(f"/etc/netns/{host.namespace}").exists()
