"""The command line itself: help, version, defaults; Ctrl-C from the first moment on."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from manychar import __version__
from manychar.cli.app import app
from manychar.numerics.option import Formula, options_of
from manychar.numerics.run_definition import Definition
from manychar.protocol.run_operation import Operation
from manychar.storage.run_directory import open_run
from tests.commands import GENEROUS, SMALL, TWO_WORKERS, Commands, until
from tests.conftest import Require

GROUP: Any = typer.main.get_command(app)  # a click.Group, wherever typer keeps it
COMMANDS = sorted(name for name, command in GROUP.commands.items() if not command.hidden)
SENTENCE = re.compile(r"[A-Z].*\.( \\\[[^]]+\])?", re.DOTALL)
DEFAULTS = {name: field.default for name, (field, _) in options_of(Definition, Operation).items()}


@pytest.mark.parametrize("command", COMMANDS)
class TestHelp:
    @pytest.mark.long
    def test_of_a_command(self, manychar: Commands, command: str) -> None:
        done = manychar.run(command, "--help")
        assert done.code == 0
        assert done.err == ""
        assert f"manychar {command}" in done.out
        for parameter in GROUP.commands[command].params:
            if not getattr(parameter, "hidden", False) and parameter.name != "help":
                names = [*parameter.opts, parameter.metavar or parameter.name]
                assert any(name.lower() in done.out.lower() for name in names), parameter.name

    def test_of_each_flag_is_a_sentence_and_the_default_in_brackets(self, command: str) -> None:
        assert GROUP.commands[command].help
        for parameter in GROUP.commands[command].params:
            if not getattr(parameter, "hidden", False):
                assert SENTENCE.fullmatch(parameter.help or ""), f"{command} {parameter.name}"
                if parameter.param_type_name == "option":  # typer, or its metavar, shows its type
                    assert (parameter.metavar or "<").startswith("<"), f"{command} {parameter.name}"


@pytest.mark.parametrize(("command", "count"), [("train", 21), ("server", 19), ("equivalence", 11)])
def test_help_shows_the_declared_defaults(command: str, count: int) -> None:
    checked = 0
    for parameter in GROUP.commands[command].params:
        name = parameter.name or ""
        own = {"equivalence": ("steps", "checkpoint_every"), "server": ("compute",)}
        if name in DEFAULTS and name not in own.get(command, ()):
            default = DEFAULTS[name]
            words = default.text if isinstance(default, Formula) else default
            expected = "" if default is False else f"\\[{words}]"
            assert (parameter.help or "").endswith(expected), f"{command} --{name}"
            assert parameter.default is None, f"{command} --{name} has its default twice"
            checked += 1
    assert checked == count


def test_a_flag_means_the_same_wherever_a_run_is_made() -> None:
    train, server = (
        {parameter.name: parameter.help for parameter in GROUP.commands[command].params}
        for command in ("train", "server")
    )
    # A server alone computes only where it is told to, and binds where others find it.
    both = train.keys() & server.keys() - {"compute", "bind"}
    assert len(both) >= 15
    assert {name: train[name] for name in both} == {name: server[name] for name in both}


ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.execv(sys.executable, [sys.executable, "-m", "manychar", *sys.argv[1:]])
"""


@pytest.mark.long
def test_hints_of_a_run(manychar: Commands, text: Path, require: Require) -> None:
    require(hasattr(os, "sched_setaffinity"), "a system that says how many cores may be used")
    train = ("train", str(text), *SMALL, "--steps", "1", "--sample-length", "0")
    one_core = ("-c", ON_ONE_CORE)
    validation = "validation loss: none; a new run with --validation 0.1 keeps text for it"

    done = manychar.run(*train, "--run-dir", "two", "--workers", "2", program=one_core)
    assert done.code == 0, done.err
    hint = "--workers 2: no faster than --workers 1, one for each usable core"
    assert [done.err.splitlines().count(line) for line in (hint, validation)] == [1, 1]
    flags = ("--run-dir", "one", "--workers", "1", "--validation", "0.1")
    done = manychar.run(*train, *flags, program=one_core)
    assert done.code == 0, done.err
    assert not re.search("no faster|validation loss: none", done.err)
    pool = ("worker", "tcp://127.0.0.1:1", "--connect-timeout", "0.1", "--processes", "2")
    done = manychar.run(*pool, program=one_core)
    assert "--processes 2: no faster than --processes 1" in done.err


def test_version(manychar: Commands) -> None:
    done = manychar.run("--version")
    assert (done.code, done.out, done.err) == (0, f"manychar {__version__}\n", "")


def test_without_arguments_the_help_is_shown(manychar: Commands) -> None:
    done = manychar.run()
    assert "Usage" in done.out + done.err
    assert all(command in done.out + done.err for command in COMMANDS)
    assert "Traceback" not in done.err


def test_the_installed_command() -> None:
    installed = Path(sys.executable).with_name("manychar")
    done = subprocess.run([str(installed), "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"manychar {__version__}\n"


def test_a_default_run_has_the_defaults(manychar: Commands, text: Path) -> None:
    done = manychar.run("train", str(text), "--steps", "1", "--workers", "1", "--run-dir", "run")
    assert done.code == 0, done.err
    config = (manychar.directory / "run" / "config.json").read_text()
    values = {**(said := json.loads(config))["definition"], **said["operation"]}
    definition = Definition(corpus_sha256="0" * 64)
    operation = Operation(steps=1, workers=1, compute=True)
    defaults = {**dataclasses.asdict(definition), **dataclasses.asdict(operation)}
    for name in DEFAULTS.keys() - {"steps"}:
        assert values[name] == defaults[name], name


class TestCtrlC:
    """Ctrl-C at any moment is no traceback. The moments are those at which a module is loaded."""

    @pytest.mark.parametrize(
        "moment",
        [
            "manychar.cli",
            "typer",
            "manychar.fleet.local_fleet",
            "numpy",
            "manychar.storage.run_directory",
            "safetensors",
            "rich.progress",
        ],
    )
    def test_while_it_starts(
        self, manychar: Commands, text: Path, tmp_path: Path, moment: str
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import os, signal, sys\n"
            "class Interrupt:\n"
            "    def find_spec(self, name, path, target=None):\n"
            f"        if name == {moment!r} and 'train' in sys.orig_argv:\n"
            "            os.kill(os.getpid(), signal.SIGINT)\n"
            "sys.meta_path.insert(0, Interrupt())\n"
        )
        done = manychar.run(
            *("train", str(text), *SMALL, "--steps", "3"), env={"PYTHONPATH": str(tmp_path)}
        )
        assert done.code == 130, done
        assert "Traceback" not in done.err
        manychar.expect_nobody()
        drafts = [path for path in manychar.directory.rglob("*") if path.name.endswith(".tmp")]
        assert not drafts

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
    def test_within_a_callback(
        self, manychar: Commands, trained: Path, tmp_path: Path, number: int
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import os, sys, weakref\n"
            "class Interrupt:\n"
            "    def find_spec(self, name, path, target=None):\n"
            "        wanted = 'manychar.observability.model_source'\n"
            "        if name == wanted and 'sample' in sys.orig_argv:\n"
            "            one = Interrupt()\n"
            f"            seen = weakref.ref(one, lambda _: os.kill(os.getpid(), {int(number)}))\n"
            "            del one\n"
            "sys.meta_path.insert(0, Interrupt())\n"
        )
        done = manychar.run(
            *("sample", str(trained), "--length", "1000000000"), env={"PYTHONPATH": str(tmp_path)}
        )
        assert done.code == (130 if number == signal.SIGINT else 75), done.err
        assert "Traceback" not in done.err

    def test_while_a_string_is_executed(
        self, manychar: Commands, text: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import dataclasses, sys\n"
            "SIGINT = 'import os, signal; os.kill(os.getpid(), signal.SIGINT)\\n'\n"
            "def interrupted(text, *scopes):\n"
            "    now = 'train' in sys.orig_argv and 'manychar.fleet.local_fleet' in sys.modules\n"
            "    exec(SIGINT * now + text, *scopes)\n"
            "dataclasses.exec = interrupted\n"
        )
        done = manychar.run(
            *("train", str(text), *SMALL, "--steps", "3"), env={"PYTHONPATH": str(tmp_path)}
        )
        assert done.code == 130, done
        assert "step 0/" not in done.err

    @pytest.mark.parametrize(
        "line", ["characters, ", "run directory", "step 0/", "worker-1 has joined"]
    )
    @pytest.mark.long
    def test_when_it_has_said_something(self, manychar: Commands, text: Path, line: str) -> None:
        running = manychar.start(
            *("train", str(text), *SMALL, "--steps", "1000000", "--run-dir", "run")
        )
        running.wait_for(line)
        running.interrupt()
        done = running.end()
        manychar.expect_nobody()
        assert done.code == 130, done
        assert "Traceback" not in done.err
        next_step = str(open_run(manychar.directory / "run").newest_step() + 1)
        again = manychar.run("train", "--resume", "run", "--steps", next_step)
        assert again.code == 0, again.err

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
    def test_while_a_run_directory_is_made(
        self, manychar: Commands, text: Path, number: int
    ) -> None:
        running = manychar.start(
            *("train", str(text), "--hidden", "1500", "--steps", "1", "--run-dir", "run")
        )
        until(lambda: list(manychar.directory.iterdir()), "the draft of a run directory")
        running.send(number)
        done = running.end()
        manychar.expect_nobody()
        assert done.code in (130, 75, -signal.SIGTERM), done
        assert "Traceback" not in done.err
        left = [path.name for path in manychar.directory.iterdir() if path.name != "run"]
        assert not left

    def test_while_a_server_waits_for_workers(self, manychar: Commands, text: Path) -> None:
        server = manychar.start("server", str(text), *SMALL, "--bind", "ipc://meet")
        server.wait_for(r"waiting for workers \(0 of up to 4\)")
        server.interrupt()
        done = server.end()
        assert done.code == 130
        assert "Traceback" not in done.err

    def test_while_train_waits_for_its_workers(
        self, manychar: Commands, text: Path, tmp_path: Path
    ) -> None:
        planted = "import signal, sys\nif 'worker' in sys.orig_argv: signal.pause()\n"
        (tmp_path / "sitecustomize.py").write_text(planted)
        running = manychar.start(
            *("train", str(text), *SMALL, "--shards", "8", *TWO_WORKERS),
            env={"PYTHONPATH": str(tmp_path)},
        )
        running.wait_for(r"waiting for workers \(0 of 2\)")
        running.interrupt()
        assert running.end().code == 130

    def test_while_a_sample_waits_for_a_server(self, manychar: Commands) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            silent.settimeout(GENEROUS)
            running = manychar.start("sample", f"tcp://127.0.0.1:{silent.getsockname()[1]}")
            silent.accept()[0].close()
            running.interrupt()
            done = running.end()
        assert done.code == 130
        assert "Traceback" not in done.err
