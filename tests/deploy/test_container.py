"""deploy/container: linted, valid by its schema, and what it starts is run here."""

import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from manychar.network import keys
from manychar.protocol.messages import KeyRole
from tests.commands import Commands
from tests.conftest import Require
from tests.deploy.recipes import DEPLOY, ROOT, Recipe, flag, shell

CONTAINER = DEPLOY / "container"
COMPOSE: dict[str, Any] = yaml.safe_load((CONTAINER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
CONTAINERFILE = (CONTAINER / "Containerfile").read_text(encoding="utf-8")


def test_the_containerfile_is_free_of_the_linters_complaints(require: Require) -> None:
    tool = Path(sys.executable).with_name("hadolint")
    require(tool.exists(), "no hadolint for this machine")
    done = subprocess.run(
        [str(tool), "--no-color", str(CONTAINER / "Containerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_both_stages_stand_on_one_pinned_python_and_nobody_runs_it() -> None:
    stages = re.findall(r"^FROM (\S+)", CONTAINERFILE, re.MULTILINE)
    assert len(stages) == 2
    assert len(set(stages)) == 1
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-\w+", stages[0])
    assert re.findall(r"^USER (\S+)", CONTAINERFILE, re.MULTILINE) == ["65532:65532"]


def test_the_compose_file_is_valid_by_the_published_schema() -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    compose = str(CONTAINER / "compose.yaml")
    command = [str(tool), "--builtin-schema", "vendor.compose-spec", compose]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_images_versions_are_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(requirement.split(">=") for requirement in project["dependencies"])
    lines = (CONTAINER / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert numbers(pinned[name]) >= numbers(bound), name
    for service in SERVICES.values():
        assert service["image"] == f"manychar:{project['version']}"


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_the_image_is_made_of_what_it_copies_and_of_nothing_else() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == names
    for name in names:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_can_do_nothing_that_it_need_not(name: str) -> None:
    service = SERVICES[name]
    assert service["user"] == "65532:65532"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert "ports" not in service
    assert COMPOSE["networks"] == {"default": {"internal": True}}


def test_three_workers_and_shards_for_each_of_them() -> None:
    workers = [name for name in SERVICES if name.startswith("worker")]
    assert workers == ["worker-1", "worker-2", "worker-3"]
    assert int(flag(SERVICES["server"]["command"], "shards")) >= len(workers)
    for name in workers:
        assert flag(SERVICES[name]["command"], "name") == name
        assert SERVICES[name]["volumes"] == ["worker-key:/keys:ro"]  # not the server's


@pytest.mark.long
def test_what_it_starts_makes_keys_trains_is_stopped_and_goes_on(
    manychar: Commands, tmp_path: Path
) -> None:
    places = {name: tmp_path / name[1:] for name in ("/runs", "/keys", "/worker-key")}
    for place in places.values():
        place.mkdir()
    for _ in range(2):  # as at every `up`
        shell([*SERVICES["keys"]["entrypoint"], *SERVICES["keys"]["command"]], places)
    handed_out = places["/worker-key"] / "worker.key"
    assert keys.read_client_key(handed_out).role is KeyRole.WORKER
    assert [path.name for path in places["/worker-key"].iterdir()] == ["worker.key"]
    for path in (*places["/keys"].glob("*.key"), handed_out):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    workers = [service["command"] for name, service in SERVICES.items() if "worker-" in name]
    recipe = Recipe(
        manychar,
        server=SERVICES["server"]["command"],
        workers=workers,
        places=places,
        worker_key=handed_out,
    )
    recipe.start(steps=1_000_000)
    for i in (1, 2, 3):
        recipe.server.wait_for(f"worker-{i} has joined")
    probe = SERVICES["server"]["healthcheck"]["test"]
    assert probe[0] == "CMD"
    code, said = recipe.health(probe[1:], places["/keys"] / "probe.key")
    assert code == 0, said
    assert recipe.stop() == (75, [75, 75, 75])
    assert {SERVICES[name].get("restart") for name in SERVICES} == {None, "on-failure"}
    recipe.start(steps=recipe.reached() + 50)
    assert recipe.end() == (0, [0, 0, 0])
    assert "resuming the run in" in recipe.server.err


@pytest.mark.long
def test_it_is_built_where_there_is_an_engine() -> None:
    command = re.search(r"^#   (docker build .*)$", CONTAINERFILE, re.MULTILINE)
    assert command
    assert command[1] in (CONTAINER / "README.md").read_text(encoding="utf-8")
    if not engine_is_there():
        pytest.skip("no container engine here: deploy/container/README.md says so")
    subprocess.run(command[1].split(), cwd=ROOT, check=True)


def engine_is_there() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
