"""A browser as a test uses it: opens the page, waits for what it shows, looks at it, keeps it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.commands import until

ARTEFACTS = Path(__file__).parents[3] / ".artefacts" / "dashboard"


class Browser:
    """Chromium, driven by its own driver."""

    def __init__(self, driver: Any) -> None:
        self.driver: Any = driver

    def begin(self) -> None:
        self.driver.get("about:blank")
        self.look(scheme="light")
        for log in ("performance", "browser"):
            self.driver.get_log(log)

    def open(self, url: str) -> None:
        self.driver.get(url)

    def text(self, selector: str) -> str:
        """Return the text of the first element that is there, '' if there is none."""
        try:
            found = self.all(selector)
            return str(found[0].text) if found else ""
        except StaleElementReferenceException:
            return ""

    def all(self, selector: str) -> list[WebElement]:
        found: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return found

    def script(self, source: str, *arguments: Any) -> Any:
        return self.driver.execute_script(source, *arguments)

    def wait_for(self, selector: str, wanted: Callable[[str], object]) -> str:
        """Wait until an element's text is as wanted, and return it."""
        seen = [""]

        def found() -> str | None:
            seen[0] = self.text(selector)
            return seen[0] if wanted(seen[0]) else None

        return until(found, lambda: f"{selector}: it reads {seen[0]!r}")

    def look(self, *, scheme: str, width: int = 1280, height: int = 900) -> None:
        """Be a window of this size, of a person who likes it light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def keep(self, name: str, *, scheme: str, width: int = 1280) -> None:
        """Keep a picture of the whole page under .artefacts/."""
        self.look(scheme=scheme, width=width)
        self.look(scheme=scheme, width=width, height=self.script(_HEIGHT))
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(ARTEFACTS / f"{name}.png"))
        self.look(scheme="light")

    def requested(self) -> list[str]:
        """Return every address that the page has asked for since it was opened."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                found.append(message["params"]["url"])
        return [url for url in found if not url.startswith("data:")]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def accessible(self) -> list[tuple[str, str]]:
        """Return (role, name) of all that a screen reader is told of."""
        nodes = self.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored")
        ]


_HEIGHT = "return document.documentElement.scrollHeight"
