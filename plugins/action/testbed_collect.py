"""Runs the module testbed_collect and unpacks what it packed."""

from __future__ import annotations

import base64
import io
import tarfile
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: testbed_collect
short_description: Bring what a host has of a run to the controller
description:
  - Runs the module of this name, and unpacks its archive into I(dest) on the controller.
options: {}
author: fltestbed authors
"""


class ActionModule(ActionBase):
    """The module's arguments are this plugin's."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result |= self._execute_module(
            module_name="testbed_collect", module_args=dict(self._task.args), task_vars=task_vars or {}
        )
        if "archive" in result:
            packed = io.BytesIO(base64.b64decode(result.pop("archive")))
            result["files"] = unpack(packed, Path(self._task.args["dest"]))
        return result


def unpack(packed: io.BytesIO, folder: Path) -> list[str]:
    """Unpack an archive into a folder, which is made where it is not there; return the files' names."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=packed) as archive:
        names = archive.getnames()
        archive.extractall(folder, filter="data")
    return names
