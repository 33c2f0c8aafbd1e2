#!/usr/bin/python
"""Virtual devices: one call that takes the lab as it shall be and brings the local Docker engine there."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_virtual_lab
short_description: Bring the virtual devices of a testbed to a wanted state
description:
  - A device is a container that runs a whole system with its own address, SSH server and Docker engine.
  - Runs on the machine whose engine holds the devices. Needs the C(docker) and C(ip) programs there.
  - A change of I(cpus) or I(memory) is applied to the running device. Any other change makes the device anew; what
    its
    own engine holds (images, volumes) is kept.
options:
  name:
    description: >-
      The testbed's name. Everything that is made carries it in a label, and nothing without that label is touched.
    type: str
    required: true
  state:
    description: >-
      C(present) creates, updates and starts I(devices) and waits until they accept logins; C(absent) removes them,
        and
      the network too if I(whole); C(gathered) only looks.
    type: str
    choices: [present, absent, gathered]
    default: present
  devices:
    description: >-
      The devices that this call is about. Others of the same testbed are left alone, unless I(whole) removes them.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Host name of the device., type: str, required: true}
      address: {description: IPv4 address in I(subnet)., type: str, required: true}
      cpus: {description: Cores., type: float, required: true}
      memory: {description: "Memory, as in 640m or 2g (1024-based).", type: str, required: true}
  whole:
    description: >-
      With C(state=absent), remove all devices of the testbed and its network, also those that I(devices) does not
        name.
    type: bool
    default: false
  image:
    description: Image of the devices. Needed for C(state=present).
    type: str
  subnet:
    description: IPv4 subnet of the lab's network. Needed for C(state=present).
    type: str
  authorized_key:
    description: Public key that opens the devices. Needed for C(state=present).
    type: str
  timeout:
    description: Seconds that all devices together have to come up.
    type: int
    default: 120
author: fltestbed authors
"""

RETURN = r"""
devices:
  description: >-
    By device name, what is there now: C(state) (the engine's word, or C(absent)), C(address), C(cpus) (cores, null
    without a limit), C(memory) (bytes, null without a limit), C(ssh) (whether an SSH server answers).
  returned: always
  type: dict
host_keys:
  description: By device name, the public key of its SSH server, as its engine (and not the network) reports it.
  returned: C(state=present), not in check mode
  type: dict
"""

import hashlib
import ipaddress
import json
import socket
import time
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.text.formatters import human_to_bytes
from ansible.module_utils.testbed_docker import EngineUnreachable, get, inspect

TESTBED_LABEL = "fltestbed.testbed"
DEVICE_LABEL = "fltestbed.device"
SPEC_LABEL = "fltestbed.spec"
# What systemd and an engine need beside the engine's own choice. "ALL" means different things to different engines, and
# would hand out the clock and the modules of the machine's kernel.
CAPABILITIES = ("NET_ADMIN", "SYS_ADMIN", "SYS_NICE", "SYS_PTRACE")
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"


class LabError(Exception):
    """What is wrong, where, and what to do."""


def ssh_answers(address, timeout=2.0):
    """Return whether an SSH server greets at an address within some seconds."""
    try:
        with socket.create_connection((address, 22), timeout=timeout) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def overlapping_route(subnet, routes):
    """Return the first of ``ip -json route``'s rows that overlaps with a subnet, None if there is none."""
    wanted = ipaddress.ip_network(subnet)
    for route in routes:
        if route["dst"] != "default" and ipaddress.ip_network(route["dst"]).overlaps(wanted):
            return route
    return None


def run_arguments(device, container, network, image, authorized_key):
    """Return what ``docker run`` needs to make a device, but for its name, limits and labels."""
    return [
        f"--hostname={device['name']}",
        f"--network={network}",
        f"--ip={device['address']}",
        "--restart=unless-stopped",
        "--stop-signal=SIGRTMIN+3",
        f"--volume={container}-docker:/var/lib/docker",
        *(f"--cap-add={capability}" for capability in CAPABILITIES),
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--cgroupns=private",
        "--env=container=docker",
        f"--env=VIRTUAL_DEVICE_AUTHORIZED_KEY={authorized_key}",
        image,
    ]


def fingerprint(arguments):
    return hashlib.sha256(json.dumps(arguments).encode()).hexdigest()[:16]


class Lab:
    """The devices, volumes and the network of one testbed on the local engine."""

    def __init__(self, module):
        self.module = module
        self.name = module.params["name"]
        self.network = f"fltestbed-{self.name}"
        self.label = f"{TESTBED_LABEL}={self.name}"
        self.devices = {device["name"]: device for device in module.params["devices"]}
        self.containers = self.read_containers()
        self.done = []

    def docker(self, *arguments):
        """Run the docker client and return its output. Raises LabError."""
        code, out, err = self.module.run_command(["docker", *arguments])
        if code != 0:
            raise LabError(f"docker {' '.join(arguments[:2])} failed: {err.strip()}")
        return out

    def change(self, text, *arguments):
        """Note a change, and run the docker client for it unless this is check mode."""
        self.done.append(text)
        if not self.module.check_mode:
            self.docker(*arguments)

    def container(self, device):
        return f"{self.name}-{device}"

    def listed(self, path):
        return get(f"{path}filters={quote(json.dumps({'label': [self.label]}))}")

    def read_containers(self):
        """Return the engine's records of the testbed's devices, by device name."""
        rows = self.listed("/containers/json?all=1&")
        return {row["Labels"][DEVICE_LABEL]: inspect(row["Id"]) for row in rows}

    def facts(self, device):
        """Return what is there of a device."""
        record = self.containers.get(device)
        if record is None:
            return {"state": "absent", "address": None, "cpus": None, "memory": None, "ssh": False}
        address = record["NetworkSettings"]["Networks"].get(self.network, {}).get("IPAddress") or None
        return {
            "state": record["State"]["Status"],
            "address": address,
            "cpus": record["HostConfig"]["NanoCpus"] / 1e9 or None,
            "memory": record["HostConfig"]["Memory"] or None,
            "ssh": address is not None and ssh_answers(address),
        }

    def ensure_network(self):
        subnet = self.module.params["subnet"]
        network = get(f"/networks/{self.network}")
        if network is not None:
            found = network["IPAM"]["Config"][0]["Subnet"]
            if found != subnet:
                raise LabError(
                    f"the network {self.network} has the subnet {found}, and the inventory says {subnet}. Run the "
                    "lab-down playbook first, or set virtual_device_subnet back"
                )
            return
        _code, routes, _err = self.module.run_command(["ip", "-4", "-json", "route", "show"], check_rc=True)
        route = overlapping_route(subnet, json.loads(routes))
        if route is not None:
            raise LabError(
                f"the subnet {subnet} of the virtual lab overlaps with {route['dst']}, which this machine reaches by "
                f"{route['dev']}. Set another virtual_device_subnet in the inventory, and ansible_host in it"
            )
        arguments = [f"--subnet={subnet}", f"--label={self.label}"]
        self.change(f"create network {self.network}", "network", "create", *arguments, self.network)

    def ensure_device(self, device):
        name, params = device["name"], self.module.params
        container = self.container(name)
        memory = human_to_bytes(device["memory"])
        limits = [f"--cpus={device['cpus']}", f"--memory={memory}", f"--memory-swap={memory}"]
        arguments = run_arguments(device, container, self.network, params["image"], params["authorized_key"])
        labels = [
            f"--label={label}"
            for label in (self.label, f"{DEVICE_LABEL}={name}", f"{SPEC_LABEL}={fingerprint(arguments)}")
        ]

        record = self.containers.get(name)
        if record is not None and record["Config"]["Labels"].get(SPEC_LABEL) != fingerprint(arguments):
            self.change(f"remove {container}, to make it anew", "rm", "--force", container)
            record = None
        if record is None:
            volume = f"{container}-docker"
            if get(f"/volumes/{volume}") is None:
                self.change(f"create volume {volume}", "volume", "create", *labels[:2], volume)
            self.change(f"run {container}", "run", "--detach", f"--name={container}", *labels, *limits, *arguments)
            return
        if (record["HostConfig"]["NanoCpus"], record["HostConfig"]["Memory"]) != (round(device["cpus"] * 1e9), memory):
            self.change(f"update {container}: {device['cpus']} CPUs, {device['memory']}", "update", *limits, container)
        if not record["State"]["Running"]:
            self.change(f"start {container}", "start", container)

    def await_device(self, device, deadline):
        """Wait until a device accepts logins and return its SSH host key. Raises LabError."""
        container = self.container(device["name"])
        while True:
            _code, state, _err = self.module.run_command(
                ["docker", "exec", container, "timeout", "20", "systemctl", "is-system-running", "--wait"]
            )
            if state.strip() in ("running", "degraded") and ssh_answers(device["address"]):
                return " ".join(self.docker("exec", container, "cat", HOST_KEY).split()[:2])
            if time.monotonic() > deadline:
                log = self.module.run_command(["docker", "logs", "--tail=5", container])
                raise LabError(
                    f"the device {device['name']} did not come up within {self.module.params['timeout']} s: systemd in "
                    f"the container {container} says {state.strip() or 'nothing'}. Its last words: "
                    f"{''.join(log[1:]).strip() or 'none'}. 'docker exec {container} journalctl' tells more"
                )
            time.sleep(0.3)

    def remove(self):
        whole = self.module.params["whole"]
        devices = sorted(name for name in self.containers if whole or name in self.devices)
        if devices:
            containers = [self.container(name) for name in devices]
            self.change(f"remove {', '.join(containers)}", "rm", "--force", "--volumes", *containers)
        volumes = self.listed("/volumes?")["Volumes"] or []
        volumes = [row["Name"] for row in volumes if whole or row["Labels"][DEVICE_LABEL] in self.devices]
        if volumes:
            self.change(f"remove volumes {', '.join(volumes)}", "volume", "rm", *volumes)
        for network in self.listed("/networks?") if whole else []:
            self.change(f"remove network {network['Name']}", "network", "rm", network["Id"])

    def present(self):
        self.ensure_network()
        for device in self.devices.values():
            self.ensure_device(device)
        if self.module.check_mode:
            return {}
        deadline = time.monotonic() + self.module.params["timeout"]
        return {name: self.await_device(device, deadline) for name, device in self.devices.items()}


def main():
    device = {
        "name": {"type": "str", "required": True},
        "address": {"type": "str", "required": True},
        "cpus": {"type": "float", "required": True},
        "memory": {"type": "str", "required": True},
    }
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent", "gathered"], "default": "present"},
            "devices": {"type": "list", "elements": "dict", "required": True, "options": device},
            "whole": {"type": "bool", "default": False},
            "image": {"type": "str"},
            "subnet": {"type": "str"},
            "authorized_key": {"type": "str", "no_log": False},
            "timeout": {"type": "int", "default": 120},
        },
        required_if=[("state", "present", ["image", "subnet", "authorized_key"])],
        supports_check_mode=True,
    )
    host_keys = {}
    try:
        lab = Lab(module)
        if module.params["state"] == "present":
            host_keys = lab.present()
        elif module.params["state"] == "absent":
            lab.remove()
        if lab.done and not module.check_mode:
            lab.containers = lab.read_containers()
        devices = {name: lab.facts(name) for name in lab.devices}
    except EngineUnreachable as error:
        module.fail_json(msg=f"{error}. Start it, or run the lab-up playbook, which does")
    except (LabError, ValueError) as error:
        module.fail_json(msg=str(error))
    after = "".join(f"{line}\n" for line in lab.done)
    module.exit_json(changed=bool(lab.done), devices=devices, host_keys=host_keys, diff={"before": "", "after": after})


if __name__ == "__main__":
    main()
