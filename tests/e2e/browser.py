"""Opens a page in headless Chromium, without a network, and says what came of it."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_FLAGS = (
    "--headless",
    "--no-sandbox",  # which root may not have
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=60000",  # ms of the page's own time, which passes as fast as it can
    "--enable-logging=stderr",
)


@dataclass(frozen=True)
class Visit:
    """The document as the scripts left it, the console's lines, and the addresses that the page asked for."""

    document: str
    console: list[str]
    requests: list[str]


def visit(page: Path, folder: Path, *more: str) -> Visit:
    """Open a page; `folder` takes the profile and Chromium's log of the network."""
    log = folder / "net.json"
    done = subprocess.run(
        [
            *("chromium", *_FLAGS, f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", *more),
            *("--dump-dom", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return Visit(done.stdout, re.findall(r"CONSOLE.*", done.stderr), _requests(log))


def _requests(log: Path) -> list[str]:
    """Return the addresses of requests over the network; those of the browser itself have no page that began them."""
    found = json.loads(log.read_text(encoding="utf-8"))
    started = found["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [
        event["params"] for event in found["events"] if event["type"] == started and "url" in event.get("params", {})
    ]
    return [params["url"] for params in asked if params.get("initiator") != "not an origin"]
