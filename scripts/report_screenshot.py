"""Makes docs/images/report.png: `python scripts/report_screenshot.py runs/<run>`. Needs chromium and no network."""

import subprocess
import sys
import tempfile
from pathlib import Path

from fltestbed import report

TARGET = Path(__file__).parents[1] / "docs" / "images" / "report.png"
_SIZE = "1100,2860"  # px; as far as the stragglers


def main(folder: Path) -> None:
    """Write the report of a run, and a picture of how it begins."""
    page = report.write(folder)
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        subprocess.run(
            [
                *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
                *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--virtual-time-budget=60000"),
                *("--hide-scrollbars", f"--window-size={_SIZE}", f"--screenshot={TARGET}", page.as_uri()),
            ],
            check=True,
            stderr=subprocess.DEVNULL,
        )
    print(TARGET)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
