"""Floor 3: the command line. Each command checks its flags, pins the numerics, and calls a shell.

Data goes to standard output, everything else to standard error. What a user can cause is one line
and an exit code (runtime/errors.py). numpy is imported by the commands, after the pinning.
"""

import io
import os
import signal
import sys
from typing import Annotated, Any

import typer

from manychar import __version__
from manychar.cli import evaluating, keeping, looking, passing_on, training
from manychar.cli.speaking import complain
from manychar.runtime.errors import BAD_INPUT, INTERRUPTED, STOPPED, UserError, because
from manychar.runtime.wake import early

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="min-char-rnn, trained by any number of processes to the same bytes.",
)
for _command in (
    training.train,
    training.server,
    training.worker,
    looking.sample,
    evaluating.evaluate,
    looking.verify,
    looking.equivalence,
    looking.status,
    training.stop,
    passing_on.export,
    passing_on.plot,
    looking.doctor,
):
    app.command()(_command)
app.add_typer(keeping.app, name="keys")


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"manychar {__version__}")
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit code. Errors that a user can cause are one line."""
    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, wherever typer keeps it
    command = typer.main.get_command(app)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # texts in any language, whatever the locale
    signal.signal(signal.SIGINT, _ended)
    signal.signal(signal.SIGTERM, _ended)
    try:
        code = command.main(arguments, prog_name="manychar", standalone_mode=False)
    except UserError as error:
        complain(f"manychar: {error}")
        return error.code
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left has no place
        complain(f"manychar: {error.filename or 'the system'}: {because(error)}")
        return BAD_INPUT
    except MemoryError:
        complain(
            "manychar: not enough memory for this: a smaller --hidden, --streams or text needs less"
        )
        return BAD_INPUT
    except usage_error as error:
        if error.format_message():  # without arguments the help has been printed instead
            complain(_usage_line(error))
        return BAD_INPUT
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _ended(number: int, _frame: object) -> None:
    """End with everything cleaned up that was begun.

    Where Python swallows the exception (in a callback, say), the next loop finds the signal.
    """
    early.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(STOPPED)


def _usage_line(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "manychar"
    return f"{path}: {error.format_message()}; see {path} --help".replace("\n", " ")
