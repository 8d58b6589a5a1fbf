"""The Python API, for notebooks: the command line's commands and flags as functions and arguments.

Each call runs a command in a child process, so that its arithmetic is pinned before numpy is
imported. A child's log goes to `sys.stderr`; where it fails, its message is that of the UserError.
"""

import contextlib
import dataclasses
import datetime
import functools
import inspect
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from numbers import Real
from pathlib import Path
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, TypeVar

from manychar.fleet.launch_options import Reporting, RunPlace, instead_of
from manychar.fleet.training_command import Shown, TrainingCommand
from manychar.network.endpoints import is_endpoint
from manychar.numerics.option import StrPath, as_flags, check_types, options_of
from manychar.numerics.run_definition import Definition
from manychar.observability.notebook import html_of
from manychar.observability.sampling_options import Sampling
from manychar.processes import log
from manychar.processes.errors import UserError, path_given, user_errors
from manychar.processes.subcommand import Command, with_arguments
from manychar.protocol.run_operation import Operation
from manychar.storage.append_log import damage_of
from manychar.storage.file_format import CONFIG_NAME
from manychar.storage.journal import METRICS_NAME, read_metrics

Text = str | os.PathLike[str] | Iterable[os.PathLike[str]] | None
"""A str is the text itself; a Path is a file, several are joined; None is the command's default."""

Unknown = Literal["refuse", "skip"]
Seconds = float | None

_ELSEWHERE = {"resume": "manychar.Run(PATH).resume(…)", "key": "manychar.load(SOURCE, key=…)"}

P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeOptions(Shown, Reporting, Operation):
    """The arguments of `Run.resume`."""

    log_format: None = dataclasses.field(init=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(RunPlace, ResumeOptions, Definition):
    """The arguments of `train`."""

    text: Text = dataclasses.field(default=None, kw_only=False)
    corpus_sha256: str = dataclasses.field(init=False)
    initial_weights: None = dataclasses.field(init=False)
    resume: None = dataclasses.field(init=False)


def _with_options(options: Callable[P, object]) -> Callable[[Callable[..., T]], Callable[P, T]]:
    """Give a function the fields of a dataclass of options as arguments, and their help texts."""
    return functools.partial(_documented, options)


def _method_with_options(
    options: Callable[P, object],
) -> Callable[[Callable[..., T]], Callable[Concatenate[Any, P], T]]:
    """Do the same for a method."""
    return functools.partial(_documented, options)


def _documented(options: Any, function: Any) -> Any:
    first = [p for p in inspect.signature(function).parameters.values() if p.name == "self"]
    signature = inspect.Signature([*first, *inspect.signature(options).parameters.values()])

    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        for name in (each for each in named if each not in signature.parameters):
            near = with_arguments(instead_of(name, signature.parameters))
            instead = f". It is {_ELSEWHERE[name]}" if name in _ELSEWHERE else near
            raise TypeError(f"{function.__name__}() has no argument {name}{instead}")
        return function(**signature.bind(*arguments, **named).arguments)

    helps = {name: known.help for name, (_, known) in options_of(options).items()}
    lines = [f"\n{n}: {with_arguments(helps[n])}" for n in signature.parameters if n in helps]
    wrapped.__signature__ = signature  # type: ignore[attr-defined]
    wrapped.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n{''.join(lines)}"
    return wrapped


def _training(words: list[str], named: dict[str, Any], given: bytes = b"") -> TrainingCommand:
    shown = Shown(**{name: named.pop(name) for name in options_of(Shown) if name in named})
    flags = [*_flags(named), *["--no-compute"] * (named.get("compute") is False)]
    endless = named.get("steps") == 0
    return TrainingCommand([*words, *flags], shown, given=given, endless=endless)


def _flags(named: dict[str, Any]) -> list[str]:
    """Return arguments as words of a command line. Raises TypeError."""
    check_types(named, TrainOptions, Sampling)
    return as_flags(named)


class Evaluation(NamedTuple):
    """A model's loss on a text in nats and bits a character, and the number of characters."""

    characters: int
    nats: float
    bits: float


class Model:
    """Weights to sample from and to evaluate: a run directory, a checkpoint, or a live server.

    Each call is a process of its own that reads them again: a live run gives its newest.
    """

    def __init__(
        self, source: str, key: StrPath | None = None, connect_timeout: Seconds = None
    ) -> None:
        self.source = path_given("source", source)
        self._flags = [] if key is None else ["--key", path_given("key", key)]
        self._flags += _flags({"connect_timeout": connect_timeout})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    @_method_with_options(Sampling)
    def stream(self, **named: Any) -> Iterator[str]:
        """Yield in pieces, as they are drawn, what `sample` returns."""
        last = ""  # held back: after the last character comes a newline that is not the model's
        command = Command("sample", self.source, *self._flags, *_flags(named))
        for piece in command.output():
            text = last + piece
            last = text[-1]
            if text[:-1]:
                yield text[:-1]

    @_method_with_options(Sampling)
    def sample(self, **named: Any) -> str:
        """Return the prime and `length` characters that the model writes after it.

        A random seed is logged. Raises UserError.
        """
        return "".join(self.stream(**named))

    def evaluate(
        self, text: Text = None, *, unknown: Unknown = "refuse", connect_timeout: Seconds = None
    ) -> Evaluation:
        """Return the model's loss on a text; without one, on the run's validation text.

        Characters that the model does not know are refused, or skipped; `connect_timeout` is in
        seconds, else that of `load`. Raises UserError.
        """
        words, given = _arguments(text)
        flags = ["--json", *_flags({"unknown": unknown, "connect_timeout": connect_timeout})]
        command = Command("evaluate", self.source, *words, *self._flags, *flags, given=given)
        return Evaluation(**json.loads("".join(command.output())))


class Run(Model):
    """A run directory: its `path`, what can be read from it, and how to verify and resume it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _absolute("path", path)
        if not _is_run(self.path):
            raise UserError(f"{path}: not a run directory: no {CONFIG_NAME} in it")
        super().__init__(str(self.path))
        self._training: TrainingCommand | None = None

    def __fspath__(self) -> str:
        return self.source

    @property
    def step(self) -> int:
        """The step of the newest checkpoint, which may be the one that recovery is for."""
        from manychar.storage.run_directory import open_run  # noqa: PLC0415 - with numpy

        return open_run(self.path).newest_step()

    @property
    def definition(self) -> Definition:
        """What the result depends on: hyperparameters, seed, and the hash of the text."""
        from manychar.storage.run_directory import open_run  # noqa: PLC0415 - with numpy

        return open_run(self.path).definition

    def _repr_html_(self) -> str:
        return html_of(self.path)

    def is_alive(self) -> bool:
        """Whether a training that this object has started with `wait=False` still runs."""
        return self._training is not None and self._training.is_alive()

    def join(self, timeout: Seconds = None) -> "Run":
        """Wait for the end of such a training, or for `timeout` seconds; return the run.

        Raises UserError where it failed; after KeyboardInterrupt it goes on: join or stop it again.
        In its own callback, it returns at once. After a timeout, `is_alive()` is True.
        """
        allowed = f"timeout is {timeout!r:.40}; allowed: None or a number at least 0"
        if not isinstance(timeout, Real | None) or isinstance(timeout, bool):
            raise TypeError(allowed)
        if not (limit := math.inf if timeout is None else timeout) >= 0:
            raise UserError(allowed)
        began = time.monotonic()
        if self._training is not None:
            self._training.wait_for(lambda: time.monotonic() - began >= limit)
        return self

    def stop(self) -> "Run":
        """End the step of such a training, write a checkpoint, and wait as `join` does."""
        if self._training is not None:
            self._training.stop()
        return self.join()

    def metrics(self) -> list[dict[str, Any]]:
        """Return the run's history: a dict every 100 steps and at the end, with their loss.

        `pandas.DataFrame(run.metrics())` makes a table of them. Raises UserError.
        """
        if not (records := read_metrics(self.path)):
            for fault in damage_of(self.path / METRICS_NAME):
                raise UserError(fault)
        return records

    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoint files by step, oldest first, for `load`. Raises UserError."""
        from manychar.storage.checkpoint import list_checkpoints  # noqa: PLC0415 - with numpy
        from manychar.storage.run_directory import open_run  # noqa: PLC0415

        return dict(list_checkpoints(open_run(self.path).checkpoints))

    def verify(
        self, *, from_: int = 0, to: int | None = None, processes: int | None = None
    ) -> bool:
        """Train the run again on this machine; return whether every checkpoint has the same bits.

        The result is printed on `sys.stderr`. Raises UserError for a run that is damaged.
        """
        flags = _flags({"from": from_, "to": to, "processes": processes})
        command = Command("verify", self.source, *flags, accepted=frozenset({0, 1}))
        log.write_line("".join(command.output()).rstrip("\n"))
        return command.code == 0

    @_method_with_options(ResumeOptions)
    def resume(self, **named: Any) -> "Run":
        """Resume from the newest checkpoint, as before but for these options; return the run.

        Raises UserError and KeyboardInterrupt as `train` does.
        """
        if self.is_alive():
            raise UserError(f"{self.path}: it is being trained; call join() or stop() first")
        training = _training(["--resume", self.source], named)
        with _with_resume_note(self.path):
            training.begin(lambda: True)
        self._training = training
        return self


def load(source: StrPath, *, key: StrPath | None = None, connect_timeout: Seconds = None) -> Model:
    """Return the model of a run directory, a checkpoint file or a live server's endpoint.

    `key` is the file with this machine's key, for a server with keys; `connect_timeout` is in
    seconds, for each call of the model. Raises UserError.
    """
    name = path_given("source", source)
    if not is_endpoint(name):
        if not os.path.exists(name):  # noqa: PTH110 - raises nothing, whatever the name is
            raise UserError(f"{name}: no such file or directory")
        name = str(_absolute("source", name))
    return Model(name, key, connect_timeout)


@_with_options(TrainOptions)
def train(text: Text = None, **named: Any) -> Run:
    """Train on a text with a server and its workers on this machine, and return the run.

    A str is the text itself, a Path is a file, several Paths are joined; None is the language
    reference that ships with Python. The other arguments are the flags of `manychar train`.

    Raises UserError with the command line's message, in which flags are named as arguments. An
    interrupt ends the step and writes a checkpoint before KeyboardInterrupt is raised;
    `Run(path).resume()` goes on.
    """
    now = f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}"
    run_dir = named.get("run_dir")
    path = _absolute(
        "run_dir", f"runs/{now}-{secrets.token_hex(4)}" if run_dir is None else run_dir
    )
    words, given = _arguments(text)
    refused = _is_run(path) and not named.get("or_resume")
    training = _training(words, {**named, "run_dir": path}, given)
    with _with_resume_note(path):
        training.begin(lambda: _is_run(path) and not refused)
    run = Run(path)
    run._training = training
    return run


@contextlib.contextmanager
def _with_resume_note(path: Path) -> Iterator[None]:
    """Add to a KeyboardInterrupt how the run is resumed, where there is one by then."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if _is_run(path):
            interrupt.add_note(f"Run({str(path)!r}).resume() goes on with it")
        raise


def _is_run(path: Path) -> bool:
    return os.path.isfile(path / CONFIG_NAME)  # noqa: PTH113 - raises nothing


def _absolute(name: str, path: object) -> Path:
    with user_errors("the working directory", "change to another one"):
        return Path(path_given(name, path)).absolute()


def _arguments(text: Text) -> tuple[list[str], bytes]:
    """Return a text as (words of the command line, standard input). Raises UserError."""
    if text is None:
        return [], b""
    if isinstance(text, str):
        if not text:
            raise UserError("text: it is empty; give a text with some characters in it")
        if text.isprintable() and os.path.isfile(text):  # noqa: PTH113 - raises nothing
            raise UserError(f"{text!r} is a file, and a str is the text: give Path({text!r})")
        try:
            return ["-"], text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"text: no UTF-8 for the character at {error.start:,}") from None
    paths: list[Any] = list(text) if isinstance(text, Iterable) else [text]
    if not paths:
        raise UserError("no text: the list of files is empty")
    if not all(isinstance(path, os.PathLike) for path in paths):
        raise TypeError("a text is a str, a Path, or several Paths")
    return [str(_absolute("text", path)) for path in paths], b""
