"""TensorBoard's event files are read back, and Prometheus' figures scraped."""

import importlib
import importlib.util
import json
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from manychar.observability.exporters import LOOPBACK, exporters
from manychar.observability.prometheus import Metrics
from manychar.processes.errors import UserError
from tests.commands import SMALL, Commands, until
from tests.logs import write_losses
from tests.observability.test_observer_client import snapshot


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


@pytest.mark.long
def test_tensorboard_of_a_fleet(manychar: Commands, text: Path) -> None:
    flags = (*SMALL, "--steps", "300", "--sample-every", "100", "--checkpoint-every", "100")
    done = manychar.run(
        *("train", str(text), *flags, "--validation", "0.1", "--tensorboard", "logs"),
        *("--run-dir", "run"),
    )
    assert done.code == 0, done.err
    found = scalars(manychar.directory / "logs")
    assert all(300 in found[f"loss/{name}_nats"] for name in ("smooth", "validation"))
    assert found["loss/step_nats"]
    assert all(speed >= 0 for speed in found["characters_per_second"].values())
    assert any(speed > 0 for speed in found["characters_per_second"].values())
    texts = [
        (event.step, value.tensor.string_val[0].decode())
        for event in events(manychar.directory / "logs")
        for value in event.summary.value
        if value.tensor.string_val
    ]
    assert 300 in [step for step, _ in texts]
    assert all(line.startswith("    ") for _, words in texts for line in words.splitlines())


def test_a_point_a_second_and_the_last_one(tmp_path: Path) -> None:
    with exporters(tensorboard=tmp_path) as (files,):
        for tenths in range(36):
            files.status(snapshot(tenths / 10))
    found = scalars(tmp_path)
    assert list(found["loss/smooth_nats"]) == [0, 10, 20, 30, 35]
    assert list(found["characters_per_second"].values()) == [1000.0] * 4


def test_tensorboard_shows_no_step_twice(
    tmp_path: Path, require: Callable[[object, str], None]
) -> None:
    """A server that was killed resumes from its checkpoint; a resumed run writes a second file."""
    require(importlib.util.find_spec("tensorboard"), "needs TensorBoard: pip install tensorboard")
    with exporters(tensorboard=tmp_path) as (files,):
        for second in (1, 2, 3):
            files.status(snapshot(second, validated=10, validation=2.0))
        files.status(snapshot(2, term=2, smooth_loss=19.0, validated=10, validation=2.0))
        files.status(snapshot(4, term=2, smooth_loss=18.0))
        files.sample(40, "the *cat*")
    (only,) = tmp_path.iterdir()
    only.rename(tmp_path / "events.out.tfevents.0000000001.before")
    with exporters(tensorboard=tmp_path) as (files,):
        files.status(snapshot(4, term=3, smooth_loss=17.0, validated=40, validation=1.5))
    shown = tensorboard(tmp_path)
    points = {event.step: event.value for event in shown.Scalars("loss/smooth_nats")}
    assert len(points) == len(shown.Scalars("loss/smooth_nats"))
    assert points == pytest.approx({10: 2.0, 20: 1.9, 40: 1.7})
    validation_ids = [(event.step, event.value) for event in shown.Scalars("loss/validation_nats")]
    assert validation_ids[-1] == (40, 1.5)
    assert set(validation_ids) == {(10, 2.0), (40, 1.5)}


def test_tensorboard_shows_samples(tmp_path: Path, require: Callable[[object, str], None]) -> None:
    require(importlib.util.find_spec("tensorboard"), "needs TensorBoard: pip install tensorboard")
    with exporters(tensorboard=tmp_path) as (files,):
        files.sample(40, "the *cat*\nsat")
    (event,) = tensorboard(tmp_path).Tensors("sample/text_summary")
    assert event.step == 40
    assert event.tensor_proto.string_val[0].decode() == "    the *cat*\n    sat"


def tensorboard(directory: Path) -> Any:
    """Return what TensorBoard itself reads from a directory."""
    name = "tensorboard.backend.event_processing.event_accumulator"
    shown = importlib.import_module(name).EventAccumulator(str(directory))
    shown.Reload()
    return shown


BOUNDED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
from manychar.__main__ import main
main()
"""


@pytest.mark.long
def test_a_full_disk_stops_neither_run_nor_observer(manychar: Commands, text: Path) -> None:
    running = manychar.start(
        *("train", str(text), *SMALL, "--steps", "0", "--sample-every", "50"),
        *("--checkpoint-every", "0", "--run-dir", "run"),
    )
    endpoint = running.wait_for(r"ipc://\S+")[0]
    following = manychar.start(
        *("follow", endpoint, "--tensorboard", "logs"), program=("-c", BOUNDED)
    )
    following.wait_for("--tensorboard logs: file too large: no more is written there")
    running.interrupt()
    assert running.end().code == 0
    done = following.end()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert done.err.count("no more is written") == 1


def test_a_live_run_is_followed(manychar: Commands, text: Path) -> None:
    port = free_port()
    running = manychar.start(
        *("train", str(text), *SMALL, "--steps", "0", "--sample-every", "100", "--workers", "2"),
        *("--checkpoint-every", "100", "--run-dir", "run"),
    )
    endpoint = running.wait_for(r"ipc://\S+")[0]
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
    metrics = Metrics(LOOPBACK, 0)
    try:
        assert "manychar_step" not in scraped(metrics.port), "nothing is known yet"
        metrics.status(snapshot(8.0))
        found = scraped(metrics.port)
        assert found["manychar_smooth_loss"] == [({}, 2.0)]
        assert found["manychar_dropped_total"] == [({"what": "gradients_repeated"}, 2.0)]
        assert found["manychar_characters_total"] == [({}, 8000.0)]
        states = {labels["state"]: count for labels, count in found["manychar_workers"]}
        assert states == {"working": 1.0, "idle": 0.0, "silent": 0.0}
        assert found["manychar_checkpoint_age_seconds"][0][1] >= 3_700.0
        assert 0 <= found["manychar_silence_seconds"][0][1] < 60
        spent = {labels["doing"]: s for labels, s in found["manychar_worker_seconds_total"]}
        assert spent == pytest.approx({"computing": 4.0, "exchanging": 3.2, "waiting": 0.8})
        assert "manychar_validation" not in found
    finally:
        metrics.close()


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
    with exporters(metrics_port=0) as (metrics,):
        assert isinstance(metrics, Metrics)
        assert metrics._server.server_address[0] == "127.0.0.1"


def test_a_file_is_no_directory_for_tensorboard(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"--tensorboard .*; choose another"),
        exporters(tensorboard=tmp_path / "file"),
    ):
        pass


def test_a_port_that_is_taken_is_one_line() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match="choose another"),
        exporters(metrics_port=taken.getsockname()[1]),
    ):
        pass


def test_a_finished_run_is_exported(manychar: Commands, trained: Path) -> None:
    validation_losses = {0: 2.7, 20: 2.6, 40: 2.5, 300: 2.25}
    write_losses(trained, validation_losses)
    (trained / "checkpoints" / "step-000000150.safetensors").write_bytes(b"damaged")
    done = manychar.run("follow", "run", "--tensorboard", "logs")
    assert done.code == 0, done.err
    assert "step-000000150.safetensors: " in done.err
    assert done.last_line == "run: exported up to step 300; for a live run, give its endpoint"
    found = scalars(manychar.directory / "logs")
    assert found["loss/validation_nats"] == pytest.approx(validation_losses)
    noted = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert found["loss/smooth_nats"][300] == pytest.approx(noted[-1]["smooth_loss"] / 5)
    assert found["loss/step_nats"][100] == pytest.approx(noted[0]["loss"] / 5)
    texts = [
        (event.step, value.tag)
        for event in events(manychar.directory / "logs")
        for value in event.summary.value
        if value.tensor.string_val
    ]
    assert texts == [(300, "sample/text_summary")]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("nowhere", "--tensorboard", "logs"), "nowhere: not a run directory"),
        (("run", "--metrics-port", "0"), "--metrics-port needs a live run"),
        (("young", "--tensorboard", "logs"), "young: no losses yet"),
    ],
)
def test_refused_exports(
    manychar: Commands, trained: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    young = copytree(trained, manychar.directory / "young")
    (young / "metrics.jsonl").unlink()
    done = manychar.run("follow", *arguments)
    assert done.code == 2
    assert done.err.startswith(f"manychar: {complaint}")
    assert done.err.count("\n") == 1
    assert not (manychar.directory / "logs").exists()


def test_nothing_to_export_to(manychar: Commands) -> None:
    done = manychar.run("follow", "tcp://127.0.0.1:1")
    assert done.code == 2
    assert re.search("give --tensorboard DIR or --metrics-port N", done.err)


MISSING = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.mark.parametrize(
    ("flags", "module", "extra"),
    [
        (("--tensorboard", "logs"), "tensorboardX", "tensorboard"),
        (("--metrics-port", "0"), "prometheus_client", "prometheus"),
    ],
)
def test_what_is_not_installed_is_named_before_a_run_begins(
    manychar: Commands, text: Path, tmp_path: Path, flags: tuple[str, str], module: str, extra: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(MISSING.format(module=module))
    done = manychar.run("train", str(text), *SMALL, *flags, env={"PYTHONPATH": str(tmp_path)})
    assert done.code == 2
    assert done.last_line == (
        f"manychar: {flags[0]} needs {module}, which is not installed:"
        f" pip install 'manychar[{extra}]'"
    )
    assert not list(manychar.directory.iterdir())


@pytest.mark.long
def test_what_is_refused_is_refused_before_a_run_is_made(
    manychar: Commands, text: Path, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for flag, value in (("--metrics-port", port), ("--tensorboard", str(text))):
            done = manychar.run("train", str(text), *SMALL, flag, value)
            assert done.code == 2
            assert done.err.startswith(f"manychar: {flag} {value}: ")
            assert done.err.count("\n") == 1
    assert not list(manychar.directory.iterdir())
