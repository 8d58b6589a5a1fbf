"""Real fleets: a server and workers as processes, stopped, killed and taken up; the same bits."""

import dataclasses
import json
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from manychar.fleet.local_fleet import LocalFleet
from manychar.observability.progress import ProgressDisplay
from manychar.protocol.effects import Finish
from manychar.storage.checkpoint import list_checkpoints, read_checkpoint
from manychar.storage.journal import read_journal
from manychar.storage.run_directory import open_run
from tests.commands import ONE_WORKER, SMALL, TWO_WORKERS, Commands, Running, until
from tests.logs import mean_loss
from tests.parameters import others_long
from tests.single_process import bits_alone, bits_of

LOSS = "loss_nats_per_character"
ENDLESS = ("--steps", "0", "--sample-every", "25", "--sample-length", "1")
MORE_RUNS = (
    "--workers 1",
    "--workers 4",
    "--workers 2",
    "--workers 2 --shards 1",
    "--workers 1 --shards 2",
    "--workers 4 --shards 3",
    "--workers 2 --seed 7 --clip 0.5 --learning-rate 0.05 --seq-length 6",
)
KNOWN_DEATH = """
import os, sys
if "worker-1" in sys.orig_argv:
    os._exit(9)
"""


CRASHES_ONCE = """
import importlib.abc, pathlib, sys
crashed = pathlib.Path(__file__).with_name("crashed")
role, module = {role!r}, {module!r}
class Crash(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == module and not crashed.exists():
            crashed.touch()
            raise RuntimeError("planted")
if role in sys.orig_argv:
    sys.meta_path.insert(0, Crash())
"""


SERVER_CRASHES_ONCE = """
import pathlib, sys
crashed = pathlib.Path(__file__).with_name("crashed")
def crash(event, arguments):
    if event == "subprocess.Popen" and not crashed.exists():  # the validation process starts
        crashed.touch()
        raise RuntimeError("planted")
if "server" in sys.orig_argv:
    sys.addaudithook(crash)
"""


LAST_WORDS = """
import atexit, os, pathlib, signal, sys, time
server = pathlib.Path(__file__).with_name("server")
def write_much_when_the_server_is_gone():
    pid = int(server.read_text())
    while os.path.exists(f"/proc/{pid}"):
        time.sleep(0.01)
    sys.stderr.write("x" * 79 + "\\n")
    for _ in range(2500):
        sys.stderr.write("y" * 79 + "\\n")
    sys.stderr.write("Traceback of the worker\\n")
if "server" in sys.orig_argv:
    server.write_text(str(os.getpid()))
if "worker-1" in sys.orig_argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or it may end before it writes
    atexit.register(write_much_when_the_server_is_gone)
"""


def steps_of(run: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(run / "checkpoints")]


@dataclasses.dataclass
class SilentClient:
    """An observer client whose connect timeout has expired."""

    end: Finish | None = None
    connecting: bool = True

    def connect(self, connect_timeout: float) -> None:
        self.end = None

    def turn(self) -> list[object]:
        self.end = Finish(3, "no server answered within 60 s")
        return []


def test_only_a_server_that_listens_is_killed_where_it_does_not_answer(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with a long text or journal takes longer to start than the connect timeout."""
    run = open_run(trained)
    fleet = LocalFleet(run, ProgressDisplay(run))
    fleet._client = cast("Any", SilentClient())
    signals: list[int] = []
    monkeypatch.setattr(fleet.server, "signal", signals.append)
    line = json.dumps({"endpoint": "ipc://run"})
    fleet._read_line(line)
    fleet.server.process = cast("Any", "a new process")
    fleet._observe()
    assert not signals, "it starts"
    fleet._read_line(line)
    fleet._observe()
    assert signals == [signal.SIGKILL]


def expect_same_bits(run: Path, text: Path) -> int:
    """Compare every checkpoint with one process's state; return the last step."""
    found = {
        step: bits_of(read_checkpoint(path).state)
        for step, path in list_checkpoints(run / "checkpoints")
    }
    last = max(found)
    alone = bits_alone(text, run, last)
    differing = [step for step, bits in found.items() if bits != alone[step]]
    assert not differing, f"other bits than alone at the steps {differing} of {sorted(found)}"
    return last


@pytest.mark.long
def test_sums_without_the_columns_that_were_not_seen_give_the_same_bits(
    manychar: Commands, tmp_path: Path
) -> None:
    """A unit sees at most 20 of 1,511 characters; a frame of another length would end the run."""
    text = tmp_path / "text"
    text.write_text("".join(chr(0x4E00 + i**3 % 1_511) for i in range(9_000)) * 2, "utf-8")
    flags = (*SMALL, *TWO_WORKERS, "--steps", "12", "--checkpoint-every", "4")
    done = manychar.run("train", str(text), "--run-dir", "run", *flags)
    assert done.code == 0, done.err
    assert expect_same_bits(manychar.directory / "run", text) == 12


def expect_nothing_half_written(run: Path) -> None:
    names = [path.name for path in run.rglob("*")]
    assert not [name for name in names if name.startswith(".") or name.endswith(".tmp")]


def endless(manychar: Commands, text: Path, *more: str) -> Running:
    """Start an endless run of two workers, and wait for its first sample."""
    running = manychar.start("train", str(text), "--run-dir", "run", *SMALL, *ENDLESS, *more)
    running.wait_for(r"--- step \d+ ---", "out")
    return running


def further(running: Running) -> None:
    """Wait until a run has come further by at least a sample."""
    seen = running.out.count("--- step")
    until(lambda: running.out.count("--- step") > seen, running.described)


@pytest.fixture
def run(manychar: Commands) -> Path:
    """Where the runs of these tests are."""
    return manychar.directory / "run"


class TestARun:
    def test_ends_with_everything_in_its_place(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        done = manychar.run(
            *("train", str(text), "--workers", "2", "--run-dir", "run", *SMALL),
            *("--steps", "230", "--checkpoint-every", "60"),
            *("--sample-every", "100", "--sample-length", "30"),
        )
        assert done.code == 0, done.err
        manychar.expect_nobody()
        assert steps_of(run) == [0, 60, 120, 180, 230]
        assert expect_same_bits(run, text) == 230
        expect_nothing_half_written(run)
        # Standard output has the samples and nothing else.
        pieces = re.fullmatch(r"(?s)(--- step (\d+) ---\n.{30}\n){3}", done.out)
        assert pieces, done.out
        assert re.findall(r"--- step (\d+) ---\n", done.out) == ["100", "200", "230"]
        assert done.last_line == "sample from it: manychar sample run"
        assert re.search(r"(server|worker-1) has joined", done.err)
        assert "step 230/230" in done.err
        assert re.search(
            r"  loss \d\.\d{3} nats a character  .*  smooth loss \d\.\d{3}\n", done.err
        )
        assert "characters/s" in done.err
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [100, 200, 230]
        names = {"step", LOSS, f"smooth_{LOSS}", "characters", "seconds", "workers", "crc"}
        assert all(line.keys() == names for line in lines)
        means = [mean_loss(run, *steps) for steps in ((1, 100), (101, 200), (131, 230))]
        assert [line[LOSS] for line in lines] == pytest.approx(means)
        assert lines[-1]["characters"] == 230 * 4 * 2 * 5
        smooth = read_checkpoint(run / "checkpoints" / "step-000000230.safetensors")
        assert lines[-1][f"smooth_{LOSS}"] == smooth.state.smooth_loss / 5

    @pytest.mark.long
    def test_keeps_the_newest_checkpoints_and_the_first(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        done = manychar.run(
            *("train", str(text), "--run-dir", "run", *SMALL, "--workers", "1"),
            *("--steps", "100", "--checkpoint-every", "10", "--keep-checkpoints", "3"),
        )
        assert done.code == 0, done.err
        assert steps_of(run) == [0, 80, 90, 100]

    @pytest.mark.long
    def test_says_where_its_default_directory_is(self, manychar: Commands, text: Path) -> None:
        done = manychar.run("train", str(text), *SMALL, "--steps", "5", "--workers", "1")
        assert done.code == 0, done.err
        named = re.search(r"run directory: (runs/\d{8}T\d{6}Z-[0-9a-f]+-[0-9a-f]+)\n", done.err)
        assert named
        config = json.loads((manychar.directory / named[1] / "config.json").read_text())
        assert named[1].endswith(config["run"])
        assert done.last_line == f"sample from it: manychar sample {named[1]}"

    @pytest.mark.parametrize(
        "flags",
        [
            *(pytest.param(flags, marks=pytest.mark.long) for flags in MORE_RUNS),
            "--workers 2 --shards 3 --dtype float64",
            "--workers 3 --shards 5",
        ],
    )
    def test_comes_to_the_bits_of_one_process(
        self, manychar: Commands, text: Path, run: Path, flags: str
    ) -> None:
        done = manychar.run(
            *("train", str(text), "--run-dir", "run", *SMALL, *flags.split()),
            *("--steps", "61", "--checkpoint-every", "20", "--sample-length", "0"),
        )
        assert done.code == 0, done.err
        manychar.expect_nobody()
        assert steps_of(run) == [0, 20, 40, 60, 61]
        assert expect_same_bits(run, text) == 61
        assert done.out == ""

    @pytest.mark.long
    def test_is_private_by_keys_where_a_path_is_too_long_for_a_socket(
        self, manychar: Commands, text: Path, run: Path, tmp_path: Path
    ) -> None:
        long = tmp_path / ("long" * 30)
        long.mkdir()
        done = manychar.run(
            *("train", str(text), "--run-dir", "run", *SMALL, "--steps", "30", "--workers", "2"),
            env={"TMPDIR": str(long)},
        )
        assert done.code == 0, done.err
        assert re.search(r"listens on tcp://127\.0\.0\.1:\d+", done.err)
        assert expect_same_bits(run, text) == 30
        assert not list(long.iterdir())

    @pytest.mark.long
    def test_says_when_workers_stand_by(self, manychar: Commands, text: Path, run: Path) -> None:
        running = endless(manychar, text, "--workers", "3", "--no-compute", "--shards", "2")
        running.wait_for(r"worker-\d is idle.*--shards")
        further(running)
        running.interrupt()
        done = running.end()
        assert "1 idle" in done.err
        expect_same_bits(run, text)

    def test_reads_standard_input(self, manychar: Commands, text: Path, run: Path) -> None:
        done = manychar.run(
            *("train", "-", "--run-dir", "run", *SMALL, "--steps", "10", "--workers", "1"),
            given=text.read_bytes(),
        )
        assert done.code == 0, done.err
        assert expect_same_bits(run, text) == 10


class TestByHand:
    @pytest.mark.long
    def test_workers_may_start_before_the_server(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        workers = [manychar.start("worker", "ipc://meet", "--name", name) for name in ("a", "b")]
        for worker in workers:
            worker.wait_for("is a worker for ipc://meet")
            worker.wait_for("waiting for a server at ipc://meet")
        server = manychar.start(
            *("server", str(text), "--bind", "ipc://meet", "--run-dir", "run", *SMALL, *ENDLESS)
        )
        server.wait_for("a has joined")
        server.wait_for("b has joined")
        further(server)
        server.interrupt()
        served = server.end()
        assert served.code == 0, served.err
        assert "manychar worker ipc://meet" in served.err
        assert served.last_line == "sample from it: manychar sample run"
        for worker in workers:
            done = worker.end()
            assert (done.code, done.out) == (0, ""), done.err
        assert expect_same_bits(run, text) >= 25

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["INT", "TERM"]
    )
    def test_a_worker_ends_by_signal(self, manychar: Commands, number: int, code: int) -> None:
        worker = manychar.start("worker", "ipc://meet", "--name", "a")
        worker.wait_for("waiting for a server")
        worker.send(number)
        done = worker.end()
        assert done.code == code, done.err
        assert "Traceback" not in done.err

    def test_a_worker_fails_at_its_connect_timeout(self, manychar: Commands) -> None:
        done = manychar.run("worker", "ipc://nobody", "--name", "a", "--connect-timeout", "0.5")
        assert done.code == 3
        assert done.last_line.startswith("a: no server at ipc://nobody")
        assert "--connect-timeout" in done.last_line

    @pytest.mark.long
    def test_a_worker_outlives_its_server(self, manychar: Commands, text: Path, run: Path) -> None:
        worker = manychar.start("worker", "ipc://meet", "--name", "a")
        serve = ("--bind", "ipc://meet", "--checkpoint-every", "25")
        server = manychar.start(
            *("server", str(text), *serve, "--run-dir", "run", *SMALL, "--steps", "1000000")
        )
        until(lambda: max(steps_of(run), default=0) >= 25, "a checkpoint")
        server.send(signal.SIGKILL)
        server.end()
        reached = steps_of(run)[-1]
        done = manychar.run("server", "--resume", "run", *serve, "--steps", str(reached + 50))
        assert done.code == 0, done.err
        ended = worker.end()
        assert ended.code == 0, ended.err
        assert expect_same_bits(run, text) == reached + 50


class TestStopping:
    def test_ctrl_c_writes_a_checkpoint_and_resume_goes_on(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        running = manychar.start(
            *("train", str(text), "--workers", "2", "--run-dir", "run", *SMALL),
            *("--steps", "1000000", "--sample-every", "25", "--sample-length", "1"),
        )
        running.wait_for(r"--- step \d+ ---", "out")
        running.interrupt()
        done = running.end()
        manychar.expect_nobody()
        assert done.code == 130, done.err
        assert "Traceback" not in done.err
        assert "resume: manychar train --resume run" in done.err
        assert done.last_line == "sample from it: manychar sample run"
        stopped_at = expect_same_bits(run, text)
        assert stopped_at >= 25
        expect_nothing_half_written(run)

        total = stopped_at + 30
        again = manychar.run("train", "--resume", "run", "--steps", str(total), "--workers", "1")
        assert again.code == 0, again.err
        assert expect_same_bits(run, text) == total
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = [line["step"] for line in lines]
        assert steps == sorted(set(steps))
        assert (run / "term").read_text().strip() == "2"

        through = manychar.run("train", "--resume", "run", "--steps", str(total))
        assert through.code == 0, through.err
        assert steps_of(run)[-1] == total

    def test_ctrl_c_is_the_way_to_end_an_endless_run(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        running = endless(manychar, text)
        running.interrupt()
        done = running.end()
        manychar.expect_nobody()
        assert done.code == 0, done.err
        assert "--resume run" in done.err
        expect_same_bits(run, text)

    def test_sigterm(self, manychar: Commands, text: Path, run: Path) -> None:
        running = endless(manychar, text)
        os.kill(running.pid, signal.SIGTERM)
        done = running.end()
        manychar.expect_nobody()
        assert done.code == 75, done.err
        assert "resume: manychar train --resume run" in done.err
        assert expect_same_bits(run, text) >= 25

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["INT", "TERM"]
    )
    def test_a_server_by_hand(
        self, manychar: Commands, text: Path, run: Path, number: int, code: int
    ) -> None:
        worker = manychar.start("worker", "ipc://meet", "--name", "a")
        server = manychar.start(
            *("server", str(text), "--bind", "ipc://meet", "--run-dir", "run", *SMALL),
            *("--steps", "1000000", "--sample-every", "25", "--sample-length", "1"),
        )
        server.wait_for("--- step 25 ---", "out")
        server.send(number)
        done = server.end()
        assert done.code == code, done.err
        assert "resume: manychar server --bind ipc://meet --resume run" in done.err
        assert worker.end().code == 75
        assert expect_same_bits(run, text) >= 25

    def test_a_second_ctrl_c_ends_at_once(self, manychar: Commands, text: Path, run: Path) -> None:
        running = endless(manychar, text, *ONE_WORKER)
        worker = manychar.find("worker-1")
        os.kill(worker, signal.SIGSTOP)  # so that the step cannot be ended
        try:

            def ended() -> bool:
                running.interrupt()
                return running.process.poll() is not None

            until(ended, "the end at once")
            done = running.end()
            assert done.code == 130
            assert "sample from it" not in done.err
            assert "Traceback" not in done.err
        finally:
            os.kill(worker, signal.SIGCONT)
        manychar.expect_nobody()
        expect_same_bits(run, text)


class TestKilling:
    def test_a_worker_is_replaced(self, manychar: Commands, text: Path, run: Path) -> None:
        running = endless(manychar, text, *TWO_WORKERS)
        running.wait_for("worker-1 has joined")
        os.kill(manychar.find("worker-1"), signal.SIGKILL)
        running.wait_for(r"(?s)worker-1 ended by SIGKILL: starting it again.*worker-1 has joined")
        further(running)
        running.interrupt()
        done = running.end()
        assert done.code == 0, done.err
        expect_same_bits(run, text)

    @pytest.mark.long
    def test_a_hung_worker_is_taken_for_lost_and_comes_back(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        running = endless(manychar, text, *TWO_WORKERS, "--lease-timeout", "0.5")
        running.wait_for("worker-2 has joined")
        worker = manychar.find("worker-2")
        os.kill(worker, signal.SIGSTOP)
        running.wait_for("worker-2 are reassigned")
        further(running)
        os.kill(worker, signal.SIGCONT)
        running.wait_for("(?s)worker-2 are reassigned.*worker-2 (answers again|has joined)")
        further(running)
        running.interrupt()
        done = running.end()
        assert done.code == 0, done.err
        expect_same_bits(run, text)

    @pytest.mark.parametrize("name", others_long(["short", "long" * 30]))
    def test_the_parents_end_is_the_childrens_end(
        self,
        manychar: Commands,
        text: Path,
        run: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        """It leaves nothing in $TMPDIR: its children remove what it had there."""
        (scratch := tmp_path / name).mkdir()
        monkeypatch.setenv("TMPDIR", str(scratch))
        running = endless(manychar, text, *TWO_WORKERS)
        assert len(manychar.family()) == 4
        assert len(list(scratch.iterdir())) == 1
        os.kill(running.pid, signal.SIGKILL)
        running.process.wait()
        manychar.expect_nobody()
        assert not list(scratch.iterdir())
        running.end()
        assert expect_same_bits(run, text) >= 25

    def test_the_server_is_started_again(self, manychar: Commands, text: Path, run: Path) -> None:
        running = endless(manychar, text, *TWO_WORKERS, "--checkpoint-every", "10")
        os.kill(manychar.find("server"), signal.SIGKILL)
        running.wait_for("the server ended by SIGKILL: starting it again")
        manychar.find("server", "--resume", "run")
        further(running)
        further(running)
        running.interrupt()
        done = running.end()
        manychar.expect_nobody()
        assert done.code == 0, done.err
        assert "Traceback" not in done.err
        assert (run / "term").read_text() == "2\n"
        expect_same_bits(run, text)
        expect_nothing_half_written(run)

    @pytest.mark.long
    def test_fails_on_a_server_that_dies_again_and_again(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        running = endless(manychar, text, "--checkpoint-every", "10")
        killed: set[int] = set()

        def ended() -> bool:
            for pid, words in manychar.family().items():
                if "server" in words and pid not in killed:
                    killed.add(pid)
                    os.kill(pid, signal.SIGKILL)
            return running.process.poll() is not None

        until(ended, "the end")
        done = running.end()
        manychar.expect_nobody()
        assert done.code == 3, done.err
        assert re.search("manychar: failed: the server ended .* by SIGKILL", done.err)
        assert "resume: manychar train --resume run" in done.err
        assert "Traceback" not in done.err
        reached = steps_of(run)[-1]
        again = manychar.run("train", "--resume", "run", "--steps", str(reached + 35))
        assert again.code == 0, again.err
        assert expect_same_bits(run, text) == reached + 35
        expect_nothing_half_written(run)

    @pytest.mark.long
    @pytest.mark.parametrize("workers", [1, 2])
    def test_fails_on_a_worker_that_cannot_start(
        self, manychar: Commands, text: Path, run: Path, tmp_path: Path, workers: int
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(KNOWN_DEATH)
        done = manychar.run(
            *(
                "train",
                str(text),
                "--workers",
                str(workers),
                "--no-compute",
                "--run-dir",
                "run",
                *SMALL,
                *ENDLESS,
            ),
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert done.code == 3, done.err
        assert re.search(r"manychar: failed: worker-1 ended .* with exit code 9", done.err)
        assert done.err.count("starting it again") == 4
        assert "resume: manychar train --resume run" in done.err
        reached = steps_of(run)[-1]
        again = manychar.run("train", "--resume", "run", "--steps", str(reached + 10))
        assert again.code == 0, again.err
        assert expect_same_bits(run, text) == reached + 10

    @pytest.mark.long
    def test_a_restart_resumes_from_the_checkpoint_by_time_and_says_what_is_done_again(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        often = ("--checkpoint-every", "0", "--checkpoint-minutes", "0.02")
        running = endless(manychar, text, *TWO_WORKERS, *often)
        server = manychar.find("server")

        def stopped_behind() -> tuple[int, int] | None:
            os.kill(server, signal.SIGSTOP)
            newest = read_journal(run, open_run(run).run_id, with_steps=False).newest
            saved = open_run(run).newest_checkpoint()[0].state.step
            if 0 < saved < newest:
                return saved, newest
            os.kill(server, signal.SIGCONT)
            return None

        saved, newest = until(stopped_behind, "the journal is past the checkpoint")
        assert steps_of(run) == [0]
        verified = manychar.run("verify", "run")
        assert verified.out.startswith(f"the same bits: {newest:,} steps, 2 checkpoints"), verified
        os.kill(server, signal.SIGKILL)
        running.wait_for("the server ended by SIGKILL: starting it again")
        again = f"steps done again: at least {newest - saved:,}"
        running.wait_for(f"resuming from step {saved:,}: {again}")
        further(running)
        running.interrupt()
        assert running.end().code == 0
        assert not (run / "checkpoints" / "recovery.safetensors").exists()
        expect_same_bits(run, text)
        assert manychar.run("verify", "run").code == 0

    @pytest.mark.long
    def test_a_server_that_crashes_by_an_exception_is_started_again(
        self, manychar: Commands, text: Path, run: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(SERVER_CRASHES_ONCE)
        done = manychar.run(
            *("train", str(text), *ONE_WORKER, "--run-dir", "run", *SMALL, "--steps", "60"),
            *("--validation", "0.1", "--checkpoint-every", "20"),
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert done.code == 0, done.err
        assert "RuntimeError: planted" in done.err
        assert "the server ended with exit code 70: starting it again" in done.err
        assert expect_same_bits(run, text) == 60

    @pytest.mark.parametrize(
        ("role", "module", "name"),
        [
            pytest.param("worker-1", "engine", "worker-1", marks=pytest.mark.long),
            ("server", "server_process", "the server"),
        ],
        ids=["a worker", "a server before it listens"],
    )
    def test_what_crashes_by_an_exception_is_started_again(
        self,
        manychar: Commands,
        text: Path,
        run: Path,
        tmp_path: Path,
        role: str,
        module: str,
        name: str,
    ) -> None:
        planted = CRASHES_ONCE.format(role=role, module=f"manychar.fleet.{module}")
        (tmp_path / "sitecustomize.py").write_text(planted)
        done = manychar.run(
            *("train", str(text), *ONE_WORKER, "--run-dir", "run", *SMALL, "--steps", "60"),
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert done.code == 0, done.err
        assert "RuntimeError: planted" in done.err
        assert f"{name} ended with exit code 70: starting it again" in done.err
        assert expect_same_bits(run, text) == 60

    @pytest.mark.long
    def test_fails_where_its_server_always_crashes_before_it_listens(
        self, manychar: Commands, text: Path, tmp_path: Path
    ) -> None:
        planted = CRASHES_ONCE.format(role="server", module="manychar.fleet.server_process")
        (tmp_path / "sitecustomize.py").write_text(planted.replace("crashed.touch()", "pass"))
        done = manychar.run(
            *("train", str(text), *ONE_WORKER, "--run-dir", "run", *SMALL, "--steps", "60"),
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert done.code == 3, done.err
        assert done.err.count("starting it again") == 4
        assert "the server ended within 10 s of its start 5 times" in done.err

    def test_refuses_arithmetic_that_is_not_finite(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        done = manychar.run(
            *("train", str(text), "--workers", "2", "--run-dir", "run", *SMALL),
            *("--steps", "1000", "--learning-rate", "1e38"),
        )
        assert done.code == 3, done.err
        manychar.expect_nobody()
        said = (
            r"a loss, gradient or hidden state is not finite: step \d+, shard|sum of the gradients"
        )
        assert re.search(said, done.err), done.err
        assert ": start a new run with a --learning-rate below 1e+38, or a --warmup" in done.err
        assert "resume" not in done.err, "it would end in the same way"
        assert "Traceback" not in done.err
        assert "Warning" not in done.err
        assert expect_same_bits(run, text) == 0
        expect_nothing_half_written(run)

    def test_says_that_it_diverges(self, manychar: Commands, text: Path, run: Path) -> None:
        done = manychar.run(
            *("train", str(text), "--workers", "1", "--run-dir", "run", *SMALL, "--streams", "8"),
            *("--steps", "200", "--learning-rate", "10", "--warmup", "0", "--log-format", "json"),
        )
        assert done.code == 0, done.err
        lines = [json.loads(line) for line in done.err.splitlines()]
        said = "training diverges with --learning-rate 10"
        warned = [line["text"] for line in lines if line["level"] == "warning"]
        assert [text.split(":")[0] for text in warned] == [said]
        last = [line for line in lines if "step" in line][-1]
        assert said in last["text"]
        assert last["divergence"] == warned[0]
        assert f"finished at step 200; {warned[0]}" in [line["text"] for line in lines]

    @pytest.mark.long
    def test_refuses_to_resume_a_run_that_began_with_other_numerics(
        self, manychar: Commands, text: Path, run: Path
    ) -> None:
        options = ("--workers", "1", "--run-dir", "run", *SMALL, "--steps", "2")
        assert manychar.run("train", str(text), *options).code == 0
        config = json.loads((run / "config.json").read_text())
        config["facts"] |= {"fingerprint": "0" * 64, "libraries": {"blas": "MKL"}}
        (run / "config.json").write_text(json.dumps(config))
        done = manychar.run("train", "--resume", "run", "--steps", "4")
        assert done.code == 3, done.err
        assert "this machine's arithmetic gives other bits than the run's: here " in done.err
        hint = "the run began with blas MKL; serve the run on a machine with those versions"
        assert hint in done.err
        assert expect_same_bits(run, text) == 2

    @pytest.mark.long
    @pytest.mark.skipif(not Path("/proc").exists(), reason="no /proc here")
    def test_what_a_worker_writes_after_the_server_has_ended_is_read(
        self, manychar: Commands, text: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(LAST_WORDS)
        done = manychar.run(
            *("train", str(text), *ONE_WORKER, "--run-dir", "run", *SMALL, "--steps", "10"),
            env={"PYTHONPATH": str(tmp_path)},
        )
        assert done.code == 0, done.err
        assert "killed" not in done.err
        assert "worker-1: Traceback of the worker" in done.err
        assert done.err.count("y" * 79) == 2500


class TestOneServerAtATime:
    @pytest.mark.long
    @pytest.mark.parametrize("command", ["train", "server"])
    def test_a_second_one_is_refused(
        self, manychar: Commands, text: Path, run: Path, command: str
    ) -> None:
        running = endless(manychar, text)
        term = (run / "term").read_text()
        bind = ["--bind", "ipc://second"] if command == "server" else []
        done = manychar.run(command, "--resume", "run", *bind)
        assert done.code == 2
        assert re.fullmatch("manychar: run: another server is running on it.*\n", done.err)
        assert (run / "term").read_text() == term
        further(running)
        running.interrupt()
        assert running.end().code == 0
        expect_same_bits(run, text)

    @pytest.mark.parametrize("command", ["train", "server"])
    def test_its_own_command_again_is_refused_for_the_run_and_not_for_the_port(
        self, manychar: Commands, text: Path, command: str
    ) -> None:
        flags = (str(text), *SMALL, "--steps", "0", "--run-dir", "run", "--or-resume")
        running = manychar.start("server", *flags, "--bind", "tcp://127.0.0.1:0")
        taken = running.wait_for(r"manychar worker (tcp://\S+)")[1]
        live = rf"manychar: run: another server is running on it \({taken}, process \d+ on .*\n"
        for bind in (taken, "tcp://127.0.0.1:0"):
            for again in (flags, ("--resume", "run")):
                done = manychar.run(command, *again, "--bind", bind)
                assert done.code == 2, done
                assert re.fullmatch(live, done.err), done.err
        running.send(signal.SIGTERM)
        assert running.end().code == 75

    def test_a_port_in_use(self, manychar: Commands, text: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            bind = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            done = manychar.run("server", str(text), *SMALL, "--bind", bind)
        assert done.code == 2
        assert f"cannot bind to {bind}: another program uses it; choose another --bind" in done.err
        assert "Traceback" not in done.err
        assert done.err.count("\n") == 1
        assert not list(manychar.directory.iterdir())
