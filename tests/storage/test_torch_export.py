"""`manychar export`: the file is a state dict, and PyTorch computes the same loss from it."""

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from manychar.numerics.kernel import Kernel
from manychar.numerics.model import Parameters, initialize
from manychar.processes.errors import UserError
from manychar.storage.checkpoint import read_checkpoint
from manychar.storage.torch_export import write_state_dict
from tests.commands import SMALL, Commands

V, H, T, B = 7, 5, 6, 3
LETTERS = "\n abcdé"


@pytest.mark.long
def test_the_file_says_what_it_holds(manychar: Commands, trained: Path) -> None:
    done = manychar.run("export", "run", "-o", "model.safetensors")
    assert done.code == 0, done.err
    assert "nn.RNN(" in done.last_line
    newest = read_checkpoint(trained / "checkpoints" / "step-000000300.safetensors")
    model = newest.state.parameters
    file = manychar.directory / "model.safetensors"
    with safetensors.safe_open(file, "numpy") as opened:
        assert opened.metadata() == {
            "format": "pt",
            "vocabulary": newest.vocabulary,
            "vocabulary_size": str(len(newest.vocabulary)),
            "hidden": "8",
            "nonlinearity": "tanh",
        }
    tensors = safetensors.numpy.load_file(file)
    assert tensors.pop("rnn.bias_hh_l0").tolist() == [0.0] * 8
    expected = {
        "rnn.weight_ih_l0": model.named()["Wxh"],
        "rnn.weight_hh_l0": model.named()["Whh"],
        "rnn.bias_ih_l0": model.named()["bh"],
        "linear.weight": model.named()["Why"],
        "linear.bias": model.named()["by"],
    }
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(tensors[name], array)


@pytest.mark.long
def test_from_a_checkpoint_and_from_a_live_server(
    manychar: Commands, trained: Path, text: Path
) -> None:
    first = shutil.copy(trained / "checkpoints" / "step-000000000.safetensors", trained.parent)
    assert manychar.run("export", str(first), "-o", "first").code == 0
    server = manychar.start(
        *("server", str(text), *SMALL, "--bind", "ipc://meet", "--run-dir", "another")
    )
    server.wait_for("listening")
    assert manychar.run("export", "ipc://meet", "-o", "live").code == 0
    server.interrupt()
    server.end()
    here = manychar.directory
    one, other = (safetensors.numpy.load_file(here / name) for name in ("first", "live"))
    for name, array in one.items():  # the same seed, and no step taken
        np.testing.assert_array_equal(array, other[name])


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}])
def test_a_state_dict_is_no_checkpoint(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    """Not the exported one, nor that of another program."""
    path = tmp_path / "model.safetensors"
    if metadata is None:
        write_state_dict(initialize(len(LETTERS), H, dtype="float32"), LETTERS, path)
    else:
        safetensors.numpy.save_file({"a": np.zeros(3)}, path, metadata)
    with pytest.raises(UserError, match=r"model\.safetensors: a state dict, .*: give RUN, or a f"):
        read_checkpoint(path)


@pytest.mark.parametrize("source", ["nowhere", "here.txt"])
def test_of_what_is_no_model(manychar: Commands, source: str) -> None:
    (manychar.directory / "here.txt").write_text("no checkpoint")
    done = manychar.run("export", source, "-o", "model")
    assert done.code == 2
    assert done.err.startswith(f"manychar: {source}: ")
    assert done.err.count("\n") == 1
    assert not (manychar.directory / "model").exists()


@pytest.mark.long
@pytest.mark.parametrize("name", ["model.pt", "model.onnx", "m.safetensors.gz"])
def test_a_name_of_another_format_is_refused(manychar: Commands, trained: Path, name: str) -> None:
    done = manychar.run("export", str(trained), "-o", name)
    assert done.err == f"manychar: {name}: the format is safetensors; give -o FILE.safetensors\n"
    assert done.code == 2
    assert not (manychar.directory / name).exists()


def test_to_where_nothing_can_be(manychar: Commands, trained: Path) -> None:
    done = manychar.run("export", "run", "-o", "nowhere/model")
    assert done.code == 2
    assert done.err.startswith("manychar: nowhere/model: no such file or directory")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_pytorch_computes_the_same_loss(
    tmp_path: Path, dtype: str, tolerance: float, require: Callable[[object, str], None]
) -> None:
    require(importlib.util.find_spec("torch"), "needs PyTorch: pip install torch==2.13.0")
    generator = np.random.default_rng(1)
    parameters = initialize(V, H, dtype=dtype)
    parameters.flat[:] = generator.standard_normal(parameters.flat.shape)
    ids = generator.integers(V, size=(B, T + 1))
    before = np.tanh(generator.standard_normal((B, H))).astype(dtype)
    write_state_dict(parameters, LETTERS, tmp_path / "model")
    loss, after = of_pytorch(tmp_path / "model", ids, before, dtype)
    own_loss, own_after = of_ours(parameters, ids, before, dtype)
    assert loss == pytest.approx(own_loss, rel=tolerance)
    np.testing.assert_allclose(after, own_after, rtol=0, atol=tolerance)


def of_ours(parameters: Parameters, ids: Any, before: Any, dtype: str) -> tuple[float, Any]:
    kernel = Kernel(V, H, seq_length=T, streams=B, dtype=dtype)
    kernel.load(parameters.flat)
    loss, _, after = kernel.compute(ids[:, :-1], ids[:, 1:], before)
    return loss, after


def of_pytorch(file: Path, ids: Any, before: Any, dtype: str) -> tuple[float, Any]:
    """Return (loss, next hidden state) by PyTorch's own modules, loaded strictly."""
    torch: Any = importlib.import_module("torch")
    tensors = importlib.import_module("safetensors.torch").load_file(file)
    model = torch.nn.ModuleDict(
        {"rnn": torch.nn.RNN(V, H, batch_first=True), "linear": torch.nn.Linear(H, V)}
    ).to(getattr(torch, dtype))
    model.load_state_dict(tensors)
    inputs, targets = torch.from_numpy(ids[:, :-1]), torch.from_numpy(ids[:, 1:])
    x = torch.nn.functional.one_hot(inputs, V).to(getattr(torch, dtype))
    with torch.no_grad():
        states, last = model["rnn"](x, torch.from_numpy(before)[None])
        y = model["linear"](states).reshape(-1, V)
        loss = torch.nn.functional.cross_entropy(y, targets.reshape(-1), reduction="sum")
    return loss.item(), last[0].numpy()


def test_no_pipe_is_replaced_and_a_link_is_followed(manychar: Commands, trained: Path) -> None:
    pipe, link, file = (manychar.directory / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    link.symlink_to(file)
    refused = manychar.run("export", str(trained), "-o", "pipe")
    assert refused.code == 2
    assert "pipe: not a regular file" in refused.err
    assert pipe.is_fifo()
    assert manychar.run("export", str(trained), "-o", "link").code == 0
    assert link.is_symlink()
    assert file.stat().st_size > 0
