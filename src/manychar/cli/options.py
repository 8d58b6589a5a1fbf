"""The flags that several commands share: one name, one help text, one default everywhere.

A flag that was not given is None: what it is then is said by `Definition` and `Operation`, and
shown in the help.
"""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from manychar.network.client_identity import KEY_FILE_VARIABLE
from manychar.processes import log
from manychar.processes.log import FORMAT_VARIABLE, LEVEL_VARIABLE

DEFINING = "What is trained (the result depends on these, and on nothing else)"
OPERATING = "How it is carried out"


_METAVARS = {int: "N", float: "X", Path: "PATH"}


def _flag(panel: str, kind: Any, text: str, default: object = "", **limits: Any) -> Any:
    """Return the annotation of a flag that need not be given."""
    option = typer.Option(
        help=f"{text} \\[{default}]" if default != "" else text,
        show_default=False,
        rich_help_panel=panel,
        metavar=_METAVARS.get(kind),
        **limits,
    )
    return Annotated[kind | None, option]


_defining = functools.partial(_flag, DEFINING)
_operating = functools.partial(_flag, OPERATING)

DEFINITION: dict[str, Any] = {
    "hidden": _defining(int, "Hidden units.", 100),
    "seq_length": _defining(int, "Characters a step.", 25),
    "learning_rate": _defining(float, "Adagrad's rate.", 0.1),
    "clip": _defining(float, "Bound of each element of the mean gradient.", 5.0),
    "shards": _defining(int, "Units of parallel work; at most as many workers.", 4),
    "streams": _defining(int, "Streams of text in a shard.", 16),
    "dtype": _defining(Literal["float32", "float64"], "Precision.", "float32"),
    "seed": _defining(int, "Seed of the first weights and of samples.", 0),
    "validation": _defining(float, "Share of the text's end that is held out to judge by.", 0.0),
    "numerics": _defining(
        Literal["portable", "native"],
        "portable: the same bits on every x86-64 CPU; native: faster.",
        "portable",
    ),
}

TRIAL: dict[str, Any] = {
    "steps": _operating(int, "Steps to train, each way.", 600),
    "checkpoint_every": _operating(int, "Steps between comparisons.", 150),
}

OPERATION: dict[str, Any] = {
    "steps": _operating(int, "Steps in all; 0: until Ctrl-C.", 8_000),
    "checkpoint_every": _operating(int, "Steps; 0: first and last only.", 1000),
    "keep_checkpoints": _operating(int, "How many, beside step 0; 0: all.", 20),
    "sample_every": _operating(int, "Steps; 0: only at the end.", 1000),
    "sample_length": _operating(int, "Characters; 0: no samples.", 200),
    "lease_timeout": _operating(float, "Seconds of silence after which a worker is lost.", 2.0),
    "on_disk_error": _operating(
        Literal["stop", "continue"], "When a checkpoint cannot be written.", "stop"
    ),
    "stop_when_no_better": _operating(
        int, "End after so many checkpoints without a new best; 0: never.", 0
    ),
    "allow_mixed_numerics": Annotated[
        bool | None,
        typer.Option(
            "--allow-mixed-numerics",
            help="Let in workers whose arithmetic gives other bits; the run is marked as such.",
            rich_help_panel=OPERATING,
        ),
    ],
    "run_dir": _operating(Path, "A new directory for the run.", "runs/<time>-<run id>"),
    "resume": _operating(Path, "Go on with the run in this directory.", "a new run"),
    "or_resume": Annotated[
        bool | None,
        typer.Option(
            "--or-resume",
            help="Where --run-dir holds this run already, go on with it.",
            rich_help_panel=OPERATING,
        ),
    ],
}

WORKERS: dict[str, Any] = {
    "workers": _operating(int, "Worker processes.", "as many as shards, or cores"),
}

SINKS: dict[str, Any] = {
    "tensorboard": _operating(Path, "Write TensorBoard event files into this directory."),
    "metrics_port": _operating(
        int, "Serve Prometheus metrics at this port, on loopback.", min=0, max=65_535
    ),
}


def _logging(variable: str, kind: Any, text: str, default: str) -> Any:
    """Return the annotation of a flag that is passed on to children in the environment."""

    def pass_on(value: str | None) -> str | None:
        if value is not None:
            os.environ[variable] = value
            log.configure()
        return value

    option = typer.Option(
        help=f"{text} \\[{default}]",
        show_default=False,
        rich_help_panel=OPERATING,
        envvar=variable,
        show_envvar=False,
        callback=pass_on,
    )
    return Annotated[kind | None, option]


LOGGING: dict[str, Any] = {
    "log_level": _logging(
        LEVEL_VARIABLE, Literal["info", "warning", "error"], "The least that is said.", "info"
    ),
    "log_format": _logging(
        FORMAT_VARIABLE, Literal["text", "json"], "text, or a JSON object a line.", "text"
    ),
}

Text = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="TEXT",
        help="UTF-8 text files, joined; - is standard input."
        " Without TEXT: the language reference that ships inside Python.",
        show_default=False,
    ),
]
Patience = Annotated[float, typer.Option(help="Seconds to wait for a server.", min=0.0)]
Key = Annotated[
    Path | None,
    typer.Option(
        "--key",
        envvar=KEY_FILE_VARIABLE,
        help="The file with this machine's key; its content can be in $MANYCHAR_KEY instead.",
        show_default="no key",
    ),
]
Child = Annotated[bool, typer.Option("--child", hidden=True)]


def with_flags(*groups: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these flags; it takes those that were given as `**flags`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [
            parameter
            for parameter in inspect.signature(command).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
            )
            for group in groups
            for name, annotation in group.items()
        ]
        names = {parameter.name for parameter in shared}

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            kept = {k: v for k, v in values.items() if k not in names or v is not None}
            command(**kept)

        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *shared)
        ]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
        return wrapped

    return decorate
