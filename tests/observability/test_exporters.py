"""Prometheus' figures are scraped."""

import contextlib
import dataclasses
import re
import signal
import socket
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from manychar.observability.exporters import LOOPBACK, exported
from manychar.observability.prometheus import Metrics
from manychar.processes import log
from manychar.processes.errors import UserError
from manychar.protocol.counters import Counter
from manychar.protocol.worker_tally import WITHOUT_WORKERS
from tests.commands import SMALL, Commands, until
from tests.deploy.recipes import DEPLOY
from tests.observability.test_observer_client import snapshot


def scraped(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Return the figures by name: labels and value of each."""
    address = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@pytest.mark.long
def test_a_live_run_is_followed(manychar: Commands, text: Path) -> None:
    port = free_port()
    running = manychar.start(
        *("train", str(text), *SMALL, "--steps", "0", "--sample-every", "100", "--workers", "2"),
        *("--checkpoint-every", "100", "--run-dir", "run"),
    )
    endpoint = running.wait_for(r"ipc://\S+")[0]
    following = manychar.start("follow", endpoint, "--metrics-port", str(port))

    def workers() -> Any:
        assert following.process.poll() is None, following.described()
        try:
            found = scraped(port)
        except OSError:
            return None
        return found if len(found.get("manychar_worker_shards", [])) == 2 else None

    found = until(workers, "two workers")
    assert found["manychar_step"][0][1] >= 0
    assert found["manychar_characters_total"][0][1] >= 0
    doing = {labels["doing"] for labels, _ in found["manychar_worker_share"]}
    assert doing == {"computing", "exchanging", "waiting", "straggling"}
    before = found["manychar_step"][0][1]
    until(lambda: scraped(port)["manychar_step"][0][1] > before, "more steps")
    running.interrupt()
    running.end()
    done = following.end()
    assert done.code == 0, done.err


def test_the_port_is_announced_once_there_is_a_run(
    manychar: Commands, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = manychar.run("follow", "run", "--metrics-port", "0")
    assert (done.code, done.err) == (3, "manychar: run: no server is running on it\n")
    log.configure()
    with exported({"metrics_port": 0}) as on_status:
        assert capsys.readouterr().err == ""
        on_status(snapshot(8.0))
        on_status(snapshot(9.0))
    assert capsys.readouterr().err.count("figures for Prometheus: http://127.0.0.1:") == 1


def test_a_relay_is_not_counted_among_the_workers() -> None:
    now = snapshot(8.0)
    (ann,) = now.workers
    rack, bob = ann._replace(name="rack"), ann._replace(name="bob", relay="rack")
    alone = ann._replace(name="alone", state=WITHOUT_WORKERS, shards=0)
    metrics = Metrics(LOOPBACK, 0)
    try:
        metrics.status(dataclasses.replace(now, workers=(ann, rack, bob, alone)))
        found = scraped(metrics.port)
    finally:
        metrics.close()
    assert sum(count for _, count in found["manychar_workers"]) == 2
    assert ({"state": "working"}, 2.0) in found["manychar_workers"]
    at_the_server = [each for each, _ in found["manychar_worker_shards"] if not each["relay"]]
    assert [labels["worker"] for labels in at_the_server] == ["ann", "rack", "alone"]


def test_figures_are_those_of_the_report() -> None:
    metrics = Metrics(LOOPBACK, 0)
    try:
        assert "manychar_step" not in scraped(metrics.port), "nothing is known yet"
        metrics.status(snapshot(8.0))
        found = scraped(metrics.port)
        assert found["manychar_smooth_loss_nats_per_character"] == [({}, 2.0)]
        assert found["manychar_loss_nats_per_character"] == [({}, 1.0)]
        counts = {labels["what"]: count for labels, count in found["manychar_dropped_total"]}
        assert counts == {str(each): 2.0 * (each == "units_repeated") for each in Counter}
        assert found["manychar_characters_total"] == [({}, 8000.0)]
        states = {labels["state"]: count for labels, count in found["manychar_workers"]}
        assert states == {"working": 1.0, "idle": 0.0, "slow": 0.0, "silent": 0.0}
        assert found["manychar_checkpoint_age_seconds"][0][1] >= 3_700.0
        assert 0 <= found["manychar_silence_seconds"][0][1] < 60
        spent = {labels["doing"]: s for labels, s in found["manychar_worker_share"]}
        assert spent == {"computing": 0.5, "exchanging": 0.4, "waiting": 0.1, "straggling": 0.0}
        assert "manychar_validation_loss_nats_per_character" not in found
    finally:
        metrics.close()


def test_the_rules_for_alerts_name_what_is_exported() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text(encoding="utf-8"))
    with contextlib.closing(Metrics(LOOPBACK, 0)) as metrics:
        metrics.status(snapshot(8.0))
        found = scraped(metrics.port)
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in alerts}) == len(alerts) > 5
    for rule in alerts:
        names = set(re.findall(r"manychar_\w+", rule["expr"]))
        assert names, rule
        assert names <= found.keys(), rule
        for name, label, is_pattern, text in re.findall(
            r'(manychar_\w+)\{(\w+)=(~?)"(.+?)"\}', rule["expr"]
        ):
            values = [labels[label] for labels, _ in found[name]]
            pattern = text if is_pattern else re.escape(text)
            assert any(re.fullmatch(pattern, value) for value in values), rule
        for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
            assert all(label in labels for name in names for labels, _ in found[name])


def test_a_silent_servers_workers_are_left_out() -> None:
    """Else the alert `absent(manychar_workers)` would not fire."""
    now = snapshot(8.0)
    with contextlib.closing(Metrics(LOOPBACK, 0)) as metrics:
        for workers, silence, known in (
            (now.workers, 9.0, True),
            (now.workers, 11.0, False),
            (now.workers * 2500, 19.0, True),  # it tells of so many every ten seconds
            (now.workers * 2500, 21.0, False),
            ((), 11.0, False),
        ):
            metrics.status(dataclasses.replace(now, workers=workers))
            metrics._received_at -= silence
            found = scraped(metrics.port)
            of_workers = {name for name in found if name.startswith("manychar_worker")}
            assert bool(of_workers) is known
            assert found["manychar_silence_seconds"][0][1] >= silence
            assert "manychar_step" in found


def test_workers_of_one_name_and_host_are_one_series() -> None:
    """Prometheus refuses an answer that has a series twice."""
    metrics = Metrics(LOOPBACK, 0)
    try:
        now = snapshot(8.0)
        (ann,) = now.workers
        other = ann._replace(gradients=5, shards=2, late_seconds=3.0, computing=0.1)
        workers = ann, other, ann._replace(relay="rack"), ann._replace(host="there")
        metrics.status(dataclasses.replace(now, workers=workers))
        found = scraped(metrics.port)
    finally:
        metrics.close()
    labels = [{"worker": "ann", "host": "here", "relay": relay} for relay in ("", "rack")]
    labels.append({"worker": "ann", "host": "there", "relay": ""})
    for name, values in (
        ("gradients_total", (85.0, 80.0, 80.0)),
        ("shards", (3.0, 1.0, 1.0)),
        ("late_seconds", (3.0, 0.0, 0.0)),
    ):
        expected = list(zip(labels, values, strict=True))
        assert found[f"manychar_worker_{name}"] == expected
    computing = [
        value for each, value in found["manychar_worker_share"] if each["doing"] == "computing"
    ]
    assert computing == pytest.approx([0.3, 0.5, 0.5])


def test_a_restarted_server_does_not_reset_the_counter() -> None:
    """Prometheus reads a falling counter as a new one, and adds all of it again."""
    metrics = Metrics(LOOPBACK, 0)
    try:
        for seconds in (8.0, 5.0, 9.0):
            metrics.status(snapshot(seconds))
        found = scraped(metrics.port)
        assert found["manychar_characters_total"] == [({}, 12_000.0)]
        assert found["manychar_step"] == [({}, 90.0)]
    finally:
        metrics.close()


def test_it_listens_on_loopback_alone() -> None:
    with exported({"metrics_port": 0}) as on_status:
        metrics = on_status.__self__  # type: ignore[attr-defined] # a method
        assert isinstance(metrics, Metrics)
        assert metrics._server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])  # noqa: S104
def test_it_listens_elsewhere_only_where_that_is_asked_for(host: str) -> None:
    flags = {"metrics_port": 0, "metrics_host": host}
    with pytest.raises(UserError, match="--insecure") as refused, exported(flags):
        pass
    assert refused.value.code == 78
    assert f"{host} may be reached from other machines" in str(refused.value)
    with exported({**flags, "insecure": True}) as on_status:
        metrics = on_status.__self__  # type: ignore[attr-defined] # a method
        assert metrics._server.server_address[0] == host
        assert "manychar_step" not in scraped(metrics.port), "it answers"


@pytest.mark.parametrize("host", ["", " "])
@pytest.mark.parametrize("insecure", [False, True])
def test_an_empty_host_is_refused(host: str, *, insecure: bool) -> None:
    flags = {"metrics_port": 0, "metrics_host": host, "insecure": insecure}
    complaint = "--metrics-host: it is empty; give an address, or leave it out"
    with pytest.raises(UserError, match=complaint) as refused, exported(flags):
        pass
    assert refused.value.code == 2


def test_a_host_that_is_none_of_this_machine_is_one_line() -> None:
    flags = {"metrics_port": 0, "metrics_host": "192.0.2.1", "insecure": True}
    with (
        pytest.raises(UserError, match=r"--metrics-host 192\.0\.2\.1 --metrics-port 0: "),
        exported(flags),
    ):
        pass


def test_train_refuses_it_before_a_run_is_made(manychar: Commands, text: Path) -> None:
    flags = ("--metrics-port", "0", "--metrics-host", "0.0.0.0")  # noqa: S104
    done = manychar.run("train", str(text), *SMALL, *flags)
    assert (done.code, done.err.count("\n")) == (78, 1)
    assert not list(manychar.directory.iterdir())


def test_a_port_that_is_taken_is_one_line() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match="choose another"),
        exported({"metrics_port": taken.getsockname()[1]}),
    ):
        pass


def test_it_says_by_which_signal_it_was_stopped(manychar: Commands) -> None:
    following = manychar.start("follow", "ipc://nobody", "--metrics-port", "0")
    following.wait_for("waiting for a server at ipc://nobody")
    following.send(signal.SIGTERM)
    done = following.end()
    assert (done.code, done.last_line) == (75, "stopped by SIGTERM")


def test_nothing_to_export_to(manychar: Commands) -> None:
    done = manychar.run("follow", "tcp://127.0.0.1:1")
    assert done.code == 2
    assert re.search("give --metrics-port N", done.err)


MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "prometheus_client":
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Missing())
"""


def test_what_is_not_installed_is_named_before_a_run_begins(
    manychar: Commands, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(MISSING)
    flags = ("--metrics-port", "0")
    done = manychar.run("train", str(text), *SMALL, *flags, env={"PYTHONPATH": str(tmp_path)})
    assert done.code == 2
    assert done.last_line == (
        "manychar: --metrics-port needs prometheus_client, which is not installed:"
        " pip install 'manychar[prometheus]'"
    )
    assert not list(manychar.directory.iterdir())


@pytest.mark.long
def test_what_is_refused_is_refused_before_a_run_is_made(
    manychar: Commands, text: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = manychar.run("train", str(text), *SMALL, "--metrics-port", port)
    assert done.code == 2
    assert done.err.startswith(f"manychar: --metrics-host 127.0.0.1 --metrics-port {port}: ")
    assert done.err.count("\n") == 1
    assert not list(manychar.directory.iterdir())
