"""The options that command line and Python API share, beside a run's definition and operation."""

import dataclasses
import os
from typing import Literal

from manychar.numerics.option import option
from manychar.numerics.run_definition import Definition
from manychar.processes.log import FORMAT_VARIABLE, LEVEL_VARIABLE
from manychar.protocol.operation import Operation

StrPath = str | os.PathLike[str]

RUNNING = ("train", "server")
LOGGED = (*RUNNING, "worker")
EXPORTING = ("train", "follow")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlace:
    """Where a run is made, or the run that is resumed."""

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
        None, "Write TensorBoard event files to this directory.", roles=EXPORTING
    )
    metrics_port: int | None = option(
        None,
        "Serve Prometheus metrics on this port of the loopback interface.",
        roles=EXPORTING,
        least=0,
        most=65_535,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Logging:
    """What is logged, and how. Child processes inherit the variables."""

    log_level: Literal["info", "warning", "error"] | None = option(
        None, "Lowest level that is logged.", roles=LOGGED, variable=LEVEL_VARIABLE, without="info"
    )
    log_format: Literal["text", "json"] | None = option(
        None, "Text, or JSON lines.", roles=LOGGED, variable=FORMAT_VARIABLE, without="text"
    )


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How text is sampled from a model."""

    length: int = option(2000, "Characters to sample.", roles=("sample",), least=0)
    _: dataclasses.KW_ONLY
    prime: str = option("", "Text to continue; it is printed first.", roles=("sample",))
    prime_file: StrPath | None = option(None, "File with the text to continue.", roles=("sample",))
    temperature: float = option(
        1.0,
        "Below 1: likelier characters, above 1: rarer ones, 0: likeliest.",
        roles=("sample",),
        least=0,
        most=1e3,
    )
    top_k: int = option(
        0, "Sample from the N likeliest characters; 0: from all.", roles=("sample",), least=0
    )
    seed: int | None = option(
        None, "The same seed, the same text.", roles=("sample",), least=0, without="random"
    )
    connect_timeout: float = option(
        10.0, "Seconds to wait for the connection.", roles=("sample",), least=0
    )


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


RUN_OPTIONS = (Definition, Operation, RunPlace, Export, Logging, Sampling)
