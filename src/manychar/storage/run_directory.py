"""The run directory: creates, opens and locks it."""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from numpy.typing import NDArray

from manychar.numerics.corpus import Streams
from manychar.numerics.option import OptionError
from manychar.numerics.run_definition import Definition
from manychar.numerics.training_step import start, weights_sha256
from manychar.processes.errors import UserError, because, code_of, user_errors
from manychar.protocol.field_types import MAX_INTEGER
from manychar.protocol.run_operation import Operation
from manychar.storage import atomic_files, corpus_file
from manychar.storage.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
    stated_metadata,
    write_checkpoint,
)
from manychar.storage.event_log import EVENTS_NAME
from manychar.storage.file_format import CONFIG_NAME, FORMAT_VERSION, check_format, fault_of
from manychar.storage.journal import JOURNAL_NAME, METRICS_NAME, read_journal
from manychar.storage.server_address import ADDRESS_NAME, LOCK_NAME, another_server, is_served

LOCKED_WITHIN = 0.15  # seconds; `is_served` holds the lock for a moment
TERM_NAME = "term"
CHECKPOINTS_NAME, RECOVERY_NAME = "checkpoints", "recovery.safetensors"
RUNS = Path("runs")  # where a run directory is made that has no other name
UNFINISHED_NAME = ".unfinished.tmp"  # locked by the process that makes the run


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run learns while it runs, config.json's `facts`.

    `fingerprint` and `libraries` are those of the numerics that the run began with. `banned`: the
    reason by worker's name. The next server resumes from before step `resume_before`; None: from
    anywhere.
    """

    fingerprint: str = ""
    libraries: dict[str, str] = dataclasses.field(default_factory=dict)
    banned: dict[str, str] = dataclasses.field(default_factory=dict)
    resume_before: int | None = None


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """A run directory that exists. Where `create_run` made it, `made` are the new directories."""

    path: Path
    run_id: str
    definition: Definition
    operation: Operation
    facts: RunFacts = RunFacts()
    made: tuple[Path, ...] | None = dataclasses.field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Raise UserError where the operation needs what the definition does not have."""
        validated = self.definition.validation > 0 and self.operation.checkpoint_every > 0
        if self.operation.stop_when_no_better and not validated:
            raise UserError(
                "--stop-when-no-better compares the validation losses of checkpoints: it needs a"
                " --validation above 0 and a --checkpoint-every above 0"
            )

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS_NAME

    @property
    def recovery(self) -> Path:
        """The checkpoint for recovery alone, in no list, until there is a newer one."""
        return self.checkpoints / RECOVERY_NAME

    def corpus(self) -> tuple[str, Streams]:
        vocabulary, ids = corpus_file.map_corpus(self.path)
        try:
            return vocabulary, streams_of(self.definition, ids)
        except OptionError as error:
            corpus_file.check_corpus(self.path, self.definition.corpus_sha256)
            raise UserError(f"{self.path}: {error}") from None

    def read(self, path: Path) -> Checkpoint:
        """Return a checkpoint of this run. Raises UserError if it is damaged, or is not its own."""
        checkpoint = read_checkpoint(path)
        own = self.recovery, checkpoint_path(self.checkpoints, checkpoint.state.step)
        if path not in own:
            raise UserError(f"{path}: altered: it holds step {checkpoint.state.step:,}")
        if checkpoint.definition != self.definition:
            raise UserError(f"{path}: it is a checkpoint of another run")
        initial, parameters = self.definition.initial_weights, checkpoint.state.parameters
        if initial and not checkpoint.state.step and weights_sha256(parameters) != initial:
            raise UserError(f"{path}: altered: other weights than those of --init-from")
        return checkpoint

    def read_if_there(self, path: Path) -> Checkpoint | None:
        """Do the same, but return None where it was removed: a live run prunes its checkpoints."""
        try:
            return self.read(path)
        except UserError:
            if os.path.lexists(path):
                raise
            return None

    def resumable(self) -> list[tuple[int, Path]]:
        """Return (step, path) of all checkpoints, oldest first, by what they state."""
        step = stated_metadata(self.recovery).get("step", "")
        number = int(step) if step.isdecimal() else MAX_INTEGER
        recovery = [(number, self.recovery)] if os.path.lexists(self.recovery) else []
        return sorted(list_checkpoints(self.checkpoints) + recovery)

    def newest_step(self) -> int:
        """Return the step of the newest checkpoint, by what it states; 0 where there is none."""
        return max((step for step, _ in self.resumable() if step < MAX_INTEGER), default=0)

    def newest_checkpoint(self, *, up_to: float = math.inf) -> tuple[Checkpoint, dict[Path, str]]:
        """Return the newest whole checkpoint, and what is wrong with newer ones, by path.

        Where one is removed between listing and reading, the list is read again. Raises UserError
        if there is none.
        """
        damaged: dict[Path, str] = {}
        while True:
            listed = [path for step, path in self.resumable() if step <= up_to]
            untried = [path for path in listed if path not in damaged]
            if not untried:
                faults = [f"no whole checkpoint, the newest: {each}" for each in damaged.values()]
                advice = "put one of this run back there, or start a new run"
                raise UserError(f"{self.checkpoints}: {(faults or ['no checkpoint'])[0]}; {advice}")
            try:
                checkpoint = self.read_if_there(untried[-1])
                if checkpoint is not None and checkpoint.state.step <= up_to:
                    return checkpoint, damaged
            except UserError as error:
                damaged[untried[-1]] = str(error)

    def with_facts(self, **changes: Any) -> "RunDirectory":
        """Return this run with other facts; `write_config` makes them durable."""
        return dataclasses.replace(self, facts=dataclasses.replace(self.facts, **changes))

    def write_config(self) -> None:
        """Write config.json. Raises OSError."""
        packages = ("manychar", "numpy", "pyzmq", "msgpack", "safetensors")
        config: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "run": self.run_id,
            "definition": dataclasses.asdict(self.definition),
            "operation": dataclasses.asdict(self.operation),
            "facts": dataclasses.asdict(self.facts),
            "versions": {"python": python_version(), **{name: version(name) for name in packages}},
        }
        text = json.dumps(config, indent=2) + "\n"
        atomic_files.replace_file(self.path / CONFIG_NAME, text.encode())


def streams_of(definition: Definition, ids: NDArray[Any]) -> Streams:
    """Return a corpus as the definition's streams. Raises OptionError where it is too short."""
    sizes = (definition.shards, definition.streams, definition.seq_length)
    return Streams(ids, *sizes, definition.validation)


def create_run(
    path: Path | None, definition: Definition, corpus: corpus_file.Corpus, operation: Operation
) -> RunDirectory:
    """Make a run directory with its corpus and checkpoint 0; all of it, or nothing.

    An empty directory, or one that a killed process left unfinished, is filled in place. Raises
    UserError where it cannot be written, or where something else is there.
    """
    run = definition.run_id(secrets.token_hex(4))
    path = path or RUNS / f"{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}-{run}"
    directory = RunDirectory(path, run, definition, operation)
    with user_errors(path, "choose another --run-dir"), atomic_files.all_or_nothing() as made:
        _refuse_what_is_there(path)
        atomic_files.make_directories(path, made)
        with atomic_files.no_more_readable_than(path):
            _fill(directory, corpus)
    return dataclasses.replace(directory, made=tuple(made))


@contextlib.contextmanager
def removed_if_refused(directory: RunDirectory) -> Iterator[None]:
    """Remove a run that was made for what follows, where an error ends it before its first step."""
    try:
        yield
    except (UserError, OSError):
        path, made = directory.path, directory.made
        if made is not None and not is_served(path):
            with contextlib.suppress(UserError, OSError):  # they would replace this error
                if not read_journal(path, directory.run_id, with_steps=False).newest:
                    _empty(path)
                    atomic_files.remove(made)
        raise


def _refuse_what_is_there(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path}: a link to {path.readlink()}, which is not there")
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"{path}: not a directory; choose another --run-dir")
    resumable = (path / CONFIG_NAME).exists()
    unfinished = (path / UNFINISHED_NAME).exists() and not resumable
    names = {each.name for each in path.iterdir()}
    if not unfinished and names - {"lost+found"}:  # a new file system has it
        hint = ", or go on with it by --or-resume" if resumable else ""
        raise UserError(f"{path}: not empty; choose another --run-dir{hint}")


def _fill(directory: RunDirectory, corpus: corpus_file.Corpus) -> None:
    """Write everything; config.json last, for without it a directory is no run."""
    path, definition, vocabulary = directory.path, directory.definition, corpus.vocabulary
    with (path / UNFINISHED_NAME).open("a") as mark:
        try:
            atomic_files.lock_file(mark, within=0)
        except BlockingIOError:
            raise UserError(f"{path}: another process makes a run there") from None
        except OSError:
            (path / UNFINISHED_NAME).unlink()
            raise
        _refuse_what_is_there(path)
        try:
            _empty(path)
            corpus_file.write_corpus(path, corpus)
            directory.checkpoints.mkdir()
            first = checkpoint_path(directory.checkpoints, 0)
            state = start(definition, len(vocabulary), corpus.initial_weights)
            write_checkpoint(first, definition, vocabulary, state)
            directory.write_config()
        except BaseException:
            _empty(path)
            raise
        finally:
            (path / UNFINISHED_NAME).unlink(missing_ok=True)


def _empty(path: Path) -> None:
    corpus = corpus_file.CORPUS_NAME, corpus_file.VOCABULARY_NAME
    of_server = LOCK_NAME, TERM_NAME, ADDRESS_NAME, JOURNAL_NAME, METRICS_NAME, EVENTS_NAME
    for name in (CONFIG_NAME, *corpus, *of_server):
        (path / name).unlink(missing_ok=True)
    shutil.rmtree(path / CHECKPOINTS_NAME, ignore_errors=True)


def open_run(path: Path) -> RunDirectory:
    """Return a run directory that exists. Raises UserError where it is none, or damaged."""
    with user_errors(path / CONFIG_NAME):
        try:
            data = (path / CONFIG_NAME).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: not a run directory: no {CONFIG_NAME} in it") from None
    try:
        config = json.loads(data)
        check_format(path / CONFIG_NAME, config.get("format") or config["definition"]["format"])
        definition = Definition.from_mapping(config["definition"])
        operation, facts = Operation(**config["operation"]), RunFacts(**config["facts"])
        run = str(config["run"])
        if run != definition.run_id(run.rpartition("-")[2]):
            raise ValueError("its definition is not the one that the run is named after")
        return RunDirectory(path, run, definition, operation, facts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = f"{path / CONFIG_NAME}: damaged or altered: {fault_of(error)}"
        raise UserError(text) from None


@contextlib.contextmanager
def locked(directory: RunDirectory) -> Iterator[None]:
    """Hold the run directory for one server. Raises UserError where another holds it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(atomic_files.no_more_readable_than(directory.path))
            lock = stack.enter_context((directory.path / LOCK_NAME).open("a"))
            atomic_files.lock_file(lock, within=LOCKED_WITHIN)
            address = directory.path / ADDRESS_NAME
            address.unlink(missing_ok=True)  # of a server that was killed
            atomic_files.remove_temporary(directory.path)
            atomic_files.remove_temporary(directory.checkpoints)
        except BlockingIOError:
            raise another_server(directory.path) from None
        except OSError as error:
            raise UserError(f"{directory.path}: {because(error)}", code=code_of(error)) from None
        corpus_file.check_corpus(directory.path, directory.definition.corpus_sha256)
        yield
        with contextlib.suppress(OSError):
            address.unlink()


def raise_term(directory: RunDirectory) -> int:
    """Return a new term, durable before it is used.

    Raises UserError where the old one is damaged, or the new one cannot be written.
    """
    path = directory.path / TERM_NAME
    try:
        with user_errors(path):
            if path.exists():
                term = int(path.read_bytes())
            else:
                term = read_journal(directory.path, directory.run_id, with_steps=False).term
            if not 0 <= term < MAX_INTEGER:
                raise ValueError
            atomic_files.replace_file(path, f"{term + 1}\n".encode())
    except ValueError:
        raise UserError(f"{path}: damaged: not a whole number; remove the file") from None
    return term + 1
