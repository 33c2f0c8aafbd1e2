"""Inventories and experiments that make no sense: what is said of each, once, before any host is touched."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fltestbed import experiment, inventory
from fltestbed.errors import ExperimentError, InventoryError
from fltestbed.paths import ansible_environment

HOSTS = """\
testbed:
  children:
    superlink:
      hosts:
        server: {ansible_host: 192.0.2.10}
    supernodes:
      hosts:
        pi-1: {ansible_host: 192.0.2.21}
        pi-2: {ansible_host: 192.0.2.22}
"""
PI = "        pi-2: {ansible_host: 192.0.2.22}\n"
TOUCH = "\"{{ lookup('pipe', 'touch touched') }}\""

INI = f"""\
[testbed:children]
superlink
supernodes
[superlink]
server
[supernodes]
pi-1 testbed_profile={TOUCH}
"""


def pi(variables: str) -> dict[str, str]:
    """Return the files of a testbed whose pi-2 has these variables, in line 9."""
    return change(PI, f"        pi-2: {{ansible_host: 192.0.2.22, {variables}}}\n")


def change(old: str, new: str) -> dict[str, str]:
    assert HOSTS.count(old) == 1
    return {"hosts.yml": HOSTS.replace(old, new)}


def beside(name: str, content: str) -> dict[str, str]:
    return {"hosts.yml": HOSTS, name: content}


SERVER = "        server: {ansible_host: 192.0.2.10}\n"
NAME_OR_ADDRESS = "write an IPv4 address or a name that DNS knows"
MONITORED = HOSTS + "    monitoring: {hosts: {server: }}\n"
WATCHED = HOSTS + "    monitoring: {hosts: {watch: {ansible_host: 192.0.2.30}}}\n"
ALONE = "testbed: {children: {superlink: {hosts: {pc: {ansible_host: localhost}}}, supernodes: {hosts: {pc: }}}}\n"
ANOTHER_PORT = "give one of them another port"
BAD_INVENTORIES: list[tuple[dict[str, str], str, str]] = [
    # Ports
    (
        pi("testbed_grafana_port: 70000"),
        "lab/hosts.yml:9: pi-2: testbed_grafana_port cannot be 70000",
        "write a port from 1 to 65535",
    ),
    (
        pi("testbed_prometheus_lan_port: 0"),
        "lab/hosts.yml:9: pi-2: testbed_prometheus_lan_port cannot be 0",
        "write a port from 1 to 65535",
    ),
    (
        beside("group_vars/testbed.yml", "testbed_fleet_port: 5000\n"),
        "lab/group_vars/testbed.yml:1: server: testbed_fleet_port is 5000, and so is testbed_registry_port, which the "
        "host publishes too",
        ANOTHER_PORT,
    ),
    (
        {"hosts.yml": MONITORED, "group_vars/testbed.yml": "testbed_node_exporter_port: 7\ntestbed_cadvisor_port: 7\n"},
        "lab/group_vars/testbed.yml:2: server: testbed_cadvisor_port is 7, and so is testbed_node_exporter_port, which "
        "the host publishes too",
        ANOTHER_PORT,
    ),
    (
        {"hosts.yml": WATCHED, "host_vars/server.yml": "testbed_metrics_port: 9092\n"},
        "lab/host_vars/server.yml:1: server: testbed_metrics_port is 9092, and so is testbed_fleet_port, which the "
        "host publishes too",
        ANOTHER_PORT,
    ),
    (
        {"hosts.yml": MONITORED, "group_vars/monitoring.yml": "testbed_prometheus_port: 9092\n"},
        "lab/group_vars/monitoring.yml:1: server: testbed_prometheus_port is 9092, and so is testbed_fleet_port, which "
        "the host publishes too",
        ANOTHER_PORT,
    ),
    # The server's address
    (
        change(SERVER, SERVER.replace("192.0.2.10", "localhost")),
        "lab/hosts.yml:5: server: localhost is every machine's own address, and a device that dials it reaches itself",
        NAME_OR_ADDRESS,
    ),
    (
        pi("testbed_superlink_address: 127.0.1.1"),
        "lab/hosts.yml:9: pi-2: 127.0.1.1 is every machine's own address, and a device that dials it reaches itself",
        NAME_OR_ADDRESS,
    ),
    (
        change(SERVER, SERVER.replace("192.0.2.10", "laptop.local")),
        "lab/hosts.yml:5: server: laptop.local is a name of mDNS, which containers on the devices cannot look up",
        NAME_OR_ADDRESS,
    ),
    (
        pi("testbed_superlink_address: '2001:db8::10'"),
        "lab/hosts.yml:9: pi-2: 2001:db8::10 is IPv6, and Docker on the devices pulls no image from such an address",
        NAME_OR_ADDRESS,
    ),
    (
        pi("ansible_private_key_file: ~/.ssh/lab"),
        "lab/hosts.yml:9: pi-2: there is no variable ansible_private_key_file",
        "did you mean ansible_ssh_private_key_file or ansible_host_key_checking or ansible_port?",
    ),
    # Units, types and keys of clients
    (
        pi("testbed_client: {memory: 2gg}"),
        "lab/hosts.yml:9: pi-2: memory cannot be '2gg'",
        "write a size of at least 6m, with k, m or g, as in 512m or 2g",
    ),
    (
        pi("testbed_client: {memory: 2}"),
        "lab/hosts.yml:9: pi-2: memory cannot be 2",
        "write a size of at least 6m, with k, m or g, as in 512m or 2g",
    ),
    (
        pi("testbed_client: {cpus: fast}"),
        "lab/hosts.yml:9: pi-2: cpus cannot be 'fast'",
        "write a number of cores from 0.01, as in 0.5 or 4",
    ),
    (
        pi("testbed_client: {cpus: true}"),
        "lab/hosts.yml:9: pi-2: cpus cannot be True",
        "write a number of cores from 0.01, as in 0.5 or 4",
    ),
    (
        pi("testbed_client: {batch_size: 0.5}"),
        "lab/hosts.yml:9: pi-2: batch_size cannot be 0.5",
        "write a whole number from 1 to 65536",
    ),
    (
        pi("testbed_client: {learning_rate: -1}"),
        "lab/hosts.yml:9: pi-2: learning_rate cannot be -1",
        "write a number above 0, at most 10",
    ),
    (
        pi("testbed_client: {width: 1.5}"),
        "lab/hosts.yml:9: pi-2: width cannot be 1.5",
        "write a number above 0, at most 1",
    ),
    (
        pi("testbed_client: {data_fraction: 1.5}"),
        "lab/hosts.yml:9: pi-2: data_fraction cannot be 1.5",
        "write a number above 0, at most 1",
    ),
    (
        pi("testbed_client: {memroy: 1g}"),
        "lab/hosts.yml:9: pi-2: testbed_client has an unknown key 'memroy'",
        "did you mean memory?",
    ),
    (
        pi("testbed_client: 1g"),
        "lab/hosts.yml:9: pi-2: testbed_client must be a mapping, not '1g'",
        "write it like {cpus: 1, memory: 512m}",
    ),
    (
        pi("testbed_clients: {cpus: 1}"),
        "lab/hosts.yml:9: pi-2: testbed_clients must be a list, not {'cpus': 1}",
        "write one entry a client, as in [{cpus: 1}, {cpus: 0.5}]",
    ),
    (
        pi("testbed_clients: [fast]"),
        "lab/hosts.yml:9: pi-2: testbed_clients.0 must be a mapping, not 'fast'",
        "write it like {cpus: 1, memory: 512m}",
    ),
    (
        beside("group_vars/supernodes.yml", "testbed_client_defaults:\n  cpu: 1\n"),
        "lab/group_vars/supernodes.yml:2: pi-1: testbed_client_defaults has an unknown key 'cpu'",
        "did you mean cpus?",
    ),
    (
        beside("host_vars/pi-1.yml", "testbed_clients:\n  - cpus: 1\n  - cpus: 1\n    memory: lots\n"),
        "lab/host_vars/pi-1.yml:4: pi-1: memory cannot be 'lots'",
        "write a size of at least 6m, with k, m or g, as in 512m or 2g",
    ),
    (
        pi("testbed_client: {2024-05-01: new card}"),
        "lab/hosts.yml:9: pi-2: testbed_client has an unknown key '2024-05-01'",
        "known are batch_size, cpus, data, data_fraction, deadline, learning_rate, local_epochs, memory, "
        "participation, width",
    ),
    # Profiles
    (
        pi("testbed_profile: rpi44"),
        "lab/hosts.yml:9: pi-2: there is no profile 'rpi44'",
        "did you mean rpi4 or rpi5 or rpi3?",
    ),
    (pi("testbed_profile: [rpi4]"), "lab/hosts.yml:9: pi-2: there is no profile ['rpi4']", "did you mean rpi4?"),
    (
        pi("testbed_own_profiles: {rock: {cpus: 8, memory: 15gb, price: 100}}"),
        "lab/hosts.yml:9: pi-2: testbed_own_profiles.rock has an unknown key 'price'",
        "known are batch_size, cpus, data_fraction, deadline, learning_rate, local_epochs, memory, network, "
        "participation, source, speed, width",
    ),
    (
        pi("testbed_own_profiles: [rock]"),
        "lab/hosts.yml:9: pi-2: testbed_own_profiles must be profiles by name, not ['rock']",
        "write them as {rock-5b: {cpus: 8, memory: 15g}}",
    ),
    (
        pi("testbed_profile: rpi4, testbed_clients: [{cpus: 3, memory: 1g}, {cpus: 2, memory: 1g}]"),
        "lab/hosts.yml:9: pi-2: its 2 clients ask for 5 cpus together, but a device of profile rpi4 has 4 cpus",
        "give each entry of testbed_clients a cpus limit, so that together they fit the device",
    ),
    # Names of variables
    (
        pi("testbed_profil: rpi4"),
        "lab/hosts.yml:9: pi-2: there is no variable testbed_profil",
        "did you mean testbed_profile or testbed_profiles or testbed_own_profiles?",
    ),
    (
        pi("tesbed_profile: rpi4"),
        "lab/hosts.yml:9: pi-2: there is no variable tesbed_profile",
        "did you mean testbed_profile or testbed_profiles or testbed_own_profiles?",
    ),
    (pi("profile: rpi4"), "lab/hosts.yml:9: pi-2: there is no variable profile", "did you mean testbed_profile?"),
    (pi("memory: 1g"), "lab/hosts.yml:9: pi-2: memory is a client's", "write testbed_client: {memory: 1g}"),
    (
        pi("docker_disk: 1"),
        "lab/hosts.yml:9: pi-2: there is no variable docker_disk",
        "did you mean docker_disk_mb or docker_compose or docker_daemon_options?",
    ),
    (
        pi("images_bilder: server"),
        "lab/hosts.yml:9: pi-2: there is no variable images_bilder",
        "did you mean images_builder or images_torch or images_debian_mirror?",
    ),
    (
        pi("virtual_device_ram: 1g"),
        "lab/hosts.yml:9: pi-2: there is no variable virtual_device_ram",
        "did you mean virtual_device_memory or virtual_device_cpus or virtual_device_ssh_dir?",
    ),
    (
        pi("ansible_hosts: 192.0.2.23"),
        "lab/hosts.yml:9: pi-2: there is no variable ansible_hosts",
        "did you mean ansible_host or ansible_port or ansible_user?",
    ),
    # Types of the roles' variables
    (
        pi("docker_disk_mb: lots"),
        "lab/hosts.yml:9: pi-2: docker_disk_mb cannot be 'lots'",
        "write a whole number, without quotes",
    ),
    (
        pi("docker_disk_mb: -1"),
        "lab/hosts.yml:9: pi-2: docker_disk_mb cannot be -1",
        "write a number that is not negative",
    ),
    (
        pi("docker_compose: 'yes'"),
        "lab/hosts.yml:9: pi-2: docker_compose cannot be 'yes'",
        "write true or false, without quotes",
    ),
    (
        pi("docker_daemon_options: [debug]"),
        "lab/hosts.yml:9: pi-2: docker_daemon_options cannot be ['debug']",
        "write keys and values, as in {key: value}",
    ),
    (
        pi("images_requirements: numpy"),
        "lab/hosts.yml:9: pi-2: images_requirements cannot be 'numpy'",
        "write a list, as in [one, two]",
    ),
    (
        pi("images_requirements: [numpy, {torch: 2}]"),
        "lab/hosts.yml:9: pi-2: images_requirements cannot be {'torch': 2}",
        "write a text",
    ),
    (
        pi("supernode_pids_limit: '512'"),
        "lab/hosts.yml:9: pi-2: supernode_pids_limit cannot be '512'",
        "write a whole number, without quotes",
    ),
    (
        pi("superlink_max_message: 2gg"),
        "lab/hosts.yml:9: pi-2: superlink_max_message cannot be '2gg'",
        "write a size with k, m or g, as in 512m or 2g",
    ),
    (
        pi("virtual_device_memory: 2gg"),
        "lab/hosts.yml:9: pi-2: virtual_device_memory cannot be '2gg'",
        "write a size with k, m or g, as in 512m or 2g",
    ),
    (
        pi("virtual_device_cpus: 0"),
        "lab/hosts.yml:9: pi-2: virtual_device_cpus cannot be 0",
        "write a number of cores above 0",
    ),
    (
        pi("supernode_superexec_poll_interval: .inf"),
        "lab/hosts.yml:9: pi-2: supernode_superexec_poll_interval cannot be inf",
        "write a finite number",
    ),
    (
        pi("virtual_device_subnet: 172.28.1.0/99"),
        "lab/hosts.yml:9: pi-2: virtual_device_subnet cannot be '172.28.1.0/99'",
        "write an IPv4 network of /29 or larger, as in 172.28.1.0/24",
    ),
    (
        pi("virtual_device_subnet: 172.28.1.0/24"),
        "lab/hosts.yml:9: pi-2: ansible_host 192.0.2.22 is not an address of virtual_device_subnet 172.28.1.0/24",
        "change one of the two",
    ),
    (
        pi("testbed_images_source: ubuntu"),
        "lab/hosts.yml:9: pi-2: testbed_images_source cannot be 'ubuntu'",
        "known are debian, upstream",
    ),
    (
        pi("testbed_fleet_port: 99999"),
        "lab/hosts.yml:9: pi-2: testbed_fleet_port cannot be 99999",
        "write a port from 1 to 65535",
    ),
    (
        pi("testbed_name: other"),
        "lab/hosts.yml:9: pi-2: testbed_name is 'other', but the folder is called 'lab'",
        "rename the folder and leave testbed_name out",
    ),
    (
        pi("images_builder: sever"),
        "lab/hosts.yml:9: pi-2: images_builder: there is no host 'sever'",
        "did you mean server?",
    ),
    # The network
    (
        pi("testbed_network: {rate_up: 5}"),
        "lab/hosts.yml:9: pi-2: testbed_network: rate_up cannot be 5",
        "write a rate from 8kbit to 100gbit, as in 500kbit or 5mbit",
    ),
    (
        pi("testbed_network: {rate: 5mbit}"),
        "lab/hosts.yml:9: pi-2: testbed_network: there is no 'rate' of a network",
        "did you mean rate_up or rate_down?",
    ),
    (
        pi("testbed_network: {delay: 10ms, jitter: 20ms}"),
        "lab/hosts.yml:9: pi-2: testbed_network: jitter is more than the delay",
        "set a delay of at least the jitter: a packet can't come before it was sent",
    ),
    (
        pi("testbed_network: 5mbit"),
        "lab/hosts.yml:9: pi-2: testbed_network cannot be '5mbit'",
        "write it like {rate_down: 5mbit}",
    ),
    (
        pi(f"testbed_network: {{delay: {TOUCH}}}"),
        "lab/hosts.yml:9: pi-2: testbed_network.delay is data, so the template in it is not run",
        "write the value itself; templates are for Ansible's own variables, as ansible_user",
    ),
    (
        {"hosts.yml": HOSTS + "        server: {testbed_network: {delay: 1ms}}\n"},
        "lab/hosts.yml:10: server: testbed_network is of the server's own host, so what its clients say to the server "
        "never leaves it",
        "set testbed_network: {} there",
    ),
    # Addresses and users
    (pi("ansible_port: ssh"), "lab/hosts.yml:9: pi-2: ansible_port cannot be 'ssh'", "write a port from 1 to 65535"),
    (
        change("192.0.2.22", "pi@192.0.2.22"),
        "lab/hosts.yml:9: pi-2: ansible_host cannot be 'pi@192.0.2.22'",
        "write an IP address or a host's name alone: no user, port, spaces or path",
    ),
    (
        change("192.0.2.22", "'192.0.2.22:22'"),
        "lab/hosts.yml:9: pi-2: ansible_host cannot be '192.0.2.22:22'",
        "write an IP address or a host's name alone: no user, port, spaces or path",
    ),
    (
        change("192.0.2.22", "192.0.2.300"),
        "lab/hosts.yml:9: pi-2: ansible_host cannot be '192.0.2.300'",
        "write an IP address or a host's name alone: no user, port, spaces or path",
    ),
    (
        change("192.0.2.22", "true"),
        "lab/hosts.yml:9: pi-2: ansible_host cannot be True",
        "write an IP address or a host's name alone: no user, port, spaces or path",
    ),
    (
        change("192.0.2.22", "2024-01-01"),
        "lab/hosts.yml:9: pi-2: ansible_host cannot be '<not a text>'",
        "write an IP address or a host's name alone: no user, port, spaces or path",
    ),
    (
        change("192.0.2.22", "$(reboot)"),
        "lab/hosts.yml:9: pi-2: ansible_host cannot be '$(reboot)'",
        "write an IP address or a host's name alone: no user, port, spaces or path",
    ),
    (
        change("192.0.2.22", "192.0.2.21"),
        "lab/hosts.yml:9: pi-2: has the address of pi-1, 192.0.2.21",
        "give each its own; several clients of one device go into testbed_clients",
    ),
    (
        change("192.0.2.22", "'{{ no_such }}'"),
        "lab/hosts.yml:9: pi-2: ansible_host cannot be resolved: 'no_such' is undefined",
        "mend the template, or write the value itself",
    ),
    (
        pi("ansible_ssh_common_args: '-J gate', ansible_ssh_extra_args: '-o ProxyCommand=\"ssh gate'"),
        "lab/hosts.yml:9: pi-2: ansible_ssh_extra_args cannot be '-o ProxyCommand=\"ssh gate'",
        "write arguments as a shell takes them, with an end to every quote",
    ),
    (
        pi("ansible_user: -oProxyCommand=reboot"),
        "lab/hosts.yml:9: pi-2: ansible_user cannot be '-oProxyCommand=reboot'",
        "write a login name, as in pi",
    ),
    (
        pi("testbed_superlink_address: 'server; reboot'"),
        "lab/hosts.yml:9: pi-2: testbed_superlink_address cannot be 'server; reboot'",
        "write an IP address or a host's name alone: no user, port, spaces or path",
    ),
    (
        pi("testbed_root: /opt/$(reboot)"),
        "lab/hosts.yml:9: pi-2: testbed_root cannot be '/opt/$(reboot)'",
        "write an absolute path of letters, digits, dots, hyphens and underscores, without . and .. as a part",
    ),
    # Data that wants to be run
    (
        pi(f"testbed_client: {{cpus: {TOUCH}}}"),
        "lab/hosts.yml:9: pi-2: testbed_client.cpus is data, so the template in it is not run",
        "write the value itself; templates are for Ansible's own variables, as ansible_user",
    ),
    (
        pi(f"testbed_clients: {TOUCH}"),
        "lab/hosts.yml:9: pi-2: testbed_clients is data, so the template in it is not run",
        "write the value itself; templates are for Ansible's own variables, as ansible_user",
    ),
    (
        pi(f"testbed_profile: {TOUCH}"),
        "lab/hosts.yml:9: pi-2: testbed_profile is data, so the template in it is not run",
        "write the value itself; templates are for Ansible's own variables, as ansible_user",
    ),
    (
        pi(f"testbed_own_profiles: {{rock: {{source: {TOUCH}}}}}"),
        "lab/hosts.yml:9: pi-2: testbed_own_profiles.rock.source is data, so the template in it is not run",
        "write the value itself; templates are for Ansible's own variables, as ansible_user",
    ),
    (
        pi("testbed_profile: 'rpi4; reboot'"),
        "lab/hosts.yml:9: pi-2: there is no profile 'rpi4; reboot'",
        "known are fltk-default, fltk-medium, fltk-slow, jetson-nano, jetson-orin-nano, laptop, old-laptop, phone, "
        "rpi-zero-2, rpi3, rpi4, rpi5, vm-large, vm-small",
    ),
    (
        change("pi-2:", f"{TOUCH}:"),
        "lab/hosts.yml:9: a host cannot be called \"{{ lookup('pipe', 'touch touched') }}\"",
        "use a to z, 0 to 9 and hyphens between them, at most 63 characters; the address goes in ansible_host",
    ),
    (
        {"hosts.ini": INI},
        "lab/hosts.ini:7: pi-1: testbed_profile is data, so the template in it is not run",
        "write the value itself; templates are for Ansible's own variables, as ansible_user",
    ),
    # Names of hosts and groups
    (
        change("pi-2:", "Pi_2:"),
        "lab/hosts.yml:9: a host cannot be called 'Pi_2'",
        "use a to z, 0 to 9 and hyphens between them, at most 63 characters; the address goes in ansible_host",
    ),
    (
        change("pi-2:", "192.0.2.22:"),
        "lab/hosts.yml:9: a host cannot be called '192.0.2.22'",
        "use a to z, 0 to 9 and hyphens between them, at most 63 characters; the address goes in ansible_host",
    ),
    (
        change("pi-2:", "pi-2$(reboot):"),
        "lab/hosts.yml:9: a host cannot be called 'pi-2$(reboot)'",
        "use a to z, 0 to 9 and hyphens between them, at most 63 characters; the address goes in ansible_host",
    ),
    (
        change("pi-2:", "2:"),
        "lab/hosts.yml:9: a host cannot be called 2, which is no text",
        "use a name that begins with a letter",
    ),
    (
        change("pi-2:", "'pi-[2:':"),
        "lab/hosts.yml:9: 'pi-[2:' is no range of hosts",
        "write it like pi-[1:4], or each host by itself",
    ),
    (
        change("pi-2:", "'pi-[a:3]':"),
        "lab/hosts.yml:9: 'pi-[a:3]' is no range of hosts",
        "write it like pi-[1:4], or each host by itself",
    ),
    (
        change("pi-2: {ansible_host: 192.0.2.22}", "'pi-[5:2]':"),
        "lab/hosts.yml:9: 'pi-[5:2]' is a range that no host is in",
        "write the lower end first, as in [1:5]",
    ),
    (
        change("pi-2:", "superlink:"),
        "lab/hosts.yml:9: a host and a group are both called superlink",
        "rename the host; the groups' names are fixed",
    ),
    (change("pi-2:", "pi-1:"), "lab/hosts.yml:9: 'pi-1' is here twice, first in line 8", "keep one of them"),
    (
        change("        pi-1: {", "        pi: {testbed_clients: [{}, {}], "),
        "lab/hosts.yml:9: pi-2: has a client called pi-2, as pi has",
        "rename pi or pi-2",
    ),
    (
        change("    supernodes:", "    supernode:"),
        "lab/hosts.yml:6: there is no group supernode",
        "did you mean supernodes?",
    ),
    (
        change("    superlink:", "    superlinks:"),
        "lab/hosts.yml:3: there is no group superlinks",
        "did you mean superlink?",
    ),
    (change("testbed:", "testbeds:"), "lab/hosts.yml:1: there is no group testbeds", "did you mean testbed?"),
    (
        beside("group_vars/supernode.yml", "testbed_profile: rpi4\n"),
        "lab/group_vars/supernode.yml: the file is of a group supernode, which there is not: nothing reads it",
        "did you mean supernodes or superlink?",
    ),
    # Who is in which group
    (
        change("        server: {ansible_host: 192.0.2.10}\n", ""),
        "lab/hosts.yml:3: group superlink is empty",
        "put exactly one host, the server, in it",
    ),
    (
        change(" {ansible_host: 192.0.2.10}\n", "\n        other:\n"),
        "lab/hosts.yml:3: group superlink has 2 hosts: server, other",
        "put exactly one host, the server, in it",
    ),
    (
        {"hosts.yml": "testbed: {children: {superlink: {hosts: {server: }}}}\n"},
        "lab: group supernodes is empty",
        "put the devices that train in it",
    ),
    (
        {"hosts.yml": HOSTS + "    monitoring:\n"},
        "lab/hosts.yml:10: group monitoring is empty",
        "put exactly one host in it, or leave the group out",
    ),
    (
        {"hosts.yml": HOSTS + "    monitoring: {hosts: {server: , pi-1: }}\n"},
        "lab/hosts.yml:10: group monitoring has 2 hosts: server, pi-1",
        "put exactly one host in it, or leave the group out",
    ),
    (
        {"hosts.yml": HOSTS + "    monitoring: {hosts: {sever: }}\n"},
        "lab/hosts.yml:10: group monitoring has the host sever, which nothing else is said of",
        "did you mean server? A host of its own needs ansible_host",
    ),
    (
        {"hosts.yml": HOSTS + "monitoring: {hosts: {watch: {ansible_host: 192.0.2.9}}}\n"},
        "lab/hosts.yml:10: group monitoring is not below testbed, so watch would not be deployed",
        "write monitoring below `children:` of testbed",
    ),
    (
        {"hosts.yml": HOSTS + "    monitor: {hosts: {server: }}\n"},
        "lab/hosts.yml:10: there is no group monitor",
        "did you mean monitoring?",
    ),
    # Files
    (
        {"README.md": "soon\n"},
        "lab: there is no inventory in the folder",
        "fltestbed init NAME writes one; its file is hosts.yml",
    ),
    (
        {"hosts.yml": ""},
        "lab/hosts.yml: the file holds no mapping of groups",
        "begin with `testbed:`, as fltestbed init does",
    ),
    (
        {"hosts.yml": "- server\n- pi-1\n"},
        "lab/hosts.yml: the file holds no mapping of groups",
        "begin with `testbed:`, as fltestbed init does",
    ),
    (
        change("{ansible_host: 192.0.2.22}", "{ansible_host: 192.0.2.22"),
        "lab/hosts.yml:10: expected ',' or '}', but got '<stream end>'",
        "this is not YAML in UTF-8; look at indentation (no tabs), colons, quotes and brackets",
    ),
    (
        pi("ansible_user: {{ me }}"),
        "lab/hosts.yml:9: a key must be a text; put quotes around what has {{ }}",
        "this is not YAML in UTF-8; look at indentation (no tabs), colons, quotes and brackets",
    ),
    (
        change("    supernodes:", "\tsupernodes:"),
        "lab/hosts.yml:6: found character '\\t' that cannot start any token",
        "this is not YAML in UTF-8; look at indentation (no tabs), colons, quotes and brackets",
    ),
    (
        change("ansible_host: 192.0.2.22", "a: 1, a: 2"),
        "lab/hosts.yml:9: 'a' is here twice, first in line 9",
        "keep one of them",
    ),
    (
        beside("host_vars/pi-1.yml", "testbed_profile: rpi4\ntestbed_profile: rpi3\n"),
        "lab/host_vars/pi-1.yml:2: 'testbed_profile' is here twice, first in line 1",
        "keep one of them",
    ),
    (
        change("    superlink:\n      hosts:", "    superlink:\n      host:"),
        "lab/hosts.yml:4: group superlink has an unknown key 'host'",
        "did you mean hosts?",
    ),
    (
        change("pi-2: {ansible_host: 192.0.2.22}", "pi-2: rpi4"),
        "lab/hosts.yml:9: host pi-2 must be a mapping, not 'rpi4'",
        "write `key: value` or nothing",
    ),
    (
        change("        server: {", "        - server: {"),
        "lab/hosts.yml:5: hosts of group superlink must be a mapping, not a list",
        "write each as a key, `name:`, without a hyphen",
    ),
    (
        change("    superlink:", "  superlink:"),
        "lab/hosts.yml:6: expected <block end>, but found '<block mapping start>'",
        "this is not YAML in UTF-8; look at indentation (no tabs), colons, quotes and brackets",
    ),
]


BAD_EXPERIMENTS: list[tuple[str, str, str]] = [
    (
        "rounds: 3",
        "mine.yml:1: name: is missing",
        "compare it with experiments/fashion-mnist-cnn.yml, which shows every key",
    ),
    ("name: mine\nrouds: 3", "mine.yml:2: rouds: no such key", "did you mean rounds or rules?"),
    ("name: mine\nrounds: 0", "mine.yml:2: rounds: cannot be 0", "write a number of at least 1"),
    ("name: mine\nrounds: '5'", "mine.yml:2: rounds: cannot be '5'", "write a whole number, without quotes"),
    ("name: mine\nrounds: many", "mine.yml:2: rounds: cannot be 'many'", "write a whole number, without quotes"),
    ("name: My Run", "mine.yml:1: name: cannot be 'My Run'", "write a text that matches ^[a-z0-9][a-z0-9-]*$"),
    ("name: mine\nseed: -1", "mine.yml:2: seed: cannot be -1", "write a number of at least 0"),
    (
        "name: mine\nmodel: ../cnn",
        "mine.yml:2: model: cannot be '../cnn'",
        "write a text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*$",
    ),
    (
        "name: mine\nmodel: cnn; reboot",
        "mine.yml:2: model: cannot be 'cnn; reboot'",
        "write a text that matches ^[A-Za-z0-9][A-Za-z0-9_.-]*$",
    ),
    (
        "name: mine\ntrain: {learnig_rate: 1}",
        "mine.yml:2: train.learnig_rate: no such key",
        "did you mean train.learning_rate?",
    ),
    ("name: mine\ntrain: {learning_rate: fast}", "mine.yml:2: train.learning_rate: cannot be 'fast'", "write a number"),
    (
        "name: mine\ntrain: {learning_rate: .nan}",
        "mine.yml:2: train.learning_rate: cannot be nan",
        "write a finite number",
    ),
    ("name: mine\ntrain: {momentum: 1}", "mine.yml:2: train.momentum: cannot be 1", "write a number below 1"),
    (
        "name: mine\ntrain: {data_fraction: 1.5}",
        "mine.yml:2: train.data_fraction: cannot be 1.5",
        "write a number of at most 1",
    ),
    ("name: mine\ntrain: 32", "mine.yml:2: train: cannot be 32", "write keys and values, as in {batch_size: 32}"),
    (
        "name: mine\npartitioner: {name: lda}",
        "mine.yml:2: partitioner: there is no 'lda'",
        "known are by-group, dirichlet, emd, iid, limit-labels, n-labels, q-sampler, quantity",
    ),
    (
        "name: mine\npartitioner: {name: dirichlet, alpha: 0}",
        "mine.yml:2: partitioner.alpha: cannot be 0",
        "write a number above 0",
    ),
    (
        "name: mine\npartitioner: {name: iid, alpha: 1}",
        "mine.yml:2: partitioner.alpha: no such key",
        "take it out, or choose the name that it belongs to",
    ),
    ("name: mine\npartitioner: {alpha: 1}", "mine.yml:2: partitioner: has no name", "add one, as in {name: iid}"),
    (
        "name: mine\npartitioner: iid",
        "mine.yml:2: partitioner: cannot be 'iid'",
        "write keys and values, as in {name: iid}",
    ),
    ("name: mine\ndescription: [a, b]", "mine.yml:2: description: cannot be ['a', 'b']", "write a text"),
    (
        "name: mine\ndata: {name: fashon-mnist}",
        "mine.yml:2: data.name: there is no 'fashon-mnist' in the source debian",
        "did you mean fashion-mnist?",
    ),
    (
        "name: mine\ndata: {source: elsewhere}",
        "mine.yml:2: data.source: there is no 'elsewhere'",
        "known are debian, device, folder, hub",
    ),
    (
        "name: mine\ndata: {source: folder, name: mnist}",
        "mine.yml:2: data.path: is missing",
        "write where the data lie, as in {source: folder, path: ../data/mnist}",
    ),
    (
        "name: mine\ndata: {source: hub, name: mnist, path: here}",
        "mine.yml:2: data.path: the source hub has no path",
        "take it out, or write source: folder",
    ),
    (
        "name: mine\nstrategy: {name: fednova}\ntrain: {optimizer: adam}",
        "mine.yml:3: train: fednova counts the steps of SGD, and train.optimizer is adam",
        "write train.optimizer: sgd, or another strategy",
    ),
    *(
        (
            f"name: mine\nstrategy: {{name: {name}, eta_l: 0.1}}",
            "mine.yml:2: strategy.eta_l: no such key",
            "take it out: the clients' learning rate is train.learning_rate",
        )
        for name in ("fedadagrad", "fedadam", "fedyogi")
    ),
    (
        "name: mine\ntrain:\n  schedule: {name: step, factor: 2}",
        "mine.yml:3: train.schedule.factor: cannot be 2",
        "write a number of at most 1",
    ),
    (
        "name: mine\ntrain: {schedule: {name: cosine, every: 2}}",
        "mine.yml:2: train.schedule.every: no such key",
        "take it out, or choose the name that it belongs to",
    ),
    (
        "name: mine\ntrain: {schedule: {factor: 0.5}}",
        "mine.yml:2: train.schedule: has no name",
        "add one, as in {name: cosine}",
    ),
    ("name: mine\ntrain: {width: 0}", "mine.yml:2: train.width: cannot be 0", "write a number above 0"),
    (
        "name: mine\ntrain: {width: 0.5}",
        "mine.yml:2: train: train.width is 0.5, and fedavg has every client train the whole model",
        "write strategy: {name: heterofl}, or take width out",
    ),
    (
        "name: mine\nstrategy: {name: fedprox}\nrules: [{set: {batch_size: 8}}, {set: {width: 0.5}}]",
        "mine.yml:3: rules: rule 2 makes clients' models narrower, and fedprox has every client train the whole model",
        "write strategy: {name: heterofl}, or take width out",
    ),
    (
        "name: mine\nrules:\n  - scale: {width: memory}",
        "mine.yml:2: rules: rule 1 makes clients' models narrower, and fedavg has every client train the whole model",
        "write strategy: {name: heterofl}, or take width out",
    ),
    (
        "name: mine\nstrategy: {name: heterofl}\nprivacy: {name: client-fixed}",
        "mine.yml:3: privacy: Flower's wrappers take all clients to begin with one model, and those of heterofl do not",
        "take it out, or write another strategy",
    ),
    (
        "name: mine\nstrategy: {name: fedtrimmedavg, beta: 0.5}",
        "mine.yml:2: strategy.beta: cannot be 0.5",
        "write a number below 0.5",
    ),
    (
        "name: mine\nstrategy: {name: fedavgg}",
        "mine.yml:2: strategy: there is no 'fedavgg'",
        "did you mean fedavg or qfedavg or fedavgm?",
    ),
    ("name: mine\nmin_clients: 0", "mine.yml:2: min_clients: cannot be 0", "write a number of at least 1"),
    ("name: mine\nround_timeout: -1", "mine.yml:2: round_timeout: cannot be -1", "write a number above 0"),
    ("name: mine\nname: other", "mine.yml:2: name: is here twice, first in line 1", "keep one of them"),
    (
        "- name",
        "mine.yml: is not a mapping of keys to values",
        "compare it with experiments/fashion-mnist-cnn.yml, which shows every key",
    ),
    (
        "",
        "mine.yml: is not a mapping of keys to values",
        "compare it with experiments/fashion-mnist-cnn.yml, which shows every key",
    ),
    (
        "name: [",
        "mine.yml:1: is not valid YAML: expected the node content, but found '<stream end>'",
        "look at indentation (no tabs), colons, quotes and brackets",
    ),
    (
        "name: mine\n\trounds: 2",
        "mine.yml:2: is not valid YAML: found character '\\t' that cannot start any token",
        "look at indentation (no tabs), colons, quotes and brackets",
    ),
    (
        "name: !thing mine",
        "mine.yml:1: is not valid YAML: could not determine a constructor for the tag '!thing'",
        "look at indentation (no tabs), colons, quotes and brackets",
    ),
    (
        f"name: {TOUCH}",
        "mine.yml:1: name: cannot be \"{{ lookup('pipe', 'touch touched') }}\"",
        "write a text that matches ^[a-z0-9][a-z0-9-]*$",
    ),
    (
        f"name: mine\nrounds: {TOUCH}",
        "mine.yml:2: rounds: cannot be \"{{ lookup('pipe', 'touch touched') }}\"",
        "write a whole number, without quotes",
    ),
    (
        "name: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "mine.yml:1: name: cannot be 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'",
        "write a text of at most 60 characters",
    ),
]


@pytest.fixture(scope="module")
def ansible(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Ansible's view of one folder after the other, out of one process: to start it takes longer than to ask it."""
    program = (
        "import sys\nfrom fltestbed.inventory_ansible import dump\n"
        "for line in sys.stdin:\n    print(dump(line.strip()), flush=True)\n"
    )
    cwd = tmp_path_factory.mktemp("cwd")
    with subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        cwd=cwd,
        env=ansible_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def ask(folder: Path) -> dict[str, Any]:
            assert process.stdin and process.stdout
            process.stdin.write(f"{folder}\n")
            process.stdin.flush()
            return dict(json.loads(process.stdout.readline()))

        yield ask
        assert process.stdin
        process.stdin.close()
    assert not list(cwd.iterdir()), "a lookup ran"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_tables_are_long_and_say_everything_once() -> None:
    assert len(BAD_INVENTORIES) >= 60
    assert len(BAD_EXPERIMENTS) >= 30
    given = [str(content) for content, _, _ in (*BAD_INVENTORIES, *BAD_EXPERIMENTS)]
    assert len(given) == len(set(given))


@pytest.mark.parametrize(("files", "says", "fix"), BAD_INVENTORIES, ids=[says for _, says, _ in BAD_INVENTORIES])
def test_an_inventory_is_refused_with_one_message(
    files: dict[str, str], says: str, fix: str, ansible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_ask_ansible", ansible)
    folder = write(tmp_path / "lab", files)
    with pytest.raises(InventoryError) as caught:
        inventory.load(folder)
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (says, fix, 3)
    [finding] = inventory.findings(folder)
    assert (finding.severity, finding.host, f"{finding.where}: {finding.what}", finding.fix) == ("error", "", says, fix)
    assert [path.name for path in tmp_path.iterdir()] == ["lab"], "nothing is remembered, and nothing was run"


@pytest.mark.parametrize(("text", "says", "fix"), BAD_EXPERIMENTS, ids=[says for _, says, _ in BAD_EXPERIMENTS])
def test_an_experiment_is_refused_with_one_message(text: str, says: str, fix: str, tmp_path: Path) -> None:
    write(tmp_path, {"mine.yml": text})
    with pytest.raises(ExperimentError) as caught:
        experiment.load(Path("mine.yml"))
    assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (says, fix, 3)
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("text", "fits", "clients", "says"),
    [
        ("min_clients: 3", 3, 2, "min_clients: is 3, but the inventory has 2 clients"),
        (
            "strategy: {name: bulyan, num_malicious_nodes: 1, fraction_train: 0.5}",
            14,
            13,
            "bulyan needs 7 clients a round .4 x num_malicious_nodes . 3., and 6 are asked",
        ),
        (
            "strategy: {name: krum, num_malicious_nodes: 1}",
            5,
            4,
            "strategy: krum needs 5 clients a round .2 x num_malicious_nodes . 3., and 4 are asked",
        ),
        ("strategy: {name: krum}", 3, 2, "krum needs 3 clients a round"),
        (
            "strategy: {name: multikrum, num_malicious_nodes: 1, fraction_train: 0.5}",
            10,
            9,
            "multikrum needs 5 clients a round .2 x num_malicious_nodes . 3., and 4 are asked",
        ),
        (
            "strategy: {name: multikrum, num_nodes_to_select: 6}",
            6,
            5,
            "strategy.num_nodes_to_select: is 6, but a round asks 5 clients",
        ),
        (
            "strategy: {name: fedtrimmedavg, fraction_train: 0.5}",
            10,
            9,
            "strategy.beta: 0.2 of the 4 clients that a round asks is not one, and nothing would be left out",
        ),
        (
            "privacy: {name: server-adaptive}",
            11,
            10,
            "clipped_count_stddev: is null, which with 10 clients a round is 0.5, but has to be above half of",
        ),
        (
            "privacy: {name: client-adaptive, noise_multiplier: 0.5}\nstrategy: {name: fedavg, fraction_train: 0.3}",
            20,
            19,
            "with 5 clients a round is 0.25, but has to be above half of noise_multiplier, 0.5",
        ),
        ("rounds: 1", 1200, 1201, "fashion-mnist can be split into 1200 partitions of at least 50 examples"),
    ],
)
def test_an_experiment_needs_a_testbed_that_fits(text: str, fits: int, clients: int, says: str, tmp_path: Path) -> None:
    write(tmp_path, {"mine.yml": f"name: mine\n{text}\n"})
    wanted = experiment.load(Path("mine.yml"))
    wanted.require_clients([{}] * fits)
    with pytest.raises(ExperimentError, match=says):
        wanted.require_clients([{}] * clients)


def test_the_deviation_that_is_proposed_is_taken(tmp_path: Path) -> None:
    write(tmp_path, {"mine.yml": "name: mine\nprivacy: {name: server-adaptive, clipped_count_stddev: 0.5}\n"})
    with pytest.raises(ExperimentError) as caught:
        experiment.load(Path("mine.yml")).require_clients([{}])
    assert caught.value.message == (
        "privacy.clipped_count_stddev: is 0.5, but has to be above half of noise_multiplier, 1"
    )
    assert caught.value.hint == "write privacy.clipped_count_stddev: 1, or lower privacy.noise_multiplier"
    experiment.load(Path("mine.yml"), ["privacy.clipped_count_stddev=1"]).require_clients([{}])


@pytest.mark.parametrize("clients", range(1, 200))
def test_the_share_to_leave_out_that_is_proposed_is_taken(clients: int) -> None:
    wanted = experiment.FedTrimmedAvg(name="fedtrimmedavg", beta=1e-4)
    with pytest.raises(ExperimentError) as caught:
        wanted.require_asked(clients)
    proposed = [float(number) for number in re.findall(r"(0\.\d+) or more", caught.value.hint)]
    assert len(proposed) == (clients > 2), "nothing less than a half leaves one out of two"
    for beta in (*proposed, 0.0):
        experiment.FedTrimmedAvg(name="fedtrimmedavg", beta=beta).require_asked(clients)


def test_a_client_that_trains_a_part_of_the_model_needs_a_strategy_for_it(tmp_path: Path) -> None:
    write(tmp_path, {"mine.yml": "name: mine\n"})
    clients = [{"client": name, "settings": {"width": width}} for name, width in (("pi-3", 0.5), ("pc", 1.0))]
    experiment.load(Path("mine.yml"), ["strategy.name=heterofl"]).require_clients(clients)
    with pytest.raises(ExperimentError) as caught:
        experiment.load(Path("mine.yml")).require_clients(clients)
    assert caught.value.message == (
        "strategy: fedavg has every client train the whole model, but the inventory gives pi-3 a width below 1"
    )
    assert caught.value.hint == "write strategy: {name: heterofl}, or take width out"


def test_all_findings_of_an_inventory_come_together(
    ansible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_ask_ansible", ansible)
    files = pi("testbed_client: {cpus: fast, memory: 2gg}, ansible_port: ssh")
    folder = write(tmp_path / "lab", files | {"host_vars/pi-9.yml": "testbed_profile: rpi4\n"})
    found = inventory.findings(folder)
    assert [(finding.severity, finding.what.split(",")[0]) for finding in found] == [
        ("warning", "the file is of a host pi-9"),
        ("error", "pi-2: ansible_port cannot be 'ssh'"),
        ("error", "pi-2: cpus cannot be 'fast'"),
        ("error", "pi-2: memory cannot be '2gg'"),
    ]
    with pytest.raises(InventoryError, match="ansible_port") as caught:
        inventory.load(folder)
    assert "fltestbed check shows 2 more" in caught.value.hint


def test_a_warning_does_not_stop(ansible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory, "_ask_ansible", ansible)
    hosts = HOSTS.replace("  children:\n", "  hosts: {spare: }\n  children:\n", 1)
    folder = write(tmp_path / "lab", {"hosts.yml": hosts})
    assert [finding.severity for finding in inventory.findings(folder)] == ["warning"]
    assert [host.name for host in inventory.load(folder).hosts] == ["server", "pi-1", "pi-2"]


@pytest.mark.parametrize(
    ("files", "devices"),
    [
        (
            change("pi-2: {ansible_host: 192.0.2.22}", "rack[1:2]-pi[2:3]:"),
            ["pi-1", "rack1-pi2", "rack1-pi3", "rack2-pi2", "rack2-pi3"],
        ),
        (change("pi-2: {ansible_host: 192.0.2.22}", "pi-0[:1]:"), ["pi-1", "pi-00", "pi-01"]),
        (pi("notes: {2024-05-01: new card, true: [{2024-05-02: old card}]}"), ["pi-1", "pi-2"]),
        (
            {
                "hosts.yml": HOSTS.replace("192.0.2.22", "192.0.2.21"),
                "host_vars/pi-1.yml": "ansible_ssh_common_args: -J gate-1\n",
                "host_vars/pi-2.yml": "ansible_ssh_common_args: -J gate-2\n",
            },
            ["pi-1", "pi-2"],
        ),
        ({"hosts.yml": ALONE}, ["pc"]),
        (beside("group_vars/testbed.yml", "testbed_fleet_port: 9100\ntestbed_grafana_port: 5000\n"), ["pi-1", "pi-2"]),
        (
            {
                "hosts.yml": MONITORED,
                "group_vars/testbed.yml": "testbed_metrics_port: 9092\ntestbed_grafana_port: 9090\n"
                "testbed_prometheus_lan_port: 5000\n",
            },
            ["pi-1", "pi-2"],
        ),
    ],
)
def test_what_only_looks_wrong_is_taken(
    files: dict[str, str], devices: list[str], ansible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_ask_ansible", ansible)
    testbed = inventory.load(write(tmp_path / "lab", files))
    assert [device.name for device in testbed.devices] == devices


PORTS = [name for name in inventory._shared_defaults() if name.startswith("testbed_") and name.endswith("_port")]


@pytest.mark.parametrize("name", PORTS)
def test_every_port_is_compared_with_those_of_its_host(
    name: str, ansible: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inventory, "_ask_ansible", ansible)
    other = "testbed_cadvisor_port" if name == "testbed_node_exporter_port" else "testbed_node_exporter_port"
    open_to_all = "testbed_monitoring_open: true\ntestbed_images_source: upstream\n"
    files = {"hosts.yml": WATCHED, "group_vars/testbed.yml": f"{open_to_all}{name}: 7000\n{other}: 7000\n"}
    found = inventory.findings(write(tmp_path / "lab", files))
    assert found
    assert all(name in finding.what and other in finding.what and "7000" in finding.what for finding in found)


@pytest.mark.parametrize(
    "name",
    [
        *("pi-[1:3]", "pi-[01:12]", "pi-[:3]", "pi-[1:9:4]", "pi-[a:c]", "pi-[a:C]", "a[1:2]b[x:z]c", "pi-[1:1]"),
        *("pi-[5:1]", "pi-[c:a]", "pi-[C:a]", "a[1:2]b[2:1]", "pi-[1:3:0]", "pi-[1:]", "pi-[:]", "pi-[1]", "pi-[1:2"),
        *("pi-[01:3]", "pi-[a:3]", "pi-[1:c]", "pi-[:c]", "pi-[1-3]", "pi-[1:2]]", "pi-[[1:2]:3]", "pi-[1:2:3:4]"),
    ],
)
def test_a_range_is_one_where_ansible_makes_hosts_of_it(name: str, tmp_path: Path) -> None:
    from ansible.errors import AnsibleError
    from ansible.plugins.inventory import expand_hostname_range

    try:
        hosts = expand_hostname_range(name)
    except (AnsibleError, ValueError):
        hosts = []
    files = inventory.read(write(tmp_path / "lab", change("pi-2:", f"'{name}':")))
    assert bool(files.findings) is not (bool(hosts) and "]" not in hosts[0])


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with this one's packages, in which ansible-playbook and ssh do nothing but say that they ran."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "bin").mkdir()
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    (folder / "pyvenv.cfg").write_text((Path(sys.prefix) / "pyvenv.cfg").read_text())
    (folder / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    for name in ("ansible-playbook", "ssh"):
        (folder / "bin" / name).write_text(f"#!/bin/sh\necho {name} >>{folder}/started\n")
        (folder / "bin" / name).chmod(0o755)
    return folder


def fltestbed(program: Path, *arguments: str) -> tuple[int, str]:
    """Run the command line; return its exit code and what it said."""
    done = subprocess.run(
        [str(program / "bin" / "python"), "-c", "from fltestbed.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("command", "files", "trained", "says"),
    [
        ("up", pi(f"testbed_clients: {TOUCH}"), "", "testbed_clients is data"),
        ("lab up", change("testbed:", "testbeds:"), "", "there is no group testbeds"),
        ("run mine", {"hosts.yml": HOSTS}, "rounds: 2", "name: is missing"),
        ("run mine", {"hosts.yml": HOSTS}, "name: mine\nmin_clients: 3", "min_clients: is 3"),
    ],
)
def test_the_program_stops_before_any_host(
    command: str, files: dict[str, str], trained: str, says: str, program: Path, tmp_path: Path
) -> None:
    write(tmp_path / "inventories" / "lab", files)
    write(tmp_path / "experiments", {"mine.yml": trained})
    code, said = fltestbed(program, *command.split(), "-i", "lab")
    assert code == 3, said
    assert says in said
    assert not list(tmp_path.glob(".fltestbed/*/logs"))
    assert not (tmp_path / "touched").exists()
    assert not (program / "started").exists()


def test_a_good_inventory_would_have_been_seen(program: Path, tmp_path: Path) -> None:
    """The tests above can fail: Ansible is started for what is right, and a lookup that a user may write is run."""
    write(tmp_path / "inventories" / "lab", pi("ansible_user: \"{{ lookup('pipe', 'touch touched; echo me') }}\""))
    _, said = fltestbed(program, "up", "-i", "lab")
    assert list(tmp_path.glob(".fltestbed/lab/logs/*")), said
    assert (tmp_path / "touched").exists()
    assert "ansible-playbook" in (program / "started").read_text()
    (program / "started").unlink()
