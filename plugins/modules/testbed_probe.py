#!/usr/bin/python
"""One look at a host: what the roles need to know before they decide that nothing is to do."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_probe
short_description: Look at a host once, cheaply
description:
  - Reports operating system, init system, Docker engine, Compose, control groups, free disk and images in one call,
    so that roles can skip what is done already.
options:
  paths:
    description: Paths to look for, beside those that say what hardware there is; the answer is in
      C(testbed_probe.paths).
    type: list
    elements: path
    default: []
  disks:
    description: Paths of which the free disk space is asked for, beside those of the Docker engine; the answer is in
      C(testbed_probe.disk_free_mb).
    type: list
    elements: path
    default: []
author: fltestbed authors
"""

RETURN = r"""
ansible_facts:
  description: The fact C(testbed_probe).
  returned: always
  type: dict
  contains:
    testbed_probe:
      description: >-
        C(arch); C(os) with C(id), C(version), C(codename), C(name); C(kernel); C(service_mgr); C(python); C(cpus);
          C(memory_mb);
        C(docker) with C(version) (null without an engine), C(compose) (null without Compose v2), C(running),
          C(on_boot) (systemd starts it), C(daemon_json)
        (null without the file), C(folder), C(image_folder) (where its data and its images are) and C(containerd) (a
        socket); C(cgroup) with C(version), C(memory), C(cpu) (whether limits work);
        C(disk_free_mb) by path; C(images), image ids by C(repository:tag);
        C(paths), whether each path exists; C(testbeds), the names of those that the host's record knows.
      type: dict
"""

import os
import platform
from pathlib import Path

from ansible.module_utils import testbed_record
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_host import DAEMON_JSON, cgroup, docker, free_mb, operating_system

# The way to a Raspberry Pi's firmware, the program that asks it, and the counters of energy that other CPUs have.
HARDWARE = ["/dev/vcio", "/usr/bin/vcgencmd", "/sys/class/powercap/intel-rapl:0"]


def main():
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": []},
            "disks": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        engine, images = docker()
    except ValueError as error:
        module.fail_json(
            msg=f"{DAEMON_JSON} or the engine's answer is not valid JSON: {error}. Correct it by hand: fltestbed "
            "merges into that file and never replaces it."
        )
    disks = {engine["folder"], engine["image_folder"], *module.params["disks"]}
    probe = {
        "arch": platform.machine(),
        "os": operating_system(),
        "kernel": platform.release(),
        "service_mgr": "systemd" if Path("/run/systemd/system").is_dir() else "none",
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        "docker": engine,
        "cgroup": cgroup(),
        "disk_free_mb": {path: free_mb(Path(path)) for path in sorted(disks)},
        "images": images,
        "paths": {path: Path(path).exists() for path in HARDWARE + module.params["paths"]},
        "testbeds": testbed_record.testbeds(),
    }
    module.exit_json(changed=False, ansible_facts={"testbed_probe": probe})


if __name__ == "__main__":
    main()
