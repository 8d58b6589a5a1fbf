"""A text coloured by a hidden unit, and that nothing of a text becomes markup."""

import numpy as np

from manychar.observability.dashboard import html
from manychar.observability.dashboard.view import Sample, View
from manychar.observability.status import COLUMNS

TEXT = 'He said "the cat sat" and "a dog ran" at\nhome again, on the mat, with nobody\nto see it.'


def sample_with(unit: np.ndarray, *, text: str = TEXT) -> Sample:
    """Four units: nothing, noise, the given one, and the given one the other way round, weaker."""
    noise = np.random.default_rng(0).uniform(-1, 1, len(text))
    states = np.stack([np.full(len(text), 0.5), noise, unit, -0.5 * unit + 0.3 * noise], axis=1)
    return Sample(7, text, states.astype(np.float32))


def test_characters_are_marked_below_zero_and_escaped() -> None:
    sample = sample_with(np.array([0.25, -1.0, 0.5, 0.0]), text="<&\n\x1b")
    shown = html.coloured(sample, 2)
    assert shown.count("<span") == 4
    assert '<span class="high" style="--a:0.25" title="+0.25">&lt;</span>' in shown
    assert '<span class="low" style="--a:1.00" title="-1.00">&amp;</span>' in shown
    assert "↵\n</span>" in shown
    assert "\x1b" not in shown


def test_whatever_comes_from_a_run_is_escaped() -> None:
    bad = "<img src=x onerror=alert(1)>"
    workers = [[bad] * len(COLUMNS)]
    view = View(
        source=bad, run=bad, facts={bad: bad}, activity=bad, counts={bad: 1}, workers=workers
    )
    sample = Sample(1, bad, np.zeros((len(bad), 1), np.float32))
    shown = [
        html.title(view),
        html.activity(view),
        html.figures(view),
        html.workers(view),
        html.samples([sample]),
        html.coloured(sample, 0),
    ]
    assert all("<img" not in html for html in shown)
