"""The Python API in a notebook: a real Jupyter kernel executes cells, and shows what they give."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.texts import small_text

SMALL = "hidden=8, seq_length=5, streams=2, workers=1, sample_length=5"


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NotebookClient]:
    """A client whose `execute_cell` runs code in one kernel, in an empty directory."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.from_dict({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources)
    with client.setup_kernel():
        run(client, f"import manychar\ntext = {small_text()!r}")
        yield client


def run(client: NotebookClient, code: str) -> list[Any]:
    """Execute a cell; return its outputs. An exception in it is raised here."""
    cell = nbformat.from_dict(
        {"cell_type": "code", "id": "c", "source": code, "metadata": {}, "outputs": []}
    )
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1)
    return list(cell.outputs)


def printed(outputs: list[Any]) -> str:
    return "".join(each.text for each in outputs if each.output_type == "stream")


def shown(outputs: list[Any]) -> list[dict[str, str]]:
    kinds = "display_data", "execute_result"
    return [dict(each.data) for each in outputs if each.output_type in kinds]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::Warning")  # of the client's own loop
def test_a_run_in_a_notebook(kernel: NotebookClient) -> None:
    outputs = run(kernel, f"run = manychar.train(text, {SMALL}, steps=300, validation=0.1)")
    progress = shown(outputs)
    assert len(progress) == 1, "one output, however many lines of progress there were"
    line = progress[0]["text/plain"]
    assert re.match(r"step 300/300  loss \d\.\d+ nats a character  validation \d", line)
    assert "--- step 300 ---" in printed(outputs)
    assert not re.search(r"(?<!-)--[a-z]|manychar (sample|train)", printed(outputs)), "no flags"

    (curve,) = shown(run(kernel, "run"))
    words = re.escape("step 300: loss ") + r"\d\.\d+ nats a character"
    found = re.fullmatch(
        rf'<p>.*, {words}</p><img alt="{words}" src="data:image/png;base64,(.*)">',
        curve["text/html"],
    )
    assert found
    assert base64.b64decode(found[1]).startswith(b"\x89PNG")
    (values,) = shown(run(kernel, "run.step, run.definition.hidden, run.definition.validation"))
    assert values["text/plain"] == "(300, 8, 0.1)"

    outputs = run(
        kernel,
        f"""
import threading
found, reached = [], threading.Event()
def callback(values):
    found.append(values)
    if values["step"] > 50:
        reached.set()
live = manychar.train(
    text, {SMALL}, steps=0, quiet=True, callback=callback, log_every=0.1, wait=False
)
assert reached.wait(100)
live.stop()
last = found[-1]
print(live.step == last["step"], last["loss_nats_per_character"] > 0, "text" in last)
print(live.join() is live, live.resume(steps=live.step + 5, quiet=True).step - last["step"])
""",
    )
    assert shown(outputs) == []
    assert printed(outputs) == "True True True\nTrue 5\n"
