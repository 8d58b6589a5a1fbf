"""Bad input: one line that names it and says what to do, exit code 2, nothing left behind."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.commands import SMALL, Commands, Ended
from tests.conftest import Require
from tests.parameters import others_long
from tests.texts import small_text

TOO_LARGE = "99999999999999999999"
# Runs the command lines on its standard input, one after the other: a process each is slow.
ONE_BY_ONE = """
import contextlib, io, json, os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
from manychar.cli.app import run
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    print(json.dumps([code, out.getvalue(), err.getvalue(), os.listdir()]), flush=True)
"""
BOUNDED_SECONDS = 20.0


def expect_one_line(done: Ended, *named: str, code: int = 2) -> None:
    """Expect a refusal: one line on stderr that starts with manychar and names these things."""
    assert done.code == code, done
    assert done.err.startswith("manychar"), done.err
    assert done.err.count("\n") == 1, done.err
    assert done.err.endswith("\n")
    assert done.out == ""
    assert "Traceback" not in done.err
    for name in named:
        assert name in done.err, f"{name!r} is not named: {done.err}"


def expect_nothing_new(manychar: Commands, *there: str) -> None:
    found = sorted(str(p.relative_to(manychar.directory)) for p in manychar.directory.rglob("*"))
    assert found == sorted(there)
    manychar.expect_nobody()


TEXTS = {
    "empty": (b"", "empty"),
    "not UTF-8": (b"abc\xffdef" * 1000, "not UTF-8: byte 0xff at offset 3"),
    "cut in a character": ("na\u00efve".encode()[:3], "not UTF-8: byte 0xc3 at offset 2"),
    "late": (b"x" * 1_234_567 + b"\x80", "offset 1,234,567"),
    "too short": (b"abcabc", "need 1,664"),
    "half a character": ("ab\ud800".encode(errors="surrogatepass"), "offset 2"),
}


class TestTexts:
    @pytest.mark.parametrize("command", ["train", "server", "equivalence"])
    def test_that_are_missing(self, manychar: Commands, command: str) -> None:
        done = manychar.run(command, "nowhere.txt")
        expect_one_line(done, "nowhere.txt", "no such file")
        expect_nothing_new(manychar)

    @pytest.mark.parametrize("name", TEXTS)
    def test_that_cannot_be_trained_on(self, manychar: Commands, name: str) -> None:
        content, named = TEXTS[name]
        (manychar.directory / "text").write_bytes(content)
        expect_one_line(manychar.run("train", "text", "--run-dir", "run"), "text", named)
        expect_nothing_new(manychar, "text")

    @pytest.mark.parametrize("name", ["/dev/zero", "/dev/fd/0", "-"])
    def test_that_are_a_device(self, manychar: Commands, name: str, require: Require) -> None:
        """It may have no end. The limit keeps a failure of this test from filling the disk."""
        require(shutil.which("prlimit"), "needs prlimit")
        before, flags = ("prlimit", f"--fsize={10**6}"), ("--run-dir", "run")
        with Path("/dev/zero").open("rb") as stdin:
            started = manychar.start("train", name, *flags, before=before, stdin=stdin.fileno())
        done = started.end()
        named = "standard input" if name == "-" else name
        expect_one_line(done, f"{named}: a device; give the path of a text file")
        expect_nothing_new(manychar)

    @pytest.mark.long
    @pytest.mark.parametrize("name", ["empty", "not UTF-8", "too short"])
    def test_on_standard_input(self, manychar: Commands, name: str) -> None:
        content, named = TEXTS[name]
        expect_one_line(manychar.run("train", "-", given=content), named)
        expect_nothing_new(manychar)

    @pytest.mark.long
    @pytest.mark.parametrize("name", ["empty", "not UTF-8", "too short"])
    def test_for_equivalence(self, manychar: Commands, name: str, tmp_path: Path) -> None:
        content, named = TEXTS[name]
        (manychar.directory / "text").write_bytes(content)
        done = manychar.run("equivalence", "text", env={"TMPDIR": str(tmp_path)})
        expect_one_line(done, named)
        expect_nothing_new(manychar, "text")
        assert not list(tmp_path.glob("manychar-*"))

    def test_the_characters_needed_are_enough(self, manychar: Commands) -> None:
        text = manychar.directory / "text"
        flags = (*SMALL, "--steps", "2", "--run-dir", "run", "--workers", "1")
        text.write_text("ab" * 23 + "a", encoding="utf-8")
        expect_one_line(manychar.run("train", "text", *flags), "47 characters", "need 48")
        text.write_text("ab" * 24, encoding="utf-8")
        done = manychar.run("train", "text", *flags)
        assert done.code == 0, done.err

    def test_the_one_of_several_is_named(self, manychar: Commands, text: Path) -> None:
        (manychar.directory / "bad").write_bytes(b"a\xff")
        expect_one_line(manychar.run("train", str(text), "bad"), "manychar: bad: not UTF-8")

    def test_a_directory_is_none(self, manychar: Commands) -> None:
        expect_one_line(manychar.run("train", "."), "is a directory")

    def test_a_text_of_one_character(self, manychar: Commands) -> None:
        (manychar.directory / "text").write_text("a" * 500, encoding="utf-8")
        done = manychar.run("train", "text", *SMALL, "--steps", "3", "--run-dir", "run")
        assert done.code == 0, done.err


def _bad_values() -> list[tuple[str, str, str]]:
    """Every flag with values it does not take: (command, flag, value)."""
    positive = ["0", "-1", "some", "1.5", TOO_LARGE, ""]
    natural = ["-1", "some", "nan", TOO_LARGE]
    rate = ["0", "-0.1", "some", "nan", "inf", "1e999"]
    of_train = {
        "--hidden": positive,
        "--seq-length": positive,
        "--shards": positive,
        "--streams": positive,
        "--learning-rate": [*rate, "1e39", "1e-50"],
        "--clip": [*rate, "1e39", "1e-50"],
        "--dtype": ["float16", "some", ""],
        "--seed": natural,
        "--numerics": ["fast"],
        "--steps": natural,
        "--checkpoint-every": natural,
        "--keep-checkpoints": natural,
        "--sample-every": natural,
        "--sample-length": natural,
        "--lease-timeout": rate,
        "--workers": positive,
    }
    cases = [("train", flag, value) for flag, values in of_train.items() for value in values]
    cases += [("server", flag, values[0]) for flag, values in of_train.items()][:-1]
    cases += [
        ("server", "--bind", value)
        for value in ("here", "tcp://127.0.0.1", "tcp://127.0.0.1:99999", "udp://127.0.0.1:1")
    ]
    cases += [("equivalence", "--steps", value) for value in ("0", "2", "some", TOO_LARGE)]
    cases += [("equivalence", "--checkpoint-every", value) for value in ("0", "-1")]
    cases += [("equivalence", "--learning-rate", "nan")]
    return cases


BAD_OF_A_WORKER = [
    ("--name", "two words"),
    ("--name", "x" * 65),
    ("--processes", "0"),
    ("--processes", "-1"),
    ("--processes", "some"),
    ("--connect-timeout", "-1"),
    ("--connect-timeout", "nan"),
    ("--connect-timeout", "some"),
]
NO_ENDPOINTS = ["here", "tcp://", "tcp://host", "tcp://host:0x1", "ipc://", "tcp://h:70000"]


def with_bad_value(command: str, flag: str, value: str) -> tuple[str, ...]:
    """Return a command line with it; whatever passes by mistake is a small thing."""
    given = {"--hidden": "8", "--seq-length": "5", "--streams": "2", "--steps": "3"}
    given |= {flag: value}
    return command, "text.txt", *(f"{name}={v}" for name, v in given.items())


def of_worker(endpoint: str, *flags: str) -> tuple[str, ...]:
    return "worker", endpoint, "--connect-timeout=0.1", *flags


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Ended]:
    """How each command line with a bad value ended; each leaves the directory as it was."""
    directory = tmp_path_factory.mktemp("refused")
    (directory / "text.txt").write_text(small_text(), encoding="utf-8")
    lines = [with_bad_value(*case) for case in _bad_values()]
    lines += [of_worker("ipc://meet", f"{flag}={value}") for flag, value in BAD_OF_A_WORKER]
    lines += [of_worker(endpoint) for endpoint in NO_ENDPOINTS]
    commands = Commands(directory)
    done = commands.run(given=json.dumps(lines).encode(), program=("-c", ONE_BY_ONE))
    commands.close()
    assert done.code == 0, done.err
    ended = {}
    for line, written in zip(lines, done.out.splitlines(), strict=True):
        code, out, err, there = json.loads(written)
        assert there == ["text.txt"], line
        ended[line] = Ended(code, out, err)
    return ended


class TestFlags:
    @pytest.mark.parametrize("command", ["train", "server", "equivalence"])
    @pytest.mark.parametrize("hidden", ["40000", "23160"])  # without the vocabulary, and with it
    def test_weights_of_more_than_2_gib(
        self, manychar: Commands, text: Path, command: str, hidden: str
    ) -> None:
        done = manychar.run(command, str(text), "--hidden", hidden, "--streams", "1")
        expect_one_line(done, "the weights take", "at most 2 GiB: give a smaller --hidden")
        expect_nothing_new(manychar)

    @pytest.mark.long
    @pytest.mark.parametrize("place", ["..", "/"])
    def test_a_run_directory_without_a_name_that_is_not_empty(
        self, manychar: Commands, text: Path, tmp_path: Path, place: str
    ) -> None:
        (tmp_path / "empty").mkdir()
        flags = (*SMALL, "--run-dir", place, "--steps", "1")
        running = manychar.start("train", str(text), *flags, directory=tmp_path / "empty")
        expect_one_line(running.end(), place)
        assert not list((tmp_path / "empty").iterdir())

    @pytest.mark.parametrize(
        ("command", "flag", "value"), _bad_values(), ids=lambda value: value or "nothing"
    )
    def test_bad_values(
        self, refused: dict[tuple[str, ...], Ended], command: str, flag: str, value: str
    ) -> None:
        named = (value,) if flag == "--bind" else (f"manychar: {flag} is ", "; allowed: ")
        expect_one_line(refused[with_bad_value(command, flag, value)], *named)

    @pytest.mark.parametrize(("flag", "value"), BAD_OF_A_WORKER)
    def test_bad_values_of_a_worker(
        self, refused: dict[tuple[str, ...], Ended], flag: str, value: str
    ) -> None:
        named = f"manychar: {flag} is ", "; allowed: "
        expect_one_line(refused[of_worker("ipc://meet", f"{flag}={value}")], *named)

    @pytest.mark.parametrize("endpoint", NO_ENDPOINTS)
    def test_a_worker_without_an_endpoint(
        self, refused: dict[tuple[str, ...], Ended], endpoint: str
    ) -> None:
        expect_one_line(refused[of_worker(endpoint)], endpoint)

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            ("train --no-such-flag", "--no-such-flag"),
            ("train --hidden", "--hidden"),
            ("nothing", "nothing"),
            ("worker", "endpoint"),
            ("sample", "source"),
            ("worker ipc://a ipc://b", "ipc://b"),
        ],
    )
    def test_usage(self, manychar: Commands, arguments: str, named: str) -> None:
        done = manychar.run(*arguments.split())
        expect_one_line(done, "--help")
        assert named in done.err.lower()
        expect_nothing_new(manychar)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ("train t.txt --steps", "Option '--steps' requires an argument; see `manychar train"),
            ("keys add --role", "Option '--role' requires an argument; see `manychar keys add"),
            ("trian", "No such command 'trian'. Did you mean 'train'? See `manychar"),
        ],
    )
    def test_usage_names_the_help_of_the_command(
        self, manychar: Commands, arguments: str, expected: str
    ) -> None:
        done = manychar.run(*arguments.split())
        expect_one_line(done)
        assert done.err.endswith(f": {expected} --help`\n")

    @pytest.mark.parametrize("bind", ["tcp://0.0.0.0:*", "tcp://*:*", "tcp://[::]:*"])
    def test_strangers_are_not_let_in(self, manychar: Commands, text: Path, bind: str) -> None:
        done = manychar.run("server", str(text), *SMALL, "--bind", bind)
        expect_one_line(done, bind, "--insecure", code=78)
        expect_nothing_new(manychar)

    def test_an_address_that_is_not_ours(self, manychar: Commands, text: Path) -> None:
        bind = "tcp://192.0.2.1:5577"
        done = manychar.run("server", str(text), *SMALL, "--bind", bind, "--insecure")
        assert done.code == 2, done
        assert f"cannot bind to {bind}" in done.last_line
        expect_nothing_new(manychar)

    @pytest.mark.parametrize("command", ["server", "train", "relay"])
    @pytest.mark.parametrize("kind", ["file", "directory"])
    def test_what_is_at_an_ipc_path_stays(
        self, manychar: Commands, text: Path, command: str, kind: str
    ) -> None:
        place = manychar.directory / "it"
        place.write_text("kept") if kind == "file" else place.mkdir()
        below = ("ipc://above", "--connect-timeout", "1")
        source = below if command == "relay" else (str(text), *SMALL, "--steps", "3")
        done = manychar.run(command, *source, "--bind", "ipc://it")
        expect_one_line(done, "cannot bind to ipc://it: a file or directory is there; choose")
        expect_nothing_new(manychar, "it")
        assert kind == "directory" or place.read_text() == "kept"

    @pytest.mark.parametrize("command", ["server", "train"])
    def test_a_run_s_own_file_as_an_ipc_path_stays(
        self, manychar: Commands, trained: Path, command: str
    ) -> None:
        before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
        bind = ("--bind", "ipc://run/journal.jsonl")
        assert trained / "journal.jsonl" in before
        for run in (("--resume", "run"), ("--or-resume", "--run-dir", "run")):
            done = manychar.run(command, *run, *bind, "--steps", "400")
            expect_one_line(
                done, "cannot bind to ipc://run/journal.jsonl: a file or directory is there"
            )
        assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before

    def test_an_empty_endpoint(self, manychar: Commands, text: Path) -> None:
        done = manychar.run("train", str(text), *SMALL, "--bind", "")
        expect_one_line(done, "an empty text: not an endpoint")
        expect_nothing_new(manychar)

    @pytest.mark.parametrize(
        ("role", "command"),
        [
            ("a worker", "worker tcp://127.0.0.1:9"),
            ("a worker", "worker tcp://127.0.0.1:9 --processes 2"),
            ("a relay", "relay tcp://127.0.0.1:9 --bind tcp://127.0.0.1:0"),
            ("an observer", "status tcp://127.0.0.1:9"),
            ("an observer", "follow tcp://127.0.0.1:9 --metrics-port 0"),
            ("a dashboard", "dashboard tcp://127.0.0.1:9 --port 0"),
            ("a server", f"server TEXT {' '.join(SMALL)} --bind tcp://127.0.0.1:0"),
            ("a server and its workers", f"train TEXT {' '.join(SMALL)} --run-dir run"),
        ],
    )
    def test_too_few_open_files(
        self, manychar: Commands, text: Path, role: str, command: str
    ) -> None:
        few = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12));"
            "from manychar.cli.app import run; sys.exit(run(sys.argv[1:]))"
        )
        words = command.replace("TEXT", str(text)).split()
        done = manychar.run(*words, program=("-c", few))
        assert done.code == 2, done
        line = f"manychar: 12 open files are too few for {role}: `ulimit -n 64` or more"
        assert done.last_line.endswith(line)
        expect_nothing_new(manychar)

    def test_a_client_takes_more_open_files_where_it_may(self, manychar: Commands) -> None:
        low = (
            "import resource, sys; most = resource.getrlimit(resource.RLIMIT_NOFILE)[1];"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (12, most));"
            "from manychar.cli.app import run; sys.exit(run(sys.argv[1:]))"
        )
        flags = ("tcp://127.0.0.1:9", "--connect-timeout", "1")
        for command in ("worker", "status"):
            done = manychar.run(command, *flags, program=("-c", low))
            assert done.code == 3, done
            said = "no server at tcp://127.0.0.1:9 for 1 s (--connect-timeout): nothing accepts"
            assert f"{said} connections there" in done.last_line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("train", "text", "--run-dir", ""), "--run-dir"),
        (("train", "--resume="), "--resume"),
        (("server", "--keys", "", "--bind", "tcp://0.0.0.0:1"), "--keys"),
        (("train", ""), "TEXT"),
        (("train", "--config", ""), "--config"),
        (("train", "--config", "empty.toml"), "--run-dir"),
        (("sample", ""), "SOURCE"),
        (("sample", "run", "--prime-file", ""), "--prime-file"),
        (("export", "run", "-o", ""), "--output"),
        (("verify", ""), "RUN"),
        (("runs", ""), "DIR"),
        (("status", "tcp://127.0.0.1:1", "--key="), "--key"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(
    manychar: Commands, arguments: tuple[str, ...], named: str
) -> None:
    """It is what a script gives for a variable that is not set."""
    (manychar.directory / "empty.toml").write_text('run_dir = ""\n')
    done = manychar.run(*arguments)
    assert (done.code, done.err) == (2, f"manychar: {named}: it is empty\n")
    expect_nothing_new(manychar, "empty.toml")


def test_a_null_byte_is_in_no_path(manychar: Commands) -> None:
    (manychar.directory / "flags.toml").write_text(r'run_dir = "a\u0000b"')
    done = manychar.run("train", "--config", "flags.toml")
    expect_one_line(done, "'--run-dir': embedded null byte")


def test_a_number_is_no_path(manychar: Commands) -> None:
    (manychar.directory / "flags.toml").write_text("run_dir = 3\n")
    done = manychar.run("train", "--config", "flags.toml")
    expect_one_line(done, "flags.toml: run_dir = 3: ", "'--run-dir': not a string")


class TestRunDirectories:
    @pytest.mark.long
    def test_that_hold_another_run(self, manychar: Commands, text: Path) -> None:
        first = ("train", str(text), *SMALL, "--steps", "3", "--run-dir", "run", "--workers", "1")
        assert manychar.run(*first).code == 0
        before = {p: p.read_bytes() for p in manychar.directory.rglob("*") if p.is_file()}
        for command in ("train", "server"):
            done = manychar.run(command, str(text), *SMALL, "--run-dir", "run")
            expect_one_line(done, "run: ", "--run-dir")
        after = {p: p.read_bytes() for p in manychar.directory.rglob("*") if p.is_file()}
        assert after == before

    def test_that_hold_something_else(self, manychar: Commands, text: Path) -> None:
        (manychar.directory / "run").mkdir()
        (manychar.directory / "run" / "letter").write_text("dear", encoding="utf-8")
        expect_one_line(manychar.run("train", str(text), *SMALL, "--run-dir", "run"), "run")
        expect_nothing_new(manychar, "run", "run/letter")

    def test_that_are_a_file(self, manychar: Commands, text: Path) -> None:
        (manychar.directory / "run").write_text("dear", encoding="utf-8")
        expect_one_line(manychar.run("train", str(text), *SMALL, "--run-dir", "run"), "run")
        expect_nothing_new(manychar, "run")

    def test_that_cannot_be_made(self, manychar: Commands, text: Path) -> None:
        (manychar.directory / "file").write_text("dear", encoding="utf-8")
        done = manychar.run("train", str(text), *SMALL, "--run-dir", "file/run")
        expect_one_line(done, "file/run", "--run-dir")
        expect_nothing_new(manychar, "file")

    def test_without_leave_to_write(self, manychar: Commands, text: Path) -> None:
        kept = Path("/proc/self") if os.geteuid() == 0 else manychar.directory / "kept"
        if os.geteuid() == 0:
            if not kept.exists():
                pytest.skip("the superuser may write everywhere here")
        else:
            kept.mkdir(mode=0o555)
        done = manychar.run("train", str(text), *SMALL, "--run-dir", str(kept / "run"))
        expect_one_line(done, str(kept / "run"))

    @pytest.mark.long
    def test_a_path_too_long_for_a_socket_is_none_for_a_run(
        self, manychar: Commands, text: Path
    ) -> None:
        name = "r" * 120
        done = manychar.run(*("train", str(text), *SMALL, "--steps", "3"), *("--run-dir", name))
        assert done.code == 0, done

    @pytest.mark.parametrize("command", ["train", "server"])
    def test_that_are_not_there_to_resume(self, manychar: Commands, command: str) -> None:
        expect_one_line(manychar.run(command, "--resume", "nowhere"), "nowhere")
        expect_nothing_new(manychar)


def contents(run: Path) -> dict[str, bytes]:
    """Return everything in a run directory but the lock and the term, which rises at each start."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in ("lock", "term")
    }


class TestResuming:
    @pytest.mark.long
    def test_changes_the_operation_only(self, manychar: Commands, trained: Path) -> None:
        (manychar.directory / "other.txt").write_text("something else\n" * 300)
        before = contents(trained)
        for arguments in (
            ["other.txt"],
            ["--run-dir", "other"],
            ["--hidden", "9"],
            ["--seq-length", "6"],
            ["--learning-rate", "0.2"],
            ["--warmup", "5"],
            ["--clip", "1"],
            ["--shards", "2"],
            ["--streams", "3"],
            ["--dtype", "float64"],
            ["--seed", "1"],
            ["--numerics", "native"],
        ):
            done = manychar.run("train", "--resume", "run", *arguments)
            named = arguments[0] if arguments[0].startswith("--") else "text: the run"
            expect_one_line(done, named, "leave it out")
        for flag, value in (("--steps", "-1"), ("--lease-timeout", "0"), ("--workers", "0")):
            done = manychar.run("train", "--resume", "run", flag, value, seconds=BOUNDED_SECONDS)
            expect_one_line(done, flag)
        assert contents(trained) == before

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("config.json", b"{"),
            ("config.json", b"[]"),
            ("config.json", b"\xff"),
            ("config.json", b'{"run": "x"}'),
            ("vocabulary.json", b"{"),
            ("vocabulary.json", b'["b", "a"]'),
            ("vocabulary.json", b"\xff"),
            ("corpus.bin", b""),
            ("corpus.bin", b"\x00" * 3606),
            ("corpus.bin", b"\xff" * 3606),
            ("term", b"first"),
            ("term", b"\xff"),
        ],
    )
    def test_a_damaged_file(
        self, manychar: Commands, trained: Path, name: str, content: bytes
    ) -> None:
        (trained / name).write_bytes(content)
        before = contents(trained)
        done = manychar.run("train", "--resume", "run", "--steps", "320")
        expect_one_line(done, name)
        assert contents(trained) == before

    @pytest.mark.long
    @pytest.mark.parametrize("name", ["config.json", "vocabulary.json", "corpus.bin"])
    def test_a_missing_file(self, manychar: Commands, trained: Path, name: str) -> None:
        (trained / name).unlink()
        expect_one_line(manychar.run("train", "--resume", "run", "--steps", "320"), name)

    def test_a_changed_definition(self, manychar: Commands, trained: Path) -> None:
        config = json.loads((trained / "config.json").read_text())
        config["definition"]["learning_rate"] = 0.2
        (trained / "config.json").write_text(json.dumps(config))
        expect_one_line(manychar.run("train", "--resume", "run", "--steps", "320"), "run")

    def test_a_bad_operation(self, manychar: Commands, trained: Path) -> None:
        config = json.loads((trained / "config.json").read_text())
        config["operation"]["steps"] = "many"
        (trained / "config.json").write_text(json.dumps(config))
        expect_one_line(manychar.run("train", "--resume", "run"), "config.json", "steps")

    @pytest.mark.long
    def test_goes_back_to_the_newest_whole_checkpoint(
        self, manychar: Commands, trained: Path
    ) -> None:
        newest = trained / "checkpoints" / "step-000000300.safetensors"
        whole = newest.read_bytes()
        newest.write_bytes(whole[:-1])
        done = manychar.run("train", "--resume", "run", "--steps", "300")
        assert done.code == 0, done
        complaints = [line for line in done.err.splitlines() if newest.name in line]
        assert len(complaints) == 1
        assert "truncated" in complaints[0]
        assert manychar.run("sample", str(newest), "--length", "5").code == 0
        assert newest.stat().st_size == len(whole)

    def test_says_that_no_checkpoint_is_whole(self, manychar: Commands, trained: Path) -> None:
        for path in (trained / "checkpoints").iterdir():
            path.write_bytes(path.read_bytes()[:-1])
        done = manychar.run("train", "--resume", "run", "--steps", "320")
        assert done.code == 2
        assert done.last_line.startswith("manychar: run/checkpoints: ")
        assert "Traceback" not in done.err

    def test_says_that_there_is_none(self, manychar: Commands, trained: Path) -> None:
        shutil.rmtree(trained / "checkpoints")
        expect_one_line(manychar.run("train", "--resume", "run", "--steps", "320"), "checkpoints")


class TestSampling:
    @pytest.mark.long
    def test_sources_that_are_none(self, manychar: Commands) -> None:
        (manychar.directory / "empty").mkdir()
        (manychar.directory / "letter").write_text("dear", encoding="utf-8")
        for source in ("nowhere", "empty", "letter", "tcp://", "ipc://"):
            expect_one_line(manychar.run("sample", source), source)
        expect_nothing_new(manychar, "empty", "letter")

    @pytest.mark.long
    @pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, 1000, -1])
    def test_truncated_checkpoints(self, manychar: Commands, trained: Path, cut: int) -> None:
        path = trained / "checkpoints" / "step-000000300.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[:cut])
        expect_one_line(manychar.run("sample", str(path)), path.name, "truncated")

    def test_a_newest_checkpoint_that_is_truncated(self, manychar: Commands, trained: Path) -> None:
        newest = max(trained.glob("checkpoints/step-*"))
        newest.write_bytes(newest.read_bytes()[:-9])
        done = manychar.run("sample", str(trained), "--length", "5", "--seed", "1")
        assert done.code == 0
        assert f"{newest}: " in done.err
        assert done.err.endswith("; taking that of step 150\n")

    def test_an_altered_text_is_not_called_too_short(
        self, manychar: Commands, trained: Path
    ) -> None:
        (trained / "corpus.bin").write_bytes(b"abc")
        done = manychar.run("train", "--resume", "run", "--steps", "310")
        expect_one_line(done, "vocabulary.json or corpus.bin is altered")

    def test_an_altered_checkpoint(self, manychar: Commands, trained: Path) -> None:
        path = trained / "checkpoints" / "step-000000300.safetensors"
        whole = bytearray(path.read_bytes())
        whole[-5] ^= 1
        path.write_bytes(whole)
        expect_one_line(manychar.run("sample", str(path)), path.name, "altered", "sha256")

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("flag", "value"),
        [
            ("--length", "-1"),
            ("--length", "some"),
            ("--length", TOO_LARGE),
            ("--temperature", "-1"),
            ("--temperature", "nan"),
            ("--temperature", "inf"),
            ("--temperature", "some"),
            ("--top-k", "-1"),
            ("--top-k", "some"),
            ("--seed", "-1"),
            ("--seed", "some"),
        ],
    )
    def test_bad_values(self, manychar: Commands, trained: Path, flag: str, value: str) -> None:
        done = manychar.run("sample", "run", f"{flag}={value}")
        expect_one_line(done, f"manychar: {flag} is ", "; allowed: ")

    @pytest.mark.long
    def test_bad_primes(self, manychar: Commands, trained: Path) -> None:
        directory = manychar.directory
        (directory / "latin").write_bytes(b"caf\xe9")
        (directory / "prime").write_text("the", encoding="utf-8")
        sample = ("sample", "run", "--length", "5")
        expect_one_line(manychar.run(*sample, "--prime", "théâtre"), "the prime: 'é' (U+00E9), 'â'")
        expect_one_line(manychar.run(*sample, "--prime-file", "nowhere"), "nowhere")
        expect_one_line(manychar.run(*sample, "--prime-file", "latin"), "latin", "offset 3")
        both = manychar.run(*sample, "--prime", "the", "--prime-file", "prime")
        expect_one_line(both, "--prime", "--prime-file")

    def test_a_directory_of_checkpoints(self, manychar: Commands, trained: Path) -> None:
        path = trained / "checkpoints"
        expect_one_line(manychar.run("sample", str(path)), "checkpoints")


def test_a_wrong_value_of_a_variable_is_named_by_it(manychar: Commands) -> None:
    done = manychar.run("train", env={"MANYCHAR_LOG_LEVEL": "foo"})
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--log-level is 'foo'; allowed:" in done.err
    assert "(by $MANYCHAR_LOG_LEVEL)" in done.err


GONE = (
    ("train", ""),
    ("train text.txt", "text.txt: "),
    ("train --run-dir other", ""),
    ("train --resume run", ""),
    ("train --or-resume --run-dir run", ""),
    ("train --config c.toml", "c.toml: "),
    ("server --bind ipc://it", "cannot bind to ipc://it: "),
    ("runs", "runs: "),
    ("sample run", "run: "),
    ("evaluate run text.txt", "run: "),
    ("verify run", "run: "),
    ("status run", "run: "),
    ("health run", "run: "),
    ("dashboard run", ""),
    ("follow run --metrics-port 0", "run: "),
    ("stop run", "run: "),
    ("unban run it", "run: "),
    ("plot run -o a.svg", "run: "),
    ("export run -o a", "run: "),
    ("keys create K", "K: "),
    ("keys list K", "K/clients.json: "),
    ("worker tcp://127.0.0.1:9 --key a.key", "a.key: "),
    ("equivalence text.txt", "text.txt: "),
    ("doctor", ""),
)


@pytest.mark.parametrize("case", others_long(GONE, ordinary=3))
def test_a_current_directory_that_was_removed_is_named(
    manychar: Commands, case: tuple[str, str]
) -> None:
    words, what = case
    remove = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    done = manychar.start(*words.split(), before=("sh", "-c", remove, "sh")).end()
    line = done.last_line
    assert done.code == 2, done
    assert line.startswith(f"manychar: {what}")
    assert line.endswith(": the current directory does not exist any more; cd to another one")


def test_a_path_that_does_not_need_the_current_directory_is_not_explained_by_it(
    manychar: Commands,
) -> None:
    remove = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'
    done = manychar.start("sample", "/nowhere", before=("sh", "-c", remove, "sh")).end()
    assert done.err == "manychar: /nowhere: no such file or directory\n"
