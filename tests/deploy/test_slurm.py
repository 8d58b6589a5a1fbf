"""deploy/slurm on a real Slurm: nodes die, the time ends, workers come and go; the same bits."""

import json
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.commands import until
from tests.deploy.cluster import NODES, PROGRAMS, Cluster, started
from tests.deploy.hosts import can_be_made
from tests.fleet.test_fleet import expect_same_bits, steps_of
from tests.texts import small_text

RECIPES = Path(__file__).parents[2] / "deploy" / "slurm"
DEFINITION = ("--hidden", "16", "--streams", "8")
ENDLESS = ("--steps", "0", "--checkpoint-every", "50", "--sample-every", "0")
SPREAD = ("--ntasks=4", "--nodes=3-4", "--spread-job")


@pytest.mark.parametrize("script", ["train.sbatch", "workers.sbatch"])
def test_a_job_says_what_it_takes_and_has_room_for_what_a_cluster_asks(script: str) -> None:
    text = (RECIPES / script).read_text(encoding="utf-8")
    assert re.search(r"^#SBATCH --mem=\d+G$", text, re.MULTILINE)
    assert re.search(r"^#SBATCH --cpus-per-task=\d+$", text, re.MULTILINE)
    placeholders = re.findall(r"^##SBATCH --(\w+)=\S+$", text, re.MULTILINE)
    assert placeholders == ["partition", "account", "time"]


STUBS = {
    "srun": 'while [[ $1 == -* ]]; do shift; done; [[ $1 == bash ]] || exec "$@"',
    "sinfo": "echo 127.0.0.1",
    "scancel": "",
    "scontrol": """
case $1 in
requeue) echo "$2" >>requeued ;;
show) printf '   JobState=RUNNING\\n   Command=%s\\n   WorkDir=/\\n' "$CALLED" ;;
esac
""",
    "manychar": """
case $1 in
keys) mkdir -p "$3" ;;
server)
  shift
  printf '%s\\n' "$@" >asked
  printenv MANYCHAR_RESUME_COMMAND >resume || true
  run=${RUN:-runs/slurm-$SLURM_JOB_ID}
  mkdir -p "$run/checkpoints" && touch "$run/config.json"
  [[ ! $WRITES ]] || touch "$run/checkpoints/step-$WRITES.safetensors"
  exit "$CODE"
  ;;
esac
""",
}


class OneStart:
    """A start of train.sbatch without a Slurm: programs that note what they are called with.

    `manychar server` ends with the code that the test gives, after it has written a checkpoint if
    the test says so.
    """

    def __init__(self, here: Path) -> None:
        self.here = here
        (here / "bin").mkdir()
        for name, text in STUBS.items():
            path = here / "bin" / name
            path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
            path.chmod(0o755)

    def run(
        self, *words: str, code: int = 0, restarts: int = 0, writes: str = "", run: str = ""
    ) -> tuple[int, str]:
        """Run the script; return its exit code and its output."""
        called = " ".join([str(self.here / "deploy" / "slurm" / "train.sbatch"), *words])
        environment = {
            "PATH": f"{self.here / 'bin'}:/usr/sbin:/usr/bin:/bin",
            "SLURM_JOB_ID": "78",
            "SLURMD_NODENAME": "n1",
            "SLURM_NTASKS": "1",
            **({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}),
            "CALLED": called,
            "CODE": str(code),
            "WRITES": writes,
            "RUN": run,
        }
        done = subprocess.run(
            ["/bin/bash", str(RECIPES / "train.sbatch"), *words],
            cwd=self.here,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    def asked(self) -> list[str]:
        """Return the server's words, but where it listens and its keys, which are of the start."""
        words = (self.here / "asked").read_text(encoding="utf-8").splitlines()
        at = words.index("--bind")
        assert (words[at + 2], len(words)) == ("--keys", at + 4)
        return words[:at]

    def requeued(self) -> int:
        path = self.here / "requeued"
        return len(path.read_text(encoding="utf-8").splitlines()) if path.exists() else 0


@pytest.fixture
def start(tmp_path: Path) -> OneStart:
    return OneStart(tmp_path)


def test_every_start_has_the_users_flags(start: OneStart) -> None:
    words = ("a text.txt", "--compute", "--log-format", "json", "--log-every", "9")
    assert start.run(*words)[0] == 0
    first = start.asked()
    assert first == ["--or-resume", "--run-dir", "runs/slurm-78", "--shards", "8", *words]
    for restarts in (0, 1):  # a run is there now; not every start of a job is counted
        assert start.run(*words, restarts=restarts)[0] == 0
        assert start.asked() == first


@pytest.mark.parametrize(
    ("script", "words", "number"),
    [
        ("train.sbatch", "text.txt", ""),
        ("workers.sbatch", "", "78"),
        ("workers.sbatch", "7", ""),
        ("workers.sbatch", "7 relay", "78"),
        ("workers.sbatch", "7 relays 8", "78"),
    ],
)
def test_what_a_script_lacks_is_said_in_one_line(script: str, words: str, number: str) -> None:
    job = {"SLURM_JOB_ID": number} if number else {}
    done = subprocess.run(
        ["/bin/bash", str(RECIPES / script), *words.split()],
        env={"PATH": "/usr/bin:/bin", **job},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf".*: sbatch .*{script} .+\n", done.stderr)


RESUMING = [
    ("--resume", "runs/slurm-7", "--steps", "20"),
    ("--steps", "20", "--resume", "runs/slurm-7"),
    ("--steps", "20", "--resume=runs/slurm-7"),
]


@pytest.mark.parametrize("restarts", [0, 1])
@pytest.mark.parametrize("words", RESUMING)
def test_resume_may_stand_anywhere(start: OneStart, words: tuple[str, ...], restarts: int) -> None:
    assert start.run(*words, restarts=restarts)[0] == 0
    assert start.asked() == list(words)


@pytest.mark.parametrize("flag", ["--run-dir", "--bind", "--keys"])
@pytest.mark.parametrize("form", ["{flag} x", "{flag}=x"])
def test_what_the_job_gives_itself_is_refused(start: OneStart, flag: str, form: str) -> None:
    code, output = start.run("text.txt", *form.format(flag=flag).split(), "--steps", "3")
    assert (code, output) == (2, f"{flag}: leave it out: the job gives its own\n")
    assert sorted(path.name for path in start.here.iterdir()) == ["bin"]


@pytest.mark.parametrize("words", [("text.txt",), *RESUMING])
@pytest.mark.parametrize("code", [70, 137])
def test_crashes_in_a_row_are_counted_and_the_end_is_said(
    start: OneStart, words: tuple[str, ...], code: int
) -> None:
    run = "runs/slurm-7" if "text.txt" not in words else "runs/slurm-78"
    for crash in range(1, 6):
        ended, output = start.run(*words, code=code, restarts=40 + crash, run=run)
        assert (ended, start.requeued()) == (code, crash)
        assert "back into the queue" in output
    ended, output = start.run(*words, code=code, restarts=46, run=run)
    assert (ended, start.requeued()) == (code, 5)
    said, resume = output.splitlines()[-2:]
    assert "6 times without a new checkpoint: not queued again" in said
    assert resume == f"resume: sbatch deploy/slurm/train.sbatch --resume {run}"
    start.run(*words, code=code, restarts=47, run=run)
    assert start.requeued() == 6, "a job that is queued again by hand begins to count again"


@pytest.mark.parametrize("words", [("text.txt",), *RESUMING])
@pytest.mark.parametrize("between", ["a checkpoint", "an end in good order"])
def test_a_run_that_advances_may_crash_any_number_of_times(
    start: OneStart, words: tuple[str, ...], between: str
) -> None:
    run = "runs/slurm-7" if "text.txt" not in words else "runs/slurm-78"
    for crash in range(1, 9):
        step = str(crash) if between == "a checkpoint" else ""
        start.run(*words, code=70, restarts=crash, writes=step, run=run)
        assert start.requeued() == crash
        if between != "a checkpoint":
            assert start.run(*words, code=75, restarts=crash, run=run)[0] == 75
            assert not list(start.here.glob("runs/*.crashes"))


@pytest.mark.parametrize("code", [0, 2, 3, 75, 78])
def test_a_start_that_does_not_crash_is_not_queued_again(start: OneStart, code: int) -> None:
    assert start.run("text.txt", code=code, writes="1")[0] == code
    assert start.requeued() == 0
    assert not list(start.here.glob("runs/*.*"))


def test_the_server_is_told_which_command_resumes_its_run(start: OneStart) -> None:
    for words in (("text.txt", "--steps", "5"), *RESUMING):
        start.run(*words)
        told = (start.here / "resume").read_text(encoding="utf-8")
        assert told == "sbatch deploy/slurm/train.sbatch\n"


def test_the_readme_says_what_a_restart_takes() -> None:
    text = (RECIPES / "README.md").read_text(encoding="utf-8")
    assert "leave `--run-dir`, `--bind` and `--keys` out" in text
    assert "five times in a row without a new checkpoint" in text


@pytest.fixture
def slurm(tmp_path: Path, require: Callable[[object, str], None]) -> Iterator[Cluster]:
    """A cluster of its own, with a text in the directory that all nodes see."""
    require(can_be_made(), "a cluster takes network namespaces: Linux, root and iproute2")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    require(not missing, f"a cluster takes {', '.join(missing)}: apt-get install slurm-wlm munge")
    here = tmp_path / "here"
    here.mkdir()
    (here / "text.txt").write_text(small_text(), encoding="utf-8")
    with started(tmp_path / "cluster", here) as cluster:
        yield cluster


class Job:
    """A job of train.sbatch, and what can be waited for."""

    def __init__(self, slurm: Cluster, *words: str, tasks: tuple[str, ...] = SPREAD) -> None:
        self.slurm = slurm
        self.number = slurm.submit(*tasks, str(RECIPES / "train.sbatch"), *words)
        self.run = slurm.here / "runs" / f"slurm-{self.number}"
        self.keys = self.run.with_name(f"{self.run.name}.keys")

    def wait_for_lines(self, *patterns: str, times: int = 1) -> None:
        """Wait until each of these patterns stands `times` times in the job's output."""

        def missing() -> list[str]:
            said = self.slurm.output(self.number)
            return [wanted for wanted in patterns if len(re.findall(wanted, said)) < times]

        until(lambda: not missing(), lambda: f"{missing()}: {self.slurm.described()}")

    def wait_for_state(self, **wanted: str) -> None:
        """Wait until the controller says this of the job."""
        until(
            lambda: wanted.items() <= self.slurm.state(self.number).items(),
            lambda: f"{wanted}: {self.slurm.state(self.number)}{self.slurm.described()}",
        )

    def wait_for_progress(self) -> int:
        """Wait for two checkpoints more; return the step."""
        before = self.reached()
        until(
            lambda: self.reached() >= before + 100,
            lambda: f"steps after {before}: {self.slurm.described()}",
        )
        return self.reached()

    def reached(self) -> int:
        """Return the step of the newest checkpoint, 0 while there is none."""
        return max(steps_of(self.run), default=0) if self.run.exists() else 0

    def wait_for_restart(self, times: int = 1) -> None:
        """Wait until Slurm has brought it back; that begins with a pause of some seconds."""
        self.wait_for_state(JobState="RUNNING", Restarts=str(times))
        self.wait_for_lines("listening", times=times + 1)

    def end_well(self) -> None:
        """End an endless run as Ctrl-C does."""
        self.slurm.run("scancel", "--signal=INT", self.number)
        self.wait_for_state(JobState="COMPLETED", ExitCode="0:0")

    def expect_the_bits_of_one_process(self) -> int:
        """Compare every checkpoint, and see that nothing secret is left; return the last step."""
        assert not list(self.run.parent.glob("*.keys"))
        return expect_same_bits(self.run, self.slurm.here / "text.txt")


@pytest.mark.long
def test_a_job_trains_to_its_last_step_and_one_with_bad_flags_fails(slurm: Cluster) -> None:
    for node in NODES:  # one of them is the server's
        slurm.take_port(node, 20001)
    job = Job(slurm, "text.txt", *DEFINITION, "--steps", "60")
    assert job.number == "1"
    mistaken = Job(slurm, "no-such-text.txt")
    job.wait_for_state(JobState="COMPLETED", ExitCode="0:0")
    assert job.expect_the_bits_of_one_process() == 60
    (port,) = set(re.findall(r"tcp://[\d.]+:(2\d{4})\b", slurm.output(job.number)))
    assert port != "20001"
    mistaken.wait_for_state(JobState="FAILED", ExitCode="2:0")
    assert "no-such-text.txt: no such file" in slurm.output(mistaken.number)
    assert not mistaken.keys.exists()


@pytest.mark.long
def test_workers_come_and_die_and_the_time_ends_and_no_bit_changes(slurm: Cluster) -> None:
    job = Job(slurm, "text.txt", *DEFINITION, *ENDLESS)
    job.wait_for_lines(*(f"worker-{i} has joined" for i in (1, 2, 3)))
    assert stat.S_IMODE(job.keys.stat().st_mode) == 0o700
    config = json.loads((job.run / "config.json").read_text(encoding="utf-8"))
    assert config["definition"]["shards"] == 8

    more = slurm.submit("--ntasks=2", str(RECIPES / "workers.sbatch"), job.number)
    job.wait_for_lines(*(rf"job-{more}\.0-{i} has joined" for i in (0, 1)))
    slurm.run("scancel", more)
    job.wait_for_lines(*(rf"job-{more}\.0-{i} has left" for i in (0, 1)))
    until(lambda: "its key is revoked" in slurm.output(more), slurm.described)

    lost = r"\n(worker-\d has left: its connection is gone|the shards of worker-\d are reassigned)"
    slurm.kill("worker", "n2")
    job.wait_for_lines(lost)
    slurm.kill_node("n3")
    job.wait_for_lines(lost, times=2)
    job.wait_for_progress()
    assert slurm.state(job.number)["Restarts"] == "0"
    slurm.start_node("n3")

    slurm.change_job(job.number, timelimit="2")
    job.wait_for_lines("stopped by SIGTERM", "back into the queue")
    slurm.change_job(job.number, timelimit="UNLIMITED")
    stopped_at = max(steps_of(job.run))
    job.wait_for_restart()
    job.wait_for_lines(rf"(?s)listening.*listening.*\nstep {stopped_at:,}  ")
    job.wait_for_progress()

    slurm.kill("server", slurm.state(job.number)["BatchHost"])  # as a memory limit does
    job.wait_for_lines("the server was killed")
    job.wait_for_restart(2)
    job.wait_for_progress()
    job.end_well()
    assert job.expect_the_bits_of_one_process() > stopped_at


@pytest.mark.long
def test_the_job_goes_on_elsewhere_when_its_servers_node_is_lost(slurm: Cluster) -> None:
    job = Job(slurm, "text.txt", *DEFINITION, *ENDLESS)
    reached = job.wait_for_progress()
    lost = slurm.state(job.number)["BatchHost"]
    slurm.kill_node(lost)
    slurm.run("scontrol", "update", f"nodename={lost}", "state=down", "reason=killed")
    job.wait_for_restart()
    assert slurm.state(job.number)["BatchHost"] != lost
    more = slurm.submit(str(RECIPES / "workers.sbatch"), job.number)
    job.wait_for_lines(rf"job-{more}\.0-7 has joined")
    job.wait_for_progress()
    job.end_well()
    until(lambda: slurm.state(more)["JobState"] == "COMPLETED", slurm.described)
    last = job.expect_the_bits_of_one_process()
    assert last > reached

    further = str(last + 60)
    again = Job(slurm, "--resume", f"runs/{job.run.name}", "--steps", further)
    again.wait_for_state(JobState="COMPLETED", ExitCode="0:0")
    assert not again.run.exists()
    assert job.expect_the_bits_of_one_process() == int(further)


@pytest.mark.long
def test_a_job_of_one_task_computes_again_after_a_crash_and_says_how_it_is_resumed(
    slurm: Cluster,
) -> None:
    alone = ("--ntasks=1",)
    flags = ("--compute", "--log-format", "json")
    job = Job(slurm, "text.txt", *DEFINITION, *ENDLESS, *flags, tasks=alone)
    job.wait_for_progress()
    slurm.kill("server", slurm.state(job.number)["BatchHost"])
    job.wait_for_restart()
    job.wait_for_progress()
    assert re.search(r'(?s)back into the queue.*\n\{[^\n]*"listening;', slurm.output(job.number))
    slurm.run("scancel", job.number)
    job.wait_for_state(JobState="CANCELLED")
    script = shlex.quote(str(RECIPES / "train.sbatch"))
    wanted = f"resume: sbatch {script} --compute --resume runs/{job.run.name}"
    ends = slurm.output(job.number).split("stopped by SIGTERM")[1]
    assert re.findall('resume: [^"\n]*', ends) == [wanted]

    last = job.expect_the_bits_of_one_process()
    _, _, *words = shlex.split(wanted)
    again = Job(slurm, *words[1:], "--steps", str(last + 60), tasks=alone)
    again.wait_for_state(JobState="COMPLETED", ExitCode="0:0")
    assert job.expect_the_bits_of_one_process() == last + 60


@pytest.mark.long
def test_a_relay_a_node_stands_for_its_workers(slurm: Cluster) -> None:
    job = Job(slurm, "text.txt", *DEFINITION, *ENDLESS)
    job.wait_for_lines(*(f"worker-{i} has joined" for i in (1, 2, 3)))
    more = slurm.submit(
        *("--nodes=2", "--ntasks=6", "--ntasks-per-node=3"),
        str(RECIPES / "workers.sbatch"),
        job.number,
        "relays",
    )
    job.wait_for_lines(*(rf"job-{more}\.0-{i} has joined" for i in (0, 3)))
    below = [
        rf"job-{more}\.0-{i}: job-{more}\.0-{i + j} has joined" for i in (0, 3) for j in (1, 2)
    ]
    until(
        lambda: all(re.search(line, slurm.output(more)) for line in below),
        lambda: f"{below}: {slurm.output(more)}{slurm.described()}",
    )
    job.wait_for_progress()
    slurm.kill("relay", slurm.state(more)["BatchHost"])
    job.wait_for_lines(rf"(job-{more}\.0-\d has left: its connection is gone|reassigned)")
    job.wait_for_progress()
    assert not re.search(rf"job-{more}\.0-[1245] has joined", slurm.output(job.number))
    job.end_well()
    assert job.expect_the_bits_of_one_process() > 0
