"""The units: verified and scored offline, and run as README.md says by a real systemd."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from manychar.processes import errors
from tests.commands import Commands, until
from tests.conftest import Require
from tests.deploy import machine
from tests.deploy.machine import Machine
from tests.fleet.test_fleet import expect_same_bits
from tests.texts import small_text

UNITS = Path(__file__).parent.parent.parent / "deploy" / "systemd"
SERVER, WORKER = "manychar-server.service", "manychar-worker@.service"
RELAY, FOLLOW = "manychar-relay.service", "manychar-follow.service"
UNIT = [SERVER, WORKER, RELAY, FOLLOW]
MOST_EXPOSED = 1.5


def settings_of(unit: str) -> dict[str, str]:
    """Return the settings of a unit, or of what it reads, the last of each name."""
    lines = (UNITS / unit).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=", line))


@pytest.mark.parametrize("unit", UNIT)
def test_systemd_accepts_it(unit: str, tmp_path: Path, require: Require) -> None:
    require(shutil.which("systemd-analyze"), "systemd-analyze is not here")
    text = (UNITS / unit).read_text(encoding="utf-8")
    here = tmp_path / unit
    here.write_text(text.replace("/opt/manychar/bin/manychar", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(here)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNIT)
def test_it_may_do_little(unit: str, require: Require) -> None:
    require(shutil.which("systemd-analyze"), "systemd-analyze is not here")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    exposed = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposed
    assert float(exposed[1]) <= MOST_EXPOSED
    readme = (UNITS / "README.md").read_text(encoding="utf-8")
    assert f"says {exposed[1]} (OK) for each" in readme


@pytest.mark.parametrize("unit", UNIT)
def test_its_command_is_one(manychar: Commands, unit: str) -> None:
    settings = settings_of(unit)
    line = settings["ExecStart"].replace("%d", "/run/credentials").replace("%i", "1")
    read = settings["EnvironmentFile"].removeprefix("/etc/manychar/")
    readme = (UNITS / "README.md").read_text(encoding="utf-8")
    assert f"install -D -m 644 {read} {settings['EnvironmentFile']}\n" in readme
    for name, value in settings_of(read).items():
        line = line.replace(f"${{{name}}}", value).replace(f"${name}", value)
    _, *arguments = shlex.split(line)
    done = manychar.run(*arguments, "--print-config")
    assert done.code == 0, done.err
    assert "or_resume = true" in done.out or unit != SERVER
    assert "shards = 8" in done.out or unit != SERVER


@pytest.mark.parametrize("unit", UNIT)
def test_what_is_not_tried_again_is_what_would_end_in_the_same_way(unit: str) -> None:
    settings = settings_of(unit)
    never = {int(code) for code in settings["RestartPreventExitStatus"].split()}
    failed = {errors.RUN_FAILED} if unit != FOLLOW else set()  # which ends so where its server does
    assert never == {errors.BAD_INPUT, errors.REFUSED_FOR_SAFETY} | failed
    assert settings["SuccessExitStatus"] == str(errors.STOPPED)


@pytest.mark.parametrize("unit", UNIT)
def test_its_memory_is_limited_and_it_is_restarted_beyond(unit: str) -> None:
    settings = settings_of(unit)
    assert re.fullmatch(r"\d+G", settings["MemoryMax"])
    assert settings["Restart"] == ("always" if unit == FOLLOW else "on-failure")


@pytest.mark.long
def test_it_runs_where_no_memory_can_be_written_and_run(
    manychar: Commands, text: Path, require: Require
) -> None:
    refuse = "ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0)"  # PR_SET_MDWE
    known = subprocess.run(
        [sys.executable, "-c", f"import ctypes, sys; sys.exit({refuse} != 0)"], check=False
    )
    if known.returncode:
        pytest.skip("this kernel knows no PR_SET_MDWE")
    program = (
        f"import ctypes, os, sys; assert {refuse} == 0;"
        " os.execv(sys.executable, [sys.executable, '-m', 'manychar', *sys.argv[1:]])"
    )
    flags = ("--hidden", "8", "--streams", "2", "--steps", "30", "--validation", "0.1")
    done = manychar.run(
        "train", str(text), *flags, "--run-dir", "run", "--workers", "2", program=("-c", program)
    )
    assert done.code == 0, done.err


WHERE_TESTS_LIVE = """
[Service]
ProtectHome=tmpfs
BindReadOnlyPaths={paths}
WatchdogSec=15s
"""  # a worker without a shard wakes up every 5 s
RUN = Path("var/lib/manychar/run")
FIGURES = (
    "import urllib.request as r;"
    ' print(r.urlopen("http://127.0.0.1:9464/metrics", timeout=5).read().decode())'
)


def blocks_of_readme() -> list[list[str]]:
    """Return the lines of the README's blocks: for the server, for workers, a relay, follow."""
    text = (UNITS / "README.md").read_text(encoding="utf-8")
    return [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)]


def prepared(here: Machine) -> None:
    """Put what the commands take where they are given, and the program where it is installed."""
    for path in UNITS.iterdir():
        here.run(f"cat > {path.name}", given=path.read_text(encoding="utf-8"))
    here.run("cat > text.txt", given=small_text() * 3)
    here.run("echo 127.0.0.1 server.lan >> /etc/hosts")
    here.run(f"ln -s {sys.prefix} /opt/manychar")
    paths = " ".join({sys.base_prefix, sys.prefix, str(machine.ROOT)})
    here.run(
        "d=/etc/systemd/system/manychar-.service.d && mkdir $d && cat > $d/test.conf",
        given=WHERE_TESTS_LIVE.format(paths=paths),
    )


def install(here: Machine, lines: list[str]) -> None:
    """Do what the README says; the program itself is there already."""
    assert "pip install " in lines[0]
    for line in lines[1:]:
        here.run(line)


def step_of(here: Machine) -> int:
    """Return the step that the server's status names."""
    found = re.match(r"step ([\d,]+)", here.show(SERVER, "StatusText"))
    return int(found[1].replace(",", "")) if found else -1


def wait_for_progress(here: Machine) -> None:
    """Wait until the run has come further; the slowest workers may be idle."""
    first = until(lambda: step_of(here) + 1, here.journal)
    until(lambda: step_of(here) > first, here.journal)


def wait_for_figures(here: Machine) -> None:
    """Wait until Prometheus would get figures of workers, from a port of the machine's own."""
    read = f"{sys.executable} -c '{FIGURES}' 2>&1"
    until(lambda: "manychar_workers" in here.run(f"{read} || true"), here.journal)


@pytest.mark.long
def test_a_systemd_runs_it_as_the_readme_says(
    tmp_path: Path, require: Require, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--systemd"):
        pytest.skip("it boots a systemd: --systemd")
    why = machine.why_not()
    require(not why, why)
    for_server, for_workers, for_relay, for_follow = blocks_of_readme()
    settings = (UNITS / "server.conf").read_text(encoding="utf-8")
    small = re.sub("(?m)^MORE=.*", "MORE=--hidden 16 --streams 4 --steps 0", settings)
    workers = [f"manychar-worker@{i}.service" for i in (1, 2, 3, 4)]
    text = tmp_path / "text.txt"
    text.write_text(small_text() * 3, encoding="utf-8")
    with machine.started(tmp_path / "console") as here:
        prepared(here)
        here.run("cat > server.conf", given=small)
        install(here, for_server)
        here.run("mv /var/lib/manychar/keys/worker.key .")
        here.run("systemctl disable --now manychar-server")

        # Workers that come first are waited for by nobody: the machine's start does not hang.
        install(here, for_workers)
        here.run("systemctl start multi-user.target")
        assert here.show(workers[0], "ActiveState") == "activating"
        here.run("systemctl enable --now manychar-server")
        for worker in workers:
            here.wait_until(worker, "ActiveState", "active")
        wait_for_progress(here)

        # A server that is started again, one that crashes, one that hangs; a worker that crashes.
        install(here, for_follow)
        wait_for_figures(here)
        here.run("systemctl restart manychar-server")
        wait_for_progress(here)
        here.wait_until(FOLLOW, "NRestarts", "1")
        wait_for_figures(here)
        here.run("systemctl kill --signal=KILL manychar-server manychar-worker@2")
        here.wait_until(SERVER, "NRestarts", "1")
        wait_for_progress(here)
        here.run("systemctl kill --signal=STOP manychar-server")
        here.wait_until(SERVER, "NRestarts", "2")
        wait_for_progress(here)
        assert "Watchdog timeout" in here.journal()

        # A relay, which admits the server's keys here, and a worker that moves behind it.
        here.run("/opt/manychar/bin/manychar keys add /var/lib/manychar/keys relay")
        here.run("mv /var/lib/manychar/keys/relay.key .")
        install(here, [line for line in for_relay if "keys create" not in line])
        here.wait_until(RELAY, "ActiveState", "active")
        here.run("sed -i s/5577/5578/ /etc/manychar/worker.conf")
        here.run(f"systemctl restart {workers[3]}")
        wait_for_progress(here)

        # What is stopped stays so, and in good order.
        here.run(f"systemctl stop {workers[0]}")
        assert here.show(workers[0], "ActiveState") == "inactive"
        here.run(
            "systemctl stop manychar-server manychar-follow manychar-relay 'manychar-worker@*'"
        )
        assert here.run("systemctl list-units --failed --no-legend --plain 'manychar*'") == ""
        assert here.show(SERVER, "Result") == "success"
        assert expect_same_bits(here.root / RUN, text) > 0

        # What would end in the same way again is left alone.
        here.run(
            "echo nothing > /etc/manychar/worker.key && systemctl start manychar-worker@9", code=1
        )
        assert here.show("manychar-worker@9", "NRestarts") == "0"
