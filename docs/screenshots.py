"""Pictures of the page and of a report for the documentation, by the system's Chromium.

    python docs/screenshots.py runs/demo [runs/other]

writes docs/serve.png, of `fairway serve` with a validation document, and docs/demo-report.png, the
top of the run's report. `--only serve` or `--only report` makes one of them. Needs selenium,
Chromium and its driver.
"""

import argparse
import asyncio
import io
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

WIDTH, HEIGHT = 1000, 1212
# A picture in the documentation is not larger.
MOST_BYTES = 300_000
_READY = "document.querySelector('#list-title').textContent !== ''"


def browser(width: int = WIDTH, height: int = HEIGHT, dark: bool = False) -> Any:
    """Return a driver of Chromium without a window; narrow ones are phones."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for word in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{word}")
    options.add_argument("--hide-scrollbars")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    return driver


@contextmanager
def served(runs: list[Path]) -> Iterator[str]:
    """Serve some runs while this lasts; yield the address of the page."""
    from fairway.config.settings import RuntimeConfig
    from fairway.serve.app import address_of, listening, server
    from fairway.serve.models import open_desk

    with listening("127.0.0.1", 0) as bound:
        running = server(open_desk(runs, None, RuntimeConfig()), "127.0.0.1")
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([bound])))
        thread.start()
        try:
            yield address_of(bound, "127.0.0.1")
        finally:
            running.should_exit = True
            thread.join()


def save(driver: Any, path: Path) -> None:
    """Write what the browser shows, in 256 colours; SystemExit if that is too large."""
    picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path}: {picture.width} x {picture.height}, {size:,} bytes")
    if size > MOST_BYTES:
        raise SystemExit(f"{path} has more than {MOST_BYTES:,} bytes")


def page(runs: list[Path], path: Path) -> None:
    """Write a picture of the page: the costs of a validation document, one token's tip open."""
    driver = browser(1200, 1250)
    try:
        with served(runs) as address:
            driver.get(address)
            end_s = time.monotonic() + 120
            while not driver.execute_script(f"return {_READY}"):
                assert time.monotonic() < end_s, "the page shows nothing"
                time.sleep(0.2)
            driver.execute_script("document.querySelectorAll('.costs')[0].scrollTop = 0")
            driver.execute_script(
                "document.querySelector('.costs input[value=\"14\"]').focus("
                "{ focusVisible: true, preventScroll: true })"
            )
            time.sleep(0.3)
            save(driver, path)
    finally:
        driver.quit()


def report(run: Path, path: Path) -> None:
    """Write a picture of the top of a run's report."""
    driver = browser()
    try:
        driver.get((run / "report.html").resolve().as_uri())
        save(driver, path)
    finally:
        driver.quit()


def main() -> None:
    """Make what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="one run, or two to compare")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the pictures")
    parser.add_argument("--only", choices=("serve", "report"), help="make this one alone")
    asked = parser.parse_args()
    if asked.only != "report":
        page(asked.runs, asked.out / "serve.png")
    if asked.only != "serve":
        report(asked.runs[0], asked.out / "demo-report.png")


if __name__ == "__main__":
    main()
