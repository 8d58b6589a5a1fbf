"""TensorBoard's event files are read back, and Prometheus' figures scraped."""

import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from manychar.runtime.errors import UserError
from manychar.runtime.prometheus import Metrics
from manychar.runtime.sinks import sinks
from tests.runtime.commands import SMALL, Commands, until
from tests.runtime.test_watching import SIZE, standing


def events(directory: Path) -> Iterator[Event]:
    """Yield what is in the event files, each record checked."""
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            length = int.from_bytes(data[place : place + 8], "little")
            payload = data[place + 12 : place + 12 + length]
            check = int.from_bytes(data[place + 12 + length : place + 16 + length], "little")
            assert check == masked_crc32c(payload)
            yield Event.FromString(payload)
            place += 16 + length


def scalars(directory: Path) -> dict[str, dict[int, float]]:
    """Return the points by name and step."""
    found: dict[str, dict[int, float]] = {}
    for event in events(directory):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


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


def test_tensorboard_of_a_fleet(manychar: Commands, text: Path) -> None:
    flags = (*SMALL, "--steps", "300", "--sample-every", "100", "--checkpoint-every", "100")
    done = manychar.run(
        *("train", str(text), *flags, "--validation", "0.1", "--tensorboard", "logs"),
        *("--run-dir", "run"),
    )
    assert done.code == 0, done.err
    found = scalars(manychar.directory / "logs")
    assert found["loss/smooth_nats"][300] == pytest.approx(
        found["loss/smooth_bits"][300] * 0.6931, rel=1e-3
    )
    assert 300 in found["loss/held_out_nats"]
    assert found["loss/step_nats"]
    assert all(speed > 0 for speed in found["characters_per_second"].values())
    texts = [
        (event.step, value.tensor.string_val[0].decode())
        for event in events(manychar.directory / "logs")
        for value in event.summary.value
        if value.tensor.string_val
    ]
    assert 300 in [step for step, _ in texts]
    assert all(line.startswith("    ") for _, words in texts for line in words.splitlines())


def test_a_live_run_is_followed(manychar: Commands, text: Path) -> None:
    port = free_port()
    running = manychar.start(
        *("train", str(text), *SMALL, "--steps", "0", "--sample-every", "100", "--workers", "2"),
        *("--checkpoint-every", "100", "--run-dir", "run"),
    )
    endpoint = running.wait_for(r"tcp://[\d.:]+")[0]
    following = manychar.start(
        "follow", endpoint, "--tensorboard", "logs", "--metrics-port", str(port)
    )

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
    doing = {labels["doing"] for labels, _ in found["manychar_worker_seconds_total"]}
    assert doing == {"computing", "exchanging", "waiting"}
    before = found["manychar_step"][0][1]
    until(lambda: scraped(port)["manychar_step"][0][1] > before, "more steps")
    running.interrupt()
    running.end()
    done = following.end()
    assert done.code == 0, done.err
    assert scalars(manychar.directory / "logs")["loss/smooth_nats"]


def test_figures_are_those_of_the_report() -> None:
    metrics = Metrics(0, SIZE)
    try:
        assert "manychar_step" not in scraped(metrics.port), "nothing is known yet"
        seen = standing(8.0)
        metrics.report(seen.report)
        metrics.workers(seen.workers)
        found = scraped(metrics.port)
        assert found["manychar_smooth_loss"] == [({}, 2.0)]
        assert found["manychar_dropped_total"] == [({"what": "repeats"}, 2.0)]
        spent = {labels["doing"]: s for labels, s in found["manychar_worker_seconds_total"]}
        assert spent == pytest.approx({"computing": 4.0, "exchanging": 3.2, "waiting": 0.8})
        assert "manychar_validation" not in found
    finally:
        metrics.close()


def test_it_listens_on_loopback_alone() -> None:
    metrics = Metrics(0, SIZE)
    try:
        assert metrics._server.server_address[0] == "127.0.0.1"
    finally:
        metrics.close()


@pytest.mark.parametrize(("flag", "value"), [("metrics_port", 70_000), ("tensorboard", None)])
def test_what_cannot_be_is_one_line(flag: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted: Any = {flag: value or tmp_path / "file"}
    with (
        pytest.raises(UserError, match=f"--{flag.replace('_', '-')} "),
        sinks(SIZE, **wanted),
    ):
        pass


def test_a_port_that_is_taken_is_one_line() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match="choose another"),
    ):
        Metrics(taken.getsockname()[1], SIZE)


def test_nothing_to_pass_it_on_to(manychar: Commands) -> None:
    done = manychar.run("follow", "tcp://127.0.0.1:1")
    assert done.code == 2
    assert re.search("give --tensorboard DIR or --metrics-port N", done.err)
