"""The commands that look: sample, status, health, verify, equivalence, doctor."""

import contextlib
import dataclasses
import json
import logging
import secrets
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from manychar.cli.console import write
from manychar.cli.options import DEFINITION, TRIAL, Key, Patience, Text, with_flags
from manychar.cli.run_setup import define, numerics_of, operation_of, source_of, usable_cores
from manychar.network.endpoints import is_endpoint
from manychar.processes import log
from manychar.processes.errors import UserError
from manychar.processes.numerics_pinning import pin

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from manychar.numerics.model import Parameters
    from manychar.observability.observer_client import Standing

logger = logging.getLogger(__name__)


SHORTEST_LOOK = 0.5  # seconds


def sample(
    source: Annotated[
        str, typer.Argument(help="A run directory, a checkpoint, or a live server's endpoint.")
    ],
    length: Annotated[int, typer.Option(help="Characters to draw.", min=0)] = 2000,
    prime: Annotated[str, typer.Option(help="Text to go on from; it is printed first.")] = "",
    prime_file: Annotated[
        Path | None, typer.Option(help="A file with the text to go on from.")
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            help="Below 1 is safer, above 1 wilder; 0 takes the likeliest.", min=0.0, max=1000.0
        ),
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(help="Draw among the k likeliest only; 0: among all.", min=0)
    ] = 0,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed writes the same text.", show_default="drawn", min=0),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Of a live server: again when its weights changed.")
    ] = False,
    change: Annotated[
        float, typer.Option(help="With --follow: how much the weights must have changed.", min=0.0)
    ] = 0.05,
    patience: Patience = 10.0,
    key: Key = None,
) -> None:
    """Write text, character by character, as the trained model does."""
    pin("portable")
    import numpy as np

    from manychar.observability.model_source import draw, for_reading

    prime = _prime(prime, prime_file)
    chosen = secrets.randbelow(2**32) if seed is None else seed
    models = _models(source, key, patience=patience, change=change if follow else None)
    with contextlib.closing(models):
        for heading, parameters, vocabulary in models:
            drawn = draw(
                parameters,
                vocabulary,
                np.random.default_rng([chosen, 2]),
                length=length,
                prime=prime,
                temperature=temperature,
                top_k=top_k,
            )
            write(heading + for_reading(prime))
            for character in drawn:
                write(for_reading(character))
            write("\n")
    if seed is None:
        logger.info(f"--seed {chosen}")


def _prime(text: str, file: Path | None) -> str:
    """Return the text to go on from. Raises UserError."""
    if text and file is not None:
        raise UserError("--prime and --prime-file both say what to go on from: give one")
    if file is None:
        return text
    from manychar.storage.corpus_file import read_text

    return read_text(file).decode()


def _models(
    source: str, key: Path | None, *, patience: float, change: float | None
) -> "Generator[tuple[str, Parameters, str], None, None]":
    """Yield (heading, parameters, vocabulary): once, or by a server each time they `change`."""
    if change is None:
        yield "", *source_of(source, key, patience=patience)
        return
    from manychar.network.client_identity import find_key
    from manychar.observability.observer_client import follow

    if not is_endpoint(source):
        raise UserError(f"{source}: only a live server can be followed: tcp://HOST:PORT")
    sights = follow(source, find_key(key), patience=patience, change=change)
    with contextlib.closing(sights):
        for sight in sights:
            yield f"--- step {sight.step:,} ---\n", sight.parameters, sight.vocabulary


def verify(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    begin: Annotated[int, typer.Option("--from", help="The first step to do again.", min=0)] = 0,
    end: Annotated[
        int | None, typer.Option("--to", help="The last.", show_default="the newest", min=0)
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes side by side.", show_default="cores", min=1)
    ] = None,
) -> None:
    """Do a run again in one place, from its definition, and compare every checkpoint bit by bit."""
    pin(numerics_of(run_dir))
    from manychar.observability.progress import counting
    from manychar.storage.run_directory import open_run
    from manychar.verification.verify import plan
    from manychar.verification.verify import verify as do_again

    todo = plan(open_run(run_dir), begin=begin, end=end)
    if todo.remark:
        logger.info(todo.remark)
    with counting("steps", todo.steps) as progress:
        finding = do_again(todo, processes=processes or usable_cores(), progress=progress)
    if finding is not None:
        write(f"DIFFERENT: first at step {finding.step:,}, in {finding.array}\n")
        raise typer.Exit(1)
    plural = "s" if todo.checkpoints != 1 else ""
    write(f"the same bits: {todo.steps:,} steps, {todo.checkpoints} checkpoint{plural}\n")


@with_flags(TRIAL, DEFINITION)
def equivalence(text: Text = None, **flags: Any) -> None:
    """Prove it: train in one process, then with 1, 2 and 4 workers; compare every bit."""
    pin(flags.get("numerics", "portable"))
    from manychar.verification.equivalence import Equivalence, table, verdict

    if flags.get("steps", 3) < 3 or flags.get("checkpoint_every", 1) < 1:
        raise UserError("--steps takes at least 3 here, --checkpoint-every at least 1")
    definition, corpus = define(text, flags)
    chosen = operation_of({"steps": 600, "checkpoint_every": 150, "workers": 1, **flags})
    chosen = dataclasses.replace(chosen, sample_every=0, keep_checkpoints=0)
    with TemporaryDirectory(prefix="manychar-") as scratch:
        trials = Equivalence(definition, corpus, chosen, parent=Path(scratch))
        logger.info(
            f"{corpus.source}: {len(corpus.ids):,} characters, {chosen.steps:,} steps, each way"
        )
        done = [trials.alone()]
        ways: list[tuple[int, Literal["worker", "server"] | None]]
        ways = [(1, None), (2, "worker"), (4, "server")]
        for count, kill in ways:
            logger.info(f"server and {count} worker{'s' if count > 1 else ''}")
            done.append(trials.fleet(count, kill=kill))
        _print_table(table(done))
        if definition.total_streams == 1:
            found = trials.against_plain()
            write(
                "largest relative difference from min-char-rnn's plain form:"
                f" {found.one_step:.1e} in one step from the same state,"
                f" {found.smooth_loss:.1e} in the smooth loss of its own trajectory\n"
            )
    if difference_at := verdict(done):
        write(f"DIFFERENT: {difference_at}\n")
        raise typer.Exit(1)
    write("the same bits: weights, Adagrad's memory, hidden states and smooth loss\n")


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        write("  ".join(cells) + "\n")


def status(
    endpoint: Annotated[str, typer.Argument(help="Where the server listens.")],
    patience: Patience = 10.0,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
    key: Key = None,
) -> None:
    """Say how a live run stands: step, loss, who is there and who is late, what was dropped."""
    pin("portable")
    from manychar.network.client_identity import find_key
    from manychar.observability import observer_client
    from manychar.observability.status import show

    look = observer_client.watch(endpoint, find_key(key), patience=patience)
    with contextlib.closing(look) as standings:
        if as_json:
            for standing in standings if watch else [next(standings)]:
                write(log.to_json(_as_json(standing), indent=None if watch else 2) + "\n")
        elif watch:
            _watch(standings)
        else:
            write(show(next(standings)))


def _watch(standings: "Iterator[Standing]") -> None:
    """Show every look: in one place on a terminal, one after the other elsewhere."""
    from rich.console import Console
    from rich.live import Live

    from manychar.observability.status import render, show

    before = None
    console = Console(highlight=False)
    live = Live(console=console, auto_refresh=False) if console.is_terminal else None
    with live or contextlib.nullcontext():
        for standing in standings:
            if before and standing.report.seconds - before.report.seconds < SHORTEST_LOOK:
                continue  # too short a time to say how fast
            if live:
                live.update(render(standing, before), refresh=True)
            else:
                write(show(standing, before) + "\n")
            before = standing


def _as_json(standing: "Standing") -> dict[str, Any]:
    from manychar.observability.status import exchanging

    workers = {
        worker.name: {**worker._asdict(), "exchanging": exchanging(worker)}
        for worker in standing.workers
    }
    report = dataclasses.asdict(standing.report)
    return {**report, "waiting": standing.waiting, "workers": workers}


def health(
    endpoint: Annotated[str, typer.Argument(help="Where the server listens.")],
    patience: Annotated[
        float, typer.Option(help="Seconds to wait for it, and then for it to advance.", min=0.0)
    ] = 10.0,
    key: Key = None,
) -> None:
    """Say in one line whether a live run is well: it advances, or says for whom it waits."""
    pin("portable")
    from manychar.network.client_identity import find_key
    from manychar.observability.health import examine

    found = examine(endpoint, find_key(key), patience=patience)
    write(f"{found.line}\n")
    raise typer.Exit(0 if found.well else 1)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
) -> None:
    """Say what this machine is for a fleet: CPU, BLAS, numpy, fingerprints, limits."""
    from manychar.verification.doctor import examine

    found = examine()
    if as_json:
        write(json.dumps(found, indent=2) + "\n")
        return
    for name, value in _flat(found):
        write(f"{name:<44}{value}\n")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name} ")
        else:
            rows.append((prefix + name, ", ".join(value) if isinstance(value, list) else value))
    return rows
