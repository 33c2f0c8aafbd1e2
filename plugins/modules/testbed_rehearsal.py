#!/usr/bin/python
"""Says what Compose would do with a file that is not on the host yet."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_rehearsal
short_description: Compare a host's containers with a Compose file without touching either
description:
  - Asks Compose for the hash of every service of I(compose) and compares it with the label that Compose gave the
    container when it made it. Nothing is written.
  - Works on a host without an engine too; there everything is to be created.
options:
  root:
    description: The folder that the file's relative paths start from.
    type: path
    required: true
  project:
    description: The Compose project.
    type: str
    required: true
  compose:
    description: The Compose file.
    type: dict
    required: true
  services:
    description: Services to look at; empty for all.
    type: list
    elements: str
    default: []
  recreate:
    description: Services whose container is made anew in any case.
    type: list
    elements: str
    default: []
author: fltestbed authors
"""

RETURN = r"""
images:
  description: Images that the host lacks.
  returned: always
  type: list
  elements: str
containers:
  description: What would be done with which container, C(service) and C(action) (create, recreate, start or remove).
  returned: always
  type: list
  elements: dict
"""

import json

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_docker import EngineUnreachable, containers, get

HASH = "com.docker.compose.config-hash"
SERVICE = "com.docker.compose.service"


def hashes(module, services):
    """Return Compose's hash of each service; None for all where Compose is still to be installed."""
    if module.get_bin_path("docker") is None or module.run_command(["docker", "compose", "version"])[0]:
        return dict.fromkeys(services)
    words = compose_says(module, "--hash", "*")
    return dict(zip(words[::2], words[1::2]))


def compose_says(module, *arguments):
    command = ["docker", "compose", "--file", "-", "--project-name", module.params["project"]]
    command += ["--project-directory", module.params["root"], "config", *arguments]
    code, out, err = module.run_command(command, data=json.dumps(module.params["compose"]))
    if code:
        module.fail_json(msg=f"Compose refuses the rendered compose.yml: {err.strip()}")
    return out.split()


def action(wanted, container, images, recreate):
    """Return what Compose would do for a service of this hash, None for nothing."""
    if container is None:
        return "create"
    if container["Labels"].get(HASH) != wanted or container["Image"] not in images or recreate:
        return "recreate"
    return None if container["State"] == "running" else "start"


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "project": {"type": "str", "required": True},
            "compose": {"type": "dict", "required": True},
            "services": {"type": "list", "elements": "str", "default": []},
            "recreate": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    services = module.params["compose"]["services"]
    images = sorted({service["image"] for service in services.values()})
    try:
        held = {tag for image in get("/images/json") for tag in image["RepoTags"] or []}
        there = {container["Labels"][SERVICE]: container for container in containers(module.params["project"])}
        wanted = hashes(module, services)
    except EngineUnreachable:
        held, there, wanted = set(), {}, dict.fromkeys(services)
    found = [
        {"service": service, "action": what}
        for service in sorted(services)
        if (not module.params["services"] or service in module.params["services"])
        and (what := action(wanted[service], there.get(service), held, service in module.params["recreate"]))
    ]
    found += [{"service": service, "action": "remove"} for service in sorted(there.keys() - services.keys())]
    module.exit_json(changed=bool(found), containers=found, images=[image for image in images if image not in held])


if __name__ == "__main__":
    main()
