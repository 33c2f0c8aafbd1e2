#!/usr/bin/python
"""What a device's clients really get of CPU, memory and network, each measured in its own container."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_verify
short_description: Measure what a device's clients get, beside what the kernel holds them to
description:
  - Loads each client's container, one after the other, and reads the kernel's own accounts of its control group,
    version 1 or 2. It says what was found; whether that is right is for the caller to judge.
  - The load runs in the client's container, as the container's user. CPU is used by as many processes as there are
    cores. Memory is taken until the kernel kills the one process that takes it, which it kills before all others. The
    network is measured from the container of the client's SuperNode, where the training's traffic comes from.
  - Refuses, with nothing loaded, when a training runs in one of the containers.
options:
  project:
    description: The testbed's Compose project.
    type: str
    required: true
  clients:
    description: The clients to measure.
    type: list
    elements: dict
    required: true
    suboptions:
      client:
        description: Its name.
        type: str
        required: true
      memory:
        description: Memory that was asked for it, in bytes; without it, memory is not measured.
        type: int
  server:
    description: Name or address by which the clients dial the server.
    type: str
    required: true
  fleet_port:
    description: The server's port for Flower.
    type: int
    required: true
  registry_port:
    description: The server's port for images.
    type: int
    required: true
  blob:
    description: A large part of an image that can be fetched there, as C(sha256:…).
    type: str
    required: true
  network:
    description: What was asked for of the network, in bit/s, seconds and shares.
    type: dict
    default: {}
  seconds:
    description: How long each load lasts.
    type: int
    default: 5
author: fltestbed authors
"""

RETURN = r"""
clients:
  description: >-
    What was found of each client, in the order of I(clients). Its name as C(client), and its C(state). C(cpu) with
    C(quota) (cores, null for no limit), C(cores) of the device, C(got) (cores), C(periods) of the quota meanwhile,
    C(throttled), in how many of them it was used up, C(throttled_above), the share of them in which one of a group was
    that the container lies in, and C(turns), loop turns that one core makes in a second. C(memory) with C(limit),
    C(room) that the device has for it, C(taken) when the kernel refused more (all bytes), C(killed). C(network) as the
    load says it. C(survived), whether the container is the same as before.
  returned: always
  type: list
  elements: dict
shaped:
  description: >-
    What the kernel does to the traffic between the device and the server, as C(tc) says it: C(rate_up), C(rate_down)
    (bit/s), C(delay_up), C(delay_down) (s), C(loss_up), C(loss_down) (shares), each where there is one.
  returned: always
  type: dict
asked:
  description: I(network), for the caller to compare with.
  returned: always
  type: dict
"""

import json
import re
import time
from pathlib import Path

from ansible.module_utils import testbed_load
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_cgroup import Cgroup
from ansible.module_utils.testbed_conditions import CHILD, HANDLE, IFB, OWN_RATE
from ansible.module_utils.testbed_docker import EngineUnreachable, cgroup_limits, inspect
from ansible.module_utils.testbed_inside import KILLED, Inside

LOAD = testbed_load.__spec__.loader.get_source(testbed_load.__name__)
PATIENCE = 90  # s that a slow device gets to start Python, or to say something
UNITS = {"bit": 1, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "us": 1e-6, "ms": 1e-3, "s": 1, "%": 0.01}
BEYOND = 1.05  # times the memory asked for, of which a limit that holds lets nobody take so much


def load(container, what, *numbers):
    return Inside(container, "-c", LOAD, what, *map(json.dumps, numbers))


def trains(group_of):
    """Return whether a ClientApp runs in the container of this process."""
    for pid in group_of.processes():
        try:
            if b"flwr-clientapp" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return True
        except OSError:
            continue  # it ended meanwhile
    return False


def cpu(container, pid, group, seconds):
    """Keep all cores busy, and read what the container got of them between two ends of its quota's periods."""

    def sample():
        """Return the time and the accounts at the end of a period, or now where there is none."""
        until, before = time.monotonic() + 1, group.cpu()
        while True:
            now = group.cpu()
            if quota is None or now["periods"] != before["periods"] or time.monotonic() > until:
                return time.monotonic(), now, [one.cpu() for one in above]
            time.sleep(0.0005)

    quota, _limit = cgroup_limits(pid)
    above = group.above()
    with load(container, "busy", seconds + PATIENCE) as program:
        said = program.need(PATIENCE)
        program.need(PATIENCE)
        began, before, before_above = sample()
        time.sleep(seconds)
        ended, after, after_above = sample()

    def throttled(one, other):
        return (other["throttled"] - one["throttled"]) / max(1, other["periods"] - one["periods"])

    return {
        "quota": quota,
        "cores": said["cores"],
        "turns": said["turns"],
        "got": (after["seconds"] - before["seconds"]) / (ended - began),
        "periods": after["periods"] - before["periods"],
        "throttled": after["throttled"] - before["throttled"],
        "throttled_above": max(map(throttled, before_above, after_above), default=0.0),
    }


def memory(container, group, asked):
    """Take the memory that was asked for, and a little more, which the kernel has to refuse."""
    held = group.memory()
    answer = {"limit": held["limit"], "room": None, "taken": None, "killed": None}
    if asked is None or held["used"] is None:
        return answer
    with load(container, "fill", PATIENCE) as program:
        program.need(PATIENCE)
        used = group.memory()["used"]
        answer["room"] = used + room(group)
        if answer["room"] < asked:
            return answer
        first = max(0, asked - max(16 << 20, asked // 20) - used)
        program.tell(f"{first} {int(asked * BEYOND) - used}\n".encode())
        before, taken = used, 0
        while (said := program.hear(PATIENCE)) is not None:
            if said == "first":  # by now Python's own memory, and the kernel's for the pages, count too
                before = group.memory()["used"] - taken
                program.tell(b"go on\n")
            elif said == "whole":
                break
            else:
                taken = said
        code, _said = program.end()
    return answer | {"taken": before + taken, "killed": code == KILLED}


def room(group):
    """Return the bytes that the device has left for a container: of its memory, and of what its groups lie in."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    left = [int(lines["MemAvailable"].split()[0]) * 1024]
    for one in group.above():
        held = one.memory()
        if held["limit"] is not None:
            left.append(held["limit"] - held["used"])
    return min(left)


def network(container, given):
    seconds = given["seconds"]
    numbers = (given["server"], given["registry_port"], given["blob"], given["fleet_port"], seconds + 1)
    with load(container, "link", *numbers) as program:
        try:
            answer = program.hear(PATIENCE + 4 * seconds)
        except TimeoutError:
            answer = None
        if answer is not None:
            return answer
        _code, said = program.end()
    return {"error": said.splitlines()[-1] if said else "the way to the server could not be measured in time"}


def shaped(tc):
    """Return what the kernel does to the traffic; `tc` runs the program and returns what it says.

    A rate is that of a class below our queue; what is to the device comes by way of a device of its own.
    """
    found = {}
    for line in tc("qdisc", "show").splitlines():
        _qdisc, kind, handle, _dev, device = line.split()[:5]
        way = "down" if device == IFB else "up"
        if kind == "htb" and handle == HANDLE:
            rate = re.search(r" rate (\S+)", tc("class", "show", "dev", device))
            if rate and number(rate[1]) < OWN_RATE:
                found[f"rate_{way}"] = number(rate[1])
        elif kind == "netem" and handle == CHILD:
            for key in ("delay", "loss"):
                if value := re.search(rf" {key} ([0-9.]+\S*)", line):
                    found[f"{key}_{way}"] = number(value[1])
    return found


def number(text):
    """Return a quantity of tc's, as 5Mbit, 40ms or 1%, in bit/s, s or a share."""
    value, unit = re.fullmatch(r"([0-9.]+)(\S*)", text).groups()
    return float(value) * UNITS[unit.lower()]


def main():
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "clients": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"client": {"type": "str", "required": True}, "memory": {"type": "int"}},
            },
            "server": {"type": "str", "required": True},
            "fleet_port": {"type": "int", "required": True},
            "registry_port": {"type": "int", "required": True},
            "blob": {"type": "str", "required": True},
            "network": {"type": "dict", "default": {}},
            "seconds": {"type": "int", "default": 5},
        },
        supports_check_mode=True,
    )
    given = module.params

    def tc(*arguments):
        """Return what tc says; nothing on a device without it, which has nothing shaped."""
        program = module.get_bin_path("tc", opt_dirs=["/sbin", "/usr/sbin"])
        return module.run_command([program, *arguments], check_rc=True)[1] if program else ""

    found = []
    try:
        for client in given["clients"]:
            name = client["client"]
            container, supernode = (f"{given['project']}-{service}-{name}-1" for service in ("client", "supernode"))
            before = inspect(container)
            state = before["State"]["Status"] if before else "not there"
            if state != "running":
                found.append({"client": name, "state": state})
                continue
            pid = before["State"]["Pid"]
            group = Cgroup.of(pid)
            if trains(group):
                module.fail_json(msg=f"{name} trains: what it gets is measured without a run, which would be disturbed")
            answer = {
                "client": name,
                "state": state,
                "cpu": cpu(container, pid, group, given["seconds"]),
                "memory": memory(container, group, client["memory"]),
                "network": network(supernode, given),
            }
            after = inspect(container)
            found.append(
                answer | {"survived": bool(after) and after["State"]["Pid"] == pid and Path(f"/proc/{pid}").is_dir()}
            )
    except (EngineUnreachable, TimeoutError, OSError, ValueError) as error:
        module.fail_json(msg=f"the clients could not be measured: {error}")
    module.exit_json(changed=False, clients=found, shaped=shaped(tc), asked=given["network"])


if __name__ == "__main__":
    main()
