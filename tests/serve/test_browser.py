"""The page and the report in a real browser: at desk and phone width, light and dark, by keyboard.

Needs Chromium and its driver (on Debian: apt-get install chromium chromium-driver).
"""

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("selenium.webdriver", reason="needs the package selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from docs.screenshots import browser
from fairway.serve.app import listening, server
from fairway.serve.models import Desk

MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} of the system"),
]

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
# Width, height, and whether the page is dark.
SIGHTS = [(1280, 900, False), (1280, 900, True), (390, 800, False), (390, 800, True)]


@pytest.fixture(scope="module")
def address(desk: Desk) -> Iterator[str]:
    with listening("127.0.0.1", 0) as bound:
        running = server(desk, "127.0.0.1")
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([bound])))
        thread.start()
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"
        running.should_exit = True
        thread.join()


@pytest.fixture(params=SIGHTS, ids=["desk", "desk dark", "phone", "phone dark"])
def page(request: pytest.FixtureRequest) -> Iterator[Any]:
    driver = browser(*request.param)
    try:
        yield driver
        # Whatever was done, nothing went wrong, and nothing is wider than the screen.
        assert driver.get_log("browser") == []
        widths = (
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        whole, seen = driver.execute_script(widths)
        assert whole <= seen
    finally:
        driver.quit()


def until(driver: Any, question: str) -> Any:
    """Return what a question in JavaScript comes to, once that is something."""
    end_s = time.monotonic() + 60
    while not (found := driver.execute_script(f"return {question}")):
        assert time.monotonic() < end_s, question
        time.sleep(0.05)
    return found


def press(driver: Any, *keys: str) -> None:
    for key in keys:
        driver.switch_to.active_element.send_keys(key)


def focused(driver: Any) -> str:
    return str(driver.execute_script("return document.activeElement.id"))


def to(driver: Any, name: str) -> None:
    """Go to a field by the Tab key alone."""
    for _ in range(40):
        if focused(driver) == name:
            return
        press(driver, Keys.TAB)
    raise AssertionError(f"Tab does not reach {name}")


def tip(driver: Any) -> Any:
    """Return the text of the one tip that is seen, and check that all of it is on the screen."""
    shown = [one for one in driver.find_elements(By.CSS_SELECTOR, ".tip") if one.is_displayed()]
    assert len(shown) == 1
    box, (width, height) = shown[0].rect, driver.execute_script("return [innerWidth, innerHeight]")
    top = driver.execute_script("return arguments[0].getBoundingClientRect().top", shown[0])
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    assert top >= 0 and top + box["height"] <= height
    return shown[0].text


def test_text_is_written_and_shown_by_the_keyboard_alone(page: Any, address: str) -> None:
    page.get(address)
    until(page, "!document.querySelector('#result').hidden")
    to(page, "text")
    press(
        page,
        Keys.CONTROL + "a",
        Keys.DELETE,
        "The model \u0645\u0631\u062d\u0628\u0627",
        Keys.SPACE,
    )
    press(page, Keys.CONTROL + Keys.ENTER)
    until(page, "document.querySelector('#status').textContent === ''")
    text = page.execute_script("return document.querySelector('.costs').textContent")
    assert text == "The model \u0645\u0631\u062d\u0628\u0627 "
    to(page, "write")
    press(page, Keys.ENTER)
    until(page, "!document.querySelector('#wrote').hidden")
    written = page.execute_script("return document.querySelector('#text').value")
    assert written.startswith(text) and len(written) > len(text)
    marked = page.execute_script(
        "return [...document.querySelectorAll('.costs .wrote')].map((e) => e.textContent).join('')"
    )
    # The blank at the prompt's end is part of the first token that was drawn.
    assert marked == written[len(text) - 1 :]
    # The text is one stop of the Tab key; arrows go from token to token.
    to(page, "write")
    press(page, Keys.TAB, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    value = page.execute_script("return document.activeElement.value")
    assert value == "2" and "bits" in tip(page) and "rank" in tip(page)
    press(page, Keys.TAB)
    assert page.execute_script("return document.activeElement.className") == "go"
    press(page, Keys.ENTER)
    dearest = page.execute_script("return document.activeElement.value")
    assert dearest == page.execute_script("return document.querySelector('.go').value")
    assert "bits" in tip(page)


def test_two_stages_side_by_side_and_text_that_would_be_obeyed(page: Any, address: str) -> None:
    page.get(address)
    until(page, "!document.querySelector('#result').hidden")
    Select(page.find_element(By.ID, "beside")).select_by_value("smoke:raw")
    until(page, "document.querySelectorAll('#sides .costs').length === 2")
    page.find_element(By.ID, "text").clear()
    page.find_element(By.ID, "text").send_keys(HOSTILE)
    page.find_element(By.ID, "show").click()
    until(page, f"document.querySelector('.costs').textContent.length === {len(HOSTILE)}")
    assert page.title == "Fairway: smoke"
    for box in page.find_elements(By.CSS_SELECTOR, ".costs"):
        assert box.get_attribute("textContent") == HOSTILE
    page.find_element(By.CSS_SELECTOR, ".go").click()
    words = tip(page)
    assert words.count("bits") >= 2 and "smoke:raw" in words
    assert len(page.find_elements(By.CSS_SELECTOR, ".twin")) == 1


def test_what_stages_have_recorded_is_compared(page: Any, address: str) -> None:
    page.get(address)
    until(page, "!document.querySelector('#result').hidden")
    Select(page.find_element(By.ID, "model")).select_by_value("smoke:ttt")
    until(page, "document.querySelector('#sides h3').textContent === 'smoke:ttt'")
    Select(page.find_element(By.ID, "beside")).select_by_value("smoke:sliding")
    until(page, "document.querySelectorAll('#sides .costs').length === 2")
    page.find_element(By.CSS_SELECTOR, ".go").click()
    assert "smoke:sliding" in tip(page) and "rank" not in tip(page)
    page.find_element(By.ID, "write").click()
    assert "cannot write" in page.find_element(By.ID, "status").text
    page.find_element(By.ID, "text").send_keys("mine")
    page.find_element(By.ID, "show").click()
    until(page, "document.querySelector('#status').textContent.includes('no costs of this text')")
    # The browser notes the refusal itself, and nothing else.
    assert ["400" in entry["message"] for entry in page.get_log("browser")] == [True]


def test_mistakes_are_told_on_the_page(page: Any, address: str) -> None:
    page.get(address)
    until(page, "!document.querySelector('#result').hidden")
    page.execute_script("document.querySelector('#text').value = ''")
    page.find_element(By.ID, "show").click()
    status = page.find_element(By.ID, "status")
    assert "empty" in status.text and "wrong" in status.get_attribute("class")
    page.execute_script("document.querySelector('#text').value = 'a'.repeat(20001)")
    page.find_element(By.ID, "show").click()
    assert "too long" in status.text


def test_the_report_shows_tokens_without_a_script(page: Any, smoke_run: Path) -> None:
    page.get((smoke_run / "report.html").as_uri())
    first = page.find_element(By.CSS_SELECTOR, ".costs input")
    for _ in range(100):
        press(page, Keys.TAB)
        if page.switch_to.active_element == first:
            break
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert page.execute_script("return document.activeElement.value") == "1"
    assert "bits" in tip(page) and len(tip(page).splitlines()) >= 6
