"""The end of the testbed that the tests of this folder share: runs last."""

import subprocess
from pathlib import Path

from .lab import DEVICES, Lab


def test_a_testbed_that_was_taken_down_comes_back_on_a_device_without_images(lab: Lab) -> None:
    """The server's engine still has the images then, and the files that devices pull are gone."""
    lab.run("down", "--yes")
    lab.on(DEVICES[0], "sh", "-c", "docker image rm --force $(docker image ls --quiet)")
    lab.run("up")
    assert "client" in lab.on(DEVICES[0], "docker", "ps", "--format", "{{.Names}}")


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
