"""The Python API: its arguments are the flags; what it runs; how it fails, stops and is killed."""

import dataclasses
import inspect
import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

import manychar as api
from manychar.cli.app import app
from manychar.fleet.launch_options import RunPlace
from manychar.numerics.option import options_of
from manychar.numerics.run_definition import Definition
from manychar.storage.checkpoint import list_checkpoints, read_checkpoint, write_checkpoint
from manychar.storage.run_directory import RECOVERY_NAME
from tests.commands import Commands, Ended
from tests.parameters import others_long
from tests.texts import small_text

TEXT = "text = open('text.txt').read()\n"
SMALL = "hidden=8, seq_length=5, streams=2, workers=1"
COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DEFINING = set(options_of(Definition, RunPlace))
SHOWN = {"callback", "quiet", "wait"}
FOR_PROCESSES = {"log_format", "as_json", "key", "config", "print_config", "child"}


@pytest.fixture
def manychar(manychar: Commands) -> Commands:
    (manychar.directory / "text.txt").write_text(small_text())
    return manychar


def python(manychar: Commands, script: str) -> Ended:
    """Run a script that imports manychar, to its end."""
    return manychar.run(program=("-c", f"import manychar\n{TEXT}{script}"))


@pytest.mark.parametrize(
    ("function", "command", "others"),
    [
        (api.train, "train", {"resume"}),
        (api.Run.resume, "train", {"text", *DEFINING}),
        (api.Model.sample, "sample", {"source", "follow"}),
        (api.Model.stream, "sample", {"source", "follow"}),
        (api.Model.evaluate, "evaluate", {"source"}),
        (api.Run.verify, "verify", {"run_dir"}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_the_arguments_are_the_flags(function: Any, command: str, others: set[str]) -> None:
    flags = {p.name: p for p in COMMANDS[command].params if p.name not in FOR_PROCESSES | others}
    renamed = {"from_": "begin", "to": "end"}
    found = {renamed.get(n, n): p for n, p in inspect.signature(function).parameters.items()}
    assert found.keys() - {"self"} - SHOWN == flags.keys()
    for name, flag in flags.items():
        shown = found[name].default  # None is the command's, or that of `load`
        assert flag.default is None or shown in (flag.default, None), name


def test_help_explains_the_arguments() -> None:
    for function in (api.train, api.Run.resume):
        for name in inspect.signature(function).parameters.keys() - {"self", "text"}:
            assert f"\n{name}: " in (function.__doc__ or ""), name


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("hiden", r"\. Did you mean hidden\?"),
        ("lr", r"\. Its name is learning_rate"),
        ("batch_size", r"\. A step reads shards times streams sequences: give streams"),
        ("resume", r"\. It is manychar\.Run\(PATH\)\.resume\(…\)"),
        ("key", r"\. It is manychar\.load\(SOURCE, key=…\)"),
        ("zzz", ""),
    ],
)
def test_a_wrong_argument_is_a_type_error_that_names_the_right_one(name: str, instead: str) -> None:
    wrong: Any = {name: 3}
    with pytest.raises(TypeError, match=rf"^train\(\) has no argument {name}{instead}$"):
        api.train("text", **wrong)


def test_importing_it_imports_no_numpy(manychar: Commands) -> None:
    done = python(manychar, "import sys; manychar.train; print('numpy' in sys.modules)")
    assert (done.out, done.err) == ("False\n", "")


@pytest.mark.long
def test_a_run_and_what_can_be_done_with_it(manychar: Commands) -> None:
    script = f"""
import json
run = manychar.train(text, {SMALL}, steps=200, validation=0.1, sample_length=7)
print()
again = manychar.load(run.path)
print(json.dumps({{
    "path": str(run.path), "metrics": run.metrics(), "checkpoints": list(run.checkpoints()),
    "sample": run.sample(40, prime="the ", seed=5), "evaluated": run.evaluate(),
    "pieces": list(again.stream(40, prime="the ", seed=5)), "other": again.evaluate("the cat"),
    "verified": run.verify(), "resumed": list(run.resume(steps=300).checkpoints()),
}}))
"""
    done = python(manychar, script)
    assert done.code == 0, done.err
    samples, found = done.out.rsplit("\n{", 1)
    assert samples.startswith("--- step 200 ---\n")
    values = json.loads("{" + found.splitlines()[0])
    path = Path(values["path"])
    assert path.parent == manychar.directory / "runs"
    assert [line["step"] for line in values["metrics"]] == [100, 200]
    assert values["checkpoints"] == [0, 200]
    assert values["resumed"] == [0, 200, 300]
    by_command = manychar.run(
        *("sample", str(path / "checkpoints" / "step-000000200.safetensors")),
        *("--length", "40", "--prime", "the ", "--seed", "5"),
    )
    assert values["sample"] + "\n" == by_command.out
    assert "".join(values["pieces"]) == values["sample"]
    assert values["evaluated"][1] == pytest.approx(float(validation_ids(path)[200]))
    assert values["other"][0] == len("the cat") - 1
    assert values["verified"] is True
    for said in (" has joined", "the same bits: 200 steps, 2 checkpoints", "step 300/300"):
        assert said in done.err


def validation_ids(run: Path) -> dict[int, float]:
    lines = (run / "validation.jsonl").read_text().splitlines()
    return {(values := json.loads(line))["step"]: values["nats"] for line in lines}


def test_what_is_damaged_is_an_error_of_one_line(manychar: Commands, trained: Path) -> None:
    script = """
run = manychar.load("run")
try:
    manychar.Run("run").verify()
except manychar.UserError as error:
    print(error)
"""
    (trained / "journal.jsonl").write_bytes(b"no journal")
    done = python(manychar, script)
    assert done.code == 0, done.err
    assert done.out.startswith(f"{trained}/journal.jsonl: ")
    assert done.out.count("\n") == 1


@pytest.mark.long
@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("train(text, hidden=0)", "hidden is 0; allowed: a whole number"),
        ("train('text.txt')", "is a file, and a str is the text"),
        ("train('x' * 10**6, hidden=0)", "hidden is 0; allowed: a whole number"),
        ("train([Path('text.txt'), Path('nowhere')])", "/nowhere: no such file"),
        ("train([])", "no text: the list of files is empty"),
        ("train('')", "text: it is empty"),
        ("load('nowhere')", "nowhere: no such file"),
        ("Run('.')", ".: not a run directory: no config.json in it"),
        ("load('run').evaluate()", "run: give a text: it has no validation text"),
        ("train('the', run_dir='run', or_resume=True)", "text: the run in "),
        ("load('run').evaluate('the \u2603')", "(unknown='skip' leaves them out): "),
        ("load('run').evaluate('\u2603')", "; give a text of its characters"),
        ("train('\\ud800')", "text: no UTF-8 for the character at 0"),
        ("load('run').evaluate(Path('a\\0b'))", "embedded null byte"),
        ("load('text.txt/file')", "text.txt/file: no such file"),
        ("load('run').sample(prime='\u2603')", "the model does not know"),
    ],
)
def test_what_a_user_does_wrong_is_one_line(
    manychar: Commands, trained: Path, call: str, complaint: str
) -> None:
    script = f"""
from pathlib import Path
try:
    manychar.{call}
except manychar.UserError as error:
    print(error)
"""
    done = python(manychar, script)
    assert done.code == 0, done.err
    assert complaint in done.out
    assert done.out.count("\n") == 1


@pytest.mark.long
def test_any_argument_reaches_the_command(manychar: Commands, trained: Path) -> None:
    """Those of a process are bounded, and have no NUL and no lone surrogate."""
    script = """
from pathlib import Path
model = manychar.load("run")
prime = text[:50] * 4000
print(model.sample(1, prime=prime, seed=1)[:-1] == prime)
for call in (
    lambda: model.sample(prime="the\\0"),
    lambda: model.sample(prime="the\\ud800"),
    lambda: model.sample(prime_file="a\\0b"),
    lambda: manychar.train(text, run_dir="a\\0b"),
    lambda: manychar.train([Path("text.txt"), Path("a\\ud800b")]),
):
    try:
        call()
    except manychar.UserError as error:
        print(error)
"""
    done = python(manychar, script)
    assert (done.code, done.err) == (0, "")
    expected = [
        "True",
        r"the model does not know 1 character of the prime: '\x00' (U+0000)",
        r"the model does not know 1 character of the prime: '\ud800' (U+D800)",
        "prime_file",
        "run_dir",
        "TEXT",
    ]
    for line, part in zip(done.out.splitlines(), expected, strict=True):
        assert part in line


@pytest.mark.long
def test_a_false_argument_is_given(manychar: Commands) -> None:
    script = f"manychar.train(text, {SMALL}, steps=1, compute=False, run_dir='run')"
    done = python(manychar, script)
    assert done.code == 0, done.err
    assert not json.loads((manychar.directory / "run" / "config.json").read_text())["operation"][
        "compute"
    ]


def test_a_working_directory_that_is_gone_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for call in (api.train, lambda text: api.train(Path(text), run_dir="/run")):
        with pytest.raises(api.UserError, match="the working directory: no such file"):
            call("text")


def test_a_callback_that_raises_stops_the_run(manychar: Commands) -> None:
    script = f"""
def callback(values):
    raise ArithmeticError(values["step"])
try:
    manychar.train(text, {SMALL}, steps=0, run_dir="run", callback=callback, sample_length=0)
except ArithmeticError as error:
    print(error.args[0] <= manychar.Run("run").step)
late = manychar.train(text, {SMALL}, learning_rate=1e38, wait=False, quiet=True)
try:
    late.join()
except manychar.UserError as error:
    print(error)
try:
    manychar.train(text, {SMALL}, run_dir="run", wait=False)
except manychar.UserError as error:
    print(error)
"""
    done = python(manychar, script)
    assert done.code == 0, done.err
    raised, failed, refused = done.out.splitlines()
    assert raised == "True"
    assert "is not finite: " in failed
    assert ": start a new run with a learning_rate below 1e+38, or a warmup above" in failed
    assert "run: not empty; choose another run_dir" in refused
    manychar.expect_nobody()


@pytest.mark.parametrize(
    "name",
    others_long(
        ["StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt"]
    ),
)
def test_what_a_callback_raises_is_what_the_caller_gets(manychar: Commands, name: str) -> None:
    script = f"""
def callback(values):
    raise raised
raised = {name}("its own")
quiet = dict(callback=callback, sample_length=0, steps=100_000, quiet=True)
for wait in (True, False):
    try:
        manychar.train(text, {SMALL}, wait=wait, **quiet).join()
    except BaseException as error:
        print(error is raised, type(error.__context__))
"""
    done = python(manychar, script)
    assert (done.code, done.out.split("\n")) == (0, ["True <class 'NoneType'>"] * 2 + [""]), done
    manychar.expect_nobody()


@pytest.mark.parametrize("how", ["stop", "join"])
def test_a_callback_can_stop_the_run_and_does_not_wait_for_itself(
    manychar: Commands, how: str
) -> None:
    script = f"""
runs = []
def callback(values):
    if runs and values["step"] > 0:
        getattr(runs[0], "{how}")()
        print("returned", flush=True)
        runs.pop().stop()
flags = dict(steps=0, run_dir="run", sample_length=0, log_every=0.1, quiet=True, wait=False)
run = manychar.train(text, {SMALL}, callback=callback, **flags)
runs.append(run)
run.join()
print(run.step > 0)
"""
    done = python(manychar, script)
    assert (done.code, done.out) == (0, "returned\nTrue\n"), done.err


INTERRUPTED = """
import os, signal
waits = []
def callback(values):
    if waits and values["step"] > 0:
        waits.clear()
        os.kill(os.getpid(), signal.SIGINT)
def interrupt(wait):
    try:
        waits.append(1)
        wait()
    except KeyboardInterrupt:
        print("interrupted", end=" ")
flags = dict(steps=0, run_dir="run", sample_length=0, log_every=0.1, quiet=True, wait=False)
"""


def test_an_interrupted_wait_can_be_repeated(manychar: Commands) -> None:
    """As a notebook interrupts a cell: the run goes on, and the handle still knows it."""
    script = f"""{INTERRUPTED}
run = manychar.train(text, {SMALL}, callback=callback, **flags)
interrupt(run.join)
print(run.is_alive())
interrupt(lambda: run.join(1000))
print(run.join(timeout=0) is run, run.is_alive())
interrupt(run.stop)
print(run.stop() is run, run.is_alive(), run.join(1000) is run)
before = run.step
print(run.resume(steps=before + 5, wait=False).join().step - before, run.is_alive())
"""
    done = python(manychar, script)
    assert done.code == 0, done.err
    first, second, stopped, resumed = done.out.splitlines()
    assert (first, second) == ("interrupted True", "interrupted True True")
    assert stopped.removeprefix("interrupted ") == "True False True"  # or it had ended before
    assert resumed == "5 False"
    manychar.expect_nobody()


@pytest.mark.parametrize("wait", [True, False])
def test_an_interrupt_before_there_is_a_handle_ends_the_run(
    manychar: Commands, *, wait: bool
) -> None:
    """Even where the first signal to the command comes just before it blocks, and is not seen."""
    script = f"""
from pathlib import Path
from manychar.processes.child_process import ChildProcess
terminate, sent = ChildProcess.terminate, []
ChildProcess.terminate = lambda self: terminate(self) if sent else sent.append(1)
try:
    manychar.train(Path("pipe"), wait={wait})
except KeyboardInterrupt:
    print("interrupted", flush=True)
    signal.pause()
"""
    os.mkfifo(manychar.directory / "pipe")
    running = manychar.start(program=("-c", f"import manychar, signal\n{script}"))
    with (manychar.directory / "pipe").open("w"):  # the command has begun to read it
        running.interrupt()
        running.wait_for("interrupted", "out")
        assert len(manychar.family()) == 1
    running.send(signal.SIGKILL)
    running.end()


def test_a_resume_that_is_refused_leaves_the_handle_as_it_was(manychar: Commands) -> None:
    script = f"""
flags = dict(run_dir="run", sample_length=0, quiet=True, wait=False)
run = manychar.train(text, {SMALL}, steps=0, **flags)
for wait in (True, False):
    try:
        run.resume(steps=5, wait=wait)
    except manychar.UserError as error:
        print(error)
run.stop()
try:
    run.resume(steps=10**9, log_every=0)
except manychar.UserError as error:
    print(error)
print(run.join() is run)
"""
    done = python(manychar, script)
    assert done.code == 0, done.err
    *refused, wrong, stopped = done.out.splitlines()
    assert (
        refused
        == [f"{manychar.directory}/run: it is being trained; call join() or stop() first"] * 2
    )
    assert wrong.startswith("log_every is 0")
    assert stopped == "True"
    manychar.expect_nobody()


def test_dir_lists_the_names() -> None:
    assert {"train", "load", "Run", "Model", "UserError"} <= set(dir(api))


@pytest.mark.parametrize(
    "call",
    [
        lambda: api.train(["text.txt"]),  # type: ignore[list-item]
        lambda: api.train(b"text"),  # type: ignore[arg-type]
        lambda: api.Model("run").evaluate(b"text"),  # type: ignore[arg-type]
        lambda: api.Model("run").sample(prime=b"the"),  # type: ignore[arg-type]
        lambda: api.Model("run").sample(prime=["the"]),  # type: ignore[arg-type]
        lambda: api.Model("run").sample(prime=3),  # type: ignore[arg-type]
        lambda: api.train("text", bind=3),  # type: ignore[arg-type]
        lambda: api.train("text", run_dir=3),  # type: ignore[arg-type]
        lambda: api.train("text", run_dir=True),  # type: ignore[arg-type]
        lambda: api.load(3),  # type: ignore[arg-type]
        lambda: api.load("tcp://here:1", key=3),  # type: ignore[arg-type]
        lambda: api.Run(3),  # type: ignore[arg-type]
        lambda: api.train(5),  # type: ignore[arg-type]
    ],
)
def test_another_type_is_a_type_error(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"^(\w+ is .+; allowed: |a text is a )str"):
        call()


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: api.Model("run").sample(True), "length is True; allowed: a whole number at"),  # noqa: FBT003
        (lambda: api.Model("run").sample(seed=False), "seed is False; allowed: a whole number"),
        (lambda: api.Model("run").sample(prime=True), "prime is True; allowed: str"),  # type: ignore[arg-type]
        (lambda: api.Model("run").sample(prime_file=True), "allowed: str or Path"),  # type: ignore[arg-type]
        (lambda: api.Model("run").evaluate(unknown=True), "unknown is True; allowed: refuse or"),  # type: ignore[arg-type]
        (lambda: api.train("text", hidden=True), "hidden is True; allowed: a whole number at"),
        (lambda: api.train("text", clip=False), "clip is False; allowed: a finite number above"),
        (lambda: api.Model("run").sample(5.5), "length is 5.5; allowed: a whole number at least"),  # type: ignore[arg-type]
        (lambda: api.train("text", steps=3.0), "steps is 3.0; allowed: a whole number at least"),  # type: ignore[arg-type]
        (lambda: api.train("text", steps="3"), "steps is '3'; allowed: a whole number at least"),  # type: ignore[arg-type]
        (lambda: api.train("text", hidden=[3]), r"hidden is \[3\]; allowed: a whole number"),  # type: ignore[arg-type]
        (lambda: api.train("text", clip="5"), "clip is '5'; allowed: a finite number above 0"),  # type: ignore[arg-type]
        (lambda: api.train("text", dtype=32), "dtype is 32; allowed: float32 or float64"),  # type: ignore[arg-type]
        (lambda: api.train("text", compute=1), "compute is 1; allowed: true or false"),  # type: ignore[arg-type]
        (lambda: api.train("text", wait=0), "wait is 0; allowed: True, False"),  # type: ignore[arg-type]
        (lambda: api.train("text", quiet="no"), "quiet is 'no'; allowed: True, False"),  # type: ignore[arg-type]
    ],
)
def test_a_value_of_another_type_is_a_type_error(
    call: Callable[[], object], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint):
        call()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: api.train("text", run_dir=""), "run_dir"),
        (lambda: api.train("text", init_from=""), "init_from"),
        (lambda: api.load(""), "source"),
        (lambda: api.load("tcp://here:1", key=""), "key"),
        (lambda: api.Model("").sample(), "source"),
        (lambda: api.Run(""), "path"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(
    call: Callable[[], object], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(api.UserError, match=f"^{name}: it is empty$"):
        call()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", ["5", [], True])
def test_a_timeout_of_another_type_is_a_type_error(trained: Path, timeout: Any) -> None:
    with pytest.raises(TypeError, match=r"^timeout is .+; allowed: None or a number at least 0$"):
        api.Run(trained).join(timeout=timeout)


@pytest.mark.parametrize("timeout", [math.nan, -1, -math.inf])
def test_a_timeout_that_cannot_be_is_a_user_error(trained: Path, timeout: float) -> None:
    expected = f"timeout is {timeout}; allowed: None or a number at least 0"
    with pytest.raises(api.UserError, match=f"^{re.escape(expected)}$"):
        api.Run(trained).join(timeout=timeout)


@pytest.mark.parametrize("timeout", [None, 0, 0.5, math.inf, 10**400])
def test_any_other_timeout_is_taken(trained: Path, timeout: float | None) -> None:
    run = api.Run(trained)
    assert run.join(timeout=timeout) is run


def test_a_timeout_ends_the_wait(manychar: Commands) -> None:
    """That of any size, which the clock's time cannot be added to."""
    script = f"""
from fractions import Fraction
flags = dict(steps=0, run_dir="run", sample_length=0, quiet=True, wait=False)
run = manychar.train(text, {SMALL}, **flags)
print(run.join(0).is_alive(), run.join(Fraction(1, 10)).is_alive())
run._training.stop()
print(run.join(10**400).is_alive())
"""
    done = python(manychar, script)
    assert (done.code, done.out) == (0, "True True\nFalse\n"), done.err


def test_load_takes_the_connect_timeout_of_each_call(manychar: Commands) -> None:
    script = """
server = manychar.load("ipc://nobody", connect_timeout=1)
other = lambda: server.sample(connect_timeout=2)
for call in (server.sample, lambda: server.evaluate("the"), other):
    try:
        call()
    except manychar.UserError as error:
        print(error)
"""
    done = python(manychar, script)
    first, second, third = done.out.splitlines()
    for line, seconds in ((first, 1), (second, 1), (third, 2)):
        assert line.startswith(f"no server at ipc://nobody for {seconds} s (connect_timeout)"), done
    with pytest.raises(TypeError, match=r"^connect_timeout is '1'; allowed: a finite number"):
        api.load("tcp://here:1", connect_timeout="1")  # type: ignore[arg-type]


def test_what_is_no_function_is_refused_before_the_run_begins(tmp_path: Path) -> None:
    no_function: Any = 3
    with pytest.raises(TypeError, match=r"^callback is 3; allowed: a function$"):
        api.train("text", callback=no_function, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_a_path(trained: Path) -> None:
    assert api.load(api.Run(trained)).source == str(trained)


def test_a_run_whose_bits_are_others_is_found_out(manychar: Commands, trained: Path) -> None:
    path = trained / "checkpoints" / "step-000000150.safetensors"
    found = read_checkpoint(path)
    wrong = found.state.parameters.flat.copy()
    wrong[3] += 1e-3
    state = dataclasses.replace(found.state, parameters=found.state.parameters.like(wrong))
    path.unlink()
    write_checkpoint(path, found.definition, found.vocabulary, state)
    done = python(manychar, "print(manychar.Run('run').verify())")
    assert (done.code, done.out) == (0, "False\n"), done.err
    assert done.last_line == "DIFFERENT: first at step 150, in Wxh"


@pytest.mark.long
def test_an_interrupt_is_how_an_endless_run_ends(manychar: Commands) -> None:
    """And its texts are Paths, joined in their order."""
    (manychar.directory / "more.txt").write_text("Zz")
    script = f"""
from pathlib import Path
paths = [Path("text.txt"), Path("more.txt")]
run = manychar.train(paths, {SMALL}, steps=0, sample_every=0, run_dir="run")
print(list(run.checkpoints())[-1] > 0)
"""
    running = manychar.start(program=("-c", f"import manychar\n{script}"))
    running.wait_for(r"step [1-9]")
    running.interrupt()
    done = running.end()
    assert done.code == 0, done.err
    assert done.out.endswith("True\n")
    vocabulary = json.loads((manychar.directory / "run" / "vocabulary.json").read_text())
    assert {"Z", "z"} <= set(vocabulary)
    assert "KeyboardInterrupt" not in done.err


@pytest.mark.long
def test_an_interrupt_writes_a_checkpoint_and_the_run_goes_on(manychar: Commands) -> None:
    script = f"""
try:
    manychar.train(text, {SMALL}, steps=10**9, sample_every=0, run_dir="run")
except KeyboardInterrupt as interrupt:
    print("interrupted", *interrupt.__notes__, flush=True)
step = list(manychar.Run("run").checkpoints())[-1]
run = manychar.Run("run").resume(steps=step + 5)
print(list(run.checkpoints())[-1] - step)
"""
    running = manychar.start(program=("-c", f"import manychar\n{TEXT}{script}"))
    running.wait_for("server has joined")
    running.interrupt()
    done = running.end()
    assert done.code == 0, done.err
    path = manychar.directory / "run"
    assert done.out.splitlines()[0] == f"interrupted Run('{path}').resume() goes on with it"
    assert done.out.splitlines()[-1] == "5"


@pytest.mark.long
def test_a_killed_process_leaves_no_children(manychar: Commands) -> None:
    script = f"manychar.train(text, {SMALL}, steps=0, run_dir='run')"
    running = manychar.start(program=("-c", f"import manychar\n{TEXT}{script}"))
    running.wait_for("server has joined")
    running.send(signal.SIGKILL)
    manychar.expect_nobody()
    assert manychar.run("verify", "run").code == 0


def test_the_step_is_that_of_the_checkpoint_that_is_read(trained: Path) -> None:
    run = api.Run(trained)
    step, newest = list_checkpoints(trained / "checkpoints")[-1]
    newest.rename(newest.with_name(RECOVERY_NAME))
    assert max(run.checkpoints()) < step == run.step


def test_closing_a_stream_ends_its_command(manychar: Commands, trained: Path) -> None:
    script = """
pieces = manychar.load("run").stream(10**9, seed=1)
print(len(next(pieces)) > 0)
pieces.close()
"""
    done = python(manychar, script)
    assert (done.code, done.out) == (0, "True\n"), done.err
    manychar.expect_nobody()


def test_it_can_be_imported_without_docstrings(manychar: Commands) -> None:
    script = "import manychar; print(manychar.train.__doc__.split()[0])"
    done = manychar.start(program=("-OO", "-c", script)).end()
    assert (done.code, done.out) == (0, "hidden:\n"), done.err


@pytest.mark.parametrize("path", ["nowhere", "n" * 300, "n/" * 3000, "no\0where"])
def test_what_is_no_run_is_a_user_error(path: str) -> None:
    with pytest.raises(api.UserError, match=r"not a run directory: no config\.json in it$"):
        api.Run(path)


def test_a_run_that_cannot_be_read_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    run = api.Run(tmp_path)
    with pytest.raises(api.UserError, match=r"config\.json: damaged or altered"):
        run.checkpoints()
    assert run.metrics() == []
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(api.UserError, match=r"metrics.jsonl: is a directory$"):
        run.metrics()
