#!/usr/bin/python
"""Packs what a host has of a run: what the ServerApp wrote, and the containers' logs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_collect
short_description: Bring what a host has of a run to the controller
description:
  - Packs the run's files and the logs of its containers on the host. The action plugin of this name unpacks them into
    I(dest) on the controller, and returns the names of what it wrote as C(files).
options:
  root:
    description: The testbed's folder on the host.
    type: path
    required: true
  project:
    description: The testbed's Compose project.
    type: str
    required: true
  name:
    description: The run.
    type: str
    required: true
  since:
    description: From when on the logs are wanted, as Docker takes it; empty for the last 2000 lines of each.
    type: str
    default: ""
  logs:
    description: The log files, each with C(name) and the Compose C(services) whose output goes into it.
    type: list
    elements: dict
    required: true
  superlink:
    description: SuperLink's container, which alone has the ServerApp's own log; empty on other hosts.
    type: str
    default: ""
  dest:
    description: The folder of the results on the controller, made where it is not there.
    type: path
    required: true
author: fltestbed authors
"""

RETURN = r"""
archive:
  description: A compressed tar of the files, in base64; taken out by the action plugin.
  returned: always
  type: str
"""

import base64
import contextlib
import io
import os
import re
import stat
import tarfile
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

WRITTEN = ("experiment.json", "run.json", "rounds.jsonl", "clients.jsonl", "model.pt")


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime = len(content), int(time.time())
    archive.addfile(entry, io.BytesIO(content))


def plain(log):
    """Return a log as a file's content, without the colours that Flower and Compose give it."""
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", log).encode()


def written(folder):
    """Yield name and content of what the ServerApp wrote. Links are left out: it owns the folder, and this is root."""
    for name in WRITTEN:
        with contextlib.suppress(OSError), os.fdopen(os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                yield name, file.read()


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "project": {"type": "str", "required": True},
            "name": {"type": "str", "required": True},
            "since": {"type": "str", "default": ""},
            "logs": {"type": "list", "elements": "dict", "required": True},
            "superlink": {"type": "str", "default": ""},
            "dest": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    params = module.params
    folder = Path(params["root"])
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, content in written(folder / "runs" / params["name"]):
            add(archive, name, content)
        wanted = ["--since", params["since"]] if params["since"] else ["--tail", "2000"]
        show = ["docker", "compose", "--project-name", params["project"], "logs", "--no-color", "--timestamps", *wanted]
        for log in params["logs"]:
            _code, out, _err = module.run_command([*show, *log["services"]], check_rc=True)
            add(archive, f"logs/{log['name']}.log", plain(out))
        submitted = folder / "submitted" / params["name"]
        if params["superlink"] and submitted.exists():
            ask = ["docker", "exec", params["superlink"], "flwr", "log", submitted.read_text(), "testbed", "--show"]
            _code, out, _err = module.run_command(ask)
            add(archive, "logs/serverapp.log", plain(out))
    module.exit_json(changed=False, archive=base64.b64encode(packed.getvalue()).decode())


if __name__ == "__main__":
    main()
