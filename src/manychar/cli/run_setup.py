"""From a command's flags to a run directory, and from the end of a run to an exit code."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from manychar.cli.console import log_failure
from manychar.numerics.option import counted, flag, options_of, resolve
from manychar.numerics.run_definition import Definition
from manychar.processes.errors import UserError
from manychar.processes.log import logger
from manychar.processes.numerics_pinning import pin
from manychar.processes.signals import STOPS, before_end_at_once, end_by_exception, handle
from manychar.processes.subcommand import as_pasted, is_by_api, program
from manychar.processes.usable_cores import usable_cores
from manychar.protocol.run_operation import Operation, pays_to_compute
from manychar.storage.file_format import CONFIG_NAME
from manychar.storage.server_address import another_server, is_served

if TYPE_CHECKING:
    from manychar.numerics.model import Model
    from manychar.protocol.effects import Finish
    from manychar.storage.corpus_file import Corpus
    from manychar.storage.run_directory import RunDirectory


def given(options: type, flags: dict[str, Any]) -> dict[str, Any]:
    """Return those of the flags that are options of a dataclass."""
    return {name: flags[name] for name in options_of(options) if name in flags}


def run_of(
    path: Path | None, text: list[Path] | None, flags: dict[str, Any], *, by_parent: bool = False
) -> "RunDirectory":
    """Open the run to resume or make a new one, as `pin_run` says. Raises UserError, OptionError.

    `by_parent`: the flags are those of a process that has checked them.
    """
    from manychar.storage.run_directory import RUNS, create_run, open_run

    if path is None:
        handle(*STOPS, by=end_by_exception)  # a run directory that is half made is removed
        with defined(text, flags, flags.get("run_dir") or RUNS) as (definition, corpus):
            others = {**vars(definition), "cores": usable_cores()}
            operation = Operation(**resolve(Operation, flags, **others))
            directory = create_run(flags.get("run_dir"), definition, corpus, operation)
            used, size = counted(corpus.characters, "character"), len(corpus.vocabulary)
            is_new = corpus.initial_weights is None
            known = f"{size} distinct" if is_new else f"of the checkpoint's vocabulary of {size}"
            mark = ", a byte order mark among them" * ("\ufeff" in corpus.vocabulary)
            logger.info(f"{corpus.source}: {used}, {known}{mark}")
        logger.info(f"run directory: {directory.path}")
        return directory
    directory = open_run(path)
    _check_same(directory, text, flags)
    if flags.get("or_resume"):
        logger.info(f"resuming the run in {path}")
    is_resume = "resume" in flags and not by_parent  # --or-resume: a supervisor's ends well
    changed = given(Operation, flags)
    if "workers" in changed:
        changed.setdefault("compute", pays_to_compute(changed["workers"], usable_cores()))
    operation = dataclasses.replace(directory.operation, **changed)
    if 0 < operation.steps < (step := directory.newest_step()):
        at = f"the run in {path} is at step {step:,} already"
        if "steps" in flags and is_resume:
            raise UserError(f"--steps={flags['steps']}: {at}; give more --steps")
        logger.info(f"{at}: --steps {operation.steps} asks for nothing more")
        operation = dataclasses.replace(operation, steps=step)
    directory = dataclasses.replace(directory, operation=operation)
    if operation.stop_when_no_better and is_resume:
        _check_not_ended(directory)
    return directory


def _check_not_ended(run: "RunDirectory") -> None:
    """Raise UserError where early stopping has ended the run, and its last loss is known."""
    from manychar.storage.validation_log import early_stopping_of

    early_stopping, step = early_stopping_of(run), run.newest_checkpoint()[0].state.step
    is_ended = early_stopping.ends_at(step) and not early_stopping.awaited
    if is_ended and run.facts.resume_before is None:
        stopped = f"the run in {run.path} was stopped early at step {step:,}"
        raise UserError(f"{stopped}; give --stop-when-no-better 0 to go on with it")


def pin_run(flags: dict[str, Any], *, by_parent: bool = False) -> Path | None:
    """Pin the numerics of the run; return the directory to resume, if any.

    Raises UserError for flags that contradict each other, and where a server holds the directory.
    `by_parent` is as in `run_of`.
    """
    path: Path | None = flags.get("resume")
    if flags.get("or_resume"):
        if path is not None:
            raise UserError("--resume and --or-resume: give one of them")
        if "run_dir" not in flags:
            raise UserError("--or-resume: needs --run-dir, the same one at every start")
        if (flags["run_dir"] / CONFIG_NAME).exists():
            path = flags["run_dir"]
    elif path is not None and flags.get("run_dir", path).absolute() != path.absolute():
        raise UserError("--run-dir: leave it out: --resume names the run's directory")
    pin(numerics_of(path) if path else flags.get("numerics", "portable"))
    if path is not None and not by_parent and is_served(path):  # it has the port, too
        raise another_server(path)
    return path


def _check_same(run: "RunDirectory", text: list[Path] | None, flags: dict[str, Any]) -> None:
    """Raise UserError where these flags define another run."""
    from manychar.storage.corpus_file import read_corpus

    path, (values, model) = run.path, _defining(flags)
    advice = "or choose another --run-dir" if flags.get("or_resume") else "or begin a new run"
    for name, value in dataclasses.asdict(run.definition).items():
        if values.get(name, value) != value:
            named = flag(name.replace("initial_weights", "init_from"))
            raise UserError(
                f"{named}={values[name]}: the run in {path} has {named}={value};"
                f" leave it out, {advice}"
            )
    if text:
        with read_corpus(text, path, model, flags.get("unknown", "refuse")) as corpus:
            if corpus.sha256 != run.definition.corpus_sha256:
                raise UserError(f"text: the run in {path} has another one; leave it out, {advice}")


@contextlib.contextmanager
def defined(
    text: list[Path] | None, flags: dict[str, Any], directory: Path
) -> "Iterator[tuple[Definition, Corpus]]":
    """Read the text, yield (definition, corpus); standard input is copied to `directory`'s disk."""
    import numpy as np

    from manychar.protocol.dimensions import check_sizes
    from manychar.protocol.run_spec import dimensions_of
    from manychar.storage.corpus_file import read_corpus
    from manychar.storage.run_directory import streams_of

    values, model = _defining(flags)
    definition = Definition(corpus_sha256="0" * 64, **values)
    check_sizes(dimensions_of(definition, 1))  # before a long text is read
    disk = next(each for each in (directory, *directory.parents) if each.is_dir())
    with read_corpus(text or [], disk, model, flags.get("unknown", "refuse")) as corpus:
        definition = Definition(corpus_sha256=corpus.sha256, **values)
        check_sizes(dimensions_of(definition, len(corpus.vocabulary)))
        streams_of(definition, np.broadcast_to(np.uint8(0), corpus.characters))  # long enough?
        yield definition, corpus


def _defining(flags: dict[str, Any]) -> "tuple[dict[str, Any], Model | None]":
    """Return the values of a definition, and the model of --init-from. Raises UserError."""
    from manychar.numerics.training_step import weights_sha256
    from manychar.observability.model_source import load

    values, path = given(Definition, flags), flags.get("init_from")
    if path is None:
        if flags.get("unknown") == "skip":
            why = "the vocabulary of a new run has every character of its text"
            raise UserError(f"--unknown=skip: needs --init-from; {why}")
        return values, None
    if words := [flag(name) for name in ("hidden", "dtype") if name in values]:
        raise UserError(f"{', '.join(words)}: {path} has its own; leave it out with --init-from")
    weights, vocabulary = load(str(path), None, connect_timeout=0)
    values |= {"hidden": weights.hidden_size, "dtype": weights.flat.dtype.name}
    return values | {"initial_weights": weights_sha256(weights)}, (weights, vocabulary)


def numerics_of(path: Path) -> str:
    """Return a run's numerics, before numpy is imported to read the rest."""
    try:
        config = json.loads((path / CONFIG_NAME).read_bytes())
        return "native" if config["definition"]["numerics"] == "native" else "portable"
    except (OSError, ValueError, KeyError, TypeError):
        return "portable"  # opening the run reports what is wrong with it


def resume_line(directory: "RunDirectory", again: str) -> str:
    """Return the line that says how to resume a run by the command `again`.

    end_at_once prints it, too.
    """
    line = f"resume: {again} --resume {as_pasted(directory.path)}"
    before_end_at_once(line)
    return line


def exit_with(finish: "Finish", directory: "RunDirectory", *, again: str) -> None:
    """Log how the run ended, how to resume it and how to sample; exit with its code."""
    from manychar.storage.checkpoint import checkpoint_path
    from manychar.storage.validation_log import best_checkpoint, early_stopping_of

    path = as_pasted(directory.path)
    if finish.code:
        log_failure(finish.reason, finish.code)
    else:
        logger.info(finish.reason)
    if not directory.resumable():  # it was removed meanwhile
        raise typer.Exit(finish.code)
    if not finish.code and not directory.definition.validation:
        logger.info("validation loss: none; a new run with --validation 0.1 keeps text for it")
    if is_by_api():  # where a Run does what follows
        raise typer.Exit(finish.code)
    early_stopping, step = early_stopping_of(directory), directory.newest_step()
    if finish.resumable:
        more = " --stop-when-no-better 0" * early_stopping.ends_at(step)
        more += " --steps N" * (not finish.code and 0 < directory.operation.steps <= step)
        logger.info(f"{resume_line(directory, again)}{more}")
    logger.info(f"sample from it: {program()} sample {path}")
    if best := best_checkpoint(directory, early_stopping.validation_losses):  # not step 0
        best_path = as_pasted(checkpoint_path(directory.checkpoints, best))
        logger.info(f"or from the best that was validated: {program()} sample {best_path}")
    raise typer.Exit(finish.code)
