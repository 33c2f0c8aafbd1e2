"""The end of the testbed that the tests of this folder share: runs last."""

import subprocess
from pathlib import Path

from .lab import DEVICES, Lab


def test_down_leaves_nothing_on_the_hosts(lab: Lab) -> None:
    lab.run("down", "--yes")
    for device in ("server", *DEVICES):
        assert lab.on(device, "docker", "ps", "-aq").strip() == ""
        lab.on(device, "test", "!", "-e", "/opt/fltestbed/e2e")
    lab.run("lab", "down")
    left = subprocess.run(
        ["docker", "ps", "-aq", "--filter", "label=fltestbed.testbed=e2e"], capture_output=True, text=True, check=True
    )
    assert left.stdout == ""
    assert Path("/var/run/docker.sock").exists()
