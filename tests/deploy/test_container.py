"""deploy/container: linted, valid by its schema, and what it starts is run here."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from manychar.network import keys
from manychar.protocol.messages import KeyRole
from tests.commands import Commands
from tests.conftest import Require
from tests.deploy import image
from tests.deploy.image import Containers, Engine
from tests.deploy.recipes import DEPLOY, ROOT, Recipe, files_of, flag, shell

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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    built_with = project["build-system"]["requires"]
    for lock, wanted in (("image", project["project"]["dependencies"]), ("build", built_with)):
        pinned = locked(lock)
        for name, bound in (requirement.split(">=") for requirement in wanted):
            assert numbers(pinned[name]) >= numbers(bound), name
    for service in SERVICES.values():
        assert service["image"] == f"manychar:{project['project']['version']}"


def test_nothing_is_installed_but_the_wheel_and_files_whose_hashes_are_listed() -> None:
    for command in re.findall(r"pip (?:install|wheel) .*", CONTAINERFILE):
        assert "--no-index" in command or "--require-hashes --only-binary=:all:" in command
    assert re.search(r"^ENV .*PIP_NO_DEPS=1", CONTAINERFILE, re.MULTILINE)
    for name in re.findall(r"--requirement locks/(\w+)\.txt", CONTAINERFILE):
        assert locked(name)


def locked(name: str) -> dict[str, str]:
    """Return the versions in a lock file; each has the hashes of its files."""
    text = (CONTAINER / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.M)
    assert len(entries) == text.count("==")
    return {package: version for package, version, _ in entries}


def test_the_image_takes_the_extras_that_are_asked_for() -> None:
    """ARG EXTRAS: the shell's loop of the container file, with pip as a word that is printed."""
    loop = re.search(r"&& (for extra in .*?done)$", CONTAINERFILE, re.MULTILINE | re.DOTALL)
    assert loop
    command = ["sh", "-euc", loop[1].replace("/opt/manychar/bin/pip", "echo")]
    for extras, installed in (("", []), ("prometheus", ["locks/prometheus.txt"])):
        done = subprocess.run(command, env={"EXTRAS": extras}, capture_output=True, check=True)
        assert re.findall(r"--requirement (\S+)", done.stdout.decode()) == installed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = project["optional-dependencies"]["prometheus"]
    name, bound = wanted.split(">=")
    assert numbers(locked("prometheus")[name]) >= numbers(bound)


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def test_the_image_is_made_of_what_it_copies_and_of_nothing_else() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", CONTAINERFILE, re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[1] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == {
        name.removesuffix("/container/locks") for name in names
    }
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
    recipe.start()
    probe = SERVICES["server"]["healthcheck"]["test"]
    assert probe[0] == "CMD"
    code, said = recipe.health(probe[1:], places["/keys"] / "probe.key")
    assert code == 0, said
    assert recipe.stop() == (75, [75, 75, 75])
    assert {SERVICES[name].get("restart") for name in SERVICES} == {
        None,
        "on-failure",
        "on-failure:20",
    }
    recipe.start()
    assert recipe.interrupt() == (0, [0, 0, 0])
    assert "resuming the run in" in recipe.server.err


@pytest.fixture
def containers(tmp_path: Path, require: Require) -> Iterator[Containers]:
    """Containers of the image, built here and now."""
    missing = [program for program in image.PROGRAMS if shutil.which(program) is None]
    require(not missing, f"an image takes {', '.join(missing)}: apt-get install buildah mmdebstrap")
    require(os.geteuid() == 0, "not root: cannot make a base image")
    engine = Engine(tmp_path)
    started = Containers(tmp_path, engine, SERVICES)
    try:
        engine.make_base(re.findall(r"^FROM (\S+)", CONTAINERFILE, re.MULTILINE)[0])
        engine.build(SERVICES["server"]["image"])
        yield started
    except image.MirrorError as error:
        pytest.skip(f"Debian's mirror cannot be reached: {error}")
    finally:
        started.close()
        engine.close()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_image_trains_as_nobody_on_a_read_only_root_to_the_same_bits(
    containers: Containers,
) -> None:
    brings = "cd /opt/manychar/share/manychar/deploy && find . -type f | sort"
    in_deploy = sorted(f"./{file.relative_to(DEPLOY)}" for file in files_of(DEPLOY))
    assert containers.shell("server", brings).splitlines() == in_deploy
    installed = containers.shell("server", "ls -d /opt/manychar/lib/python3*/site-packages/*-info")
    found = dict(re.findall(r"([^/\s]+)-([^-\s]+)\.dist-info", installed.replace("_", "-")))
    version = SERVICES["server"]["image"].split(":")[1]
    assert found == {**locked("image"), "manychar": version}
    for place in ("tmp", "opt/manychar", "keys"):
        refused = containers.shell("server", f"touch /{place}/file 2>&1 || true")
        assert "Read-only file system" in refused
    status = containers.shell("server", "id -u; grep -E 'NoNewPrivs|CapEff' /proc/self/status")
    assert status.split() == ["65532", "CapEff:", "0" * 16, "NoNewPrivs:", "1"]

    for _ in range(2):  # as at every `up`
        done = containers.start_in("keys", *SERVICES["keys"]["entrypoint"], *keys_command()).end()
        assert done.code == 0, done.err
    recipe = Recipe(
        containers,
        server=SERVICES["server"]["command"],
        workers=[SERVICES[f"worker-{i}"]["command"] for i in (1, 2, 3)],
        places={"/runs": Path("/runs")},
        worker_key=Path(SERVICES["worker-1"]["environment"]["MANYCHAR_KEY_FILE"]),
    )
    recipe.start()
    probe = SERVICES["server"]["healthcheck"]["test"][1:]
    code, said = recipe.health(probe, Path("/keys/probe.key"))
    assert code == 0, said
    assert recipe.stop() == (75, [75, 75, 75])
    recipe.start()
    assert recipe.interrupt() == (0, [0, 0, 0])
    verified = containers.run("verify", "/runs/run", seconds=300)
    assert verified.code == 0, verified.err


def keys_command() -> list[str]:
    command: list[str] = SERVICES["keys"]["command"]
    return command
