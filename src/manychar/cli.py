"""Floor 3: the command line. Each command checks its flags, pins the numerics, and calls a shell.

Data goes to standard output, everything else to standard error. What a user can cause is one line
and an exit code (runtime/errors.py). numpy is imported by the commands, after the pinning.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from manychar import __version__
from manychar.runtime.errors import BAD_INPUT, INTERRUPTED, STOPPED, UserError
from manychar.runtime.pinning import pin

if TYPE_CHECKING:
    from manychar.numerics.definition import Definition
    from manychar.protocol.effects import Finish
    from manychar.runtime.corpus_file import Corpus
    from manychar.runtime.display import Display
    from manychar.runtime.run_directory import RunDirectory, Settings

DEFAULT_BIND = "tcp://127.0.0.1:5577"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="min-char-rnn, trained by any number of processes to the same bytes.",
)

_DEFINITION = "What is trained (the result depends on these, and on nothing else)"
_OPERATION = "How it is carried out"


def _definition_flag(flag: str, text: str, default: object, **limits: Any) -> Any:
    return typer.Option(
        flag, help=text, show_default=str(default), rich_help_panel=_DEFINITION, **limits
    )


def _operation_flag(flag: str, text: str, default: object, **limits: Any) -> Any:
    return typer.Option(
        flag, help=text, show_default=str(default), rich_help_panel=_OPERATION, **limits
    )


Text = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[TEXT]...",
        help="UTF-8 text files, joined; - is standard input."
        " Without TEXT: the language reference that ships inside Python.",
        show_default=False,
    ),
]
Hidden = Annotated[int | None, _definition_flag("--hidden", "Hidden units.", 100, min=1)]
SeqLength = Annotated[int | None, _definition_flag("--seq-length", "Characters a step.", 25, min=1)]
LearningRate = Annotated[float | None, _definition_flag("--learning-rate", "Adagrad's rate.", 0.1)]
Clip = Annotated[
    float | None, _definition_flag("--clip", "Bound of each element of the mean gradient.", 5.0)
]
Shards = Annotated[
    int | None,
    _definition_flag("--shards", "Units of parallel work; at most as many workers.", 4, min=1),
]
Streams = Annotated[
    int | None, _definition_flag("--streams", "Streams of text in a shard.", 16, min=1)
]
Dtype = Annotated[
    Literal["float32", "float64"] | None, _definition_flag("--dtype", "Precision.", "float32")
]
Seed = Annotated[
    int | None, _definition_flag("--seed", "Seed of the first weights and samples.", 0, min=0)
]
Delay = Annotated[
    int | None,
    _definition_flag("--delay", "Steps that a gradient's weights may lag behind.", 0, min=0),
]
Numerics = Annotated[
    Literal["portable", "native"] | None,
    _definition_flag(
        "--numerics", "portable: the same bits on every x86-64 CPU; native: faster.", "portable"
    ),
]

Steps = Annotated[
    int | None, _operation_flag("--steps", "Steps in all; 0: until Ctrl-C.", 10_000, min=0)
]
CheckpointEvery = Annotated[
    int | None,
    _operation_flag("--checkpoint-every", "Steps; 0: first and last only.", 1000, min=0),
]
KeepCheckpoints = Annotated[
    int | None,
    _operation_flag("--keep-checkpoints", "How many, beside step 0; 0: all.", 20, min=0),
]
SampleEvery = Annotated[
    int | None, _operation_flag("--sample-every", "Steps; 0: only at the end.", 1000, min=0)
]
SampleLength = Annotated[
    int | None, _operation_flag("--sample-length", "Characters; 0: no samples.", 200, min=0)
]
LeaseTimeout = Annotated[
    float | None,
    _operation_flag("--lease-timeout", "Seconds of silence after which a worker is lost.", 2.0),
]
RunDir = Annotated[
    Path | None,
    _operation_flag("--run-dir", "A new directory for the run.", "runs/<time>-<run id>"),
]
Resume = Annotated[
    Path | None, _operation_flag("--resume", "Go on with the run in this directory.", "")
]
OnDiskError = Annotated[
    Literal["stop", "continue"] | None,
    _operation_flag("--on-disk-error", "When a checkpoint cannot be written.", "stop"),
]
AllowMixed = Annotated[
    bool | None,
    typer.Option(
        "--allow-mixed-numerics",
        help="Let in workers whose arithmetic gives other bits; the run is marked as such.",
        rich_help_panel=_OPERATION,
    ),
]
Transport = Annotated[
    Literal["tcp", "ipc"] | None,
    _operation_flag("--transport", "How the processes talk: tcp on loopback, or ipc.", "tcp"),
]
Workers = Annotated[
    int | None,
    _operation_flag("--workers", "Worker processes.", "as many as shards, or cores", min=1),
]
Child = Annotated[bool, typer.Option("--child", hidden=True)]


@app.command()
def train(
    text: Text = None,
    workers: Workers = None,
    resume: Resume = None,
    run_dir: RunDir = None,
    steps: Steps = None,
    sample_every: SampleEvery = None,
    sample_length: SampleLength = None,
    checkpoint_every: CheckpointEvery = None,
    keep_checkpoints: KeepCheckpoints = None,
    lease_timeout: LeaseTimeout = None,
    on_disk_error: OnDiskError = None,
    allow_mixed_numerics: AllowMixed = None,
    transport: Transport = None,
    hidden: Hidden = None,
    seq_length: SeqLength = None,
    learning_rate: LearningRate = None,
    clip: Clip = None,
    shards: Shards = None,
    streams: Streams = None,
    dtype: Dtype = None,
    seed: Seed = None,
    delay: Delay = None,
    numerics: Numerics = None,
) -> None:
    """Train: a server and its workers on this machine, with one command."""
    flags = _flags(locals())
    directory = _take_run(text, run_dir, resume, flags)
    settings = directory.settings
    from manychar.runtime.launch import Fleet, endpoint_for

    if settings.workers > directory.definition.shards:
        _say(
            f"{settings.workers} workers for {directory.definition.shards} shards: the rest stand"
            f" by; --shards {settings.workers} would give each of them work"
        )
    endpoint = endpoint_for(settings.transport, directory.path)
    with _display(directory) as display:
        finish = Fleet(directory, endpoint, display).run()
    _finish(finish, directory, again="train")


@app.command()
def server(
    text: Text = None,
    bind: Annotated[str, typer.Option("--bind", help="Where to listen.")] = DEFAULT_BIND,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen where strangers can reach it.")
    ] = False,
    resume: Resume = None,
    run_dir: RunDir = None,
    steps: Steps = None,
    sample_every: SampleEvery = None,
    sample_length: SampleLength = None,
    checkpoint_every: CheckpointEvery = None,
    keep_checkpoints: KeepCheckpoints = None,
    lease_timeout: LeaseTimeout = None,
    on_disk_error: OnDiskError = None,
    allow_mixed_numerics: AllowMixed = None,
    hidden: Hidden = None,
    seq_length: SeqLength = None,
    learning_rate: LearningRate = None,
    clip: Clip = None,
    shards: Shards = None,
    streams: Streams = None,
    dtype: Dtype = None,
    seed: Seed = None,
    delay: Delay = None,
    numerics: Numerics = None,
    child: Child = False,
) -> None:
    """Serve a run to workers that are started by hand, here or on other machines."""
    flags = _flags(locals())
    from manychar.runtime.transport import check_endpoint, require_safe

    check_endpoint(bind)
    require_safe(bind, insecure=insecure)
    if insecure:
        _say(f"--insecure: whoever can reach {bind} can join this run, and see its text")
    directory = _take_run(text, run_dir, resume, flags)
    from manychar.runtime.parent import Parent
    from manychar.runtime.serve import serve

    if child:
        finish = serve(directory, bind, _child_screen(), Parent(is_child=True))
        raise typer.Exit(finish.code)
    with _display(directory) as display:
        finish = serve(directory, bind, _screen(display), Parent(is_child=False))
    _finish(finish, directory, again="server")


@app.command()
def worker(
    endpoint: Annotated[str, typer.Argument(help="Where the server listens: tcp://HOST:PORT.")],
    name: Annotated[
        str | None, typer.Option(help="Its name in the run.", show_default="host:process")
    ] = None,
    processes: Annotated[int, typer.Option(help="Workers to run here.", min=1)] = 1,
    patience: Annotated[
        float, typer.Option(help="Seconds to wait for a server before giving up.", min=0.0)
    ] = 600.0,
    child: Child = False,
) -> None:
    """Work for a server: compute the gradients of whatever shards it leases. Needs no text."""
    from manychar.protocol.messages import Role
    from manychar.runtime.parent import Parent
    from manychar.runtime.peers import hello
    from manychar.runtime.transport import check_endpoint
    from manychar.runtime.work import work

    check_endpoint(endpoint)
    me = hello(Role.WORKER, name)
    if processes > 1:
        from manychar.runtime.crew import work_together

        raise typer.Exit(
            work_together(endpoint, me.name, processes=processes, patience=patience, say=_say)
        )
    if not child:
        _say(f"{me.name} works for {endpoint}; Ctrl-C ends it")
    finish = work(
        endpoint,
        me,
        patience=patience,
        say=_nothing if child else _say,
        parent=Parent(is_child=child),
    )
    if finish.reason and (finish.code or not child):
        _say(f"{me.name}: {finish.reason}")
    raise typer.Exit(finish.code)


@app.command()
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
        typer.Option(help="Below 1 is safer, above 1 wilder; 0 takes the likeliest.", min=0.0),
    ] = 1.0,
    top_k: Annotated[
        int, typer.Option(help="Draw among the k likeliest only; 0: among all.", min=0)
    ] = 0,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed writes the same text.", show_default="drawn", min=0),
    ] = None,
) -> None:
    """Write text, character by character, as the trained model does."""
    pin("portable")
    import numpy as np

    from manychar.runtime.observe import fetch
    from manychar.runtime.sampling import draw, load

    if prime and prime_file is not None:
        raise UserError("--prime and --prime-file both say what to go on from: give one")
    if prime_file is not None:
        prime = _read_prime(prime_file)
    live = source.startswith(("tcp://", "ipc://"))
    parameters, vocabulary = fetch(source, patience=10.0) if live else load(Path(source))
    if seed is None:
        seed = secrets.randbelow(2**32)
        _say(f"--seed {seed}")
    drawn = draw(
        parameters,
        vocabulary,
        np.random.default_rng([seed, 2]),
        length=length,
        prime=prime,
        temperature=temperature,
        top_k=top_k,
    )
    _write(prime)
    for character in drawn:
        _write(character)
    _write("\n")


@app.command()
def equivalence(
    text: Text = None,
    steps: Annotated[
        int, typer.Option(help="Steps to train.", min=3, rich_help_panel=_OPERATION)
    ] = 600,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between comparisons.", min=1, rich_help_panel=_OPERATION)
    ] = 150,
    transport: Transport = None,
    hidden: Hidden = None,
    seq_length: SeqLength = None,
    learning_rate: LearningRate = None,
    clip: Clip = None,
    shards: Shards = None,
    streams: Streams = None,
    dtype: Dtype = None,
    seed: Seed = None,
    delay: Delay = None,
    numerics: Numerics = None,
) -> None:
    """Prove it: train in one process, then with 1, 2 and 4 workers; compare every bit."""
    flags = _flags(locals())
    pin(numerics or "portable")
    from tempfile import TemporaryDirectory

    from manychar.runtime.equivalence import Equivalence, table, verdict

    definition, corpus = _define(text, flags)
    settings = _settings(flags, workers=1)
    settings = dataclasses.replace(settings, sample_every=0, keep_checkpoints=0)
    with TemporaryDirectory(prefix="manychar-") as scratch:
        trials = Equivalence(definition, corpus, settings, parent=Path(scratch))
        _say(f"{corpus.source}: {len(corpus.ids):,} characters, {steps:,} steps, each way")
        done = [trials.alone()]
        ways: list[tuple[int, Literal["worker", "server"] | None]]
        ways = [(1, None), (2, "worker"), (4, "server")]
        for count, kill in ways:
            _say(f"server and {count} worker{'s' if count > 1 else ''} over {settings.transport}")
            done.append(trials.fleet(count, kill=kill))
        _print_table(table(done))
        if definition.streams_in_all == 1:
            found = trials.against_plain()
            typer.echo(
                "largest relative difference from min-char-rnn's plain form:"
                f" {found.one_step:.1e} in one step from the same state,"
                f" {found.smooth_loss:.1e} in the smooth loss of its own trajectory"
            )
    if difference_at := verdict(done):
        typer.echo(f"DIFFERENT: {difference_at}")
        raise typer.Exit(1)
    typer.echo("the same bits: weights, Adagrad's memory, hidden states and smooth loss")


@app.command()
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
    pin(_numerics_of(run_dir))
    from manychar.runtime.display import counting
    from manychar.runtime.run_directory import open_run
    from manychar.runtime.verify import plan
    from manychar.runtime.verify import verify as do_again

    todo = plan(open_run(run_dir), begin=begin, end=end)
    with counting("steps", todo.steps) as progress:
        finding = do_again(todo, processes=processes or _usable_cores(), progress=progress)
    if finding is not None:
        typer.echo(f"DIFFERENT: first at step {finding.step:,}, in {finding.array}")
        raise typer.Exit(1)
    typer.echo(f"the same bits: {todo.steps:,} steps, {todo.checkpoints} checkpoints")


@app.command()
def stop(
    endpoint: Annotated[str, typer.Argument(help="Where the server listens.")],
    patience: Annotated[float, typer.Option(help="Seconds to wait for it.", min=0.0)] = 10.0,
) -> None:
    """Have a run end in good order, from anywhere: it ends its step and writes a checkpoint."""
    pin("portable")
    from manychar.runtime.observe import stop as ask_to_stop

    _say(ask_to_stop(endpoint, patience=patience))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For a program to read.")] = False,
) -> None:
    """Say what this machine is for a fleet: CPU, BLAS, numpy, fingerprints, limits."""
    from manychar.runtime.doctor import examine

    found = examine()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for name, value in _flat(found):
        typer.echo(f"{name:<44}{value}")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name} ")
        else:
            rows.append((prefix + name, ", ".join(value) if isinstance(value, list) else value))
    return rows


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"manychar {__version__}")
        raise typer.Exit


def run(arguments: list[str]) -> int:
    """Run the command line; return its exit code. Errors that a user can cause are one line."""
    usage_error: Any = typer.BadParameter.__mro__[2]  # ClickException, wherever typer keeps it
    command = typer.main.get_command(app)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = command.main(arguments, prog_name="manychar", standalone_mode=False)
    except UserError as error:
        _say(f"manychar: {error}")
        return error.code
    except usage_error as error:
        if error.format_message():  # without arguments the help has been printed instead
            _say(_usage_line(error))
        return BAD_INPUT
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0  # whoever read our output has enough of it
    return code if isinstance(code, int) else 0


def _terminated(_number: int, _frame: object) -> None:
    """End with everything cleaned up that was begun."""
    sys.exit(STOPPED)


def _usage_line(error: Any) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "manychar"
    return f"{path}: {error.format_message()}; see {path} --help".replace("\n", " ")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _nothing(_: object) -> None:
    """Stand for a screen that nobody watches."""


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _flags(values: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given."""
    return {name: value for name, value in values.items() if value is not None}


def _take_run(
    text: list[Path] | None, run_dir: Path | None, resume: Path | None, flags: dict[str, Any]
) -> "RunDirectory":
    """Make the run directory of these flags, or take up an old one; pins the numerics."""
    if resume is None:
        pin(flags.get("numerics", "portable"))
        from manychar.runtime.run_directory import create_run

        definition, corpus = _define(text, flags)
        workers = min(definition.shards, _usable_cores())
        settings = _settings(flags, workers=workers)
        directory = create_run(run_dir, definition, corpus, settings)
        _say(f"{corpus.source}: {len(corpus.ids):,} characters, {len(corpus.vocabulary)} distinct")
        _say(f"run directory: {directory.path}")
        return directory
    pin(_numerics_of(resume))
    from manychar.numerics.definition import Definition
    from manychar.runtime.run_directory import Settings, open_run

    defining = {field.name for field in dataclasses.fields(Definition)} | {"text", "run_dir"}
    if given := sorted(defining & flags.keys()):
        names = ", ".join("TEXT" if n == "text" else "--" + n.replace("_", "-") for n in given)
        raise UserError(
            f"{names}: beside --resume, the run's definition is what it was; leave it out"
        )
    directory = open_run(resume)
    changed = {f.name: flags[f.name] for f in dataclasses.fields(Settings) if f.name in flags}
    return dataclasses.replace(
        directory, settings=dataclasses.replace(directory.settings, **changed)
    )


def _numerics_of(path: Path) -> str:
    """Return which numerics a run was defined with, before numpy is imported to read the rest."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        numerics = config["definition"]["numerics"]
    except (OSError, ValueError, KeyError, TypeError):
        return "portable"  # what is wrong with it is said by whoever reads all of it
    return "native" if numerics == "native" else "portable"


def _define(text: list[Path] | None, flags: dict[str, Any]) -> "tuple[Definition, Corpus]":
    from manychar.numerics.definition import Definition, DefinitionError
    from manychar.runtime.corpus_file import read_corpus

    fields = {field.name for field in dataclasses.fields(Definition)}
    given = {name: value for name, value in flags.items() if name in fields}
    try:
        Definition(corpus_sha256="0" * 64, **given)  # before a long text is read
        corpus = read_corpus(text or [])
        return Definition(corpus_sha256=corpus.sha256, **given), corpus
    except DefinitionError as error:
        raise UserError(str(error)) from None


def _settings(flags: dict[str, Any], *, workers: int) -> "Settings":
    from manychar.runtime.run_directory import Settings

    fields = {field.name for field in dataclasses.fields(Settings)}
    given = {name: value for name, value in flags.items() if name in fields}
    if given.get("lease_timeout", 1.0) <= 0:
        raise UserError(f"--lease-timeout is {given['lease_timeout']}: it takes seconds above 0")
    return Settings(**{"workers": workers, **given})


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _display(directory: "RunDirectory") -> "Display":
    from manychar.protocol.run import dimensions_of
    from manychar.runtime.display import Display

    vocabulary, _ = directory.streams()
    return Display(
        vocabulary=vocabulary,
        dimensions=dimensions_of(directory.definition, len(vocabulary)),
        seed=directory.definition.seed,
        sample_length=directory.settings.sample_length,
    )


def _screen(display: "Display") -> Any:
    from manychar.runtime.serve import Screen

    def bound(endpoint: str) -> None:
        display.say(f"listening; a worker joins with: manychar worker {_reachable(endpoint)}")

    return Screen(say=display.say, report=display.report, weights=display.weights, bound=bound)


def _reachable(endpoint: str) -> str:
    """Return an endpoint as another machine would write it."""
    import socket

    for anywhere in ("tcp://0.0.0.0:", "tcp://[::]:", "tcp://*:"):
        if endpoint.startswith(anywhere):
            return f"tcp://{socket.gethostname()}:{endpoint.removeprefix(anywhere)}"
    return endpoint


def _child_screen() -> Any:
    """Return a server's screen where the parent watches: only what comes before it can."""
    from manychar.runtime.serve import Screen

    watched = False

    def say(text: str) -> None:
        if not watched:
            _say(text)

    def bound(endpoint: str) -> None:
        nonlocal watched
        watched = True
        print(json.dumps({"endpoint": endpoint}), flush=True)

    return Screen(say=say, report=_nothing, weights=_nothing, bound=bound)


def _read_prime(path: Path) -> str:
    from manychar.runtime.corpus_file import read_text

    return read_text(path).decode()


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        typer.echo("  ".join(cells))


def _finish(finish: "Finish", directory: "RunDirectory", *, again: str) -> None:
    """Say how it ended, how to go on and how to sample; exit with its code."""
    steps = directory.settings.steps
    if finish.reason:
        _say(f"manychar: {finish.reason}")
    if finish.code or steps == 0:
        _say(f"go on: manychar {again} --resume {directory.path}")
    _say(f"sample from it: manychar sample {directory.path}")
    raise typer.Exit(finish.code)
