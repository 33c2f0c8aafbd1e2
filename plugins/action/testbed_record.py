"""Runs the module testbed_record on the host, and keeps a copy of the record on the controller."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

DOCUMENTATION = r"""
name: testbed_record
short_description: Note what a host was, and keep a copy on the controller
description:
  - Runs the module of this name. The record that it returns is written to C(hosts/HOST.json) below the variable
    C(testbed_state_dir), mode 0600, before the playbook goes on.
options: {}
author: fltestbed authors
"""


class ActionModule(ActionBase):
    """The module's arguments are this plugin's."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        result |= self._execute_module(module_name="testbed_record", task_vars=variables)
        record = result.pop("record", None)
        if record and "testbed_state_dir" in variables and not self._task.check_mode:
            folder = Path(self._templar.template(variables["testbed_state_dir"])) / "hosts"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            copy = folder / f"{self._task.delegate_to or variables['inventory_hostname']}.json"
            partial = copy.with_suffix(".new")
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                json.dump(record, out, indent=1)
            partial.replace(copy)
        return result
