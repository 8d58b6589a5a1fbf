"""The page in a real browser: what it shows, where it asks, who can use it."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from tests.commands import SMALL, Commands, until
from tests.observability.dashboard.browser import Browser
from tests.observability.dashboard.serving import serve

NAMED = {"button", "image", "spinbutton", "combobox", "table", "region", "link", "heading"}
FIELD = '[role="combobox"]'
COLOURED = ".coloured"
STEP = "dl div:first-child dd"


@pytest.fixture(scope="module")
def finished_page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a finished run's page: one for all who only look."""
    commands = Commands(tmp_path_factory.mktemp("page"))
    url, page = serve(commands, str(finished_run))
    yield url
    page.interrupt()
    page.end()
    commands.close()


@pytest.fixture
def page(finished_page: str, browser: Browser) -> str:
    browser.open(finished_page)
    browser.wait_for(COLOURED, bool)
    return finished_page


@pytest.mark.long
@pytest.mark.usefixtures("page")
def test_a_finished_run_is_shown(browser: Browser) -> None:
    assert browser.wait_for(STEP, bool) == "300/300"
    assert "ended at step 300" in browser.text('[aria-label="Status"]')
    names = dict.fromkeys(name for role, name in browser.accessible() if role == "image")
    assert any(re.match(r"Loss: from .* to .* at step 300\.", name) for name in names)
    wanted = ["step 300", "step 150", "step 0"]
    until(lambda: browser.script(_HEADINGS) == wanted, "the samples of all checkpoints")
    lines = browser.all('[aria-label="Loss, nats a character"] svg path')
    assert len(lines) > 2


def test_nothing_is_fetched_from_elsewhere(page: str, browser: Browser) -> None:
    requested = browser.requested()
    assert len(requested) > 10
    assert {urlsplit(url).netloc for url in requested} == {urlsplit(page).netloc}
    assert browser.complaints() == []


@pytest.mark.usefixtures("page")
def test_a_hidden_unit_is_picked_by_keyboard_and_colours_the_text(browser: Browser) -> None:
    before = browser.script(_COLOURS)
    assert len(before) == 300
    _tab_to(browser, FIELD)
    assert browser.script(_OUTLINE) == "solid"
    keys = ActionChains(browser.driver)
    keys.send_keys(Keys.ENTER).perform()
    until(lambda: browser.all('[role="option"]'), "the list of hidden units")
    keys.send_keys(Keys.ARROW_DOWN, Keys.ENTER).perform()
    after = until(
        lambda: browser.script(_COLOURS) != before and browser.script(_COLOURS),
        "other colours for another hidden unit",
    )
    assert len(after) == 300


_HEADINGS = "return [...document.querySelectorAll('article h3')].map(e => e.textContent)"
_OUTLINE = "return getComputedStyle(document.activeElement.closest('.q-field')).outlineStyle"
_COLOURS = """
return [...document.querySelectorAll('.coloured span')].map(s => s.className + s.style.cssText)
"""
_FOCUSED = "return document.activeElement.matches(arguments[0])"


def _tab_to(browser: Browser, selector: str, *, most: int = 40) -> None:
    for _ in range(most):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        if browser.script(_FOCUSED, selector):
            return
    raise AssertionError(f"{selector} is not reached by the Tab key")


@pytest.mark.usefixtures("page")
def test_whatever_a_screen_reader_meets_has_a_name(browser: Browser) -> None:
    met = browser.accessible()
    assert [role for role, name in met if role in NAMED and not name] == []
    assert [role for role, _ in met].count("main") == 1
    headings = [name for role, name in met if role == "heading"]
    assert headings[0] == "manychar"
    assert browser.script("return document.documentElement.lang") == "en-US"


@pytest.mark.usefixtures("page")
def test_it_follows_light_and_dark_and_fits_a_phone(browser: Browser) -> None:
    seen = {}
    for scheme in ("light", "dark"):
        browser.look(scheme=scheme)
        seen[scheme] = browser.script(_LOOKS)
        for _, ground, ink in seen[scheme]:
            assert _contrast(ground, ink) >= 4.5, (scheme, ground, ink)
    assert [entry[0] for entry in seen["light"]] == [entry[0] for entry in seen["dark"]]
    assert seen["light"] != seen["dark"]
    browser.look(scheme="light", width=360, height=740)
    until(
        lambda: browser.script("return document.documentElement.scrollWidth") == 360,
        "the page to be as wide as the phone",
    )
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)):
        browser.keep(f"finished-{scheme}-{width}", scheme=scheme, width=width)


_LOOKS = """
const ground = e => { for (; e; e = e.parentElement) {
  const c = getComputedStyle(e).backgroundColor;
  if (!/, 0\\)$|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
return ['h1', 'header p', 'dt', 'dd', 'section p', '.text', 'svg text']
  .map(s => [s, document.querySelector(s)]).filter(([s, e]) => e).map(([s, e]) =>
    [s, ground(e), e instanceof SVGElement ? getComputedStyle(e).fill : getComputedStyle(e).color]);
"""


def _contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.long
def test_a_live_run_is_followed_to_its_end(
    manychar: Commands, text: Path, browser: Browser
) -> None:
    server = manychar.start(
        *("server", str(text), *SMALL, "--steps", "0", "--bind", "tcp://127.0.0.1:*"),
        *("--sample-every", "400"),
    )
    endpoint = server.wait_for(r"tcp://127\.0\.0\.1:\d+")[0]
    worker = manychar.start("worker", endpoint, "--name", "left")
    url, page = serve(manychar, endpoint)
    browser.open(url)
    step = browser.wait_for(STEP, lambda shown: re.fullmatch("[0-9,]+", shown))
    browser.wait_for(STEP, lambda shown: re.fullmatch("[0-9,]+", shown) and shown != step)
    browser.wait_for(
        '[aria-label="Workers"] table', lambda t: re.search(r"left.*[1-9]\d*%", t, re.DOTALL)
    )
    first = browser.wait_for("article h3", bool)
    browser.wait_for("article h3", lambda shown: shown not in ("", first))
    browser.look(scheme="light", width=360, height=740)
    until(
        lambda: browser.script("return document.documentElement.scrollWidth") == 360,
        "the page to be as wide as the phone",
    )
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 360)):
        browser.keep(f"live-{scheme}-{width}", scheme=scheme, width=width)
    assert manychar.run("stop", endpoint).code == 0
    server.end()
    worker.end()
    browser.wait_for('[aria-label="Status"]', lambda shown: "ended" in shown)
    assert browser.complaints() == []
    page.interrupt()
    assert page.end().code == 130
