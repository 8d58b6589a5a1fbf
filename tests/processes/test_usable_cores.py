"""The cores of a process, by affinity and cgroups."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from manychar.processes import usable_cores as module
from manychar.processes.usable_cores import usable_cores

CPU = Path("/sys/fs/cgroup/cpu")


@pytest.mark.parametrize(
    ("listed", "files", "cores"),
    [
        ("0::/job/step", {"job/step/cpu.max": "150000 100000"}, 2),
        ("0::/job/step", {"job/step/cpu.max": "max 100000", "job/cpu.max": "300000 100000"}, 3),
        ("0::/job/step", {"job/step/cpu.max": "20000 100000"}, 1),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {}, 8),
        ("3:cpu,cpuacct:/job", {"cpu,cpuacct/job/cpu.cfs_quota_us": "400000"}, 4),
        ("3:cpu,cpuacct:/job", {"cpu,cpuacct/cpu.cfs_quota_us": "400000"}, 4),
        ("3:cpu:/job", {"cpu/job/cpu.cfs_quota_us": "-1"}, 8),
        ("3:memory:/job\n0::/", {}, 8),
    ],
)
def test_a_quota_of_this_group_or_one_above_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, files: dict[str, str], cores: int
) -> None:
    (tmp_path / "self").write_text(f"{listed}\n")
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
        path.with_name("cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(module, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(module, "CGROUPS_OF_PROCESS", tmp_path / "self")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert usable_cores() == cores


@pytest.mark.long
def test_a_quota_that_the_kernel_enforces(require: Callable[[object, str], None]) -> None:
    cpu = CPU if CPU.is_dir() else CPU.parent
    group = cpu / f"manychar-test-{os.getpid()}"
    try:
        group.mkdir()
        limit = "cpu.cfs_quota_us" if cpu is CPU else "cpu.max"
        (group / limit).write_text("100000")
    except OSError as error:
        require(False, f"a cgroup of one's own: {error}")  # noqa: FBT003
    try:
        command = f"echo $$ > {group}/cgroup.procs && exec {sys.executable} -m manychar doctor"
        done = subprocess.run(["sh", "-c", command], check=True, capture_output=True)
        assert json.loads(done.stdout)["usable_cores"] == 1
    finally:
        group.rmdir()
