"""The options that command line and Python API share, beside a run's definition and operation."""

import dataclasses
import difflib
import functools
from collections.abc import Collection
from typing import Literal

from manychar.numerics.option import StrPath, flag, option
from manychar.numerics.run_definition import Definition
from manychar.observability.sampling_options import Sampling
from manychar.processes.log import FORMAT_VARIABLE, LEVEL_VARIABLE
from manychar.protocol.run_operation import MOST_WORKERS, Operation

RUNNING = ("train", "server")
# An option of this program, the names of its counterparts in char-rnn, torch-rnn and nanoGPT, and
# the advice; without one, the advice is the name.
_OTHERS = (
    ("connect_timeout", "patience", "Its name is now --connect-timeout"),
    ("learning_rate", "lr", ""),
    ("hidden", "rnn_size hidden_size n_embd", ""),
    ("seq_length", "block_size", ""),
    ("clip", "grad_clip", ""),
    ("warmup", "warmup_iters", ""),
    ("run_dir", "out_dir checkpoint_dir checkpoint_name", ""),
    ("prime", "start start_text primetext", ""),
    ("length", "max_new_tokens", ""),
    ("streams", "batch_size", "A step reads --shards times --streams sequences: give --streams"),
    ("steps", "epochs max_epochs max_iters", "Training is counted in steps: give --steps"),
    ("hidden", "layers num_layers n_layer n_head", "The model has one layer: give --hidden"),
    ("hidden", "model model_type", "The model is a plain RNN: give --hidden"),
    ("validation", "dropout", "There is none: give --validation and --stop-when-no-better"),
    ("learning_rate", "optimizer", "It is Adagrad: give --learning-rate"),
    (
        "numerics",
        "device gpu gpuid cuda",
        "It computes on CPUs: give --workers, and --numerics=native",
    ),
)
INSTEAD = {
    other: (own, text or f"Its name is {flag(own)}")
    for own, others, text in _OTHERS
    for other in others.split()
}
STARTED_WORKERS = "MANYCHAR_STARTED_WORKERS"  # tells the server of `train` how many there will be

_defining = functools.partial(option, roles=(*RUNNING, "equivalence"))
_running = functools.partial(option, roles=RUNNING)
_logged = functools.partial(option, roles=(*RUNNING, "worker", "relay"))
_exporting = functools.partial(option, roles=("train", "follow"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunPlace:
    """What a run begins with, where it is made, or the run that is resumed."""

    init_from: StrPath | None = _defining(
        None, "Checkpoint whose weights and vocabulary the run starts with."
    )
    unknown: Literal["refuse", "skip"] = _defining(
        "refuse", "What to do with characters that --init-from does not know."
    )
    run_dir: StrPath | None = _running(
        None, "New directory for the run.", without="runs/<time>-<run id>"
    )
    resume: StrPath | None = _running(
        None, "Resume the run in this directory.", without="a new run"
    )
    or_resume: bool = _running(
        default=False, text="Resume the run in --run-dir if it exists already."
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reporting:
    """How a command's processes are connected, and what is logged and exported, how, and where.

    Child processes inherit the variables.
    """

    log_level: Literal["info", "warning", "error"] | None = _logged(
        None,
        "Lowest level that is logged: info, warning or error.",
        variable=LEVEL_VARIABLE,
        without="info",
    )
    log_format: Literal["text", "json"] | None = _logged(
        None, "Text, or JSON lines.", variable=FORMAT_VARIABLE, without="text"
    )
    log_every: float | None = _running(
        None,
        "Seconds between two lines of progress.",
        least=0.1,
        most=86_400,
        without="2, later up to 30",
    )
    bind: str | None = option(
        None, "Endpoint to listen on.", roles=("train",), without="one that is this user's alone"
    )
    relays: int | None = option(
        None,
        "Relays between the server and the workers; with relays the server does not compute.",
        roles=("train",),
        least=0,
        most=MOST_WORKERS // 2,
        without="as many as are predicted to shorten a step",
    )
    insecure: bool = _exporting(
        default=False, text="Listen where other machines can connect, without keys."
    )
    metrics_port: int | None = _exporting(
        None, "Serve Prometheus metrics on this port.", least=0, most=65_535
    )
    metrics_host: str = _exporting("127.0.0.1", "Address to serve them on.")


def instead_of(name: str, known: Collection[str], *, near: bool = True) -> str:
    """Return a hint at what there is instead of an unknown option, where one is known or `near`."""
    needed, instead = INSTEAD.get(name.lstrip("-").replace("-", "_"), ("", ""))
    similar = difflib.get_close_matches(name.lstrip("-"), known) if near else []
    names = f"Did you mean {' or '.join(similar)}?" if similar else ""
    return f". {instead if needed in known else names}".removesuffix(". ")


RUN_OPTIONS = (Definition, Operation, RunPlace, Reporting, Sampling)
