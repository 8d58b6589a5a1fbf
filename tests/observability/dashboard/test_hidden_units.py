"""What a hidden unit is said to do, and that nothing of a text becomes markup."""

import numpy as np

from manychar.observability.dashboard import html
from manychar.observability.dashboard.hidden_units import followings, in_words
from manychar.observability.dashboard.view import Sample, View
from manychar.observability.status import COLUMNS

TEXT = 'He said "the cat sat" and "a dog ran" at\nhome again, on the mat, with nobody\nto see it.'


def sample_with(unit: np.ndarray, *, text: str = TEXT) -> Sample:
    """Four units: nothing, noise, the given one, and the given one the other way round, weaker."""
    noise = np.random.default_rng(0).uniform(-1, 1, len(text))
    states = np.stack([np.full(len(text), 0.5), noise, unit, -0.5 * unit + 0.3 * noise], axis=1)
    return Sample(7, text, states.astype(np.float32))


def test_the_unit_that_counts_characters_in_the_line_is_found() -> None:
    count, counts = 0, []
    for character in TEXT:
        count = 0 if character == "\n" else count + 1
        counts.append(count / 50)
    found = followings(sample_with(np.array(counts)))
    assert next(iter(found.items())) == (2, "2: follows the position in the line (+1.00)")


def test_the_unit_that_is_off_inside_quotes_is_found() -> None:
    inside, states = False, []
    for character in TEXT:
        inside ^= character == '"'
        states.append(-0.9 if inside else 0.9)
    found = followings(sample_with(np.array(states)))
    assert next(iter(found.items())) == (2, "2: follows being inside quotes (−1.00)")


def test_nothing_is_said_of_what_hardly_occurs() -> None:
    states = np.array([float(c == "H") for c in TEXT])
    assert "capitals" not in str(followings(sample_with(states)))


def test_characters_are_marked_below_zero_and_escaped() -> None:
    sample = sample_with(np.array([0.25, -1.0, 0.5, 0.0]), text="<&\n\x1b")
    shown = html.coloured(sample, 2)
    assert shown.count("<span") == 4
    assert '<span class="high" style="--a:0.25" title="+0.25">&lt;</span>' in shown
    assert '<span class="low" style="--a:1.00" title="−1.00">&amp;</span>' in shown
    assert "↵\n</span>" in shown
    assert "\x1b" not in shown


def test_in_words_it_says_where_the_extremes_are() -> None:
    states = np.zeros(len(TEXT))
    states[TEXT.index("cat") + 2], states[TEXT.index("dog") + 2] = 0.9, -0.8
    words = in_words(sample_with(states), 2)
    assert 'highest (+0.90) after “"the cat”' in words
    assert 'lowest (−0.80) after “d "a dog”' in words


def test_whatever_comes_from_a_run_is_escaped() -> None:
    bad = "<img src=x onerror=alert(1)>"
    view = View(source=bad, run=bad, facts={bad: bad}, state=bad, counts={bad: 1})
    view = view.but(workers=[[bad] * len(COLUMNS)])
    sample = Sample(1, bad, np.zeros((len(bad), 1), np.float32))
    shown = [
        html.title(view),
        html.state(view),
        html.figures(view),
        html.workers(view),
        html.samples([sample]),
        html.coloured(sample, 0),
    ]
    assert all("<img" not in html for html in shown)
