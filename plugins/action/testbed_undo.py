"""Runs the module testbed_undo with the controller's copy of the host's record; a purge takes the copy away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: testbed_undo
short_description: Remove a testbed from a host, with the controller's copy of the record at hand
description:
  - Runs the module of this name, and removes C(hosts/HOST.json) below the variable C(testbed_state_dir) when a purge
    got through.
options: {}
author: fltestbed authors
"""


class ActionModule(ActionBase):
    """The module's arguments are this plugin's, except the record."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        folder = Path(self._templar.template(variables["testbed_state_dir"])) / "hosts"
        copy = folder / f"{variables['inventory_hostname']}.json"
        arguments = dict(self._task.args)
        if copy.exists():
            arguments["record"] = json.loads(copy.read_text())
        result |= self._execute_module(module_name="testbed_undo", module_args=arguments, task_vars=variables)
        if result.get("failed") or self._task.check_mode or not arguments.get("purge"):
            return result
        copy.unlink(missing_ok=True)
        return result
