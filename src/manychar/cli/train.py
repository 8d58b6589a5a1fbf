"""The command `train`; from a command's flags to a run directory."""

import dataclasses
import json
import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manychar.cli.console import program
from manychar.cli.options import TextFiles
from manychar.fleet.launch_options import Export
from manychar.numerics.option import flag, options_of, resolve
from manychar.numerics.run_definition import Definition
from manychar.observability.exporters import check as check_exporters
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin
from manychar.protocol.operation import Operation

if TYPE_CHECKING:
    from manychar.protocol.effects import Finish
    from manychar.storage.corpus_file import Corpus
    from manychar.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def train(text: TextFiles = None, **flags: Any) -> None:
    """Train with a server and its workers on this machine."""
    wanted = given(Export, flags)
    check_exporters(**wanted)
    directory = run_of(text, flags)
    _exit_if_finished(directory)
    from manychar.fleet.local_fleet import LocalFleet
    from manychar.observability.exporters import exporters
    from manychar.observability.progress import display_of

    workers, shards = directory.operation.workers, directory.definition.shards
    if workers > shards:
        logger.info(
            f"{workers} workers for {shards} shards: the others stand by;"
            f" --shards {workers} would give each of them work"
        )
    with display_of(directory) as screen, exporters(**wanted) as beside:
        finish = LocalFleet(directory, screen, exporters=beside).run()
    exit_with(finish, directory, again="train")


def given(options: type, flags: dict[str, Any]) -> dict[str, Any]:
    """Return those of the flags that are options of a dataclass."""
    return {name: flags[name] for name in options_of(options) if name in flags}


def run_of(text: list[Path] | None, flags: dict[str, Any]) -> "RunDirectory":
    """Make the run directory of these flags, or open an existing one; pins the numerics."""
    if flags.get("or_resume") and _exists(flags):
        return _resume_if_same(text, flags)
    if "resume" in flags:
        defining = sorted((options_of(Definition).keys() | {"run_dir"}) & flags.keys())
        if words := ["TEXT"] * bool(text) + list(map(flag, defining)):
            raise UserError(
                f"{', '.join(words)}: a resumed run keeps its definition;"
                " leave it out beside --resume"
            )
        return _open(flags["resume"], flags)
    pin(flags.get("numerics", "portable"))
    from manychar.storage.run_directory import create_run

    definition, corpus = define(text, flags)
    operation = operation_of(flags, shards=definition.shards)
    directory = create_run(flags.get("run_dir"), definition, corpus, operation)
    logger.info(
        f"{corpus.source}: {len(corpus.ids):,} characters, {len(corpus.vocabulary)} distinct"
    )
    logger.info(f"run directory: {directory.path}")
    return directory


def define(text: list[Path] | None, flags: dict[str, Any]) -> "tuple[Definition, Corpus]":
    """Read the text and return (definition, corpus). Raises UserError and OptionError."""
    from manychar.storage.corpus_file import read_corpus
    from manychar.storage.run_directory import streams_of

    values = given(Definition, flags)
    Definition(corpus_sha256="0" * 64, **values)  # before a long text is read
    corpus = read_corpus(text or [])
    definition = Definition(corpus_sha256=corpus.sha256, **values)
    streams_of(definition, corpus.ids)
    return definition, corpus


def operation_of(flags: dict[str, Any], *, shards: int) -> Operation:
    """Return the operation of a new run. Raises OptionError."""
    return Operation(**resolve(Operation, flags, shards=shards, cores=usable_cores()))


def numerics_of(path: Path) -> str:
    """Return a run's numerics, before numpy is imported to read the rest."""
    try:
        config = json.loads((path / "config.json").read_bytes())
        return "native" if config["definition"]["numerics"] == "native" else "portable"
    except (OSError, ValueError, KeyError, TypeError):
        return "portable"  # opening the run reports what is wrong with it


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _exit_if_finished(directory: "RunDirectory") -> None:
    """Exit where a resumed run is finished: its server would end before it could say so."""
    from manychar.storage.validation_log import is_over, read_validation_losses

    try:
        checkpoint, damaged = directory.newest_checkpoint()
    except UserError:
        return  # the server reports what is wrong
    step, steps = checkpoint.state.step, directory.operation.steps
    if damaged or directory.facts.resume_before is not None:
        return
    if directory.definition.validation and step not in read_validation_losses(directory):
        return
    if 0 < steps <= step or is_over(directory, step):
        logger.info(f"finished at step {step:,}; --steps N or --stop-when-no-better 0 continues")
        raise typer.Exit


def exit_with(finish: "Finish", directory: "RunDirectory", *, again: str) -> None:
    """Log how the run ended, how to resume it and how to sample; exit with its code."""
    from manychar.storage.validation_log import BEST_NAME

    path = shlex.quote(str(directory.path))
    if finish.code:
        logger.error(f"manychar: {finish.reason}")
    else:
        logger.info(finish.reason)
    if finish.code or directory.operation.steps == 0:
        logger.info(f"resume: {program()} {again} --resume {path}")
    logger.info(f"sample from it: {program()} sample {path}")
    best = directory.checkpoints / BEST_NAME
    if best.exists():
        logger.info(f"or from the best: {program()} sample {shlex.quote(str(best))}")
    raise typer.Exit(finish.code)


def _open(path: Path, flags: dict[str, Any]) -> "RunDirectory":
    """Return the run in a directory, with its operation changed by these flags."""
    pin(numerics_of(path))
    from manychar.storage.run_directory import open_run

    directory = open_run(path)
    operation = dataclasses.replace(directory.operation, **given(Operation, flags))
    return dataclasses.replace(directory, operation=operation)


def _exists(flags: dict[str, Any]) -> bool:
    """Whether --run-dir holds a run to resume. Raises UserError for flags that contradict."""
    if "resume" in flags:
        raise UserError("--resume and --or-resume: give one of them")
    if "run_dir" not in flags:
        raise UserError("--or-resume: needs --run-dir, the same one at every start")
    path: Path = flags["run_dir"]
    return (path / "config.json").exists()


def _resume_if_same(text: list[Path] | None, flags: dict[str, Any]) -> "RunDirectory":
    """Open the run in --run-dir, after a check that these flags define it."""
    path = flags["run_dir"]
    directory = _open(path, flags)
    from manychar.storage.corpus_file import read_corpus

    for name, value in dataclasses.asdict(directory.definition).items():
        if flags.get(name, value) != value:
            raise UserError(
                f"{flag(name)} {flags[name]}: the run in {path} has {flag(name)} {value};"
                " leave it out, or choose another --run-dir"
            )
    if text and read_corpus(text).sha256 != directory.definition.corpus_sha256:
        raise UserError(f"{path}: its run has another TEXT; choose another --run-dir")
    logger.info(f"resuming the run in {path}")
    return directory
