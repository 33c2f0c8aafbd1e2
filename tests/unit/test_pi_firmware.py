"""The script that asks a Raspberry Pi's firmware, run as its container does, with another vcgencmd."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "roles/node_exporter/templates/tree/node-exporter/pi-firmware.sh.j2"


def wait(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("other", ['error=1 error_msg="Command not registered"', "throttled=0x", "throttled=0x5z", ""])
def test_flags_are_written_while_the_firmware_tells_them(tmp_path: Path, other: str) -> None:
    said, out = tmp_path / "said", tmp_path / "rpi_firmware.prom"
    said.write_text("throttled=0x50005\n")
    chroot = tmp_path / "chroot"
    chroot.write_text(f'#!/bin/sh\n[ "$*" = "/host /usr/bin/vcgencmd get_throttled" ] && cat {said}\n')
    chroot.chmod(0o755)
    with subprocess.Popen(
        ["/bin/sh", SCRIPT, "/host", tmp_path, "0.02"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait(out.exists)
            flags = dict(line.rsplit(" ", 1) for line in out.read_text().splitlines() if not line.startswith("#"))
            on = [name for name, value in flags.items() if value == "1"]
            assert len(flags) == 8
            assert on == [
                f'rpi_firmware_flag{{flag="{flag}",when="{when}"}}'
                for flag in ("under_voltage", "throttled")
                for when in ("now", "since_boot")
            ]
            said.write_text(f"{other}\n")
            wait(lambda: not out.exists())
            said.write_text("throttled=0x0\n")
            wait(out.exists)
            assert process.poll() is None
        finally:
            process.kill()
