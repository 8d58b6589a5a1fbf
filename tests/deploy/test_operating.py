"""deploy/README.md: its tables, formulas and runbook are what the program does."""

import ast
import dataclasses
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manychar.fleet.capacity import RESULT_HEADER, SHARD_BYTES, WEIGHTS_HEADER, inward, outward
from manychar.numerics.tree_reduction import cover
from manychar.observability.status import COLUMNS, COUNTER_SENTENCES
from manychar.protocol.codec import encode
from manychar.protocol.counters import Counter
from manychar.protocol.dimensions import Dimensions
from manychar.protocol.effects import Send
from manychar.protocol.field_types import DIGEST_BYTES, MAX_INTEGER
from manychar.protocol.messages import WIRE_VERSION, Message, NewWeights, UnitResult
from manychar.protocol.unit_payload import Payload
from manychar.storage.journal import JOURNAL_NAME, METRICS_NAME
from tests.commands import SMALL, Commands, Running
from tests.deploy import operating
from tests.deploy.recipes import DEPLOY, ROOT
from tests.fleet.test_fleet import steps_of
from tests.protocol.stage import Stage, unit_result

PAGE = (DEPLOY / "README.md").read_text(encoding="utf-8")
PROGRAM = ROOT / "src" / "manychar"
ANOTHER_VERSION = """
import sys
if "worker" in sys.orig_argv:
    import manychar.protocol.messages
    manychar.protocol.messages.WIRE_VERSION = 99
"""
LOGGING = [
    *("protocol/server", "lifecycle", "status_report", "admission", "conflicting_results"),
    *("client_session", "protocol/worker", "server_process", "worker_process", "worker_pool"),
    *("recovery", "authenticator", "router", "queued_stream"),
    *("protocol/relay", "relay_process", "listener"),
]
SAID_BY = {"warn", "warning", "_log", "error", "finish", "bar", "_mark_silent", "refuse", "Finish"}
STOPPED = "stopped by", "the server was stopped by"
NO_TROUBLE = {"", *STOPPED, "finished at step", "stopped early at", "to a client that is"}
EDGES = " :;,()"


def test_every_counter_has_its_sentence_and_its_row() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \|", PAGE.split("\n## Counts\n")[1], re.MULTILINE)
    assert dict(rows) == {str(counter): text for counter, text in COUNTER_SENTENCES.items()}
    assert set(COUNTER_SENTENCES) == set(Counter)


def section(heading: str) -> str:
    """Return the text below a heading of the page."""
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def test_every_column_of_the_status_is_explained() -> None:
    rows = re.findall(r"^\| (.+?) \|", section("States and columns of a worker"), re.MULTILINE)
    explained = {name.strip("`") for row in rows for name in row.split(", ")}
    assert set(COLUMNS) - {"worker", "host", "state"} <= explained


def test_what_the_column_dropped_counts() -> None:
    """A message that could not be read, and each unit that was not used; from its joining on."""
    stage = Stage(shards=2)
    stage.share("a", "b")
    (first, last), lease = stage.ranges_of("a")[0], stage.leases("a")[0]
    result = unit_result(stage.known, first, last, 1, lease=lease)
    stage.tell("a", result)
    dropped = [stage.member("a").tally.dropped]
    for text in (result, dataclasses.replace(result, weights_digest=bytes(DIGEST_BYTES))):
        stage.tell("a", text)
        dropped.append(stage.member("a").tally.dropped)
    assert dropped == [0, 1, 2]
    (row,) = re.findall(r"^\| dropped \| (.+?) \|", PAGE, re.MULTILINE)
    assert "since it joined" in row
    units = {str(counter) for counter in Counter if str(counter).startswith("units_")}
    assert set(re.findall(r"`(\w+)`", row)) == units | {str(Counter.MESSAGES_MALFORMED)}
    assert "counts them by worker" not in PAGE


def test_every_port_is_named() -> None:
    ports = section("Ports")
    given = ("--bind", "--metrics-port", "--port")
    assert set(given) <= set(re.findall(r"`(?:[a-z]+ )*(--[a-z-]+)`", ports))
    metrics = matched("kubernetes/metrics/kustomization.yaml", r"--metrics-port=(\d+)")
    first, last = "20000", "29999"  # ../slurm/README.md
    assert f"from {first} to {last}" in (DEPLOY / "slurm" / "README.md").read_text(encoding="utf-8")
    for port in ("5577", "5578", "8577", metrics, f"{first} to {last}"):
        assert port in ports


def length(message: Message) -> int:
    return sum(len(frame) for frame in encode(message))


@pytest.mark.long
def test_the_tables_are_those_of_the_formulas() -> None:
    written = PAGE.split(operating.BEGIN)[1].split(operating.END)[0]
    assert written.strip() == operating.tables(), (
        "write them anew: python -m tests.deploy.operating"
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(each, marks=[] if each.startswith("10 ") else pytest.mark.long)
        for each in operating.UNEQUAL
    ],
)
def test_the_simulated_table_is_what_the_simulation_tells(name: str) -> None:
    found = [f"{operating.slowdown(name, luck):.2f}x" for luck in operating.LUCK]
    assert f"| {' | '.join([name, *found])} |" in PAGE, (
        "write it anew: python -m tests.deploy.operating"
    )


def test_the_picture_stands_in_the_page() -> None:
    assert f"]({operating.PICTURE.name})" in PAGE
    assert operating.PICTURE.is_file()


def ids(size: Dimensions, *, result: bool) -> dict[str, Any]:
    """Return the longest fields of a message for all shards of a run."""
    numbers = ["term", "session", "lease", "step", *([] if result else ["number"])]
    longest: dict[str, Any] = dict.fromkeys(numbers, MAX_INTEGER)
    return {**longest, "run_id": "r" * 64, "first": 0, "last": size.shards - 1}


@pytest.mark.parametrize("hidden", operating.HIDDEN)
@pytest.mark.parametrize("shards", [1, 3])
def test_the_formulas_are_what_is_encoded_but_for_headers(hidden: int, shards: int) -> None:
    size = operating.dimensions(hidden, shards)
    sums = len(cover(shards, (0, shards - 1)))
    result = UnitResult(
        **ids(size, result=True),
        weights_digest=bytes(DIGEST_BYTES),
        seconds=0.1,
        payload=Payload(
            (bytes(size.parameters_bytes),) * sums,
            bytes(shards * size.hidden_bytes),
            (0.0,) * shards,
            bytes(shards * DIGEST_BYTES),
        ),
    )
    bytes_in = length(result)
    formula = inward(size, [(0, shards - 1)])
    assert bytes_in <= formula < bytes_in + RESULT_HEADER
    weights = NewWeights(
        **ids(size, result=False),
        fresh=True,
        weights=bytes(size.parameters_bytes),
        ids=bytes(shards * size.ids_bytes),
    )
    bytes_out = length(weights)
    assert bytes_out <= outward(size, [(0, shards - 1)]) < bytes_out + WEIGHTS_HEADER


def test_the_formulas_count_what_a_server_sends_and_is_sent_for_a_step() -> None:
    stage = Stage(shards=6)
    stage.share("a", "b")
    size, effects, received = stage.server.dimensions, [], 0
    ranges = [stage.ranges_of(name)[0] for name in ("a", "b")]
    for name, (first, last) in zip(("a", "b"), ranges, strict=True):
        result = unit_result(stage.known, first, last, 1, lease=stage.leases(name)[0])
        received += length(result)
        effects += stage.tell(name, result)
    sent = [effect.message for effect in effects if isinstance(effect, Send)]
    assert [type(message) for message in sent] == [NewWeights, NewWeights]
    bytes_sent = sum(map(length, sent))
    assert bytes_sent <= outward(size, ranges) <= bytes_sent + 2 * WEIGHTS_HEADER
    formula = inward(size, ranges)
    assert received <= formula <= received + 2 * RESULT_HEADER


def test_the_formulas_stand_in_the_page() -> None:
    for formula in (
        "P    = v (H (2 V + H + 1) + V)",
        f"in   = C P + {RESULT_HEADER} W + S (v B H + {SHARD_BYTES})",
        f"out  = W (P + {WEIGHTS_HEADER}) + S c B (T + 1)",
        "server      70 MiB + (18 + k + 2 W) P + 14 v S B H + 5 v B T (H + V)",
        "worker      60 MiB + (10 + log2 h) P + 4 v h B H + 6 v B T (H + V)",
        "relay       65 MiB + (9 + 2 W) P + 26 v h B H",
        "validation  65 MiB + 7 P + v S B H",
    ):
        assert formula in PAGE


def test_the_bytes_a_step_on_the_disk_are_those_of_journal_and_metrics(
    manychar: Commands, text: Path
) -> None:
    flags = *SMALL, "--steps", "1000", "--workers", "1", "--run-dir", "run"
    assert manychar.run("train", str(text), *flags).code == 0
    run = manychar.directory / "run"
    grown = sum((run / name).stat().st_size for name in (JOURNAL_NAME, METRICS_NAME)) / 1000
    stated = int(re.findall(r"^disk .* (\d+) bytes a step$", PAGE, re.MULTILINE)[0])
    assert 0.85 * stated < grown < stated
    in_volume = matched("kubernetes/volume.yaml", r"adds (\d+) bytes a step")
    assert int(in_volume) == stated


@pytest.mark.long
@pytest.mark.parametrize("program", ["rsync", "cp"])
def test_a_backup_of_a_live_run_is_the_run(
    manychar: Commands, text: Path, program: str, require: Callable[[object, str], None]
) -> None:
    require(shutil.which(program), f"{program} is not installed")
    (commands,) = re.findall(rf"^(?:Without rsync: `)?({program} -a RUN.+?)(?:`|$)", PAGE, re.M)
    flags = *SMALL, "--steps", "0", "--workers", "1", "--checkpoint-every", "5", "--run-dir", "RUN"
    running = manychar.start("train", str(text), *flags)
    running.wait_for(r"\nstep [1-9][0-9,]{2,}  loss")
    # The journal is older than the checkpoints by the time that this takes, if it is copied first.
    (manychar.directory / "RUN" / "large.bin").write_bytes(bytes(200 * operating.MIB))
    for _ in range(2):  # into one directory, as each night
        (manychar.directory / "BACKUP").mkdir(exist_ok=True)
        subprocess.run(["/bin/sh", "-c", commands], cwd=manychar.directory, timeout=60, check=False)
    running.interrupt()
    assert running.end().code == 0
    kept = steps_of(manychar.directory / "BACKUP")
    assert kept[0] == 0
    assert len(kept) > 20
    assert manychar.run("verify", "BACKUP").code == 0
    further = str(max(kept) + 50)
    done = manychar.run("train", "--resume", "BACKUP", "--steps", further)
    assert done.code == 0
    assert "no record of" not in done.err


def matched(file: str, pattern: str) -> str:
    """Return what a file of the recipes says."""
    found = re.search(pattern, (DEPLOY / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"no {pattern} in {file}"
    return found[1]


def test_the_recipes_limits_of_memory_are_above_the_formulas() -> None:
    """Kubernetes' follow from it exactly: test_kubernetes.py."""
    compose, unit, job = "container/compose.yaml", "systemd/manychar-server.service", "slurm/"
    size = operating.recipe_size(256, hidden=100, shards=int(matched(compose, r"--shards=(\d+)")))
    server = int(matched(compose, r"^    mem_limit: (\d+)g")) * 1024 * operating.MIB
    worker = int(matched(compose, r"^  mem_limit: (\d+)m")) * operating.MIB
    assert operating.server_memory(size, size.shards) < server
    assert operating.worker_memory(size, size.shards) < worker
    settings = "systemd/server.conf"
    hidden, shards = (int(matched(settings, p)) for p in (r"--hidden (\d+)", r"^SHARDS=(\d+)"))
    size = operating.recipe_size(256, hidden=hidden, shards=shards)
    server = int(matched(unit, r"^MemoryMax=(\d+)G")) * 1024 * operating.MIB
    worker = int(matched("systemd/manychar-worker@.service", r"^MemoryMax=(\d+)G")) * 1024
    assert operating.server_memory(size, size.shards) < server
    assert operating.worker_memory(size, size.shards) < worker * operating.MIB
    size = operating.recipe_size(256, hidden=100, shards=8)
    on_a_node = int(matched(f"{job}train.sbatch", r"^#SBATCH --mem=(\d+)G")) * 1024 * operating.MIB
    workers = int(matched(f"{job}train.sbatch", r"^#SBATCH --ntasks=(\d+)")) - 1
    needed = operating.server_memory(size, workers) + workers * operating.worker_memory(size, 8)
    assert needed < on_a_node


def serve(manychar: Commands, size: Dimensions, *others: str) -> Running:
    """Start a server of a run of these sizes, with checkpoints and samples often."""
    return manychar.start(
        *("server", *others, "--run-dir", "run", "--bind", "tcp://127.0.0.1:0", "--steps", "0"),
        *("--hidden", str(size.hidden), "--shards", str(size.shards)),
        *("--streams", str(size.streams), "--seq-length", str(size.seq_length)),
        *("--checkpoint-every", "3", "--sample-every", "10", "--sample-length", "1"),
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see how much memory is used")
@pytest.mark.parametrize(
    ("hidden", "shards", "streams", "seq_length", "workers", "least"),
    [
        pytest.param(512, 4, 4, 25, 1, 0.8, id="weights"),
        pytest.param(2048, 4, 4, 25, 1, 0.8, id="large weights", marks=pytest.mark.long),
        pytest.param(2048, 4, 4, 25, 2, 0.8, id="of two workers", marks=pytest.mark.long),
        pytest.param(100, 1, 1024, 25, 1, 0.5, id="unrolled", marks=pytest.mark.long),
        pytest.param(100, 16, 1024, 5, 1, 0.5, id="hidden states", marks=pytest.mark.long),
    ],
)
def test_a_real_fleet_keeps_within_the_memory(
    manychar: Commands,
    hidden: int,
    shards: int,
    streams: int,
    seq_length: int,
    workers: int,
    least: float,
) -> None:
    size = dataclasses.replace(
        operating.dimensions(hidden, shards), streams=streams, seq_length=seq_length
    )
    server = serve(manychar, size)
    endpoint = server.wait_for(r"manychar worker (tcp://\S+)")[1]
    running = [manychar.start("worker", endpoint) for _ in range(workers)]
    server.wait_for("--- step 10 ---", "out")
    served, worked = peak(server.pid), [peak(worker.pid) for worker in running]
    server.send(15)
    assert [each.end().code for each in (server, *running)] == [75] * (1 + workers)
    allowed = operating.server_memory(size, workers)
    assert least * allowed < served < allowed
    needed = operating.worker_memory(size, shards // workers)
    # The first one may have held all shards; another one may have had fewer messages at once.
    assert least * needed < max(worked) < operating.worker_memory(size, shards)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see how much memory is used")
@pytest.mark.parametrize(
    ("hidden", "shards", "streams", "seq_length", "workers", "least"),
    [
        pytest.param(512, 4, 4, 25, 2, 0.8, id="weights"),
        pytest.param(2048, 4, 4, 25, 2, 0.8, id="large weights", marks=pytest.mark.long),
        pytest.param(100, 16, 1024, 5, 2, 0.5, id="hidden states", marks=pytest.mark.long),
    ],
)
def test_relay_and_validation_keep_within_the_memory(
    manychar: Commands,
    tmp_path: Path,
    hidden: int,
    shards: int,
    streams: int,
    seq_length: int,
    workers: int,
    least: float,
) -> None:
    size = dataclasses.replace(
        operating.dimensions(hidden, shards), streams=streams, seq_length=seq_length
    )
    letters = "".join(map(chr, range(0x4E00, 0x4E00 + size.vocabulary_size)))
    text = tmp_path / "text"
    text.write_text(letters * (2 + shards * streams * (seq_length + 2) // len(letters)), "utf-8")
    server = serve(manychar, size, str(text), "--validation", "0.01")
    joins = r"worker joins with: manychar worker (tcp://\S+)"
    relay = manychar.start("relay", server.wait_for(joins)[1], "--bind", "tcp://127.0.0.1:0")
    below = relay.wait_for(joins)[1]
    running = [manychar.start("worker", below) for _ in range(workers)]
    server.wait_for("--- step 10 ---", "out")
    server.wait_for(r"validation \S+  \(step [1-9]")
    relayed, validated = peak(relay.pid), peak(manychar.find("validate"))
    server.send(15)
    assert [each.end().code for each in (server, relay, *running)] == [75] * (2 + workers)
    for found, allowed in (
        (relayed, operating.relay_memory(size, workers)),
        (validated, operating.validation_memory(size)),
    ):
        assert least * allowed < found < allowed


def peak(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.long
def test_another_wire_version_is_refused_and_both_are_named(
    manychar: Commands, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ANOTHER_VERSION)
    server = manychar.start(
        *("server", "--run-dir", "run", "--bind", "tcp://127.0.0.1:0", *SMALL, "--steps", "0")
    )
    endpoint = server.wait_for(r"manychar worker (tcp://\S+)")[1]
    newer = manychar.run("worker", endpoint, "--name", "newer", env={"PYTHONPATH": str(tmp_path)})
    reason = f"its wire version is 99, this server has {WIRE_VERSION}"
    assert newer.code == 3
    assert f"the server refused this worker: {reason}" in newer.err
    server.wait_for(f"newer was refused: {reason}")
    server.send(15)
    assert server.end().code == 75
    assert f"its wire version is {WIRE_VERSION - 1}, this server has {WIRE_VERSION}" in PAGE


def said(path: Path) -> Iterator[str]:
    """Yield the longest fixed part of each line of trouble that a module has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            leveled = name in ("log", "Log") and len(node.args) > 1
            if name in SAID_BY or leveled:
                yield from map(fixed, node.args)
        elif isinstance(node, ast.Assign):
            target = node.targets[0]
            named = getattr(target, "attr", getattr(target, "id", ""))
            if named in ("text", "reason", "what"):
                yield fixed(node.value)


def fixed(node: ast.expr) -> str:
    if isinstance(node, ast.Constant):
        return node.value.strip(EDGES) if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return max((fixed(part) for part in node.values), key=len, default="")
    return ""


@pytest.mark.parametrize("module", LOGGING)
def test_every_line_of_trouble_is_in_the_runbook(module: str) -> None:
    (path,) = PROGRAM.rglob(f"{module}.py")
    runbook = " ".join(re.findall(r"^\| (`.+?`) \|", PAGE, re.MULTILINE))
    missing = [text for text in set(said(path)) - NO_TROUBLE if text not in runbook]
    assert missing == []


def test_every_line_of_the_runbook_can_be_said() -> None:
    """What stands between the … and colons of each line is somewhere in the program."""
    source = "".join(path.read_text(encoding="utf-8") for path in PROGRAM.rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    lines = re.findall(r"^\| `(.+?)` \|", PAGE.split("\n## Counts\n")[0], re.MULTILINE)
    assert len(lines) > 30
    for line in lines:
        for piece in re.split("…|: |(?<=s for) ", line):
            assert piece.strip(EDGES) in joined, f"nobody says {piece!r} of {line!r}"
