#!/usr/bin/python
"""Looks for what would stop a deployment on a host, or would falsify its results, and mends what is safe to mend."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_check
short_description: Find what would stop a deployment on this host
description:
  - One call looks at all that docs/reference-checks.md lists. Nothing is changed, except what I(fix) names.
  - Where nothing holds the ports in I(serve) yet, a process is left that does, so that the devices, checked next, can
    try to connect to I(reach). The action C(testbed_check_close) ends it; without that it ends after I(wait) seconds.
  - The action plugin of this name adds C(clock), how far the host's clock is ahead of the controller's.
options:
  uid:
    description: The user of the containers, who reads a client's own data.
    type: int
    default: 10001
  root:
    description: The testbed's folder on the host.
    type: path
    required: true
  project:
    description: The testbed's Compose project, whose containers may hold the ports.
    type: str
    required: true
  owner:
    description: The id of whose testbed this is; the folder of another one is an error.
    type: str
    default: ""
  network:
    description: The network condition that the inventory gives the host, in bit/s, seconds and shares of 1.
    type: dict
    default: {}
  clients:
    description: The host's clients, each with C(client), C(cpus) in cores, C(memory) in bytes and C(data), a path, or
      null.
    type: list
    elements: dict
    default: []
  architectures:
    description: Machine architectures that there are images for.
    type: list
    elements: str
    required: true
  client_memory_mb:
    description: What training takes at least.
    type: int
    required: true
  system_memory_mb:
    description: What the host needs beside its clients.
    type: int
    required: true
  disk_mb:
    description: Free space needed, in MB - C(packages) for Docker where it is missing, C(image) for the Flower image
      where it is missing, and C(data).
    type: dict
    required: true
  docker_repository:
    description: Whether missing packages come from a repository that is still to be added.
    type: bool
    default: false
  serve:
    description: Ports that this host will serve.
    type: list
    elements: int
    default: []
  bind:
    description: Further ports that this host's monitoring will use.
    type: list
    elements: int
    default: []
  cadvisor:
    description: C(port) that cAdvisor will use, and C(cgroups), the versions of control groups with which it runs.
    type: dict
    default: {}
  dials:
    description: Whom a container of this host dials, by name or address.
    type: dict
    default: {}
  build:
    description: Architectures of which an image is to be built, each with the C(mb) of disk that it takes, C(debian),
      whether out of Debian's packages, C(mirror), a file of those, empty for apt's own mirrors, and what else is to be
      told again.
    type: dict
    default: {}
  address:
    description: The name or address by which this host dials the server.
    type: str
    default: ""
  reach:
    description: Ports that this host needs of the server.
    type: list
    elements: int
    default: []
  wait:
    description: Seconds after which the process that listens for the devices ends by itself.
    type: int
    default: 120
  now:
    description: The controller's time in seconds since 1970, for a clock that is to be set.
    type: float
    default: 0
  fix:
    description: Checks whose findings shall be mended first, of those that returned C(safe).
    type: list
    elements: str
    default: []
author: fltestbed authors
"""

RETURN = r"""
findings:
  description: What is wrong - C(severity), C(where), C(what), C(fix); C(safe), whether I(fix) can mend it; C(refused),
    whether the server refused a port, which says nothing where the server could not be asked itself.
  returned: always
  type: list
  elements: dict
checked:
  description: Every check that was made.
  returned: always
  type: list
  elements: str
fixed:
  description: What was mended, in words.
  returned: always
  type: list
  elements: str
listener:
  description: The process that listens for the devices, 0 without one.
  returned: always
  type: int
facts:
  description: What the host is, and what tells it from others. C(build) is, where an image is to be built for its
    architecture, what I(build) says of it, with C(silent), why the mirror cannot be reached, by its address; else null.
  returned: always
  type: dict
"""

import time

STARTED = time.time()

import ipaddress
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_conditions import Refused, addresses_of, interface_to, require_shapable
from ansible.module_utils.testbed_docker import EngineUnreachable, get
from ansible.module_utils.testbed_holders import (
    PACKAGE_LOCKS,
    listening,
    lock_holder,
    process,
    socket_holder,
)
from ansible.module_utils.testbed_host import DAEMON_JSON, cgroup, docker, free_mb, operating_system, places
from ansible.module_utils.testbed_in_force import InForce
from ansible.module_utils.testbed_root import objection

MB = 2**20
LEAST_PYTHON = (3, 9)
USERLAND = Path("/bin/sh")
MODULES = Path("/lib/modules")
CGROUP = Path("/sys/fs/cgroup")
CMDLINES = (Path("/boot/firmware/cmdline.txt"), Path("/boot/cmdline.txt"))
DPKG_UPDATES = Path("/var/lib/dpkg/updates")
UFW = Path("/etc/ufw/ufw.conf")
NAMES = Path("/etc/hosts")
BUILD_DIR = Path("/var/tmp/fltestbed")  # noqa: S108 a folder of roles/images, made by root
DAY = 86400
PACKAGED = {"debian": ("12", "13"), "ubuntu": ("22.04", "24.04")}
MARK = "FLTESTBED_CHECK"  # in the environment of a process that listens for a check


def error(what, fix, safe=False, refused=False):
    return {"severity": "error", "what": what, "fix": fix, "safe": safe, "refused": refused}


def warning(what, fix, safe=False):
    return dict(error(what, fix, safe), severity="warning")


class Host:
    """What the checks share."""

    def __init__(self, params):
        self.params = params
        self.os = operating_system()
        self.cgroup = cgroup()
        self.is_container = Path("/run/systemd/container").exists() or Path("/.dockerenv").exists()
        self.cpus = min(os.cpu_count(), cpu_quota() or os.cpu_count())
        self.memory = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), memory_limit() or 2**62)
        self.daemon_json_error = None
        try:
            self.docker, self.images = docker()
        except ValueError as problem:
            self.daemon_json_error = str(problem)
            self.docker, self.images = {"version": None, "compose": None, "running": False} | places({}, {}), {}
        self.unserved = []
        self.listener = None


def first_number(path):
    """Return the first number in a file, None where there is no file or no number."""
    try:
        word = path.read_text().split()[0]
    except (OSError, IndexError):
        return None
    return int(word) if word.lstrip("-").isdigit() else None


def cpu_quota():
    """Return the cores that a container may use, None where nothing limits them."""
    for quota, period in (
        (CGROUP / "cpu.max", None),
        (CGROUP / "cpu/cpu.cfs_quota_us", CGROUP / "cpu/cpu.cfs_period_us"),
    ):
        number = first_number(quota)
        if number is not None and number > 0:
            return number / (first_number(period) if period else int(quota.read_text().split()[1]))
    return None


def memory_limit():
    """Return the bytes that a container may use, None where nothing limits them."""
    return first_number(CGROUP / "memory.max") or first_number(CGROUP / "memory/memory.limit_in_bytes")


def check_root(host):
    if os.geteuid() != 0:
        yield error(
            f"the checks ran as user {os.geteuid()}, not as root, and everything that is deployed needs root",
            "set ansible_become: true for this host, or log in as root",
        )


def check_python(host):
    if sys.version_info < LEAST_PYTHON:
        yield error(
            f"{sys.executable} is Python {platform.python_version()}, and {'.'.join(map(str, LEAST_PYTHON))} "
            "is the oldest that works",
            "install a newer one and name it in ansible_python_interpreter, or upgrade the system",
        )


def check_architecture(host):
    machine = platform.machine()
    known = " and ".join(host.params["architectures"])
    if machine not in host.params["architectures"]:
        yield error(
            f"the machine is {machine}, and Flower and torch are packaged for {known} alone",
            "a Raspberry Pi 3 or newer runs the 64-bit Raspberry Pi OS; take any other machine out of the inventory",
        )
    elif USERLAND.read_bytes()[4] == 1:  # the ELF header's class
        yield error(
            f"the kernel is {machine}, but the programs are 32-bit: containers with Flower and torch cannot be "
            "had for them",
            "write the 64-bit image of the operating system to the device's card; there is no way to convert "
            "it in place",
        )


def check_kernel(host):
    release = platform.release()
    numbers = [int(number) for number in re.findall(r"\d+", release)[:2]]
    if numbers < [3, 10]:
        yield error(f"the kernel is {release}, and Docker needs 3.10", "upgrade the operating system")
    if not host.is_container and not host.docker["running"] and MODULES.exists() and not (MODULES / release).exists():
        yield error(
            f"the kernel that runs is {release}, and its modules are gone from {MODULES}, as after an upgrade "
            "without a restart: "
            "Docker could not load what its networks need",
            "restart the device",
        )


def check_cgroups(host):
    if not host.cgroup["memory"]:
        limited = [client["client"] for client in host.params["clients"] if client["memory"]]
        found = error if limited else warning
        line = cmdline()
        said = (
            "the kernel's memory controller is off (Raspberry Pi OS leaves it so): Docker ignores memory "
            "limits without a word, "
            "and a client would train with all of the device's memory"
        )
        if line and "cgroup_enable=memory" in line.read_text():
            yield found(said, f"{line} has it on from the next start: restart the device")
        else:
            yield found(
                said,
                "append cgroup_enable=memory cgroup_memory=1 to the line in "
                f"{line or 'the boot loader, for the kernel,'} "
                "and restart the device",
                safe=line is not None,
            )
    if not host.cgroup["cpu"]:
        found = error if any(client["cpus"] for client in host.params["clients"]) else warning
        yield found(
            "the kernel's cpu controller is off: Docker cannot hold clients to their cores",
            "use a kernel with CONFIG_CFS_BANDWIDTH, and take cgroup_disable=cpu out of its command line",
        )


def cmdline():
    return next((path for path in CMDLINES if path.is_file()), None)


def fix_cgroups(host):
    path = cmdline()
    line = path.read_text()
    backup = path.with_name(path.name + ".before-fltestbed")
    if not backup.exists():
        backup.write_text(line)
    new = path.with_name(path.name + ".new")
    new.write_text(line.rstrip() + " cgroup_enable=memory cgroup_memory=1\n")
    new.replace(path)
    return f"appended cgroup_enable=memory cgroup_memory=1 to {path} (before: {backup}); it holds after a restart"


def check_cpu(host):
    cores = os.cpu_count()
    asked = 0
    for client in host.params["clients"]:
        asked += client["cpus"] or 0
        if client["cpus"] and client["cpus"] > cores:
            yield error(
                f"client {client['client']} asks for {client['cpus']:g} cores and the machine has {cores}: "
                "Docker refuses that",
                "lower cpus in the inventory, or choose the profile that fits the device",
            )
            return
    if asked > host.cpus + 0.001:
        yield warning(
            f"its clients ask for {asked:g} cores together and it has {host.cpus:g}: they would slow each other down",
            "lower cpus in the inventory, or put fewer clients on the device",
        )


def check_memory(host):
    clients = host.params["clients"]
    least = host.params["client_memory_mb"]
    system = host.params["system_memory_mb"]
    total = host.memory // MB
    limits = sum(client["memory"] or 0 for client in clients) // MB
    wanted = sum(client["memory"] // MB if client["memory"] else least for client in clients)
    if limits > total * 1.1:  # a board has less than its nominal size, of which the profiles speak
        yield error(
            f"its clients' memory limits are {limits} MB together and it has {total} MB: the kernel would kill "
            "at random",
            "lower memory in the inventory, or put fewer clients on the device",
        )
    elif wanted + system > total:
        yield warning(
            f"its clients may use {wanted} MB, all else takes about {system} MB, and it has {total} MB: it "
            "would swap or kill",
            f"leave at least {system} MB to the rest: lower memory in the inventory, or put fewer clients on "
            "the device",
        )
    for client in clients:
        if client["memory"] and client["memory"] // MB < least:
            yield warning(
                f"client {client['client']} is limited to {client['memory'] // MB} MB, and training the "
                "built-in app takes "
                f"{least} MB: the kernel would kill it",
                f"set memory to at least {least}m, unless the app of your own takes less",
            )


def check_data(host):
    for client in host.params["clients"]:
        path = client.get("data")
        if path and not Path(path).exists():
            yield error(
                f"there is no {path}, where the data of client {client['client']} are to lie",
                "bring them there, or correct data in the inventory",
            )
        elif path and not readable(Path(path), host.params["uid"]):
            yield error(
                f"{path}, the data of client {client['client']}, may not be read by its container",
                f"make it readable for all: chmod -R a+rX {path}",
            )


def readable(path, uid):
    """Return whether a user may read a file or a folder and what is in it.

    The folders above do not count, as the container has this path mounted; nor do links to nothing, as training
    passes over them.
    """
    for each in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if not each.exists():
            continue
        status = each.stat()
        bits = status.st_mode >> (6 if status.st_uid == uid else 3 if status.st_gid == uid else 0)
        if bits & (5 if each.is_dir() else 4) != (5 if each.is_dir() else 4):
            return False
    return True


def check_folder(host):
    if wrong := objection(host.params["root"], host.params["owner"]):
        yield error(*wrong)


def check_network(host):
    """Try what testbed_network needs, on an interface made for that."""
    if not host.params["network"]:
        return
    try:
        ours = {"shape", "network"} & InForce(host.params["project"]).read().keys()
        for interface in {interface_to(address) for address in addresses_of(host.params["address"])}:
            require_shapable(interface, host.params["network"], ours)
    except Refused as problem:
        yield error(
            f"testbed_network cannot be put in force: {problem}",
            "bring what is missing (on Ubuntu's kernels for clouds: apt-get install linux-modules-extra-$(uname -r)), "
            "or take testbed_network from this host",
        )


def check_disk(host):
    need = host.params["disk_mb"]
    at = [(host.docker["folder"], need["data"]), (host.params["root"], need["data"])]
    if not any(tag.startswith("fltestbed/app:") for tag in host.images):
        at.append((host.docker["image_folder"], need["image"]))
    if not host.docker["version"]:
        at.append(("/usr", need["packages"]))
    wanted = {}
    for path, megabytes in at:
        path = Path(path)
        while not path.exists():
            path = path.parent
        wanted.setdefault(path.stat().st_dev, [path, 0])[1] += megabytes
    for path, megabytes in wanted.values():
        system = os.statvfs(path)
        free = system.f_bavail * system.f_frsize // MB
        if system.f_flag & os.ST_RDONLY:
            yield error(
                f"{path} is read-only, as after an error of the card or disk",
                "look at dmesg, check the file system (fsck) and replace a worn card",
            )
        elif free < megabytes:
            yield error(
                f"{free} MB are free at {path}, and {megabytes} MB are needed",
                "free some space (docker system df shows what Docker holds), or use a larger card",
            )
        elif system.f_files and system.f_favail < 20000:
            yield error(
                f"{system.f_favail} files can still be made at {path}, and an image has some 20000",
                "remove what holds so many small files (df -i), or make the file system anew",
            )


def is_listener(pid):
    try:
        return f"{MARK}=1".encode() in (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def containers(filters=""):
    try:
        return get(f"/containers/json?all=1{filters}") or []
    except (EngineUnreachable, ValueError):
        return []


def check_ports(host):
    listened = listening()
    published = {
        port.get("PublicPort"): container
        for container in containers()
        if container["State"] == "running"
        for port in container["Ports"]
    }
    own = [container["Id"] for container in containers() if in_project(container, host)]
    ports, cadvisor = host.params["serve"] + host.params["bind"], host.params["cadvisor"]
    if cadvisor and host.cgroup["version"] in cadvisor["cgroups"]:
        ports.append(cadvisor["port"])
    for port in ports:
        container = published.get(port)
        if container:
            if in_project(container, host):
                continue
            name = container["Names"][0].lstrip("/")
            yield error(
                f"port {port}/tcp is published by the container {name}",
                f"stop it (docker stop {name}), or choose another port in the inventory",
            )
        elif port in listened:
            pid = socket_holder(listened[port])
            if runs_in(pid, own):  # in the host's network, so that nothing is published
                continue
            if is_listener(pid):  # of a check that did not come to its end
                os.kill(pid, signal.SIGKILL)
                host.unserved += [port] if port in host.params["serve"] else []
                continue
            yield error(
                f"port {port}/tcp is held by {process(pid)}",
                f"stop it (systemctl status {pid or ''} says what started it), or choose another port in the inventory",
            )
        elif port in host.params["serve"]:
            host.unserved.append(port)


def in_project(container, host):
    return container["Labels"].get("com.docker.compose.project") == host.params["project"]


def runs_in(pid, container_ids):
    """Return whether a process is one of these containers'."""
    try:
        text = (Path("/proc") / str(pid) / "cgroup").read_text()
    except OSError:
        return False
    return any(container_id in text for container_id in container_ids)


def check_docker(host):
    if host.daemon_json_error:
        yield error(
            f"{DAEMON_JSON} is not valid JSON ({host.daemon_json_error}): the engine would not start again",
            "correct it by hand; fltestbed merges into that file and never replaces it",
        )
    elif (
        host.docker["version"]
        and not host.docker["running"]
        and says("systemctl", "is-failed", "docker.service") == "failed"
    ):
        yield error(
            "the Docker engine is installed, and systemd failed to start it",
            "see journalctl --unit docker, correct that, and: systemctl restart docker",
        )
    elif (
        host.docker["running"]
        and says("systemctl", "show", "--property=LoadState", "--value", "docker.service") == "not-found"
    ):
        yield error(
            "a Docker engine runs that is no service of systemd, as snap's",
            "remove it (snap remove docker); fltestbed up installs the distribution's",
        )


def says(*command):
    """Return what a program prints, empty where it is missing."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ, LC_ALL="C"))
    return done.stdout.strip()


def packages(host):
    """Return the packages to install: nothing where engine and Compose are there; None where no package is known."""
    engine, compose = not host.docker["version"], not host.docker["compose"]
    if host.daemon_json_error or not (engine or compose):
        return []
    system, version = host.os["id"], host.os["version"]
    if (
        host.params["docker_repository"]
        or says("dpkg-query", "-W", "-f", "${db:Status-Status}", "docker-ce") == "installed"
    ):
        return ["docker-ce", "docker-ce-cli", "containerd.io"] * engine + ["docker-compose-plugin"] * compose
    if version not in PACKAGED.get(system, ()):
        return None
    if system == "ubuntu":
        return ["docker.io", "iptables"] * engine + ["docker-compose-v2"] * compose
    if version == "13":
        return ["docker.io", "iptables"] * engine + ["docker-cli"] + ["docker-compose"] * compose
    return None if compose else ["docker.io", "iptables"]


def check_packages(host):
    wanted = packages(host)
    missing = " and ".join(
        name
        for name, there in (("a Docker engine", host.docker["version"]), ("Docker Compose v2", host.docker["compose"]))
        if not there
    )
    if wanted == []:
        return
    if wanted is None or shutil.which("apt-get") is None:
        yield error(
            f"{missing} is missing, and {host.os['name']} has no package of it that fltestbed knows",
            "install it by hand (docker compose version must work), or set docker_apt_repository, or use Debian 13, "
            "Ubuntu 22.04 or 24.04, or Raspberry Pi OS on Debian 13",
        )
        return
    if DPKG_UPDATES.exists() and any(DPKG_UPDATES.iterdir()):
        yield error(f"{missing} is to be installed, and dpkg was interrupted", "run: dpkg --configure -a")
    for path in PACKAGE_LOCKS:
        pid = lock_holder(path)
        if pid is not None:
            yield warning(
                f"{missing} is to be installed, and {process(pid)} holds the package lock {path}",
                "wait until it is done; up waits up to 5 minutes for it",
            )
            break
    silent, asked = mirrors()
    for url, reason in silent.items():
        found = error if len(silent) == len(asked) else warning
        yield found(
            f"{missing} is to be installed ({', '.join(wanted)}), and the package mirror {url} cannot be "
            f"reached: {reason}",
            "mend the device's network, DNS or proxy, or name a mirror that it reaches in its apt sources",
        )
    unknown = [] if host.params["docker_repository"] else without_candidate(wanted)
    if unknown and not asked:
        yield error(
            f"{missing} is to be installed, and apt has no source of {', '.join(unknown)}",
            "put a mirror into the device's apt sources (/etc/apt/sources.list), or install by hand",
        )
    elif unknown and any(Path("/var/lib/apt/lists").glob("*Packages*")):
        yield warning(
            f"{missing} is to be installed, and apt's lists do not know {', '.join(unknown)}",
            "up refreshes the lists; if it is still unknown then, the apt sources lack a component or are of "
            "another release",
        )


def without_candidate(names):
    """Return those packages that apt's lists do not have."""
    known = re.findall(
        r"^(\S+):\n  Installed: .*\n  Candidate: (?!\(none\))", says("apt-cache", "policy", *names), re.MULTILINE
    )
    return [name for name in names if name not in known]


def mirrors():
    """Ask every package mirror of apt's sources for one file; return ({url: reason} of the silent ones, urls asked)."""
    asked = {}
    for url in re.findall(
        r"^'(https?://[^/']+)(/[^']*InRelease)'", says("apt-get", "--print-uris", "update"), re.MULTILINE
    ):
        asked.setdefault(url[0], "".join(url))
    return silent_ones(asked), list(asked)


def silent_ones(asked):
    """Return why files cannot be reached the way that apt takes, by what stands for them: `asked` has their URLs."""
    proxies = urllib.request.getproxies()
    for scheme in ("http", "https"):
        own = re.match(r"P='(.*)'", says("apt-config", "shell", "P", f"Acquire::{scheme}::Proxy"))
        if own:
            proxies[scheme] = own[1]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    silent = {}
    for base, url in asked.items():
        try:
            opener.open(urllib.request.Request(url, method="HEAD"), timeout=5).close()  # noqa: S310 http by the pattern
        except urllib.error.HTTPError as problem:
            if problem.code in (407, 502, 503, 504):  # a proxy's own answers
                silent[base] = f"{problem.code} {problem.reason}"
        except OSError as problem:
            silent[base] = str(getattr(problem, "reason", problem))
    return silent


def leftovers():
    """Return what earlier deployments left: ids of containers by name, and folders."""
    left = {}
    for container in containers():
        name, labels = container["Names"][0].lstrip("/"), container["Labels"]
        folder = labels.get("com.docker.compose.project.working_dir", "")
        orphaned = (
            labels.get("com.docker.compose.project", "").startswith("fltestbed-")
            and folder.startswith("/opt/fltestbed/")
            and not (Path(folder) / "compose.yml").exists()
        )
        if orphaned or (name.startswith("fltestbed-build-") and container["State"] == "exited"):
            left[name] = container["Id"]
    folders = [
        path
        for path in (BUILD_DIR.iterdir() if BUILD_DIR.is_dir() else ())
        if path.name.startswith("build-") and path.stat().st_mtime < time.time() - DAY
    ]
    return left, folders


def check_leftovers(host):
    left, folders = leftovers()
    names = sorted([*left, *map(str, folders)])
    if names:
        yield warning(
            f"an earlier deployment left {', '.join(names)}",
            "remove them: docker rm --force for containers, rm -r for folders",
            safe=True,
        )


def fix_leftovers(host):
    left, folders = leftovers()
    for identity in left.values():
        subprocess.run(["docker", "rm", "--force", "--volumes", identity], capture_output=True, check=True)
    for folder in folders:
        shutil.rmtree(folder)
    return f"removed {', '.join(sorted([*left, *map(str, folders)]))}"


def fix_clock(host):
    # A service that keeps the time does it better than one jump.
    if says("timedatectl", "show", "--property=CanNTP", "--value") == "yes":
        subprocess.run(["timedatectl", "set-ntp", "true"], capture_output=True, check=True)
        return (
            "switched the time service on (timedatectl set-ntp true); it sets the clock when it reaches a time server"
        )
    time.clock_settime(time.CLOCK_REALTIME, host.params["now"] + time.time() - STARTED)
    return "set the clock to the controller's; the system has no time service that would keep it right"


def check_server(host):
    """Be there for the devices, or find the server. What the server itself runs is not on this way."""
    if host.params["serve"]:
        host.listener = listen(host.unserved, host.params["wait"])
        return
    address = host.params["address"]
    for port in host.params["reach"]:
        problem = connect(address, port)
        if isinstance(problem, socket.gaierror):
            yield error(
                f"the server's name {address} cannot be resolved here",
                "mend DNS on the device, or give the server an address in ansible_host or testbed_superlink_address",
            )
            return
        if isinstance(problem, ConnectionRefusedError):
            yield error(
                f"the server {address} refuses port {port}/tcp",
                "open the port in the server's firewall; see also what the check says of the server's ports",
                refused=True,
            )
        elif problem:
            reason = problem.strerror or "no answer within 5 s"
            yield error(
                f"the server {address} does not answer on port {port}/tcp ({reason})",
                f"check that {address} is the server's address in the device's network, and open port {port}/tcp in "
                "the firewalls between them",
            )


def listen(ports, seconds):
    """Leave a process that holds these ports open and ends by itself; None without a port."""
    servers = []
    dual = socket.has_dualstack_ipv6()
    for port in ports:
        try:
            family = socket.AF_INET6 if dual else socket.AF_INET
            servers.append(socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024))
        except OSError:
            continue  # taken this moment; the devices say whether they reach it
    if not servers:
        return None
    try:
        return subprocess.Popen(
            ["sleep", str(seconds)],
            pass_fds=[server.fileno() for server in servers],
            env=dict(os.environ, **{MARK: "1"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    finally:
        for server in servers:
            server.close()


def connect(address, port):
    """Return None when the port answers, else why not."""
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError as problem:
        return problem
    return None


def check_names(host):
    """A container asks DNS alone: neither mDNS, nor this host's own list of names, nor anybody's ~/.ssh/config."""
    dials = host.params["dials"]
    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(dials, pool.map(resolve, dials.values())))
    for name, (known, address) in found.items():
        if not known:
            yield warning(
                f"Prometheus, in a container here, cannot look up {dials[name]}, by which it would dial {name}, and "
                "would never see that device",
                f"give {name} an address that DNS knows or an IP address in the inventory, as in "
                f"testbed_exporter_address: {address or '192.0.2.21'}; SSH goes on as before",
            )


def resolve(name):
    """Return whether a container can look a name up, and the IP address that this host finds, if any."""
    try:
        return True, str(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, None)
    except OSError:
        return False, ""
    address = min(found, key=lambda each: each[0] != socket.AF_INET)[4][0]
    own = [word.lower() for line in lines(NAMES) for word in line.partition("#")[0].split()[1:]]
    return not (re.fullmatch(r"[^.]+\.local\.?", name, re.IGNORECASE) or name.lower() in own), address


def lines(path):
    return path.read_text(errors="replace").splitlines() if path.is_file() else []


def build(host):
    """Return what a build of images for this architecture meets here; None where none is to be built."""
    wanted = host.params["build"].get(platform.machine())
    if not wanted:
        return None
    silent, mirror = {}, wanted["mirror"]
    if wanted["debian"] and not any(tag.startswith("fltestbed/proxy:") for tag in host.images):
        silent, asked = (silent_ones({mirror: mirror}), [mirror]) if mirror else mirrors()
        silent = silent if len(silent) == len(asked) else {}
    return wanted | {"silent": silent}


# In this order: `server` opens the ports that `ports` found free.
CHECKS = {
    "root": check_root,
    "Python": check_python,
    "architecture": check_architecture,
    "kernel": check_kernel,
    "control groups": check_cgroups,
    "CPU": check_cpu,
    "memory": check_memory,
    "data": check_data,
    "folder": check_folder,
    "disk": check_disk,
    "ports": check_ports,
    "Docker": check_docker,
    "packages": check_packages,
    "network": check_network,
    "leftovers": check_leftovers,
    "names": check_names,
    "server": check_server,
}
FIXES = {"control groups": fix_cgroups, "leftovers": fix_leftovers, "clock": fix_clock}


def main():
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "project": {"type": "str", "required": True},
            "owner": {"type": "str", "default": ""},
            "network": {"type": "dict", "default": {}},
            "clients": {"type": "list", "elements": "dict", "default": []},
            "uid": {"type": "int", "default": 10001},
            "architectures": {"type": "list", "elements": "str", "required": True},
            "client_memory_mb": {"type": "int", "required": True},
            "system_memory_mb": {"type": "int", "required": True},
            "disk_mb": {"type": "dict", "required": True},
            "docker_repository": {"type": "bool", "default": False},
            "serve": {"type": "list", "elements": "int", "default": []},
            "bind": {"type": "list", "elements": "int", "default": []},
            "cadvisor": {"type": "dict", "default": {}},
            "dials": {"type": "dict", "default": {}},
            "build": {"type": "dict", "default": {}},
            "address": {"type": "str", "default": ""},
            "reach": {"type": "list", "elements": "int", "default": []},
            "wait": {"type": "int", "default": 120},
            "now": {"type": "float", "default": 0},
            "fix": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    host = Host(module.params)
    fixed = []
    for name in module.params["fix"]:
        try:
            fixed.append(FIXES[name](host) if not module.check_mode else f"would mend: {name}")
        except (OSError, subprocess.CalledProcessError) as problem:
            module.fail_json(msg=f"{name} cannot be mended: {problem}")
    findings = [dict(found, where=name) for name, check in CHECKS.items() for found in check(host)]
    facts = {
        "os": host.os["name"],
        "arch": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "docker": host.docker["version"],
        "compose": host.docker["compose"],
        "cgroup": host.cgroup["version"],
        "cpus": host.cpus,
        "memory": host.memory,
        "disk_free_mb": free_mb(Path(host.docker["image_folder"])),
        "build": build(host),
        "is_container": host.is_container,
        "ufw": UFW.is_file() and "ENABLED=yes" in UFW.read_text(),
        "hostname": socket.gethostname(),
        "machine_id": Path("/etc/machine-id").read_text().strip() if Path("/etc/machine-id").exists() else "",
        "boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }
    module.exit_json(
        changed=bool(fixed),
        findings=findings,
        checked=list(CHECKS),
        fixed=fixed,
        listener=host.listener.pid if host.listener else 0,
        facts=facts,
    )


if __name__ == "__main__":
    main()
