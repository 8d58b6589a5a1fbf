"""The Python API, for notebooks: the command line's commands and flags as functions and arguments.

Whatever computes is a child process, as on the command line, so that its arithmetic is pinned
before numpy is imported, whatever this process has imported already. What a child says for a person
goes to `sys.stderr`; where it fails, its one line is the UserError's.
"""

import datetime
import inspect
import json
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from manychar.network.endpoints import is_endpoint
from manychar.processes.errors import UserError
from manychar.processes.subcommand import Command
from manychar.storage.metrics import read_metrics

LONGEST_NAME = 255

Text = str | os.PathLike[str] | Iterable[os.PathLike[str]] | None
"""A str is the text itself; a Path is a file, several are joined; None is the command's default."""


class Evaluation(NamedTuple):
    """How well a model predicts a text: nats and bits a character, over so many characters."""

    characters: int
    nats: float
    bits: float


class Model:
    """Weights to sample from and to judge: a run directory, a checkpoint, or a live server.

    Each call is a process of its own that reads them anew, so a run that goes on shows its newest.
    """

    def __init__(self, source: str, key: os.PathLike[str] | None = None) -> None:
        self.source = source
        self._key = [] if key is None else ["--key", os.fspath(key)]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r})"

    def sample(
        self,
        length: int = 2000,
        *,
        prime: str = "",
        prime_file: os.PathLike[str] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        patience: float = 10.0,
    ) -> str:
        """Return the prime and `length` characters that the model writes after it.

        `temperature` 0 takes the likeliest, `top_k` above 0 draws among the k likeliest only; the
        same `seed` writes the same text, without one it is drawn and said. A live server is waited
        for `patience` seconds. Raises UserError.
        """
        return "".join(
            self.stream(
                length,
                prime=prime,
                prime_file=prime_file,
                temperature=temperature,
                top_k=top_k,
                seed=seed,
                patience=patience,
            )
        )

    def stream(
        self,
        length: int = 2000,
        *,
        prime: str = "",
        prime_file: os.PathLike[str] | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        patience: float = 10.0,
    ) -> Iterator[str]:
        """Yield in pieces, as they are drawn, what `sample` returns."""
        flags = _flags(_changed(Model.stream, locals()))
        last = ""  # held back: after the last character comes a newline that is not the model's
        for piece in Command("sample", self.source, *self._key, *flags).output():
            text = last + piece
            last = text[-1]
            if text[:-1]:
                yield text[:-1]

    def evaluate(
        self,
        text: Text = None,
        *,
        unknown: Literal["refuse", "skip"] = "refuse",
        patience: float = 10.0,
    ) -> Evaluation:
        """Judge the model by a text; by None, of a run directory: what the run holds out.

        `unknown` says what becomes of characters that the model does not know. A live server is
        waited for `patience` seconds. Raises UserError.
        """
        words, given = _arguments(text)
        flags = [*_flags({"unknown": unknown, "patience": patience}), "--json"]
        command = Command("evaluate", self.source, *words, *self._key, *flags, given=given)
        return Evaluation(**json.loads("".join(command.output())))


class Run(Model):
    """A run directory: `path`, and what can be read from it, done with it, or done again."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        if not (self.path / "config.json").is_file():
            raise UserError(f"{path}: not a run directory")
        super().__init__(str(self.path))

    def metrics(self) -> list[dict[str, Any]]:
        """Return how it has gone: a dict every 100 steps, losses in nats a stream.

        `pandas.DataFrame(run.metrics())` makes a table of them. Raises UserError.
        """
        return read_metrics(self.path)

    def checkpoints(self) -> dict[int, Path]:
        """Return the checkpoint files by step, oldest first. Each can be given to `load`."""
        names = re.compile(r"step-(\d+)\.safetensors")
        found = {
            int(match[1]): path
            for path in (self.path / "checkpoints").iterdir()
            if (match := names.fullmatch(path.name))
        }
        return dict(sorted(found.items()))

    def verify(
        self, *, from_: int = 0, to: int | None = None, processes: int | None = None
    ) -> bool:
        """Do the run again in one place, and return whether every checkpoint has the same bits.

        What was found is said on `sys.stderr`. Raises UserError for a run that is damaged.
        """
        flags = _flags({"from": from_, "to": to, "processes": processes})
        command = Command("verify", self.source, *flags, accepted=(0, 1))
        print("".join(command.output()), end="", file=sys.stderr)
        return command.code == 0

    def resume(
        self,
        *,
        steps: int | None = None,
        checkpoint_every: int | None = None,
        keep_checkpoints: int | None = None,
        sample_every: int | None = None,
        sample_length: int | None = None,
        lease_timeout: float | None = None,
        on_disk_error: Literal["stop", "continue"] | None = None,
        stop_when_no_better: int | None = None,
        allow_mixed_numerics: bool | None = None,
        workers: int | None = None,
        tensorboard: str | os.PathLike[str] | None = None,
        metrics_port: int | None = None,
        log_level: Literal["info", "warning", "error"] | None = None,
    ) -> "Run":
        """Go on from the newest checkpoint, as before but for what is given; `steps` is the total.

        Raises UserError and KeyboardInterrupt as `train` does.
        """
        flags = _flags(_changed(Run.resume, locals()))
        _train(["--resume", self.source, *flags], endless=steps == 0)
        return self


def load(source: str | os.PathLike[str], *, key: str | os.PathLike[str] | None = None) -> Model:
    """Return the model of a run directory, a checkpoint file or a live server's endpoint.

    `key` is the file with this machine's key, for a server that asks for one. Raises UserError
    where there is no such file.
    """
    name = os.fspath(source)
    if not is_endpoint(name):
        if not Path(name).exists():
            raise UserError(f"{name}: no such file or directory")
        name = str(Path(name).absolute())
    return Model(name, None if key is None else Path(key))


def train(
    text: Text = None,
    *,
    hidden: int = 100,
    seq_length: int = 25,
    learning_rate: float = 0.1,
    clip: float = 5.0,
    shards: int = 4,
    streams: int = 16,
    dtype: Literal["float32", "float64"] = "float32",
    seed: int = 0,
    validation: float = 0.0,
    numerics: Literal["portable", "native"] = "portable",
    steps: int = 8_000,
    checkpoint_every: int = 1000,
    keep_checkpoints: int = 20,
    sample_every: int = 1000,
    sample_length: int = 200,
    lease_timeout: float = 2.0,
    on_disk_error: Literal["stop", "continue"] = "stop",
    stop_when_no_better: int = 0,
    allow_mixed_numerics: bool = False,
    workers: int | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    or_resume: bool = False,
    tensorboard: str | os.PathLike[str] | None = None,
    metrics_port: int | None = None,
    log_level: Literal["info", "warning", "error"] | None = None,
) -> Run:
    """Train on a text with a server and its workers on this machine, and return the run.

    The arguments are the flags of `manychar train`, whose `--help` explains each. A str is the text
    itself, a Path a file, several Paths are joined; None is the language reference inside Python.

    What is trained, the result depends on these alone: `hidden` units, `seq_length` characters a
    step, Adagrad's `learning_rate`, `clip` the bound of the gradient's elements, `shards` of
    `streams` streams each, `dtype`, `seed`, `validation` the share of the text's
    end that is held out, `numerics` portable or native.

    How: `steps` in all (0: until it is interrupted), `checkpoint_every`, `sample_every` and
    `stop_when_no_better` in steps and checkpoints, `keep_checkpoints`, `sample_length` characters,
    `lease_timeout` in seconds, `on_disk_error`, `allow_mixed_numerics`, `workers` (None: as many as
    shards, or cores), `run_dir` (None: a new one in runs/), `or_resume` where that one
    holds the run already; `tensorboard` a directory, `metrics_port` a port to pass it on to;
    `log_level`.

    Raises UserError with the one line that says what was wrong. An interrupt ends the step and
    writes a checkpoint before KeyboardInterrupt is raised; `Run(path).resume()` goes on.
    """
    path = _default_path() if run_dir is None else Path(run_dir).absolute()
    words, given = _arguments(text)
    flags = _flags(_changed(train, {**locals(), "text": None, "run_dir": path}))
    _train([*words, *flags], given=given, endless=steps == 0)
    return Run(path)


def _default_path() -> Path:
    now = datetime.datetime.now(datetime.UTC)
    return Path("runs").absolute() / f"{now:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


def _train(arguments: list[str], *, endless: bool, given: bytes | None = None) -> None:
    """Run `manychar train` to its end; its samples go to standard output."""
    try:
        for piece in Command("train", *arguments, given=given).output():
            sys.stdout.write(piece)
            sys.stdout.flush()
    except KeyboardInterrupt:
        if not endless:  # otherwise it is the way to end
            raise


def _arguments(text: Text) -> tuple[list[str], bytes | None]:
    """Return a text as (words of the command line, standard input). Raises UserError."""
    if text is None:
        return [], None
    if isinstance(text, str):
        if _is_file(text):
            raise UserError(f"{text!r} is a file, and a str is the text: give Path({text!r})")
        return ["-"], text.encode()
    paths = [text] if isinstance(text, os.PathLike) else list(text)
    if not paths:
        raise UserError("no text: the list of files is empty")
    if any(isinstance(path, str) for path in paths):
        raise TypeError("several texts are given as Paths: a str is a text itself")
    return [str(Path(path).absolute()) for path in paths], None


def _is_file(text: str) -> bool:
    return 0 < len(text) <= LONGEST_NAME and text.isprintable() and Path(text).is_file()


def _changed(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call that are not what the function's signature says already."""
    return {
        name: values[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and values[name] != parameter.default
    }


def _flags(values: Mapping[str, Any]) -> list[str]:
    """Return arguments as flags; what is None or False is not given."""
    flags = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags.append(f"{flag}={value}")
    return flags
