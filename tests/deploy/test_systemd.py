"""The units: verified and scored offline, and the commands in them are this program's."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manychar.runtime import errors
from tests.runtime.commands import Commands

UNITS = Path(__file__).parent.parent.parent / "deploy" / "systemd"
SERVER, WORKER = "manychar-server.service", "manychar-worker@.service"
MOST_EXPOSED = 1.5

Require = Callable[[object, str], None]


def settings_of(unit: str) -> dict[str, str]:
    """Return a unit's settings, the last of each name."""
    lines = (UNITS / unit).read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=", line))


@pytest.mark.parametrize("unit", [SERVER, WORKER])
def test_systemd_accepts_it(unit: str, tmp_path: Path, require: Require) -> None:
    require(shutil.which("systemd-analyze"), "systemd-analyze is not here")
    text = (UNITS / unit).read_text(encoding="utf-8")
    here = tmp_path / unit
    here.write_text(text.replace("/opt/manychar/bin/manychar", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(here)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("unit", [SERVER, WORKER])
def test_it_may_do_little(unit: str, require: Require) -> None:
    require(shutil.which("systemd-analyze"), "systemd-analyze is not here")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    exposed = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert exposed
    assert float(exposed[1]) <= MOST_EXPOSED
    readme = (UNITS / "README.md").read_text(encoding="utf-8")
    assert f"says {exposed[1]} (OK) for both" in readme


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        (SERVER, {"TEXT": "t", "BIND": "tcp://0.0.0.0:5577", "SHARDS": "8", "MORE": "--hidden 9"}),
        (WORKER, {"SERVER": "tcp://server.lan:5577", "NAME": "worker"}),
    ],
)
def test_its_command_is_one(manychar: Commands, unit: str, values: dict[str, str]) -> None:
    line = settings_of(unit)["ExecStart"].replace("%d", "/run/credentials").replace("%i", "1")
    for name, value in values.items():
        line = line.replace(f"${{{name}}}", value).replace(f"${name}", value)
    _, *arguments = shlex.split(line)
    done = manychar.run(*arguments, "--print-config")
    assert done.code == 0, done.err
    assert "or_resume = true" in done.out or unit == WORKER
    assert "shards = 8" in done.out or unit == WORKER


@pytest.mark.parametrize("unit", [SERVER, WORKER])
def test_what_is_not_tried_again_is_what_would_end_in_the_same_way(unit: str) -> None:
    settings = settings_of(unit)
    never = {int(code) for code in settings["RestartPreventExitStatus"].split()}
    assert never == {errors.BAD_INPUT, errors.RUN_FAILED, errors.REFUSED_FOR_SAFETY}
    assert settings["SuccessExitStatus"] == str(errors.STOPPED)


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
