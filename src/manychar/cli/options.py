"""The options that only commands have, each declared once, and how a declaration is shown by typer.

The options of a run's definition and operation are declared beside their fields. A command takes
the options in its signature, and as `**flags` those of RUN_OPTIONS that name it among their roles;
a flag that was not given is not passed.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from manychar.network.client_identity import KEY_FILE_VARIABLE, KEYS_VARIABLE
from manychar.numerics.option import Formula, Option, checked, flag, option, options_of
from manychar.numerics.run_definition import Definition
from manychar.processes import log
from manychar.protocol.messages import KeyRole
from manychar.protocol.operation import Operation

DEFINING = "What is trained (the weights depend on these options and on nothing else)"
OPERATING = "How it is trained"
METAVARS = {int: "N", float: "X", Path: "PATH", bool: " ", str: "TEXT"}

StrPath = str | os.PathLike[str]


LOGGING = (log.LEVEL_VARIABLE, log.FORMAT_VARIABLE)
"""Child processes inherit these environment variables."""
RUNNING = ("train", "server")
LOGGED = (*RUNNING, "worker")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside:
    """The options of a run that are in neither definition nor operation."""

    run_dir: StrPath | None = option(
        None, "New directory for the run.", roles=RUNNING, without="runs/<time>-<run id>"
    )
    resume: StrPath | None = option(
        None, "Resume the run in this directory.", roles=RUNNING, without="a new run"
    )
    or_resume: bool = option(
        default=False, text="Resume the run in --run-dir if it exists already.", roles=RUNNING
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """Where a run is exported to."""

    tensorboard: StrPath | None = option(
        None, "Write TensorBoard event files to this directory.", roles=("train", "follow")
    )
    metrics_port: int | None = option(
        None,
        "Serve Prometheus metrics on this port of the loopback interface.",
        roles=("train", "follow"),
        least=0,
        most=65_535,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """What is logged, and how."""

    log_level: Literal["info", "warning", "error"] | None = option(
        None, "Lowest level that is logged.", roles=LOGGED, variable=LOGGING[0], without="info"
    )
    log_format: Literal["text", "json"] | None = option(
        None, "Text, or a JSON object a line.", roles=LOGGED, variable=LOGGING[1], without="text"
    )


RUN_OPTIONS = (Definition, Operation, Beside, Export, Logging)


def _texts(without: str) -> Any:
    text = f"UTF-8 text files, joined; - is standard input. Without TEXT: {without}."
    return typer.Argument(metavar="TEXT", help=text, show_default=False)


def _argument(metavar: str, text: str) -> Any:
    return typer.Argument(metavar=metavar, help=text)


TextFiles = Annotated[list[Path] | None, _texts("the language reference that ships with Python")]
Evaluated = Annotated[list[Path] | None, _texts("the run's validation text (--validation)")]
Endpoint = Annotated[str, _argument("ENDPOINT", "The server's endpoint: tcp://HOST:PORT.")]
Source = Annotated[str, _argument("SOURCE", "Run directory, checkpoint, or a server's endpoint.")]
Watched = Annotated[str, _argument("SOURCE", "A server's endpoint, or a run directory.")]
Run = Annotated[Path, _argument("RUN", "Run directory.")]
Runs = Annotated[list[Path], _argument("RUN", "Run directories.")]
BannedName = Annotated[str, _argument("NAME", "The banned worker's name, or its key's.")]
KeyDirectory = Annotated[Path, _argument("DIR", "The server's directory of keys.")]
KeyName = Annotated[str, _argument("NAME", "The client's name in the run.")]

Bind = Annotated[str, Option("Endpoint to listen on.", metavar="ENDPOINT")]
Keys = Annotated[
    Path | None,
    Option("Admit only clients with a key in this directory.", variable=KEYS_VARIABLE),
]
Key = Annotated[
    Path | None,
    Option("File with this machine's key ($MANYCHAR_KEY: the key).", variable=KEY_FILE_VARIABLE),
]
Insecure = Annotated[bool, Option("Listen where other machines can connect, without keys.")]
Child = Annotated[bool, Option("This process has a supervisor.", hidden=True)]
Role = Annotated[KeyRole, Option("An observer watches; an operator may also stop the run.")]
WorkerName = Annotated[
    str | None, Option("Name in the run.", metavar="NAME", without="<host>:<process id>")
]
Processes = Annotated[int, Option("Worker processes to run here.", least=1, most=1024)]
Cores = Annotated[
    int | None, Option("Processes that compute.", names=("--processes",), least=1, without="cores")
]
ConnectTimeout = Annotated[float, Option("Seconds to wait for the connection.", least=0)]
AsJson = Annotated[bool, Option("Print JSON.", names=("--json",))]
Watch = Annotated[bool, Option("Print the status again every second.")]
Output = Annotated[Path, Option("File to write.", names=("--output", "-o"))]
PlotAxis = Annotated[
    Literal["steps", "characters"],
    Option("Horizontal axis; characters where the batches of the runs differ."),
]
Length = Annotated[int, Option("Characters to sample.", least=0)]
Prime = Annotated[str, Option("Text to continue; it is printed first.")]
PrimeFile = Annotated[Path | None, Option("File with the text to continue.")]
Temperature = Annotated[
    float,
    Option("Below 1: likelier characters, above 1: rarer ones, 0: likeliest.", least=0, most=1e3),
]
TopK = Annotated[int, Option("Sample from the N likeliest characters; 0: from all.", least=0)]
SampleSeed = Annotated[
    int | None,
    Option("The same seed, the same text.", names=("--seed",), least=0, without="random"),
]
Follow = Annotated[bool, Option("Sample again each time that a server's weights have changed.")]
Change = Annotated[float, Option("With --follow: relative change that is enough.", least=0)]
Unknown = Annotated[
    Literal["refuse", "skip"], Option("What to do with characters that the model does not know.")
]
FirstStep = Annotated[int, Option("First step to compute again.", names=("--from",), least=0)]
LastStep = Annotated[
    int | None,
    Option("Last step to compute again.", names=("--to",), least=0, without="newest"),
]
TrialSteps = Annotated[int, Option("Steps of each trial.", names=("--steps",), least=3)]
Interval = Annotated[
    int, Option("Steps between comparisons.", names=("--checkpoint-every",), least=1)
]
Port = Annotated[int, Option("Port of the page; 0: any free port.", least=0, most=65_535)]
Host = Annotated[str, Option("Address that the page is served on.", metavar="HOST")]


def command_parameters(command: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return a command's parameters as typer reads them, all keyword-only."""
    found = []
    for parameter in inspect.signature(command).parameters.values():
        metadata = getattr(parameter.annotation, "__metadata__", (None,))[0]
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found += _run_options(command.__name__)
        elif isinstance(metadata, Option):
            kind = get_args(parameter.annotation)[0]
            found.append(_parameter(parameter.name, kind, metadata, parameter.default))
        else:
            found.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    return found


def _run_options(command: str) -> list[inspect.Parameter]:
    return [
        _parameter(name, field.type, option, None, shown=field.default, panel=panel)
        for each in RUN_OPTIONS
        for panel in [DEFINING if each is Definition else OPERATING]
        for name, (field, option) in options_of(each).items()
        if command in option.roles
    ]


def _parameter(
    name: str, kind: Any, option: Option, default: Any, *, shown: Any = None, panel: Any = None
) -> inspect.Parameter:
    """Return an option as typer reads it; every help text has the default in one form."""
    plain = _plain(kind)
    words = option.without or _in_words(default if shown is None else shown)
    words = "; ".join([words] * bool(words) + [f"${option.variable}"] * bool(option.variable))
    annotation = typer.Option(
        *(option.names or (flag(name),)),
        help=f"{option.help} \\[{words}]" if words else option.help,
        metavar=option.metavar or METAVARS.get(plain) or _choices(plain),
        show_default=False,
        envvar=option.variable,
        show_envvar=False,
        rich_help_panel=panel,
        hidden=option.hidden,
        callback=lambda value: _checked(name, value, plain, option),
    )
    takes = plain | None if default is None else plain
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[takes, annotation],
    )


def _plain(kind: Any) -> Any:
    """Return an option's type without None; a path is a Path."""
    if kind == StrPath | None:
        return Path
    if get_origin(kind) is Literal or isinstance(kind, type):
        return kind
    return next(each for each in get_args(kind) if each is not type(None))


def _choices(kind: Any) -> str:
    return "|".join(get_args(kind) or [member.value for member in kind])


def _in_words(default: Any) -> str:
    if default is None or default is False or default in ("", inspect.Parameter.empty):
        return ""
    return default.text if isinstance(default, Formula) else str(getattr(default, "value", default))


def _checked(name: str, value: Any, kind: Any, option: Option) -> Any:
    """Return a value within its bounds. Raises OptionError."""
    if value is not None and kind in (int, float):
        return checked((option.names or (name,))[0].lstrip("-"), value, kind, option)
    if value is not None and option.variable in LOGGING:
        os.environ[option.variable] = value
        log.configure()
    return value
