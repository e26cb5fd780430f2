"""The console in a real browser: Chromium without a window, driven as a person would."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from controlplane.console.settings import ConsoleSettings
from controlplane.runtime.tracing import make_provider
from tests.unit.controlplane.console.stage import Stage, on_stage

WAIT_S = 60.0
"""Long: other tests may keep the machine busy."""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
BEAT_S = 0.5
SETTINGS = ConsoleSettings(port=0, every_s=BEAT_S, spans_max=1_000)
SHOTS = os.environ.get("TOKENPLANE_SHOTS")
"""A folder for screenshots, if somebody wants to look at them."""

pytestmark = [
    pytest.mark.timeout(180),
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no Chromium with its driver here: apt-get install chromium chromium-driver",
    ),
]


class Browser:
    """A page, and what can be asked of it."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, port: int, *, width: int = 1440, height: int = 1000, dark: bool = False) -> None:
        self._emulate(width, height, dark=dark)
        self.driver.get(f"http://127.0.0.1:{port}/")

    def _emulate(self, width: int, height: int, *, dark: bool) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        calm = {"name": "prefers-reduced-motion", "value": "reduce"}
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, calm]})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def js(self, expression: str) -> object:
        answer: object = self.driver.execute_script(f"return {expression}")
        return answer

    def until(self, what: str, holds: Callable[[], object]) -> None:
        WebDriverWait(self.driver, WAIT_S, 0.05).until(lambda _: holds(), what)

    def complaints(self) -> list[str]:
        """What went wrong on the page, by its console."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def shoot(self, name: str) -> None:
        if SHOTS:
            self.driver.save_screenshot(str(Path(SHOTS) / f"{name}.png"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER or ""))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal("asyncio") as portal:
        yield portal


@contextmanager
def playing(portal: BlockingPortal, workers: int, arrivals: int) -> Iterator[tuple[int, Stage]]:
    """A console whose fleet is busy; gives its port."""
    with portal.wrap_async_context_manager(on_stage(workers, SETTINGS)) as (console, stage):
        stop = portal.start_task_soon(_play, stage, arrivals)
        try:
            yield console.port, stage
        finally:
            stop.cancel()


async def _play(stage: Stage, arrivals: int) -> None:
    while True:
        await stage.play(anyio.current_time(), arrivals)
        await anyio.sleep(BEAT_S)


def test_a_small_fleet_is_shown_with_its_requests_and_decisions(
    browser: Browser, portal: BlockingPortal
) -> None:
    with playing(portal, 4, 1) as (port, _):
        browser.open(port)
        browser.until("four cells", lambda: len(browser.all("#pools.large .cell")) == 4)
        browser.until("requests", lambda: browser.all("#flights button.flight"))
        browser.until("decisions", lambda: browser.all("button.decision"))
        browser.until("ends", lambda: browser.js("document.querySelectorAll('.endrow').length > 1"))
        browser.until("a curve", lambda: browser.one("#chart-ttft .p95").get_attribute("d"))
        assert browser.one("#link-text").text == "live"
        keys = [row.get_attribute("data-key") for row in browser.all("button.decision")]
        assert len(keys) == len(set(keys)), "each decision is shown once"
        browser.shoot("small-light")
        browser.open(port, dark=True)
        browser.until("a curve", lambda: browser.one("#chart-ttft .p95").get_attribute("d"))
        browser.shoot("small-dark")
        assert browser.complaints() == []


def test_two_hundred_workers_fit_and_odd_ones_stand_out(
    browser: Browser, portal: BlockingPortal
) -> None:
    with playing(portal, 200, 6) as (port, _):
        browser.open(port, dark=True)
        browser.until("all cells", lambda: len(browser.all("#pools.small .cell")) == 200)
        browser.until("load", lambda: browser.all(".cell[aria-label*=' 1 running']"))
        assert len(browser.all(".pool")) == 2
        browser.until("a plan of both", lambda: len(browser.all(".phase")) == 2)
        browser.until("promises over time", lambda: _points(browser, ".promises .spark") > 3)
        promises = [each.text for each in browser.all(".promises > div:not([hidden]) p")]
        assert [words.split()[0] for words in promises] == ["TPOT", "in", "TTFT", "in"]
        assert [words.partition(" of ")[2] for words in promises] == [
            "50 ms",
            "95%",
            "1.50 s",
            "95%",
        ]
        browser.until("transfers", lambda: browser.all("button.transfer"))
        assert len(browser.all(".cell.unhealthy")) == 1
        assert int(str(browser.js("document.getElementById('fleet').offsetHeight"))) < 700
        browser.shoot("large-dark")
        browser.open(port)
        browser.until("all cells", lambda: len(browser.all("#pools.small .cell")) == 200)
        browser.until("load", lambda: browser.all(".cell[aria-label*=' 1 running']"))
        browser.shoot("large-light")
        assert browser.complaints() == []


def _points(browser: Browser, curve: str) -> int:
    """Of the first such curve that is shown, if one is."""
    shown = next((each for each in browser.all(curve) if each.is_displayed()), None)
    return 0 if shown is None else (shown.get_attribute("d") or "").count("L")


def test_the_page_is_narrow_where_the_screen_is(browser: Browser, portal: BlockingPortal) -> None:
    with playing(portal, 200, 6) as (port, _):
        browser.open(port, width=390, height=844)
        browser.until("all cells", lambda: len(browser.all(".cell")) == 200)
        browser.until("decisions", lambda: browser.all("button.decision"))
        assert int(str(browser.js("document.documentElement.scrollWidth"))) <= 390
        browser.shoot("narrow")


def test_a_cell_tells_all_of_its_worker_and_keys_walk_the_map(
    browser: Browser, portal: BlockingPortal
) -> None:
    with playing(portal, 4, 1) as (port, _):
        browser.open(port)
        browser.until("cells", lambda: len(browser.all(".cell")) == 4)
        browser.until("load", lambda: browser.one(".cell").get_attribute("aria-label"))
        browser.all(".cell")[0].send_keys(Keys.ARROW_RIGHT)
        browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
        browser.until("the drawer", lambda: browser.one("#inspector").is_displayed())
        assert browser.one("#inspector-h").text == "engine-1"
        assert "http://10.0.0.1:8000" in browser.one("#inspector-body").text
        assert browser.all(".cell")[1].get_attribute("aria-pressed") == "true"
        browser.one("body").send_keys(Keys.ESCAPE)
        browser.until("no drawer", lambda: not browser.one("#inspector").is_displayed())
        assert browser.js("document.activeElement.textContent.includes('engine-1')")


def test_a_decision_is_shown_with_every_candidate(browser: Browser, portal: BlockingPortal) -> None:
    with playing(portal, 8, 1) as (port, _):
        browser.open(port)
        browser.until("a decision", lambda: browser.all("button.decision"))
        browser.js("document.querySelector('button.decision').click()")
        browser.until("its terms", lambda: browser.all(".terms tr.won"))
        assert len(browser.all(".terms tbody tr")) == 8
        assert "draining" in browser.one(".terms tr.out").text
        browser.shoot("decision")


def test_the_trace_of_a_request_is_a_tree_on_one_time_line(
    browser: Browser, portal: BlockingPortal
) -> None:
    with playing(portal, 1, 1) as (port, _):
        provider = make_provider("gateway", f"http://127.0.0.1:{port}", 1.0)
        tracer = provider.get_tracer("test")
        browser.open(port)
        browser.until("a request", lambda: browser.all("#ended button.endrow"))
        title = browser.one("#ended button.endrow").get_attribute("title") or ""
        with tracer.start_as_current_span("gateway.request") as span:
            span.set_attribute("tokenplane.request", title.partition(":")[0])
            with tracer.start_as_current_span("gateway.route"):
                pass
        provider.shutdown()
        wanted = title.partition(":")[0]
        browser.js(f"document.querySelector('#ended button[data-key=\"{wanted}\"]').click()")
        browser.until("its spans", lambda: len(browser.all("#inspector .span")) == 2)
        assert [row.text.split()[0] for row in browser.all("#inspector .span")] == [
            "gateway.request",
            "gateway.route",
        ]
        browser.shoot("trace")


def test_colours_follow_the_system_until_somebody_chooses(
    browser: Browser, portal: BlockingPortal
) -> None:
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    with playing(portal, 1, 1) as (port, _):
        browser.open(port, dark=True)
        dark = browser.js(ground)
        browser.open(port)
        light = browser.js(ground)
        assert dark != light
        browser.one("#theme").click()
        assert browser.js(ground) == dark
        browser.open(port)
        assert browser.js(ground) == dark
        browser.js("localStorage.clear()")


def test_a_console_that_goes_away_is_said_to_have_gone(
    browser: Browser, portal: BlockingPortal
) -> None:
    with playing(portal, 1, 1) as (port, _):
        browser.open(port)
        browser.until("a feed", lambda: browser.one("#link-text").text == "live")
    browser.until("the end", lambda: "no connection" in browser.one("#link-text").text)
    browser.complaints()


@pytest.mark.parametrize("theme", [0, 1])
@pytest.mark.parametrize("ink", ["ink", "quiet", "trouble", "wait", "line", "kv-deep"])
def test_words_can_be_read_on_what_they_stand_on(theme: int, ink: str) -> None:
    text = (files("controlplane.console") / "web" / "tokens.css").read_text()
    colours = [found[1:] for found in re.findall(rf"--{ink}: (#\w+)", text)]
    for ground in ("panel", "sunken"):
        grounds = [found[1:] for found in re.findall(rf"--{ground}: (#\w+)", text)]
        wanted = 3.0 if ink in ("wait", "kv-deep") else 4.5
        assert contrast(colours[theme], grounds[theme]) >= wanted, f"{ink} on {ground}"


def contrast(one: str, other: str) -> float:
    """As WCAG has it."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
