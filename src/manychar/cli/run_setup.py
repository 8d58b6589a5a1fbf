"""From flags to a run: read the text, define the run, make its directory or take up an old one."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manychar.network.endpoints import is_endpoint
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin
from manychar.storage.atomic_files import LARGEST_CONFIG, parsed, read_file

if TYPE_CHECKING:
    from manychar.numerics.model import Parameters
    from manychar.numerics.run_definition import Definition
    from manychar.observability.progress import Display
    from manychar.protocol.run_spec import Operation
    from manychar.storage.corpus_file import Corpus
    from manychar.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def take_run(text: list[Path] | None, flags: dict[str, Any]) -> "RunDirectory":
    """Make the run directory of these flags, or take up an old one; pins the numerics."""
    resume = flags.get("resume")
    if flags.get("or_resume") and _is_begun(flags):
        return _go_on_as_defined(text, flags)
    if resume is None:
        pin(flags.get("numerics", "portable"))
        from manychar.storage.run_directory import create_run

        definition, corpus = define(text, flags)
        workers = min(definition.shards, usable_cores())
        chosen = operation_of({"workers": workers, **flags})
        directory = create_run(flags.get("run_dir"), definition, corpus, chosen)
        logger.info(
            f"{corpus.source}: {len(corpus.ids):,} characters, {len(corpus.vocabulary)} distinct"
        )
        logger.info(f"run directory: {directory.path}")
        return directory
    pin(numerics_of(resume))
    from manychar.numerics.run_definition import Definition

    defining = {field.name for field in dataclasses.fields(Definition)} | {"run_dir"}
    given = (["TEXT"] if text else []) + [
        f"--{name.replace('_', '-')}" for name in sorted(defining & flags.keys())
    ]
    if given:
        names = ", ".join(given)
        raise UserError(
            f"{names}: beside --resume, the run's definition is what it was; leave it out"
        )
    return _take_up(resume, flags)


def _take_up(path: Path, flags: dict[str, Any]) -> "RunDirectory":
    """Return the run in a directory, to be carried out as these flags say."""
    from manychar.storage.run_directory import open_run

    directory = open_run(path)
    operation = operation_of({**dataclasses.asdict(directory.operation), **flags})
    return dataclasses.replace(directory, operation=operation)


def _is_begun(flags: dict[str, Any]) -> bool:
    """Whether --run-dir holds a run to go on with. Raises UserError where it cannot be said."""
    if "resume" in flags:
        raise UserError("--resume and --or-resume: give one of them")
    if "run_dir" not in flags:
        raise UserError("--or-resume: it takes --run-dir, the same one at every start")
    path: Path = flags["run_dir"]
    return (path / "config.json").exists()


def _go_on_as_defined(text: list[Path] | None, flags: dict[str, Any]) -> "RunDirectory":
    """Take up the run in --run-dir, after a check that it is the one these flags define."""
    path = flags["run_dir"]
    pin(numerics_of(path))
    from manychar.storage.corpus_file import read_corpus

    directory = _take_up(path, flags)
    for name, value in dataclasses.asdict(directory.definition).items():
        if flags.get(name, value) != value:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} {flags[name]}: the run in {path} has {flag} {value};"
                " leave it out, or choose another --run-dir"
            )
    if text and read_corpus(text).sha256 != directory.definition.corpus_sha256:
        raise UserError(f"{path}: its run has another TEXT; choose another --run-dir")
    logger.info(f"going on with the run in {path}")
    return directory


def numerics_of(path: Path) -> str:
    """Return which numerics a run was defined with, before numpy is imported to read the rest."""
    try:
        config = parsed(read_file(path / "config.json", LARGEST_CONFIG).decode())
        numerics = config["definition"]["numerics"]
    except (OSError, ValueError, KeyError, TypeError):
        return "portable"  # what is wrong with it is said by whoever reads all of it
    return "native" if numerics == "native" else "portable"


def define(text: list[Path] | None, flags: dict[str, Any]) -> "tuple[Definition, Corpus]":
    """Read the text and return (definition, corpus). Raises UserError."""
    from manychar.numerics.corpus import CorpusError
    from manychar.numerics.option import OptionError
    from manychar.numerics.run_definition import Definition
    from manychar.storage.corpus_file import read_corpus
    from manychar.storage.run_directory import streams_of

    fields = {field.name for field in dataclasses.fields(Definition)}
    given = {name: value for name, value in flags.items() if name in fields}
    try:
        Definition(corpus_sha256="0" * 64, **given)  # before a long text is read
        corpus = read_corpus(text or [])
        definition = Definition(corpus_sha256=corpus.sha256, **given)
        streams_of(definition, corpus.ids)
    except (OptionError, CorpusError) as error:
        raise UserError(str(error)) from None
    return definition, corpus


def operation_of(flags: dict[str, Any]) -> "Operation":
    """Return how these flags have a run carried out. Raises UserError."""
    from manychar.numerics.option import OptionError
    from manychar.protocol.run_spec import Operation

    fields = {field.name for field in dataclasses.fields(Operation)}
    try:
        return Operation(**{name: value for name, value in flags.items() if name in fields})
    except OptionError as error:
        raise UserError(str(error)) from None


def source_of(source: str, key: Path | None, *, patience: float) -> "tuple[Parameters, str]":
    """Return (parameters, vocabulary) of a run directory, a checkpoint, or a live server."""
    from manychar.network.client_identity import find_key
    from manychar.observability.model_source import load
    from manychar.observability.observer_client import fetch

    if is_endpoint(source):
        return fetch(source, find_key(key), patience=patience)
    return load(Path(source))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def display(directory: "RunDirectory") -> "Display":
    """Return the display of a run."""
    from manychar.observability.progress import Display
    from manychar.protocol.run_spec import dimensions_of

    vocabulary, _ = directory.streams()
    return Display(
        vocabulary=vocabulary,
        dimensions=dimensions_of(directory.definition, len(vocabulary)),
        seed=directory.definition.seed,
        sample_length=directory.operation.sample_length,
    )
