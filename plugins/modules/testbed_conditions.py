#!/usr/bin/python
"""Changes the conditions of a device, or puts them back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_conditions
short_description: Change the conditions of a device, or put them back
description:
  - What is in force is noted in C(/var/lib/fltestbed) on the device before it is changed, so that it can be undone at
    any time. In check mode it is only found out whether the device can do it.
options:
  project:
    description: The testbed's Compose project.
    type: str
    required: true
  kind:
    description: >-
      What to do. C(throttle), C(shape), C(pause), C(kill), C(partition) and C(reboot) change the device; C(rejoin)
        undoes pause, kill and partition; C(restore) undoes all of them; C(network) puts the inventory's network
        condition in force, C(keep) does so again after a reboot, and C(lift) undoes that too.
    type: str
    required: true
    choices: [throttle, shape, pause, kill, partition, reboot, rejoin, restore, network, keep, lift]
  parameters:
    description: >-
      For throttle C(cpus) (cores) and C(memory) (bytes); for shape and network C(rate_up), C(rate_down) (bit/s),
        C(delay), C(jitter) (seconds) and C(loss) (share of 1).
    type: dict
    default: {}
  clients:
    description: The device's clients that throttle, pause, kill, rejoin and restore are for; without any, all.
    type: list
    elements: str
    default: []
author: fltestbed authors
"""

RETURN = r"""
text:
  description: What was done.
  returned: always
  type: str
conditions:
  description: >-
    The conditions that are in force now, each with C(kind), C(client), C(parameters), C(since) (ISO 8601), C(lost)
      (whether a reboot undid it) and C(text).
  returned: always
  type: list
  elements: dict
"""

import subprocess

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_conditions import Conditions, Refused
from ansible.module_utils.testbed_docker import EngineUnreachable

KINDS = ["throttle", "shape", "pause", "kill", "partition", "reboot", "rejoin", "restore", "network", "keep", "lift"]


def main():
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "kind": {"type": "str", "required": True, "choices": KINDS},
            "parameters": {"type": "dict", "default": {}},
            "clients": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    wanted = module.params["kind"], module.params["parameters"], module.params["clients"]
    conditions = Conditions(module.params["project"])
    try:
        before = conditions.standing()
        if module.check_mode:
            conditions.check(*wanted)
            module.exit_json(changed=bool(before) or wanted[0] not in ("rejoin", "restore", "keep", "lift"), text="")
        text = conditions.apply(*wanted)
        after = conditions.standing()
    except (Refused, EngineUnreachable, OSError, ValueError, subprocess.SubprocessError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=before != after or wanted[0] == "reboot", text=text, conditions=after)


if __name__ == "__main__":
    main()
