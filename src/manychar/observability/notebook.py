"""What a notebook shows of a run: its progress, in one output, and its loss curve."""

import base64
import importlib
import io
import sys
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from manychar.processes.errors import UserError, needing
from manychar.storage.append_log import damage_of
from manychar.storage.journal import METRICS_NAME

OnProgress = Callable[[Mapping[str, Any]], object]


def progress_output() -> OnProgress | None:
    """Return what shows each line of progress in place of the one before; None elsewhere."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return None
    display: Any = importlib.import_module("IPython.display").display
    output = display({"text/plain": "starting"}, raw=True, display_id=True)
    return lambda values: output.update({"text/plain": values["text"]}, raw=True)


def html_of(path: Path) -> str:
    """Return a run as HTML: its newest losses, and the curve."""
    from manychar.observability.history import read_history  # noqa: PLC0415 - with numpy
    from manychar.storage.run_directory import open_run  # noqa: PLC0415

    html = ""
    try:
        points = read_history(open_run(path)).points
        words = [*damage_of(path / METRICS_NAME), "no losses yet"][0]
        if points:
            last = points[-1]
            words = f"step {last.step:,}: loss {last.loss:#.4g} nats a character"
        html = f"<p>{escape(str(path))}, {words}</p>"
        if points:
            with needing("plot", "the loss curve"):
                from manychar.observability.plot import figure_of  # noqa: PLC0415 - an extra
            picture = io.BytesIO()
            figure_of([path]).savefig(picture, format="png", dpi=80)
            data = base64.b64encode(picture.getvalue()).decode()
            html += f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'
        return html
    except UserError as error:
        return f"{html}<p>{escape(str(error))}</p>"
