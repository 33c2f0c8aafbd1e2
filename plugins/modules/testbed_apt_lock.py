#!/usr/bin/python
"""Says whether another program is at the host's packages, and which."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_apt_lock
short_description: Ask who holds the locks of apt and dpkg
description:
  - Asks the kernel who holds the locks. Meant for C(until), so that a wait for another program is said while it lasts.
options:
  paths:
    description: The lock files; empty for those of apt and dpkg.
    type: list
    elements: path
    default: []
author: fltestbed authors
"""

RETURN = r"""
held:
  description: Whether another program holds one of the locks.
  returned: always
  type: bool
msg:
  description: Which program, which lock and what to do.
  returned: when I(held)
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_holders import PACKAGE_LOCKS, lock_holder, process


def main():
    module = AnsibleModule(
        argument_spec={"paths": {"type": "list", "elements": "path", "default": []}}, supports_check_mode=True
    )
    for path in module.params["paths"] or PACKAGE_LOCKS:
        holder = lock_holder(path)
        if holder is not None:
            module.exit_json(
                changed=False,
                held=True,
                msg=f"{process(holder)} is at this host's packages (it holds {path}); let it end, or stop it",
            )
    module.exit_json(changed=False, held=False)


if __name__ == "__main__":
    main()
