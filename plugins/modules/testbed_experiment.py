#!/usr/bin/python
"""Reads an experiment, and makes the shards of its clients on the controller."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_experiment
short_description: Resolve an experiment and make its partitions
description:
  - Reads an experiment file, puts the settings of this run on top, and splits its data set into one file a client and
    one with the server's test set. The files lie in the controller's cache, by content.
  - Runs on the controller, with the Python that has C(fltestbed).
  - Check mode fills the cache too, as what follows needs the hashes; no host is touched.
options:
  experiment:
    description: Path of the experiment file. Without one, no data is partitioned, and I(app) has to be there.
    type: path
  app:
    description: Folder of the Flower app; without it, the one that the experiment names.
    type: path
  settings:
    description: Values of this run as C(key=value), the key dotted (C(train.batch_size=16)), the value in YAML. A
      key that an experiment does not have is the app's own.
    type: list
    elements: str
    default: []
  clients:
    description: The clients in the order of their partitions.
    type: list
    elements: dict
    required: true
    suboptions:
      device:
        description: Inventory hostname.
        type: str
        required: true
      client:
        description: Name of the client, unique in the testbed.
        type: str
        required: true
      cpus:
        description: Its limit in cores, if it has one.
        type: float
      memory:
        description: Its limit in bytes, if it has one.
        type: int
      settings:
        description: What the inventory says of its training.
        type: dict
        default: {}
      data:
        description: Where on the device the client's own data lie, if it has any.
        type: str
  calibration:
    description: The file of what was measured of the clients, which need not be there unless a rule asks for it.
    type: path
    required: true
  cache_dir:
    description: The controller's cache.
    type: path
    required: true
  content_dir:
    description: Where an app is looked for that does not lie beside the experiment file.
    type: path
    required: true
author: fltestbed authors
"""

EXAMPLES = r"""
- name: Make the partitions
  testbed_experiment:
    experiment: /home/me/lab/experiments/fashion-mnist-cnn.yml
    settings: [rounds=2, train.batch_size=16]
    clients:
      - {device: pi-1, client: pi-1, memory: 671088640, settings: {batch_size: 16}}
      - {device: laptop-1, client: laptop-1-1}
      - {device: laptop-1, client: laptop-1-2}
    calibration: /home/me/lab/.fltestbed/lab/calibration.json
    cache_dir: /home/me/.cache/fltestbed
    content_dir: /home/me/lab
  delegate_to: localhost
"""

RETURN = r"""
changed:
  description: Whether files had to be made.
  returned: always
  type: bool
name:
  description: The experiment's name, else the app's.
  returned: success
  type: str
experiment:
  description: The experiment with every default and setting filled in; null without one.
  returned: success
  type: dict
partition_set:
  description: Name of the set of partitions; it covers the data, the partitioner, the seed and the number of clients.
    Null without an experiment.
  returned: success
  type: str
partitions:
  description: One shard a client, in the order of I(clients). Of data that lie on the devices, C(path), C(sha256),
    C(examples), C(held_out) and C(labels) are null.
  returned: success
  type: list
  elements: dict
  contains:
    device: {description: Inventory hostname., type: str}
    client: {description: Name of the client., type: str}
    id: {description: "Number of the partition, from 0.", type: int}
    path: {description: The file on the controller., type: str}
    sha256: {description: Its hash., type: str}
    examples: {description: Number of examples to train on., type: int}
    held_out: {description: Number of examples that are only evaluated on., type: int}
    labels: {description: Number of examples of each label., type: list, elements: int}
    settings: {description: What the client trains with., type: dict}
    rules: {description: "The numbers, from 1, of the rules that had a say in it.", type: list, elements: int}
    missed: {description: "What a rule asks for and the client cannot do; empty if there is nothing.", type: str}
test_set:
  description: The server's test set, with C(path), C(sha256) and C(examples); null without an experiment.
  returned: success
  type: dict
run_config:
  description: Flat dictionary for C(flwr run --run-config), without C(run), the name of the run.
  returned: success
  type: dict
app:
  description: The Flower app, with C(path), C(name), C(version), C(requires_python), C(dependencies), C(sha256)
    of what goes to the server, and C(reports), whether it writes the rows of its rounds itself.
  returned: success
  type: dict
"""

import sys
import traceback
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, missing_required_lib


def main():
    module = AnsibleModule(
        argument_spec={
            "experiment": {"type": "path"},
            "app": {"type": "path"},
            "settings": {"type": "list", "elements": "str", "default": []},
            "clients": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "device": {"type": "str", "required": True},
                    "client": {"type": "str", "required": True},
                    "cpus": {"type": "float"},
                    "memory": {"type": "int"},
                    "settings": {"type": "dict", "default": {}},
                    "data": {"type": "str"},
                },
            },
            "calibration": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "required": True},
            "content_dir": {"type": "path", "required": True},
        },
        required_one_of=[("experiment", "app")],
        supports_check_mode=True,
    )
    given = module.params
    # Ansible takes the working directory off the path, where the package of an editable install may lie.
    sys.path.append(given["content_dir"])
    try:
        from fltestbed import plan
        from fltestbed.errors import AppError, ExperimentError
    except ImportError:
        module.fail_json(msg=missing_required_lib("fltestbed"), exception=traceback.format_exc())

    try:
        wanted = plan.resolve(
            Path(given["experiment"]) if given["experiment"] else None,
            given["settings"],
            app=Path(given["app"]) if given["app"] else None,
            content_dir=Path(given["content_dir"]),
        )
        prepared = plan.prepare(
            wanted,
            given["clients"],
            cache_dir=Path(given["cache_dir"]),
            calibration=Path(given["calibration"]),
        )
    except (AppError, ExperimentError) as error:
        module.fail_json(msg=f"{error.message}\n{error.hint}", hint=error.hint)
    module.exit_json(**prepared)


if __name__ == "__main__":
    main()
