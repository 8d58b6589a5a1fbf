"""The commands of the program, their errors and exit codes.

Data goes to standard output, everything else to standard error. numpy is imported by the commands,
after they have pinned the numerics.
"""

import io
import json
import os
import re
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from manychar import __version__
from manychar.cli import keys, server, status, verify
from manychar.cli.config_file import configurable, from_file
from manychar.cli.console import STANDARD_OUTPUT, discard_output, log_failure
from manychar.cli.dashboard import dashboard
from manychar.cli.doctor import doctor
from manychar.cli.equivalence import equivalence
from manychar.cli.evaluate import evaluate
from manychar.cli.export import export
from manychar.cli.follow import follow
from manychar.cli.plan import plan
from manychar.cli.plot import plot
from manychar.cli.relay import relay
from manychar.cli.runs import runs
from manychar.cli.sample import sample
from manychar.cli.stop import stop
from manychar.cli.train import train
from manychar.cli.unban import unban
from manychar.cli.worker import worker
from manychar.fleet.launch_options import instead_of
from manychar.numerics.option import OptionError
from manychar.processes import log
from manychar.processes.child_process import pause_on_sigtstp
from manychar.processes.errors import BAD_INPUT, CRASHED, UserError, because, code_of
from manychar.processes.log import logger
from manychar.processes.parent_death import end_with_parent
from manychar.processes.subcommand import ARGUMENTS_ON_STDIN, as_pasted

WIDTH_OF_HELP = 80
WITHOUT_ANSI = "", "unknown", "vt52"  # terminals whose sequences are others, or none

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train min-char-rnn on any number of worker processes and get exactly the weights that one"
    " process would give, even if workers or the server crash.",
    epilog="Example: manychar train book.txt, then manychar sample runs/RUN",
)
_keys = typer.Typer(
    no_args_is_help=True,
    help="Manage the keys of a server that other machines can reach.",
    epilog="Example: manychar keys create KEYS",
)


def _add(
    command: Callable[..., None],
    example: str,
    *,
    group: typer.Typer = app,
    name: str | None = None,
    numerics: str | None = "portable",
) -> None:
    """Add a command to the program; without `numerics`, it pins its own."""
    words = "manychar keys" if group is _keys else "manychar"
    name = name or command.__name__
    epilog = f"Example: {words} {name} {example}"
    group.command(name, epilog=epilog)(configurable(command, numerics=numerics))


_add(train, "book.txt --hidden 256 --workers 4 --steps 20000", numerics=None)
_add(server.server, "book.txt --bind tcp://server.lan:5577 --keys KEYS", numerics=None)
_add(worker, "tcp://server.lan:5577 --key worker.key --processes 4", numerics=None)
_add(relay, "tcp://server.lan:5577 --key relay.key --bind tcp://rack7.lan:5578 --keys KEYS")
_add(sample, "runs/RUN --prime 'Once ' --temperature 0.8 --length 500")
_add(evaluate, "runs/RUN other.txt --unknown skip", numerics=None)
_add(verify.verify, "runs/RUN --from 1000 --to 2000", numerics=None)
_add(equivalence, "book.txt --hidden 64 --shards 8", numerics=None)
_add(runs, "runs")
_add(status.status, "runs/RUN --watch")
_add(status.health, "tcp://127.0.0.1:5577 --key probe.key")
_add(dashboard, "runs/RUN")
_add(plan, "--workers 256 --hidden 512 --streams 32")
_add(export, "runs/RUN -o model.safetensors")
_add(plot, "runs/ONE runs/OTHER -o losses.svg")
_add(follow, "runs/RUN --metrics-port 9464")
_add(stop, "runs/RUN")
_add(unban, "runs/RUN worker-2")
_add(doctor, "> machine.json", numerics=None)
_add(keys.create, "KEYS", group=_keys)
_add(keys.add, "KEYS olga --role observer", group=_keys)
_add(keys.revoke, "KEYS olga", group=_keys)
_add(keys.show, "KEYS --json", group=_keys, name="list")
app.add_typer(_keys, name="keys")
app.command(hidden=True)(server.validate)
app.command(hidden=True)(verify.verify_share)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    end_with_parent()
    pause_on_sigtstp()
    if version:
        typer.echo(f"manychar {__version__}")
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit code. Errors that a user can cause are one line."""
    log.configure()
    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, wherever typer keeps it
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # texts in any language, whatever the locale
    if os.environ.get("COLUMNS") == "0":  # rich would print nothing
        del os.environ["COLUMNS"]
    if os.environ.get("TERM", "") in WITHOUT_ANSI:
        os.environ["TERM"] = "dumb"  # as rich calls those that it writes plain text to
    if shutil.get_terminal_size().columns < WIDTH_OF_HELP:  # typer would cut the flags' names
        os.environ.setdefault("TERMINAL_WIDTH", str(WIDTH_OF_HELP))
    if ARGUMENTS_ON_STDIN in arguments:
        arguments = [arguments[0], *json.loads(sys.stdin.buffer.readline())]
    try:
        command = typer.main.get_command(app)
        code = command.main(arguments, prog_name="manychar", standalone_mode=False)
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        code = 0  # the reader of the output has enough
    except (UserError, OptionError) as error:
        return log_failure(_explained(str(error)), getattr(error, "code", BAD_INPUT))
    except OSError as error:
        discard_output()
        where = error.filename or STANDARD_OUTPUT
        code = BAD_INPUT if where == STANDARD_OUTPUT else code_of(error)  # no run has failed
        return log_failure(_explained(f"{where}: {because(error)}"), code)
    except MemoryError as error:
        detail = f" ({error})" if str(error) else ""
        advice = "a smaller --hidden, --streams or text needs less"
        logger.error(f"manychar: not enough memory for this{detail}: {advice}")
        return BAD_INPUT
    except usage_error as error:
        if error.format_message():  # without arguments the help has been printed instead
            logger.error(_usage_line(error, arguments))
        return BAD_INPUT
    except Exception:  # a fault of this program: its traceback, and a code that says so
        traceback.print_exc()
        return CRASHED
    return code if isinstance(code, int) else 0


def _explained(text: str) -> str:
    """Return an error's text; where the current directory was removed, what explains it."""
    if not text.startswith("/") and re.search(r"\bno (such|runs?|config)\b", text):
        try:
            Path.cwd()
        except FileNotFoundError:
            what = text.partition(": ")[0]
            return f"{what}: the current directory does not exist any more; cd to another one"
    return text


def _usage_line(error: Any, arguments: list[str]) -> str:
    context = getattr(error, "ctx", None)
    words = arguments[: 2 if arguments[0] == "keys" else 1]  # the parser of flags names no command
    called = " ".join(["manychar", *(each for each in words if not each.startswith("-"))])
    path = context.command_path if context is not None else called
    message = error.format_message().rstrip(".").replace("\n", " ")
    flags = [each.name for each in context.command.params] if context is not None else []
    name = getattr(error, "option_name", "")  # -r of -rnn_size
    given = [each.split("=")[0] for each in arguments]
    is_short = bool(name) and not name.startswith("--")
    longer = [each for each in given if is_short and each.startswith(name)]
    word = longer[0] if longer and name not in given else name
    files = (each for each in arguments if name and each.startswith(name) and os.path.lexists(each))
    if file := next(files, ""):
        message = f"No such option: {file}; for the file, write {as_pasted(Path(file))}"
    elif instead := instead_of(word, flags, near=word != name):  # of a flag, `message` has it
        message = f"No such option: {word}{instead}"
    where = from_file(context, getattr(error, "param", None))
    if error.message.startswith("--"):  # a value that is not allowed, in the words of its option
        return f"manychar: {where}{error.message}"
    see = " See" if message.endswith("?") else "; see"
    return f"{path}: {where}{message}{see} `{path} --help`"
