"""Make the pictures of the documentation: python docs/screenshots.py RUN, with a Chromium."""

import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
NAMES = ("chromium", "chromium-browser", "google-chrome")


def picture(page: str, target: Path, width: int = 1000, height: int = 1212) -> None:
    """Write a picture of the top of a page."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    if browser is None:
        sys.exit(f"no browser found; install one of {', '.join(NAMES)}")
    options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--force-color-profile=srgb")
    shot = (f"--screenshot={target}", f"--window-size={width},{height}", page)
    subprocess.run([browser, *options, *shot], check=True, capture_output=True)


if __name__ == "__main__":
    picture((Path(sys.argv[1]) / "report.html").resolve().as_uri(), DOCS / "demo-report.png")
