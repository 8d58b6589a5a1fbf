"""What a hidden unit is said to do, and that nothing of a text becomes markup."""

import numpy as np

from manychar.dashboard import fragments
from manychar.dashboard.history import History, Moment
from manychar.dashboard.units import followings

TEXT = 'He said "the cat sat" and "a dog ran" at\nhome again, on the mat, with nobody\nto see it.'


def moment_with(unit: np.ndarray, *, text: str = TEXT) -> Moment:
    """Four units: nothing, noise, the given one, and the given one the other way round, weaker."""
    noise = np.random.default_rng(0).uniform(-1, 1, len(text))
    states = np.stack([np.full(len(text), 0.5), noise, unit, -0.5 * unit + 0.3 * noise], axis=1)
    return Moment(7, text, states.astype(np.float32))


def test_the_unit_that_counts_characters_in_the_line_is_found() -> None:
    count, counts = 0, []
    for character in TEXT:
        count = 0 if character == "\n" else count + 1
        counts.append(count / 50)
    found = followings(moment_with(np.array(counts)))
    assert (found[0].what, found[0].unit) == ("the position in the line", 2)
    assert found[0].correlation > 0.99


def test_the_unit_that_is_off_inside_quotes_is_found() -> None:
    inside, states = False, []
    for character in TEXT:
        inside ^= character == '"'
        states.append(-0.9 if inside else 0.9)
    found = followings(moment_with(np.array(states)))
    assert (found[0].what, found[0].unit) == ("being inside quotes", 2)
    assert found[0].correlation < -0.99


def test_nothing_is_said_of_what_hardly_occurs() -> None:
    states = np.array([float(c == "H") for c in TEXT])
    assert "capitals" not in [one.what for one in followings(moment_with(states))]


def test_characters_are_marked_below_zero_and_escaped() -> None:
    moment = moment_with(np.array([0.25, -1.0, 0.5, 0.0]), text="<&\n\x1b")
    html = fragments.coloured(moment, 2)
    assert html.count("<span") == 4
    assert '<span class="high" style="--a:0.25" title="+0.25">&lt;</span>' in html
    assert '<span class="low" style="--a:1.00" title="−1.00">&amp;</span>' in html
    assert "↵\n</span>" in html
    assert "\x1b" not in html


def test_in_words_it_says_where_the_extremes_are() -> None:
    states = np.zeros(len(TEXT))
    states[TEXT.index("cat") + 2], states[TEXT.index("dog") + 2] = 0.9, -0.8
    words = fragments.in_words(moment_with(states), 2)
    assert 'highest (+0.90) after “"the cat”' in words
    assert 'lowest (−0.80) after “d "a dog”' in words


def test_whatever_comes_from_a_run_is_escaped() -> None:
    bad = "<img src=x onerror=alert(1)>"
    history = History(bad)
    history.begin(bad, {bad: bad})
    history.notice(bad)
    history.know(state=bad, counts={bad: 1})
    view = history.view()
    moment = Moment(1, bad, np.zeros((len(bad), 1), np.float32))
    shown = [
        fragments.title(view, bad),
        fragments.state(view),
        fragments.facts(view),
        fragments.notices(view.notices, view.counts),
        fragments.samples([moment]),
        fragments.coloured(moment, 0),
        fragments.activation_table(moment, 0),
        fragments.words(bad),
    ]
    assert all("<img" not in html for html in shown)
