#!/usr/bin/python
"""Fetches the Python packages of the Flower image on the controller, and finds out which torch is to be had."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_wheels
short_description: Fetch the wheels of the Flower image
description:
  - Runs on the controller with its pip, its configuration and its certificates, for the hosts' architecture and the
    image's Python.
  - Where the package index has no CPU build of torch, only one that brings gigabytes of CUDA, torch is left to the
    distribution's
    package C(python3-torch) in the image. What was decided is written to C(torch) in I(path).
  - The folder appears whole or not at all.
options:
  path:
    description: Folder to make, with C(wheels/), C(requirements.txt) and C(torch) (C(wheel) or C(debian)).
    type: path
    required: true
  requirements:
    description: Requirements other than torch.
    type: list
    elements: str
    required: true
  torch:
    description: Requirement for torch.
    type: str
    required: true
  arch:
    description: Architecture as C(uname -m) says it.
    type: str
    required: true
  python_wheel:
    description: Version of Python in the image when torch is a wheel.
    type: str
    required: true
  python_debian:
    description: Version of Python in the image when torch is the distribution's.
    type: str
    required: true
author: fltestbed authors
"""

RETURN = r"""
torch:
  description: C(wheel) or C(debian).
  returned: when the folder is there
  type: str
"""

import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

GLIBCS = (28, 27, 17)


def pip_target(arch, python):
    """Return pip's options for wheels of a Linux host of that architecture and Python."""
    platforms = [f"--platform=manylinux_2_{minor}_{arch}" for minor in GLIBCS] + [f"--platform=manylinux2014_{arch}"]
    return ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]


def pip(module, *arguments):
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    code, out, err = module.run_command(command)
    if code != 0:
        module.fail_json(
            msg="pip could not get the packages of the Flower image. Can the controller reach the package index, does "
            f"pip's configuration name it, and do images_extra_requirements fit the rest? "
            f"pip said: {err.strip()[-1500:]}",
            cmd=command,
        )
    return out


def resolve(module, scratch, *arguments):
    """Return the metadata of what pip would install. No wheel is fetched where the index has metadata apart."""
    report = scratch / "report.json"
    pip(
        module,
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        f"--report={report}",
        "--target=none",
        *arguments,
    )
    return [item["metadata"] for item in json.loads(report.read_text())["install"]]


def needs_cuda(torch):
    """Return whether a build of torch, by its metadata, brings the CUDA runtime with it."""
    return any(re.match(r"(nvidia|cuda)-", requirement) for requirement in torch.get("requires_dist", []))


def main():
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "list", "elements": "str", "required": True},
            "torch": {"type": "str", "required": True},
            "arch": {"type": "str", "required": True},
            "python_wheel": {"type": "str", "required": True},
            "python_debian": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    options = module.params
    path = Path(options["path"])
    if path.exists():
        module.exit_json(changed=False, torch=(path / "torch").read_text())
    if module.check_mode:
        module.exit_json(changed=True)

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".wheels-", dir=path.parent))
    try:
        target = pip_target(options["arch"], options["python_wheel"])
        requirements = [*options["requirements"], options["torch"]]
        torch = "wheel"
        if any(map(needs_cuda, resolve(module, scratch, "--no-deps", *target, options["torch"]))):
            torch = "debian"
            target = pip_target(options["arch"], options["python_debian"])
            requirements = options["requirements"]
        packages = resolve(module, scratch, *target, *requirements)
        if torch == "debian" and any(package["name"] == "torch" for package in packages):
            module.fail_json(
                msg="one of images_extra_requirements imports torch, and the package index has no CPU build of "
                f"{options['torch']} for {options['arch']}, so that torch would come with gigabytes of CUDA. Let pip's "
                "configuration name an index that has it, or take that requirement out."
            )
        done = scratch / "done"
        done.mkdir()
        pins = done / "requirements.txt"
        pins.write_text("".join(sorted(f"{package['name']}=={package['version']}\n" for package in packages)))
        pip(module, "download", "--quiet", "--no-deps", f"--dest={done / 'wheels'}", *target, f"--requirement={pins}")
        (done / "torch").write_text(torch)
        done.rename(path)
    finally:
        shutil.rmtree(scratch)
    module.exit_json(changed=True, torch=torch)


if __name__ == "__main__":
    main()
