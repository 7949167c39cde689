"""The picture of the README: the head of a run's report.html in headless Chromium, as docs/report.png.

    python docs/screenshot.py runs/latest

Needs the program chromium. The pictures of the data set lie further down the page and are not on it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

OUTPUT = Path(__file__).resolve().parent / "report.png"
WIDTH, HEIGHT = 1000, 1070  # pixels


def main(run: Path) -> None:
    """Write the picture.

    Raises:
        SystemExit: the run has no report, or Chromium is not installed.
    """
    page, browser = (run / "report.html").resolve(), shutil.which("chromium") or shutil.which("google-chrome")
    if not page.is_file() or browser is None:
        sys.exit(f"{page}: no report, or the program chromium is missing")
    with tempfile.TemporaryDirectory() as profile:
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
        ]
        size = [f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={profile}", f"--screenshot={OUTPUT}"]
        subprocess.run([browser, *options, *size, page.as_uri()], check=True, capture_output=True, timeout=120)
    print(OUTPUT)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
