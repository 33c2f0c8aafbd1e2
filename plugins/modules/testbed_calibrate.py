#!/usr/bin/python
"""How fast a device's clients train a model below their limits, and what memory that takes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_calibrate
short_description: Train a few seconds with each batch size in the clients' own containers
description:
  - Brings the app's code into each client's container, as a run does, and trains there on the client's own part of the
    data, which has to be on the device. The clients of one device follow one after the other.
  - Memory is the working set of the container, SuperExec and all. A batch size at which the kernel kills the training
    ends the client's calibration.
options:
  project:
    description: The testbed's Compose project.
    type: str
    required: true
  files:
    description: The app's files, by path, with their C(content).
    type: dict
    required: true
  clients:
    description: Each C(client) with the C(setup) that testbed_app.calibrate takes.
    type: list
    elements: dict
    required: true
    suboptions:
      client:
        description: Its name.
        type: str
        required: true
      setup:
        description: What the program in the app takes.
        type: dict
        required: true
author: fltestbed authors
"""

RETURN = r"""
clients:
  description: Of each C(client) the C(rows) of the batch sizes, as the app says them, with C(peak_memory_bytes),
    C(cores) that the container got on average, and C(throttled), in which share of its quota's periods that was used
    up; C(killed), whether the kernel killed the training; C(cpus) and C(memory), the limits that the kernel has.
  returned: success
  type: list
  elements: dict
"""

import json
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_cgroup import Cgroup
from ansible.module_utils.testbed_docker import EngineUnreachable, cgroup_limits, inspect
from ansible.module_utils.testbed_inside import KILLED, Inside

PATIENCE = 600  # s that a batch size may take on a slow device
# Where the app's code lies in the container; a tmpfs, so it is part of the container's memory, as in a run.
UNPACK = """
import json, os, pathlib, runpy, shutil, sys, tempfile, threading
folder = pathlib.Path(tempfile.mkdtemp(prefix="calibrate-"))
for name, content in json.loads(sys.stdin.buffer.read(int(sys.argv[2]))).items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(content, encoding="utf-8")
def leave():
    while os.read(0, 4096):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
threading.Thread(target=leave, daemon=True).start()
sys.path.insert(0, str(folder))
try:
    runpy.run_module("testbed_app.calibrate", run_name="__main__")
finally:
    shutil.rmtree(folder, ignore_errors=True)
"""
CLEAR = "import glob, shutil\nfor each in glob.glob('/tmp/calibrate-*'): shutil.rmtree(each, ignore_errors=True)"


def calibrate(container, pid, code, setup):
    group = Cgroup.of(pid)
    peak = [0]

    def look():
        peak[0] = max(peak[0], group.memory()["working_set"] or 0)

    rows, before, began = [], group.cpu(), time.monotonic()
    with Inside(container, "-c", UNPACK, json.dumps(setup), str(len(code))) as program:
        program.tell(code)
        while (row := program.hear(PATIENCE, look, 0.02)) is not None:
            after, ended = group.cpu(), time.monotonic()
            periods = max(1, after["periods"] - before["periods"])
            row["cores"] = (after["seconds"] - before["seconds"]) / (ended - began)
            row["throttled"] = (after["throttled"] - before["throttled"]) / periods
            rows.append(row | {"peak_memory_bytes": peak[0]})
            before, began = after, ended
        exit_code, said = program.end()
    with Inside(container, "-c", CLEAR) as clear:
        clear.hear(PATIENCE)
    if exit_code not in (0, KILLED):
        raise ValueError(f"the training in {container} ended with {exit_code}: {said[-500:]}")
    cpus, memory = cgroup_limits(pid)
    return {"rows": rows, "killed": exit_code == KILLED, "cpus": cpus, "memory": memory}


def main():
    module = AnsibleModule(
        argument_spec={
            "project": {"type": "str", "required": True},
            "files": {"type": "dict", "required": True},
            "clients": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {"client": {"type": "str", "required": True}, "setup": {"type": "dict", "required": True}},
            },
        },
        supports_check_mode=False,
    )
    code = json.dumps({name: file["content"] for name, file in module.params["files"].items()}).encode()
    found = []
    try:
        for client in module.params["clients"]:
            container = f"{module.params['project']}-client-{client['client']}-1"
            record = inspect(container)
            if not record or not record["State"]["Pid"]:
                module.fail_json(msg=f"the container of {client['client']} does not run; `fltestbed up` starts it")
            found.append(
                {"client": client["client"]} | calibrate(container, record["State"]["Pid"], code, client["setup"])
            )
    except (EngineUnreachable, TimeoutError, OSError, ValueError) as error:
        module.fail_json(msg=f"the clients could not be calibrated: {error}")
    module.exit_json(changed=False, clients=found)


if __name__ == "__main__":
    main()
