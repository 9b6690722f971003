"""A browser without a window for tests: Chromium and its driver as Debian packages them, or Chrome, led by Selenium.

Where one of them is missing, tests that need it are skipped and say what to install.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 800, 1400)
"""A telephone's, a tablet's and a laptop's, in pixels."""

_FIND_TEXT = """
function text(node) {
  if (node.nodeType === Node.TEXT_NODE) { return node.data; }
  if (node.nodeType !== Node.ELEMENT_NODE && node.nodeType !== Node.DOCUMENT_FRAGMENT_NODE) { return ''; }
  if (node.tagName === 'STYLE' || node.tagName === 'SCRIPT' || node.tagName === 'TEMPLATE') { return ''; }
  var inside = [].concat(node.shadowRoot ? [node.shadowRoot] : [], Array.from(node.childNodes));
  return inside.map(text).join(' ');
}
return text(document.body).replace(/\\s+/g, ' ');
"""

_FIND_ALL = """
function all(root, found) {
  root.querySelectorAll('*').forEach(function (e) {
    if (e.matches(arguments_selector)) { found.push(e); }
    if (e.shadowRoot) { all(e.shadowRoot, found); }
  });
  return found;
}
var arguments_selector = arguments[0];
return all(document, []);
"""


def open_browser() -> Any:
    """Start it, or skip the test."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install selenium")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    program = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = program
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def wait_for(browser: Any, script: str, limit_s: float = 60.0) -> Any:
    """The value of an expression of JavaScript as soon as it is true."""
    until = time.perf_counter() + limit_s
    while not (found := browser.execute_script(f"return {script}")):
        assert time.perf_counter() < until, script
        time.sleep(0.05)
    return found


def complaints(browser: Any, *levels: str) -> list[str]:
    """Errors and warnings of the console since the last call; or what is of some levels, as ``"SEVERE"``."""
    levels = levels or ("SEVERE", "WARNING")
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] in levels]


def requested(browser: Any) -> list[str]:
    """Addresses that were asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [m["params"]["request"]["url"] for m in events if m["method"] == "Network.requestWillBeSent"]


def prefer(browser: Any, scheme: str) -> None:
    """Let the user prefer ``"light"`` or ``"dark"``."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def set_width(browser: Any, width: int, height: int = 900) -> None:
    """Show pages so many pixels wide; a window itself cannot be narrower than 500."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wait_for(browser, f"window.innerWidth === {width}")


def deep_text(browser: Any) -> str:
    """All text of the page, that in shadow roots included."""
    found: str = browser.execute_script(_FIND_TEXT)
    return found


def deep_find(browser: Any, selector: str) -> list[Any]:
    """All elements that a selector means, those in shadow roots included."""
    found: list[Any] = browser.execute_script(_FIND_ALL, selector)
    return found


def accessible(browser: Any) -> list[dict[str, Any]]:
    """What a screen reader is told of: nodes of the accessibility tree that are not ignored."""
    nodes: list[dict[str, Any]] = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    return [node for node in nodes if not node.get("ignored")]


def take_picture(browser: Any, path: Path) -> None:
    """Save the whole page as a picture."""
    import base64

    options = {"captureBeyondViewport": True, "format": "png"}
    path.write_bytes(base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))
