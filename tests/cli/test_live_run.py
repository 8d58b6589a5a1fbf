"""A run directory stands for its live server: every command of a live run takes it."""

import errno
import json
import logging
import os
import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from manychar.cli.runs import runs
from manychar.cli.stop import stop
from manychar.network.keys import add, create
from manychar.observability.dashboard.data_source import FinishedRun, LiveServer, open_source
from manychar.observability.model_source import load
from manychar.observability.observer_client import find_server, snapshots
from manychar.observability.status import Health, check_health
from manychar.processes.errors import UserError
from manychar.protocol.messages import KeyRole
from manychar.storage.run_directory import locked, open_run
from manychar.storage.server_address import (
    ADDRESS_NAME,
    ServerAddress,
    another_server,
    read_address,
    write_address,
)
from tests.commands import SMALL, TWO_WORKERS, Commands, Running, until
from tests.single_process import bits_alone, bits_of

ENDLESS = (*SMALL, "--steps", "0", "--sample-every", "0", "--checkpoint-every", "100")
HERE = socket.gethostname()


@pytest.fixture
def live(manychar: Commands, text: Path) -> Running:
    """A run in `run` that is trained by two workers."""
    running = manychar.start("train", str(text), *ENDLESS, *TWO_WORKERS, "--run-dir", "run")
    metrics = manychar.directory / "run" / "metrics.jsonl"
    until(lambda: metrics.exists() and '"step"' in metrics.read_text(), "100 steps")
    return running


@pytest.mark.long
def test_every_command_of_a_live_run_takes_its_directory(
    manychar: Commands, live: Running, text: Path
) -> None:
    run = manychar.directory / "run"
    address = read_address(run)
    assert address is not None
    where = f"{address.endpoint}, process {address.process} on {HERE}"
    assert (run / ADDRESS_NAME).stat().st_mode & 0o777 == 0o600
    assert "server" in manychar.family()[address.process]

    status = manychar.run("status", "run", "--json")
    assert json.loads(status.out)["run_id"] == open_run(run).run_id, status.err
    asked, asked_of = manychar.run("evaluate", address.endpoint), re.escape(address.endpoint)
    assert asked.last_line.endswith("server: give a text: a server does not send its text")
    newer = (
        rf"run: the checkpoint of step [\d,]+; its server may have newer weights: give {asked_of}"
    )
    for words in (("sample", "run", "--seed", "1"), ("evaluate", "run", str(text), "--json")):
        read = manychar.run(*words)
        assert (read.code, re.fullmatch(f"{newer}\n", read.err) is not None) == (0, True), read
    json.loads(read.out)
    health = manychar.run("health", "run")
    assert (health.code, "it advances" in health.out) == (0, True), health
    following = manychar.start("sample", "run", "--follow", "--length", "5")
    following.wait_for("--- step ", "out")
    following.interrupt()
    following.end()
    page = open_source(str(run), None, connect_timeout=30.0)
    assert isinstance(page, LiveServer)
    assert page.view.history.points[0].step == 100, "of before it was watched"
    page.close()
    lifted = manychar.run("unban", "run", "somebody")
    assert (lifted.code, lifted.last_line) == (2, "manychar: run: somebody is not banned")
    listed = manychar.run("runs", ".")
    assert re.fullmatch(
        rf"run  step [\d,]+  loss [\d.]+ nats a character  live at {address.endpoint}\n", listed.out
    ), listed
    second = manychar.run("train", "--resume", "run")
    assert second.code == 2
    assert f"run: another server is running on it ({where}); wait for it" in second.err

    stopped = manychar.run("stop", "run")
    assert (stopped.code, "stopped by" in stopped.err) == (0, True), stopped
    assert live.end().code == 75
    assert not (run / ADDRESS_NAME).exists()
    gone = manychar.run("status", "run")
    assert (gone.code, gone.out) == (3, "")
    assert gone.err == "manychar: run: no server is running on it\n"
    assert re.search("nats a character  stopped\n", manychar.run("runs", ".").out)
    assert isinstance(open_source(str(run), None, connect_timeout=1.0), FinishedRun)


@pytest.mark.long
def test_a_live_run_is_listed_with_its_present_step(manychar: Commands, text: Path) -> None:
    """Its files have every hundredth step; this one stands still at any, its worker paused."""
    server = manychar.start(
        *("server", str(text), *ENDLESS, "--run-dir", "run", "--bind", "ipc://here")
    )
    worker = manychar.start("worker", "ipc://here", "--connect-timeout", "60")
    server.wait_for("step [1-9]")
    worker.send(signal.SIGSTOP)
    server.wait_for(r"has waited \d+ s for")
    step = json.loads(manychar.run("status", "run", "--json").out)["step"]
    (line,) = manychar.run("runs", ".").out.splitlines()
    assert line.startswith(f"run  step {step:,}  loss "), line
    server.send(signal.SIGSTOP)
    (line,) = manychar.run("runs", ".").out.splitlines()
    assert re.match(r"run  step [\d,]*0  loss .*  no answer at ipc:/.*/here", line), "as recorded"
    for running in (server, worker):
        running.send(signal.SIGCONT)
    server.interrupt()
    assert (server.end().code, worker.end().code) == (0, 0)


@pytest.mark.long
@pytest.mark.parametrize("address", ["tcp://0.0.0.0:0", "tcp://[::]:0"])
def test_the_endpoint_of_a_live_run_can_be_pasted(
    manychar: Commands, text: Path, address: str
) -> None:
    flags = ("--bind", address, "--insecure")
    server = manychar.start("server", str(text), *ENDLESS, "--run-dir", "run", *flags)
    server.wait_for("a worker joins with")
    found = re.search(r" live at (tcp://\S+)\n", manychar.run("runs", ".").out)
    assert found is not None
    assert not found[1].startswith(address.removesuffix("0")), "no peer's address"
    assert manychar.run("status", found[1]).code == 0
    server.interrupt()
    assert server.end().code == 0


@pytest.mark.long
def test_metrics_are_exported_by_run_directory(manychar: Commands, live: Running) -> None:
    following = manychar.start("follow", "run", "--metrics-port", "0")
    following.wait_for(r"figures for Prometheus: http://127\.0\.0\.1:\d+/metrics")
    assert manychar.run("stop", "run").code == 0
    assert live.end().code == 75
    ended = following.end()
    assert (ended.code, "stopped by" in ended.err) == (75, True) or ended.code == 0, ended


@pytest.mark.long
def test_where_train_has_keys_its_user_reaches_it_too(
    manychar: Commands, text: Path, tmp_path: Path
) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    running = manychar.start(
        *("train", str(text), *ENDLESS, *TWO_WORKERS, "--run-dir", "run"), env={"TMPDIR": str(long)}
    )
    running.wait_for(r"listens on tcp://127\.0\.0\.1:\d+")
    assert manychar.run("health", "run").code == 0
    assert manychar.run("stop", "run").code == 0
    assert running.end().code == 75


def test_a_server_that_holds_the_run_but_does_not_answer_is_not_called_absent(
    trained: Path, tmp_path: Path
) -> None:
    expected = (
        f"{trained}: its server, process {os.getpid()} on {HERE}, holds the run, but has not"
        " answered for 0.2 s (--connect-timeout), or accepts no connections"
    )
    source, timeout = str(trained), {"connect_timeout": 0.2}
    with locked(open_run(trained)):
        write_address(trained, f"ipc://{tmp_path}/nobody", None)
        for ask in (stop, open_source, lambda *given, **limit: [*snapshots(*given, **limit)]):
            with pytest.raises(UserError) as refused:
                ask(source, key=None, **timeout)
            assert (str(refused.value), refused.value.code) == (expected, 3)
        assert check_health(source, None, **timeout) == Health(expected, healthy=False)
        with pytest.raises(UserError, match="no server at ipc"):
            check_health(f"ipc://{tmp_path}/nobody", None, **timeout)


class TestTheFile:
    def test_is_believed_only_while_the_lock_is_held(self, trained: Path) -> None:
        write_address(trained, "tcp://127.0.0.1:1", None)  # of a server that was killed
        assert read_address(trained) is None
        with pytest.raises(UserError, match=r"run: no server is running on it$") as refused:
            find_server(str(trained), None)
        assert refused.value.code == 3
        with locked(open_run(trained)):
            assert read_address(trained) is None, "it was removed"
            write_address(trained, "tcp://127.0.0.1:2", None)
            assert read_address(trained) == ServerAddress(
                "tcp://127.0.0.1:2", HERE, os.getpid(), None
            )
        assert not (trained / ADDRESS_NAME).exists()

    def test_of_a_server_that_does_not_listen_yet_is_not_there(self, trained: Path) -> None:
        expected = (
            "run: a server holds it, but does not listen: it is starting or ending, or server.json"
            " was removed: give its ENDPOINT"
        )
        with locked(open_run(trained)), pytest.raises(UserError, match=f"{expected}$") as refused:
            find_server(str(trained), None)
        assert refused.value.code == 3
        with locked(open_run(trained)):
            health = check_health(str(trained), None, connect_timeout=0.1)
        assert not health.healthy, "a supervisor that restarts on 3 waits for it"
        assert health.line.endswith(expected)

    def test_that_is_damaged_is_named_at_once(self, trained: Path) -> None:
        expected = "run: a server holds it, but server.json is damaged: give its ENDPOINT"
        with locked(open_run(trained)):
            (trained / ADDRESS_NAME).write_text("{}")
            with pytest.raises(UserError, match=f"{expected}$"):
                find_server(str(trained), None, connect_timeout=60)
            assert not check_health(str(trained), None, connect_timeout=60).healthy

    def test_names_a_key_where_to_stop_its_server_takes_one(
        self, trained: Path, tmp_path: Path
    ) -> None:
        with locked(open_run(trained)):
            write_address(trained, "tcp://127.0.0.1:2", tmp_path / "none.key")
            assert str(another_server(trained)).endswith("--key FILE`")
            write_address(trained, "tcp://127.0.0.1:2", None)
            assert str(another_server(trained)).endswith(f"stop {trained}`")

    def test_of_a_server_that_starts_is_waited_for(
        self, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def passes(seconds: float) -> None:
            write_address(trained, "tcp://127.0.0.1:2", None)

        monkeypatch.setattr("manychar.observability.observer_client.time.sleep", passes)
        with locked(open_run(trained)):
            found = find_server(str(trained), None, connect_timeout=60)
        assert found == ("tcp://127.0.0.1:2", None)

    @pytest.mark.parametrize(("key", "shown"), [(None, ""), (Path("a.key"), " --key FILE")])
    def test_is_named_where_a_checkpoint_is_read(
        self, trained: Path, caplog: pytest.LogCaptureFixture, key: Path | None, shown: str
    ) -> None:
        caplog.set_level(logging.INFO, "manychar")
        source = str(trained)
        load(source, None, connect_timeout=0)
        assert caplog.messages == [], "no server holds it"
        with locked(open_run(trained)):
            load(source, None, connect_timeout=0)
            assert caplog.messages == [], "it does not listen"
            write_address(trained, "tcp://127.0.0.1:2", key)
            load(source, None, connect_timeout=0)
        server = "its server may have newer weights: give tcp://127.0.0.1:2"
        assert caplog.messages == [f"{source}: the checkpoint of step 300; {server}{shown}"]

    @pytest.mark.parametrize("name", [ADDRESS_NAME, "lock"])
    def test_of_another_user_cannot_be_read(
        self, trained: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        opened = Path.open

        def refused(path: Path, *given: Any, **named: Any) -> Any:
            if path == trained / name:
                raise PermissionError(errno.EACCES, "Permission denied")
            return opened(path, *given, **named)

        with locked(open_run(trained)):
            write_address(trained, "tcp://127.0.0.1:2", None)
            monkeypatch.setattr(Path, "open", refused)
            with pytest.raises(UserError) as error:
                find_server(str(trained), None)
        said = (
            f"{trained / name}: permission denied; its server is another user's: give its ENDPOINT"
        )
        assert (str(error.value), error.value.code) == (said, 3)

    @pytest.mark.parametrize("words", [("health",), ("status",), ("stop",), ("sample", "--follow")])
    def test_of_no_run_is_not_looked_for(self, manychar: Commands, words: tuple[str, ...]) -> None:
        (manychar.directory / "K").mkdir()
        done = manychar.run(words[0], "K", *words[1:])
        assert (done.code, done.err) == (2, "manychar: K: no run in it: it has no config.json\n")

    @pytest.mark.parametrize(
        ("endpoint", "here", "elsewhere"),
        [
            ("tcp://0.0.0.0:5577", "tcp://127.0.0.1:5577", f"tcp://{HERE}:5577"),
            ("tcp://[::]:5577", "tcp://127.0.0.1:5577", f"tcp://{HERE}:5577"),
            ("tcp://10.0.0.7:5577", "tcp://10.0.0.7:5577", "tcp://10.0.0.7:5577"),
            ("tcp://127.0.0.1:5577", "tcp://127.0.0.1:5577", None),
            ("ipc:///tmp/it", "ipc:///tmp/it", None),
        ],
    )
    def test_of_another_host_is_reached_there_or_not_at_all(
        self,
        trained: Path,
        monkeypatch: pytest.MonkeyPatch,
        endpoint: str,
        here: str,
        elsewhere: str | None,
    ) -> None:
        with locked(open_run(trained)):
            write_address(trained, endpoint, None)
            assert find_server(str(trained), None) == (here, None)
            monkeypatch.setattr(socket, "gethostname", lambda: "another")
            if elsewhere is not None:
                assert find_server(str(trained), None) == (elsewhere, None)
                return
            with pytest.raises(UserError, match=f"{endpoint} is reached only on {HERE}"):
                find_server(str(trained), None)

    def test_names_the_key_for_a_server_that_has_keys(self, trained: Path, tmp_path: Path) -> None:
        create(tmp_path / "keys")
        train = add(tmp_path / "keys", "train", KeyRole.OPERATOR)
        with locked(open_run(trained)):
            write_address(trained, "tcp://127.0.0.1:1", train)
            _, found = find_server(str(trained), None)
            assert found is not None
            assert found.name == "train"
            assert find_server(str(trained), found)[1] is found, "a key that is given is taken"
            write_address(trained, "tcp://127.0.0.1:1", tmp_path / "none.key")
            assert find_server(str(trained), None)[1] is None
            write_address(trained, "tcp://127.0.0.1:1", None)
            assert find_server(str(trained), found)[1] is None, "the server has no keys"


class TestBind:
    def test_other_workers_join_train(self, manychar: Commands, text: Path) -> None:
        running = manychar.start(
            *("train", str(text), *ENDLESS, "--workers", "1", "--run-dir", "run"),
            *("--bind", "tcp://127.0.0.1:*"),
        )
        endpoint = running.wait_for(r"listens on (tcp://127\.0\.0\.1:\d+)")[1]
        helper = manychar.start("worker", endpoint, "--name", "helper")
        running.wait_for("helper has joined")
        running.send(signal.SIGTERM)
        done = running.end()
        assert done.code == 75, done.err
        assert "train --bind=tcp://127.0.0.1:* --resume run" in done.err.replace("'", "")
        assert helper.end().code == 75
        run = manychar.directory / "run"
        state = open_run(run).newest_checkpoint()[0].state
        assert bits_of(state) == bits_alone(text, run, state.step)[state.step]

    @pytest.mark.long
    def test_is_refused_where_others_can_connect(self, manychar: Commands, text: Path) -> None:
        flags = ("train", str(text), *ENDLESS, "--bind", "tcp://0.0.0.0:*")
        done = manychar.run(*flags)
        assert (done.code, done.err.count("\n")) == (78, 1)
        assert "--insecure" in done.err
        assert not list(manychar.directory.iterdir())
        running = manychar.start(*flags, "--insecure", "--run-dir", "run", "--workers", "1")
        running.wait_for("--insecure: anyone who can reach")
        running.wait_for(r"listens on tcp://0\.0\.0\.0:\d+")
        assert manychar.run("stop", "run").code == 0
        assert running.end().code == 75

    def test_at_a_port_in_use_leaves_nothing(self, manychar: Commands, text: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            bind = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            done = manychar.run("train", str(text), *ENDLESS, "--bind", bind)
        assert (done.code, done.err.count("\n")) == (2, 1)
        assert f"cannot bind to {bind}: another program uses it" in done.err
        assert not list(manychar.directory.iterdir())


def test_a_directory_that_vanishes_is_passed_over(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (trained.parent / "gone").mkdir()
    scan = os.scandir

    def vanished(path: Any) -> Any:
        if Path(path).name == "gone":
            Path(path).rmdir()
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanished)
    runs(trained.parent)
    assert capsys.readouterr().out.count("\n") == 1


def test_runs_are_listed_whatever_they_are(manychar: Commands, trained: Path) -> None:
    (manychar.directory / "sub" / "bad").mkdir(parents=True)
    (manychar.directory / "sub" / "bad" / "config.json").write_text("{")
    done = manychar.run("runs", str(manychar.directory))
    assert (done.code, done.err) == (2, "")
    first, second = done.out.splitlines()
    assert re.fullmatch(rf"{trained}  step 300  loss [\d.]+ nats a character  finished", first)
    assert "sub/bad/config.json: damaged or altered" in second
    nothing = manychar.run("runs")
    assert (nothing.code, nothing.err) == (2, "manychar: runs: no runs below it\n")
