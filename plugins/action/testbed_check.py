"""Runs the module testbed_check and compares the host's clock with the controller's."""

from __future__ import annotations

DOCUMENTATION = r"""
name: testbed_check
short_description: Check a host, its clock too
description:
  - Runs the module of this name, then asks C(date) over the connection that is there now, and adds C(clock) - C(least)
    and C(most) are the bounds, in seconds, of how far the host's clock is ahead of the controller's. They lie a round
    trip apart.
options: {}
author: fltestbed authors
"""

import re
import time
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Takes the module's own arguments, `now` apart."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result |= self._execute_module(
            module_name="testbed_check",
            module_args=self._task.args | {"now": time.time()},
            task_vars=task_vars,
            wrap_async=False,
        )
        if "findings" in result:
            before = time.time()
            said = self._low_level_execute_command("date +%s.%N").get("stdout", "")
            after = time.time()
            if found := re.search(r"\d{9,}\.\d+", said):
                result["clock"] = {"least": float(found[0]) - after, "most": float(found[0]) - before}
        return result
