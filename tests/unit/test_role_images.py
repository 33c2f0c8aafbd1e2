"""What the role images says when mmdebstrap fails, run with another mmdebstrap."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROLE = Path(__file__).parents[2] / "roles/images"


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("W: GPG error: trixie InRelease: NO_PUBKEY 78DBA3BC47EF2265", "debian-archive-keyring lacks the keys"),
        ("E: write: No space left on device", "Free some space there in /var/tmp"),
        ("E: something else", "images_debian_mirror names another"),
    ],
)
def test_a_builder_that_cannot_unpack_debians_packages_is_told_what_to_do(tmp_path: Path, said: str, hint: str) -> None:
    program = tmp_path / "mmdebstrap"
    program.write_text(f'#!/bin/sh\necho "in $TMPDIR: $*" >&2\necho "{said}" >&2\nexit 25\n')
    program.chmod(0o755)
    unpack = yaml.safe_load((ROLE / "tasks/mmdebstrap.yml").read_text())[-1]  # the others install it
    constants = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    given = {
        "__images_builder": "localhost",
        "_images_mmdebstrap": ["trixie", "/x.tar"],
        "images_debian_mirror": "http://m",
        "ansible_python_interpreter": sys.executable,
    }
    play = {"hosts": "localhost", "gather_facts": False, "vars": constants | given, "tasks": [unpack]}
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "localhost,", "-c", "local", tmp_path / "play.yml"],
        env=os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stdout
    assert "cannot be unpacked on localhost: in /var/tmp: --quiet " in done.stdout
    assert "trixie /x.tar http://m" in done.stdout
    assert hint in done.stdout
