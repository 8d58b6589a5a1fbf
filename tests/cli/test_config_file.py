"""--config and --print-config: the same words as the flags, in a file."""

import json
import shlex
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from manychar.fleet.launch_options import RUN_OPTIONS
from manychar.numerics.option import flag, options_of
from tests.cli.test_cli import COMMANDS
from tests.commands import SMALL, Commands
from tests.conftest import Require
from tests.texts import small_text


@pytest.mark.long
def test_what_is_printed_can_be_read_again(manychar: Commands, text: Path) -> None:
    flags = (*SMALL, "--learning-rate", "0.05", "--dtype", "float64", "--steps", "12")
    printed = manychar.run("train", str(text), *flags, "--print-config")
    assert (printed.code, printed.err) == (0, "")
    assert not list(manychar.directory.iterdir())
    (manychar.directory / "run.toml").write_text(printed.out)
    again = manychar.run("train", "--config", "run.toml", "--print-config")
    assert again.out == printed.out
    done = manychar.run("train", "--config", "run.toml", "--run-dir", "run")
    assert done.code == 0, done.err
    config = json.loads((manychar.directory / "run" / "config.json").read_text())
    assert config["definition"]["hidden"] == 8
    assert config["definition"]["learning_rate"] == 0.05
    assert config["definition"]["dtype"] == "float64"
    assert config["operation"]["steps"] == 12


def test_any_name_is_printed(manychar: Commands, text: Path) -> None:
    printed = manychar.run("train", str(text), "--run-dir", "run \U0001f600", "--print-config")
    assert tomllib.loads(printed.out)["run_dir"] == "run \U0001f600"
    printed = manychar.run("train", str(text), "--run-dir", "run \udcff", "--print-config")
    assert (printed.code, printed.err) == (0, "")


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    manychar: Commands,
) -> None:
    (manychar.directory / "c.toml").write_text('hidden = 7\nseed = 3\nlog-format = "json"\n')
    env = {"MANYCHAR_LOG_FORMAT": "text"}
    printed = manychar.run("train", "--config", "c.toml", "--seed", "4", "--print-config", env=env)
    assert "hidden = 7\n" in printed.out
    assert "seed = 4\n" in printed.out
    assert 'log_format = "text"\n' in printed.out
    assert "clip = 5.0\n" in printed.out


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("hiden = 3", "hiden is no flag of this command. Did you mean hidden?"),
        ("lr = 3", "lr is no flag of this command. Its name is --learning-rate"),
        ("hidden = ", "not TOML"),
        ("hidden = 'many'", "c.toml: hidden = \"many\": --hidden is 'many'; allowed: a whole"),
        ("hidden = [1, 2]", "c.toml: hidden = [1, 2]: --hidden is [1, 2]; allowed: a whole"),
        ("hidden = true", "c.toml: hidden = true: --hidden is True; allowed: a whole number"),
        ("hidden = '8'", "c.toml: hidden = \"8\": --hidden is '8'; allowed: a whole number"),
        ("hidden = 8.0", "c.toml: hidden = 8.0: --hidden is 8.0; allowed: a whole number"),
        ("clip = '5'", "c.toml: clip = \"5\": --clip is '5'; allowed: a finite number above 0"),
        ("dtype = 32", "c.toml: dtype = 32: --dtype is 32; allowed: float32 or float64"),
        ("bind = 3", "c.toml: bind = 3: --bind is 3; allowed: str"),
        ("bind = true", "c.toml: bind = true: --bind is True; allowed: str"),
        ("bind = ['a']", "c.toml: bind = [\"a\"]: --bind is ['a']; allowed: str"),
        ("bind = 1979-05-27", 'c.toml: bind = "1979-05-27": --bind is datetime.date(1979, 5, 27)'),
        ("run_dir = 3", "c.toml: run_dir = 3: Invalid value for '--run-dir': not a string"),
        ("or_resume = 'yes'", 'c.toml: or_resume = "yes": allowed: true or false'),
        ("or_resume = 1", "c.toml: or_resume = 1: allowed: true or false"),
        ("compute = 'no'", 'c.toml: compute = "no": allowed: true or false'),
        ("patience = 3", "patience is no flag of this command"),
        ("hidden = 0", "c.toml: hidden = 0: --hidden is 0; allowed: a whole number"),
        ("config = 'c.toml'", "config is no flag of this command"),
        (None, "c.toml: no such file or directory"),
    ],
)
def test_a_bad_file_is_one_line(
    manychar: Commands, text: Path, file: str | None, complaint: str
) -> None:
    if file is not None:
        (manychar.directory / "c.toml").write_text(file)
    done = manychar.run("train", str(text), "--config", "c.toml")
    assert done.code == 2
    assert complaint in done.err
    assert done.err.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "keys"])
def test_every_command_prints_its_flags(manychar: Commands, command: str) -> None:
    run, endpoint = ["RUN"], ["tcp://127.0.0.1:1"]
    needed = dict.fromkeys(("verify", "sample", "evaluate", "dashboard"), run)
    needed |= dict.fromkeys(("worker", "relay", "status", "stop", "health", "follow"), endpoint)
    needed |= {name: [*run, "-o", "FILE"] for name in ("export", "plot")}
    needed["unban"] = [*run, "worker-1"]
    done = manychar.run(command, *needed.get(command, []), "--print-config")
    assert done.code == 0, done.err
    assert all(" =" in line for line in done.out.splitlines())


def test_a_number_in_quotes_is_text_in_a_file_alone(manychar: Commands, text: Path) -> None:
    (manychar.directory / "c.toml").write_text("hidden = '3'\nmetrics_port = 0\n")
    done = manychar.run("train", str(text), "--config", "c.toml", "--print-config")
    assert (done.code, "c.toml: hidden = \"3\": --hidden is '3'; allowed" in done.err) == (2, True)
    done = manychar.run("train", "--config", "c.toml", "--hidden", "4", "--print-config")
    assert (done.code, "hidden = 4\n" in done.out) == (0, True), done


def test_a_bad_value_of_the_command_line_does_not_name_the_file(
    manychar: Commands, text: Path
) -> None:
    (manychar.directory / "c.toml").write_text("hidden = 3\n")
    done = manychar.run("train", str(text), "--config", "c.toml", "--hidden", "many")
    assert done.code == 2
    assert "c.toml" not in done.err


OTHERS = """
--lr Its name is --learning-rate
--batch_size A step reads --shards times --streams sequences: give --streams
--epochs Training is counted in steps: give --steps
--layers The model has one layer: give --hidden
--num-layers The model has one layer: give --hidden
--rnn-size Its name is --hidden
-rnn_size Its name is --hidden
-hidden Did you mean hidden?
--device It computes on CPUs: give --workers, and --numerics=native
"""


@pytest.mark.long
def test_what_was_mistyped_is_guessed(manychar: Commands) -> None:
    assert "Did you mean 'train'?" in manychar.run("trian").err
    assert "--hidden" in manychar.run("train", "--hiden", "3").err
    wrong = manychar.run("train", "--numerics", "portabel", "--steps", "1").err
    assert "--numerics is 'portabel'; allowed: portable or native" in wrong
    renamed = manychar.run("status", "tcp://127.0.0.1:1", "--patience", "3").err
    assert "No such option: --patience. Its name is now --connect-timeout" in renamed
    for line in OTHERS.strip().splitlines():
        unknown, hint = line.split(maxsplit=1)
        see = " See" if hint.endswith("?") else "; see"
        assert f"No such option: {unknown}. {hint}{see}" in manychar.run("train", unknown, "3").err
    assert "--learning-rate" not in manychar.run("plot", "--lr", "3").err
    never_had_it = manychar.run("train", "--patience", "3").err
    assert "No such option: --patience" in never_had_it
    beside = manychar.run("server", "--keys", "KEYS", "--key", "FILE").err
    assert "No such option: --key" in beside
    assert "No such option: --keys" not in beside, "that is one"
    assert "connect-timeout" not in never_had_it
    assert "Did you mean 'revoke'?" in manychar.run("keys", "revok", "K", "n").err


@pytest.mark.parametrize("name", ["-dash.txt", "--dash.txt", "-a=b.txt", "-a b"])
def test_a_file_whose_name_begins_as_a_flag_does_is_named(manychar: Commands, name: str) -> None:
    no_file = manychar.run("train", name).err
    assert "for the file" not in no_file
    (manychar.directory / name).write_text(small_text())
    path = shlex.quote(f"./{name}")
    expected = f"No such option: {name}; for the file, write {path}; see `manychar train --help`\n"
    done = manychar.run("train", name)
    assert (done.code, done.err) == (2, f"manychar train: {expected}")
    done = manychar.run("train", f"./{name}", *SMALL, "--steps", "1", "--workers", "1")
    assert done.code == 0, done.err


def test_a_narrow_terminal_cuts_no_flag(manychar: Commands) -> None:
    shown = manychar.run("train", "--help", env={"COLUMNS": "40"}).out
    for name, (_, option) in options_of(*RUN_OPTIONS).items():
        assert "train" not in option.roles or f"{flag(name)} " in shown


COMPLETE = """
eval "$("$0" --show-completion)"
COMP_WORDS=(manychar veri) COMP_CWORD=1
_manychar_completion "$0"
echo "${COMPREPLY[@]}"
"""


def test_a_shell_completes(manychar: Commands, require: Require) -> None:
    require(shutil.which("bash") is not None, "a shell to complete in")
    program = ("-c", "import os, sys; os.execvp('bash', ['bash', *sys.argv[1:]])")
    installed = Path(sys.executable).with_name("manychar")
    done = manychar.run("-c", COMPLETE, str(installed), program=program)
    assert done.out.split() == ["verify"], done.err
