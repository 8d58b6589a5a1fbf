"""Floor 4: the command line. Each command checks its flags, pins the numerics, and calls a shell.

Data goes to standard output, everything else to standard error. What a user can cause is one line
and an exit code (runtime/errors.py). numpy is imported by the commands, after the pinning.
"""

import difflib
import io
import logging
import os
import re
import shutil
import signal
import sys
import threading
import traceback
from typing import Annotated, Any

import typer

from manychar import __version__
from manychar.cli import child_commands, evaluating, keeping, looking, passing_on, training
from manychar.cli.config_file import configurable, from_file
from manychar.cli.dashboard import dashboard
from manychar.processes import log
from manychar.processes.errors import (
    BAD_INPUT,
    CRASHED,
    INTERRUPTED,
    STOPPED,
    UserError,
    because,
)
from manychar.processes.parent_death import end_with_parent
from manychar.processes.signals import early

logger = logging.getLogger(__name__)


WIDTH_OF_HELP = 80
SOON = 0.02
_NOT_ONE_OF = re.compile(r"'(?P<wrong>[^']*)' is not one of (?P<right>.*)")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="min-char-rnn, trained by any number of processes to the same bytes.",
    epilog="Example: manychar train book.txt, then manychar sample runs/RUN",
)
for _command, _example in (
    (training.train, "manychar train book.txt --hidden 256 --workers 4 --steps 20000"),
    (training.server, "manychar server book.txt --bind tcp://server.lan:5577 --keys KEYS"),
    (training.worker, "manychar worker tcp://server.lan:5577 --key worker.key --processes 4"),
    (looking.sample, "manychar sample runs/RUN --prime 'Once ' --temperature 0.8 --length 500"),
    (evaluating.evaluate, "manychar evaluate runs/RUN other.txt --unknown skip"),
    (looking.verify, "manychar verify runs/RUN --from 1000 --to 2000"),
    (looking.equivalence, "manychar equivalence book.txt --hidden 64 --shards 8"),
    (looking.status, "manychar status tcp://127.0.0.1:5577 --watch"),
    (looking.health, "manychar health tcp://127.0.0.1:5577 --key probe.key"),
    (dashboard, "manychar dashboard tcp://127.0.0.1:5577"),
    (passing_on.export, "manychar export runs/RUN -o model.safetensors"),
    (passing_on.plot, "manychar plot runs/ONE runs/OTHER -o losses.svg"),
    (passing_on.follow, "manychar follow tcp://127.0.0.1:5577 --tensorboard logs"),
    (training.stop, "manychar stop tcp://127.0.0.1:5577"),
    (looking.doctor, "manychar doctor --json"),
):
    app.command(epilog=f"Example: {_example}")(configurable(_command))
app.add_typer(keeping.app, name="keys")
app.command(hidden=True)(child_commands.verify_share)


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"manychar {__version__}")
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit code. Errors that a user can cause are one line."""
    try:
        return _run(arguments)
    except Exception:  # a fault of this program: its traceback, and a code that says so
        traceback.print_exc()
        return CRASHED


def _run(arguments: list[str]) -> int:
    log.configure()
    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, wherever typer keeps it
    command = typer.main.get_command(app)
    if sys.stdout is None:  # closed before this began
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # texts in any language, whatever the locale
    if shutil.get_terminal_size().columns < WIDTH_OF_HELP:  # typer would cut the flags' names
        os.environ.setdefault("TERMINAL_WIDTH", str(WIDTH_OF_HELP))
    sys.unraisablehook = _not_lost
    signal.signal(signal.SIGINT, _ended)
    signal.signal(signal.SIGTERM, _ended)
    end_with_parent()
    try:
        code = command.main(arguments, prog_name="manychar", standalone_mode=False)
    except UserError as error:
        logger.error(f"manychar: {error}")
        return error.code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has no place
        logger.error(f"manychar: {error.filename or 'the system'}: {because(error)}")
        return BAD_INPUT
    except MemoryError as error:
        much = f" ({error})" if str(error) else ""
        logger.error(
            f"manychar: not enough memory for this{much}:"
            " a smaller --hidden, --streams or text needs less"
        )
        return BAD_INPUT
    except usage_error as error:
        if error.format_message():  # without arguments the help has been printed instead
            logger.error(_usage_line(error))
        return BAD_INPUT
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


class _Interrupted(KeyboardInterrupt):
    """Ctrl-C, by another name.

    Where a KeyboardInterrupt itself has passed an `exec` of a string (every dataclass is one),
    CPython 3.11 ends the process by SIGINT at its exit, though it was caught and a code was given.
    """


class _Stopped(SystemExit):
    """SIGTERM, likewise."""


def _ended(number: int, _frame: object) -> None:
    """End with everything cleaned up that was begun; a loop takes what Python swallowed."""
    early.append(number)
    raise _Interrupted if number == signal.SIGINT else _Stopped(STOPPED)


def _not_lost(ignored: Any) -> None:
    """Send a signal again whose exception Python could not raise: it came within a callback."""
    numbers = {_Interrupted: signal.SIGINT, _Stopped: signal.SIGTERM}
    if (number := numbers.get(ignored.exc_type)) is None:
        sys.__unraisablehook__(ignored)
        return
    again = threading.Timer(SOON, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _usage_line(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "manychar"
    message = error.format_message().replace("Value error, ", "").rstrip(".").replace("\n", " ")
    where = from_file(context, getattr(error, "param", None))
    return f"{path}: {where}{message}{_guess(message)}; see {path} --help"


def _guess(message: str) -> str:
    """Return a question for the right word where a value is none of those that a flag takes."""
    if (match := _NOT_ONE_OF.search(message)) is None:
        return ""
    near = difflib.get_close_matches(match["wrong"], re.findall(r"'(.*?)'", match["right"]), n=1)
    return f". Did you mean '{near[0]}'?" if near else ""
