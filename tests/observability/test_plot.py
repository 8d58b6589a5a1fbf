"""`manychar plot`: what the curves say, the two formats, and what it says where it cannot draw."""

import json
import logging
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from manychar.api import Run
from manychar.observability.notebook import html_of
from manychar.observability.plot import draw_curves, figure_of
from manychar.processes.errors import UserError
from tests.commands import Commands
from tests.logs import write_losses

# A module in front of the real one that says it is not there.
MISSING = "raise ModuleNotFoundError(\"No module named '{0}'\", name='{0}')\n"


@pytest.fixture
def validated(trained: Path) -> Path:
    """The finished run, as if its checkpoints had been validated."""
    write_losses(trained, dict(VALIDATION_LOSSES))
    return trained


VALIDATION_LOSSES = [(0, 2.7), (150, 2.5), (300, 2.25)]


def lines_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def drawn(runs: list[Path]) -> tuple[Axes, list[Any]]:
    """Return a picture's axes, and (x, y) of each of its lines."""
    axes = figure_of(runs).axes[0]
    x_and_y = [np.asarray(line.get_data()).tolist() for line in axes.lines]
    return axes, list(map(tuple, x_and_y))


def test_losses_are_drawn_in_nats_a_character(validated: Path) -> None:
    _, (loss, smooth_loss, validation) = drawn([validated])
    noted = lines_of(validated)
    assert loss == ([100, 200, 300], [line["loss_nats_per_character"] for line in noted])
    assert smooth_loss == (loss[0], [line["smooth_loss_nats_per_character"] for line in noted])
    assert validation == ([0, 150, 300], [2.7, 2.5, 2.25])


def test_a_path_with_dollar_signs_is_no_formula(validated: Path, tmp_path: Path) -> None:
    strange = validated.rename(validated.with_name(r"$\run$"))
    draw_curves([strange], tmp_path / "losses.svg")
    assert rf"{strange}: loss" in (tmp_path / "losses.svg").read_text()


def test_a_torn_line_is_passed_over(validated: Path) -> None:
    _, whole = drawn([validated])
    with (validated / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 400, "loss": 12.5, "smoo')
    assert drawn([validated])[1] == whole


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation.jsonl"])
def test_what_is_left_of_a_damaged_file_is_drawn_and_said(
    validated: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with (validated / name).open("a") as log:
        log.write("{}\n")
    with caplog.at_level(logging.WARNING):
        assert drawn([validated])[1]
    assert re.search(rf"{name}: damaged at byte .*: wrong checksum: drawn up to there", caplog.text)


def test_a_notebook_names_a_damaged_file(trained: Path) -> None:
    (trained / "metrics.jsonl").write_text("{}\n")
    assert "metrics.jsonl: damaged at byte 0 of 3: wrong checksum" in html_of(trained)
    with pytest.raises(UserError, match=r"metrics\.jsonl: damaged at byte 0 of 3"):
        Run(trained).metrics()


def test_a_run_has_a_colour_and_its_name(validated: Path) -> None:
    another = copytree(validated, validated.with_name("another"))
    (another / "validation.jsonl").unlink()
    axes, lines = drawn([validated, another])
    assert lines[3:] == lines[:2]
    assert [line.get_color() for line in axes.lines] == ["C0", "C0", "C0", "C1", "C1"]
    legend = axes.get_legend()
    assert legend
    assert [text.get_text() for text in legend.get_texts()] == [
        f"{validated}: loss",
        f"{validated}: validation loss",
        f"{another}: loss",
    ]


@pytest.mark.long
def test_svg_of_two_runs(manychar: Commands, validated: Path) -> None:
    copytree(validated, manychar.directory / "second")
    one, again = (manychar.run("plot", "run", "second", "-o", f"{n}.svg") for n in ("1", "2"))
    assert (one.code, one.out) == (again.code, again.out) == (0, "")
    first, second = ((manychar.directory / f"{n}.svg").read_bytes() for n in ("1", "2"))
    assert first == second, "the same curves are the same file"
    said = "".join(ET.fromstring(first).itertext())  # noqa: S314 - it is ours
    for words in ("run: loss", "second: validation loss", "steps", "nats a"):
        assert words in said


def test_png(manychar: Commands, validated: Path) -> None:
    done = manychar.run("plot", "run", "-o", "curves.PNG")
    assert done.code == 0, done.err
    data = (manychar.directory / "curves.PNG").read_bytes()
    assert data.startswith(b"\x89PNG\r\n")
    assert [int.from_bytes(data[at : at + 4], "big") for at in (16, 20)] == [1350, 750]


@pytest.mark.long
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("run", "-o", "curves.pdf"), "curves.pdf: a picture is a .png or an .svg"),
        (("run", "-o", "nowhere/curves.png"), "nowhere/curves.png: no such file or directory"),
        (("run", "nowhere", "-o", "curves.png"), "nowhere: not a run directory"),
        (("young", "-o", "curves.png"), "young: no losses yet"),
        (("bad", "-o", "curves.png"), "bad/metrics.jsonl: damaged at byte 0 of 3: wrong checksum"),
    ],
)
def test_what_cannot_be_drawn(
    manychar: Commands, trained: Path, arguments: tuple[str, ...], named: str
) -> None:
    young = copytree(trained, manychar.directory / "young")
    (young / "metrics.jsonl").unlink()
    bad = copytree(trained, manychar.directory / "bad")
    (bad / "metrics.jsonl").write_text("{}\n")
    done = manychar.run("plot", *arguments)
    assert done.code == 2
    assert done.err.startswith(f"manychar: {named}")
    assert done.err.count("\n") == 1
    assert not list(manychar.directory.glob("curves.*"))


def test_without_matplotlib(manychar: Commands, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text(MISSING.format("matplotlib"))
    done = manychar.run(*("plot", "run", "-o", "curves.svg"), env={"PYTHONPATH": str(tmp_path)})
    assert done.code == 2
    assert done.err == (
        "manychar: manychar plot needs matplotlib, which is not installed:"
        " pip install 'manychar[plot]'\n"
    )


def test_a_notebook_without_matplotlib_shows_the_loss(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "manychar.observability.plot")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    shown = html_of(trained)
    assert re.match(r"<p>.*, step 300: loss \d\.\d+ nats a character</p><p>the loss curve", shown)
    assert "pip install" in shown
