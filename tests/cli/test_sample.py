"""`manychar sample`: from a run, a checkpoint alone, or a live server; one seed, one text."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.commands import SMALL, Commands
from tests.texts import small_text


def sample(manychar: Commands, *arguments: str) -> str:
    done = manychar.run("sample", *arguments)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    return done.out


def test_from_a_run_and_from_a_checkpoint_alone(
    manychar: Commands, trained: Path, tmp_path: Path
) -> None:
    flags = ("--length", "300", "--seed", "5")
    of_run = sample(manychar, "run", *flags)
    assert len(of_run) == 301
    assert of_run[-1] == "\n"
    assert set(of_run) <= set(small_text())
    newest = trained / "checkpoints" / "step-000000300.safetensors"
    assert sample(manychar, str(newest), *flags) == of_run
    moved = tmp_path / "moved.safetensors"
    shutil.move(newest, moved)
    first = (trained / "checkpoints" / "step-000000000.safetensors").rename(tmp_path / "first")
    shutil.rmtree(trained)
    assert sample(manychar, str(moved), *flags) == of_run
    assert sample(manychar, str(first), *flags) != of_run


def test_texts_are_utf_8_where_the_locale_is_not(manychar: Commands, trained: Path) -> None:
    """A path stays as the file system has it."""
    trained.rename(manychar.directory / "r\xfcn")
    (manychar.directory / "pr\xfcfung").write_text("the cat")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0"}
    done = manychar.run("sample", "r\xfcn", "--prime", "\u2603", env=locale)
    assert "does not know 1 character of the prime: '\\u2603' (U+2603)" in done.err
    done = manychar.run("evaluate", "r\xfcn", "pr\xfcfung", env=locale)
    assert done.code == 0, done.err
    done = manychar.run("worker", "tcp://\xfc:99999", env=locale)
    assert (done.code, r"manychar: tcp://\xfc:99999: the port" in done.err) == (2, True)


def test_the_printed_commands_can_be_pasted(manychar: Commands, text: Path) -> None:
    """Where no search finds the program, and whatever the run's directory is called."""
    name = "a\nb' \\\x9b"
    flags = ("--steps", "2", "--workers", "1", "--run-dir", name)
    path = {"PATH": "/usr/bin:/bin"}
    done = manychar.run("train", str(text), *SMALL, *flags, env=path)
    assert done.code == 0, done.err
    for words, more in (("sample from it", "--length 5"), ("resume", "")):
        line = re.findall(f"^{words}: (.*)$", done.err, re.MULTILINE)[0].replace("--steps N", "")
        pasted = subprocess.run(
            ["bash", "-c", f"{line} {more}"],
            env=path,
            cwd=manychar.directory,
            capture_output=True,
            check=False,
        )
        assert pasted.returncode == 0, pasted.stderr
    assert sorted(each.name for each in manychar.directory.iterdir()) == [name]
    refused = manychar.run("server", "--bind", "tcp://0.0.0.0:1", "--run-dir", "a\nb", env=path)
    assert re.search(r"-m manychar server --bind .* --run-dir \$'a\\x0ab' --keys", refused.err)
    keys = manychar.run("keys", "create", "my\nkeys", env=path)
    assert re.search(r"-m manychar server TEXT .* --keys \$'my\\x0akeys'$", keys.last_line)


@pytest.mark.long
def test_a_seed_that_was_drawn_is_shown(manychar: Commands, trained: Path) -> None:
    one = manychar.run("sample", "run", "--length", "200")
    another = manychar.run("sample", "run", "--length", "200")
    assert one.out != another.out
    flag, seed = one.err.split()
    assert flag == "--seed"
    again = manychar.run("sample", "run", "--length", "200", flag, seed)
    assert again.out == one.out
    assert again.err == ""
    assert sample(manychar, "run", "--length", "200", "--seed", str(int(seed) + 1)) != one.out


def test_the_prime_is_echoed(manychar: Commands, trained: Path, tmp_path: Path) -> None:
    prime = "the dog\nran "
    flags = ("--length", "50", "--seed", "1")
    primed = sample(manychar, "run", "--prime", prime, *flags)
    assert primed.startswith(prime)
    assert len(primed) == len(prime) + 51
    (tmp_path / "prime").write_bytes(prime.encode())
    assert sample(manychar, "run", "--prime-file", str(tmp_path / "prime"), *flags) == primed


def test_the_prime_counts(manychar: Commands, trained: Path) -> None:
    likeliest = ("--length", "6", "--temperature", "0")
    drawn = {sample(manychar, "run", "--prime", prime, *likeliest)[-7:] for prime in ("t", "ma")}
    assert len(drawn) == 2


def test_of_nothing(manychar: Commands, trained: Path) -> None:
    assert sample(manychar, "run", "--length", "0") == "\n"
    assert sample(manychar, "run", "--length", "0", "--prime", "the") == "the\n"


@pytest.mark.long
def test_temperature_and_top_k(manychar: Commands, trained: Path) -> None:
    def drawn(*flags: str) -> str:
        return sample(manychar, "run", "--length", "120", *flags)

    likeliest = drawn("--temperature", "0", "--seed", "1")
    assert drawn("--temperature", "0", "--seed", "2") == likeliest
    assert drawn("--top-k", "1", "--seed", "3") == likeliest
    assert drawn("--temperature", "1e-9", "--seed", "4") == likeliest
    wild = drawn("--temperature", "100", "--seed", "5")
    assert len(set(wild)) > len(set(likeliest))
    assert drawn("--top-k", "1000", "--seed", "6") == drawn("--seed", "6")
    assert drawn("--top-k", "2", "--seed", "6") != drawn("--seed", "6")


def test_characters_come_as_they_are_drawn(manychar: Commands, trained: Path) -> None:
    running = manychar.start("sample", "run", "--length", "1000000000", "--seed", "1")
    running.wait_for(r"(?s).{100}", "out")
    assert running.process.poll() is None
    running.interrupt()
    done = running.end()
    assert done.code == 130
    assert "Traceback" not in done.err


def test_a_reader_that_has_enough(manychar: Commands, trained: Path) -> None:
    running = manychar.start("sample", "run", "--length", "1000000000", "--seed", "1")
    running.wait_for(r"(?s).{10}", "out")
    assert running.process.stdout
    running.stop_reading()
    done = running.end()
    assert done.code == 0
    assert done.err == ""


@pytest.mark.long
def test_a_text_in_any_language(manychar: Commands, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(("naïve Σίσυφος 日本語 🜁🜂\r\n\t'\"\\" * 60).encode())
    done = manychar.run(
        *("train", str(text), *SMALL, "--steps", "20", "--run-dir", "run", "--workers", "1")
    )
    assert done.code == 0, done.err
    for encoding in ("utf-8", "ascii"):
        again = manychar.run(
            *("sample", "run", "--length", "100", "--seed", "1", "--prime", "🜁日"),
            env={"PYTHONIOENCODING": encoding},
        )
        assert "Traceback" not in again.err
        if encoding == "utf-8":
            assert again.code == 0, again.err
            assert again.out.startswith("🜁日")


class TestALiveServer:
    @pytest.mark.long
    def test_gives_its_newest_weights(self, manychar: Commands, text: Path) -> None:
        worker = manychar.start("worker", "ipc://meet", "--name", "a")
        server = manychar.start(
            *("server", str(text), *SMALL, "--bind", "ipc://meet", "--run-dir", "run"),
            *("--steps", "0", "--sample-every", "25", "--sample-length", "1"),
        )
        server.wait_for("--- step 25 ---", "out")
        text.unlink()
        drawn = sample(manychar, "ipc://meet", "--length", "40", "--prime", "the ", "--seed", "2")
        assert drawn.startswith("the ")
        assert len(drawn) == 45
        server.interrupt()
        assert server.end().code == 0
        assert worker.end().code == 0

    @pytest.mark.long
    def test_gives_the_weights_that_it_has_before_the_first_step(
        self, manychar: Commands, text: Path
    ) -> None:
        server = manychar.start(
            *("server", str(text), *SMALL, "--bind", "ipc://meet", "--run-dir", "run")
        )
        server.wait_for("listening")
        live = sample(manychar, "ipc://meet", "--length", "40", "--seed", "2")
        assert live == sample(manychar, "run", "--length", "40", "--seed", "2")
        server.interrupt()
        assert server.end().code == 130

    @pytest.mark.long
    def test_that_is_not_there(self, manychar: Commands) -> None:
        running = manychar.start("sample", "ipc://nobody", "--connect-timeout", "4")
        running.wait_for("waiting for a server at ipc://nobody")
        done = running.end()
        assert done.code == 3
        assert done.out == ""
        assert done.last_line.startswith("manychar: no server at ipc://nobody for 4 s")
        assert done.last_line.endswith(": nothing accepts connections there")

    @pytest.mark.long
    def test_that_speaks_another_language(self, manychar: Commands) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            done = manychar.run("sample", f"tcp://127.0.0.1:{port}", "--connect-timeout", "1.5")
        assert done.code == 3
        assert done.last_line.startswith("manychar: no server at tcp://127.0.0.1:")
        assert done.last_line.endswith(" s (--connect-timeout): no answer")
        assert "Traceback" not in done.err
