"""Ends the process that testbed_check left on the server host."""

from __future__ import annotations

DOCUMENTATION = r"""
name: testbed_check_close
short_description: End the process that listens for a check
description:
  - Kills the process that C(testbed_check) returned as C(listener). It costs no module call.
options:
  listener:
    description: The process id, above 0.
    type: int
    required: true
author: fltestbed authors
"""

from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """One command on the host."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, arguments = self.validate_argument_spec(argument_spec={"listener": {"type": "int", "required": True}})
        self._low_level_execute_command(f"kill {arguments['listener']}")
        return result
