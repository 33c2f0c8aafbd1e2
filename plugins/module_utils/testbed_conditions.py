"""Changes the conditions of a device, and puts them back.

A file of state says which conditions are in force. It is written before a condition is put in force, and again after
one was undone, so that whatever breaks off leaves a file that names at least what was changed. Each step brings the
device in line with the file and may be repeated.

Runs in Ansible's modules, and as a session: `serve` reads a question a line and answers each with a line.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ansible.module_utils.testbed_docker import EngineUnreachable, cgroup_limits, containers, inspect, post
from ansible.module_utils.testbed_in_force import LOST, OF_NETWORK, InForce, as_size, boot, in_words

LEASE = 30  # s without a line after which a session ends
IFB = "ifb-fltestbed"
HANDLE, CHILD = "fed:", "fee:"
OWN_RATE = 100e9  # bit/s, of a direction whose rate is not limited
QUEUE = 0.2  # s that a packet waits at most for its turn, before it is dropped
CGROUPS = Path("/sys/fs/cgroup")
OF_CLIENTS = ("throttle", "pause", "kill")


class Refused(Exception):
    """Why a condition can't be changed, and what to do."""


def run(*command):
    """Run a program and return its output. Raises Refused with what it said."""
    if shutil.which(command[0]) is None:
        raise Refused(f"{command[0]} is not installed here; tc and ip are of the package iproute2")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        raise Refused(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# Network


def addresses_of(server):
    """Return the IPv4 addresses of a name or address."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(server, None, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise Refused(f"the server's address {server} can't be looked up: {error}") from error
    known = sorted(address for address in found if ":" not in address)
    if not known:
        raise Refused(
            f"the server's address {server} is IPv6, and shape and partition know IPv4 alone; set "
            "testbed_superlink_address to an IPv4 address"
        )
    return known


def interface_to(address):
    """Return the name of the interface on the way to an address."""
    words = run("ip", "-o", "route", "get", address).split()
    name = words[words.index("dev") + 1]
    if "local" in words[:1] or name == "lo":
        raise Refused(f"the server's address {address} is this device's own, so what is said to it never leaves")
    return name


def queue_commands(device, rate, parameters, default):
    """Return the commands that give a device a queue with a rate (bit/s), delay, jitter (s) and loss (share)."""
    tc = ["tc", "qdisc", "add", "dev", device]
    commands = [
        [*tc, "root", "handle", HANDLE, "htb", "default", default, "direct_qlen", "1000"],
        [
            *("tc", "class", "add", "dev", device, "parent", HANDLE, "classid", f"{HANDLE}1"),
            *("htb", "rate", f"{rate:.0f}bit", "ceil", f"{rate:.0f}bit", "quantum", "1514"),
        ],
    ]
    leaf = [*tc, "parent", f"{HANDLE}1", "handle", CHILD]
    delay, jitter, loss = (parameters.get(key, 0) for key in ("delay", "jitter", "loss"))
    waiting = rate * QUEUE / 8
    if delay or loss:
        packets = (waiting + rate * (delay + jitter) / 8) / 1500
        leaf += ["netem", "limit", f"{min(max(packets, 100), 100000):.0f}"]
        leaf += ["delay", f"{delay * 1e6:.0f}us", *([f"{jitter * 1e6:.0f}us"] if jitter else [])] if delay else []
        leaf += ["loss", f"{loss * 100:g}%"] if loss else []
        commands.append(leaf)
    elif rate < OWN_RATE:
        commands.append([*leaf, "bfifo", "limit", f"{max(waiting, 2**17):.0f}"])
    return commands


def shape_commands(device, addresses, ports, parameters):
    """Return the commands that shape what goes between a device and the ports of the server, and nothing else."""
    shared = any(parameters.get(key) for key in ("delay", "loss"))
    commands = []

    def filters(parent, end, action):
        for address in addresses:
            for port in ports:
                match = ["match", "ip", end, f"{address}/32", "match", "ip", "protocol", "6", "0xff"]
                match += ["match", "ip", {"dst": "dport", "src": "sport"}[end], str(port), "0xffff"]
                add = ["tc", "filter", "add", "dev", device, "parent", parent, "protocol", "ip", "prio", "1", "u32"]
                commands.append([*add, *match, *action])

    if shared or "rate_up" in parameters:
        commands += queue_commands(device, parameters.get("rate_up", OWN_RATE), parameters, "0")
        filters(HANDLE, "dst", ["flowid", f"{HANDLE}1"])
    if shared or "rate_down" in parameters:
        commands += [["ip", "link", "add", IFB, "type", "ifb"], ["ip", "link", "set", IFB, "up"]]
        commands += queue_commands(IFB, parameters.get("rate_down", OWN_RATE), parameters, "1")
        commands.append(["tc", "qdisc", "add", "dev", device, "handle", "ffff:", "ingress"])
        filters("ffff:", "src", ["action", "mirred", "egress", "redirect", "dev", IFB])
    return commands


def unshape():
    """Take away whatever `shape_commands` made, on any device."""
    for line in run("tc", "qdisc", "show").splitlines():
        _qdisc, kind, handle, _dev, device = line.split()[:5]
        if device == IFB:
            continue
        if handle == HANDLE and "root" in line.split():
            run("tc", "qdisc", "del", "dev", device, "root")
        elif kind == "ingress" and IFB in run("tc", "filter", "show", "dev", device, "parent", "ffff:"):
            run("tc", "qdisc", "del", "dev", device, "ingress")
    if Path("/sys/class/net", IFB).exists():
        run("ip", "link", "del", IFB)


def require_shapable(device, parameters, ours):
    """Raise Refused unless this kernel can do it, tried on a device made for that, and the way there is free."""
    if not ours:
        for line in run("tc", "qdisc", "show", "dev", device).splitlines():
            words = line.split()
            if ("root" in words and words[2] != "0:") or words[1] in ("ingress", "clsact"):
                raise Refused(
                    f"{device} has a queue of its own ({words[1]} {words[2]}), which shape would replace; "
                    f"tc qdisc del dev {device} {'root' if 'root' in words else words[1]} removes it"
                )
    probe = f"{IFB[:-3]}try"
    try:
        run("ip", "link", "add", probe, "type", "ifb")
    except Refused as error:
        raise Refused(f"this kernel has no ifb, which shape needs: {error}") from error
    try:
        root, rate_class, *leaf = queue_commands(probe, OWN_RATE, parameters, "1")
        try:
            run(*root)
            run(*rate_class)
        except Refused as error:
            raise Refused(f"this kernel has no htb, which shape needs: {error}") from error
        try:
            for command in leaf:
                run(*command)
        except Refused as error:
            asked = " and ".join(key for key in ("delay", "loss") if parameters.get(key))
            raise Refused(
                f"{asked} needs netem, which this kernel does not have (module sch_netem); a rate alone works"
            ) from error
    finally:
        run("ip", "link", "del", probe)


def partition_rules(mark, addresses, ports):
    """Return what to add to chains of iptables so that nothing passes between the device and the server's ports."""
    rules = []
    for address in addresses:
        for port in ports:
            there = ["-p", "tcp", "-d", address, "--dport", str(port)]
            back = ["-p", "tcp", "-s", address, "--sport", str(port)]
            ways = [("DOCKER-USER", there), ("DOCKER-USER", back), ("OUTPUT", there), ("INPUT", back)]
            rules += [[chain, *way, "-m", "comment", "--comment", mark, "-j", "DROP"] for chain, way in ways]
    return rules


def rules_with(mark):
    """Return the rules that iptables has of this mark, as arguments for it to delete."""
    rules = [shlex.split(line) for line in run("iptables", "-w", "-S").splitlines() if line.startswith("-A ")]
    return [rule[1:] for rule in rules if mark in rule]


# Control groups


def cgroup_folders(pid, controller):
    """Return the folders of a process's control group and of those around it, the innermost first."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or not controllers:
            root = CGROUPS / controller if controllers else CGROUPS
            folder = root / path.lstrip("/")
            return [folder, *(parent for parent in folder.parents if parent == root or root in parent.parents)]
    return []


def number(path, key=""):
    """Return a file's number, or that of its line which begins with `key`; None where there is none."""
    if not path.exists():
        return None
    lines = [line.split() for line in path.read_text().splitlines()]
    found = next((line[1] for line in lines if line[0] == key), None) if key else lines[0][0]
    return int(found) if found and found.lstrip("-").isdigit() else None


def cpus_around(pid):
    """Return how many cores the control groups around a process leave it, and the machine has."""
    most = float(os.cpu_count() or 1)
    for folder in cgroup_folders(pid, "cpu")[1:]:
        quota, period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
        if (folder / "cpu.max").exists():
            words = (folder / "cpu.max").read_text().split()
            quota, period = (-1 if words[0] == "max" else int(words[0])), int(words[1])
        if quota and quota > 0:
            most = min(most, quota / period)
    return most


def memory_around(pid):
    """Return how many bytes the control groups around a process leave it, and the machine has."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in cgroup_folders(pid, "memory")[1:]:
        for name in ("memory.limit_in_bytes", "memory.max"):
            most = min(most, number(folder / name) or most)
    return most


def memory_used(pid):
    """Return how many bytes a process's control group holds that can't just be dropped."""
    folder = cgroup_folders(pid, "memory")[0]
    used = number(folder / "memory.usage_in_bytes") or number(folder / "memory.current") or 0
    inactive = number(folder / "memory.stat", "total_inactive_file") or number(folder / "memory.stat", "inactive_file")
    return used - (inactive or 0)


class Conditions(InForce):
    """The conditions of one testbed on this device. With a session, what it puts in force is its own to undo."""

    def __init__(self, project, session=""):
        super().__init__(project)
        self.session = session
        self.entries = {}

    # State

    @contextlib.contextmanager
    def alone(self):
        """Keep others from changing conditions of this device meanwhile, and read which are in force."""
        folder = os.open(self.file.parent.parent, os.O_RDONLY)  # it is there, so that to ask leaves no trace
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            self.entries = self.read()
            yield
        finally:
            os.close(folder)

    def save(self):
        """Write the state whole, for root alone, and on the disk before anything else happens."""
        self.tell()
        if not self.entries:
            self.file.unlink(missing_ok=True)
            return
        self.file.parent.mkdir(mode=0o755, exist_ok=True)
        partial = self.file.with_suffix(".new")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            json.dump(self.entries, out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(self.file)

    def tell(self):
        """Write for node-exporter what is in force, where there is one."""
        root = next((each["Labels"].get("com.docker.compose.project.working_dir") for each in self.containers()), None)
        folder = Path(root or "/nowhere", "textfile")
        if not folder.is_dir():
            return
        lines = [
            f'fltestbed_condition{{kind="{entry["kind"]}"'
            + (f',client="{entry["client"]}"' if entry["client"] else "")
            + "} 1\n"
            for entry in self.entries.values()
            if entry["kind"] != "network"
        ]
        file = folder / "conditions.prom"
        if not lines:
            file.unlink(missing_ok=True)
            return
        head = "# HELP fltestbed_condition A condition that was changed and is in force.\n"
        partial = file.with_suffix(".new")
        partial.write_text(head + "# TYPE fltestbed_condition gauge\n" + "".join(lines))
        partial.chmod(0o644)
        partial.replace(file)

    # The host

    def containers(self):
        try:
            return containers(self.project)
        except EngineUnreachable:
            return []

    def container(self, service):
        """Return the engine's short record of a service's container, None where there is none."""
        for each in containers(self.project):
            if each["Labels"].get("com.docker.compose.service") == service:
                return each
        return None

    def clients(self):
        """Return the names of the clients that have containers here."""
        return sorted(
            each["Labels"]["fltestbed.client"]
            for each in containers(self.project)
            if "fltestbed.cpus" in each["Labels"]
        )

    def server(self):
        """Return the server's IPv4 addresses and its testbed's ports, as the devices's containers have them."""
        for each in containers(self.project):
            if "fltestbed.server" in each["Labels"]:
                ports = [int(port) for port in each["Labels"]["fltestbed.ports"].split()]
                return addresses_of(each["Labels"]["fltestbed.server"]), ports
        raise Refused("no SuperNode is here that says where the server is; fltestbed up brings it")

    # What is asked

    def check(self, kind, parameters, clients):
        """Raise Refused for what can't be done here; nothing is changed."""
        if kind == "reboot" and shutil.which("systemctl") is None:
            raise Refused("systemctl is not here, which reboot needs")
        if kind in ("throttle", "pause", "kill"):
            here = self.clients()
            for client in clients or here or [""]:
                if client not in here:
                    raise Refused(f"there is no container of {client or 'a client'} here; fltestbed up makes it")
                self.check_client(kind, parameters, client)
        if kind == "partition" or (kind in ("shape", "network") and parameters):
            addresses, _ports = self.server()
            device = interface_to(addresses[0])
            if kind == "partition":
                run("iptables", "-w", "-S", "DOCKER-USER")
            else:
                require_shapable(device, parameters, {"shape", "network"} & self.read().keys())

    def check_client(self, kind, parameters, client):
        record = inspect(self.container(f"client-{client}")["Id"])
        pid = record["State"]["Pid"]
        if kind == "pause" and not pid:
            raise Refused(f"{client} does not run, so it can't be paused; fltestbed rejoin starts it")
        if kind != "throttle" or not pid:
            return
        cpus, memory = parameters.get("cpus"), parameters.get("memory")
        if cpus and cpus > cpus_around(pid) + 1e-6:
            raise Refused(f"cpus {cpus:g} is more than the {cpus_around(pid):g} that this device has")
        if memory and memory > memory_around(pid):
            raise Refused(f"memory {as_size(memory)} is more than the {as_size(memory_around(pid))} of this device")
        if memory and memory < memory_used(pid):
            raise Refused(
                f"memory {as_size(memory)} is less than what {client} uses now, {as_size(memory_used(pid))}; "
                "the kernel would end its processes"
            )

    def apply(self, kind, parameters, clients):
        """Do what was asked, and return it in words. Raises Refused; what was begun is undone then."""
        with self.alone():
            self.check(kind, parameters, clients)
            if kind == "reboot":
                subprocess.Popen(
                    ["sh", "-c", "sleep 1; exec systemctl reboot"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
                return "reboots in a second"
            if kind in ("rejoin", "restore", "lift", "unthrottle", "unshape"):
                return self.undo(kind, clients)
            if kind == "keep":
                return self.keep()
            if kind == "network":
                if parameters:
                    return self.put(kind, "", parameters)
                return self.drop(["network"] if "network" in self.entries else [])
            if kind in ("shape", "partition"):
                return self.put(kind, "", parameters)
            return "; ".join(self.put(kind, client, parameters) for client in clients or self.clients())

    def undo(self, kind, clients):
        kinds = {
            "rejoin": ("pause", "kill", "partition"),
            "restore": (*OF_CLIENTS, "shape", "partition"),
            "unthrottle": ("throttle",),
            "unshape": ("shape",),
        }
        wanted = kinds.get(kind, (*OF_CLIENTS, *OF_NETWORK))
        return self.drop(
            [
                key
                for key, entry in self.entries.items()
                if entry["kind"] in wanted and (not clients or entry["client"] in clients)
            ],
            ending=kind.startswith("un"),
        )

    def forget(self):
        """Take the conditions of a testbed whose containers are gone out of the network; return what was in force."""
        with self.alone():
            kinds = {entry["kind"] for entry in self.entries.values()}
            self.entries = {}
            if kinds & {"shape", "network"}:
                self.enforce_network()
            if "partition" in kinds:
                self.enforce_partition()
            self.save()
            return kinds

    def put(self, kind, client, parameters):
        """Put a condition in force; one of its kind is replaced, a throttle only in what is said anew."""
        key = f"{kind} {client}".rstrip()
        now, former = boot(), self.entries.get(key)
        if former and kind == "throttle":
            parameters = {**former["parameters"], **parameters}
        before = former
        if former and former["session"] == self.session:
            before = former["before"]
        self.entries[key] = {
            "kind": kind,
            "client": client,
            "parameters": parameters,
            "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "boot": now,
            "session": self.session,
            "before": before if self.session else None,
        }
        self.save()
        try:
            return self.enforce(kind, client) or in_words(self.entries[key])
        except Exception:
            failed = self.entries.pop(key)
            if former:
                self.entries[key] = former
            with contextlib.suppress(Exception):
                self.enforce(failed["kind"], failed["client"])
            self.save()
            raise

    def drop(self, keys, ending=False):
        """Take conditions out of force and return what was, in words; go on past one that can't be undone.

        At a session's end what was in force before it comes back.
        """
        said, failed = [], []
        for key in keys:
            entry = self.entries.pop(key)
            if ending and entry["before"]:
                self.entries[key] = entry["before"]
            try:
                self.enforce(entry["kind"], entry["client"])
                said.append(in_words(entry))
            except Exception as error:
                self.entries[key] = entry
                failed.append(f"{in_words(entry)}: {error}")
            self.save()
        if failed:
            raise Refused(f"not put back: {'; '.join(failed)}")
        return f"put back: {'; '.join(said)}" if said else "nothing was changed"

    def keep(self):
        """Put in force again what a reboot undid."""
        lost = [key for key, entry in self.entries.items() if entry["kind"] in LOST and entry["boot"] != boot()]
        for key in lost:
            entry = self.entries[key]
            self.enforce(entry["kind"], entry["client"])
            entry["boot"] = boot()
            self.save()
        return f"in force again: {'; '.join(in_words(self.entries[key]) for key in lost)}" if lost else ""

    def end(self):
        """Put back what the session changed."""
        with self.alone():
            return self.drop([key for key, entry in self.entries.items() if entry["session"] == self.session], True)

    # Bringing the device in line

    def enforce(self, kind, client):
        """Bring what a kind of condition acts on in line with the entries; return it in words where there is more."""
        if kind == "throttle":
            return self.enforce_limits(client)
        if kind in ("pause", "kill"):
            return self.enforce_running(client)
        if kind == "partition":
            return self.enforce_partition()
        return self.enforce_network()

    def enforce_network(self):
        entry = self.entries.get("shape") or self.entries.get("network")
        unshape()
        if entry is None:
            return
        addresses, ports = self.server()
        try:
            for command in shape_commands(interface_to(addresses[0]), addresses, ports, entry["parameters"]):
                run(*command)
        except Exception:
            unshape()
            raise

    def enforce_partition(self):
        for rule in rules_with(self.project):
            run("iptables", "-w", "-D", *rule)
        if "partition" in self.entries:
            for chain, *rule in partition_rules(self.project, *self.server()):
                run("iptables", "-w", "-I", chain, *rule)

    def enforce_running(self, client):
        killed, paused = f"kill {client}" in self.entries, f"pause {client}" in self.entries
        for service in (f"supernode-{client}", f"client-{client}"):
            container = self.container(service)
            if container is None:
                continue
            path, state = f"/containers/{container['Id']}", container["State"]
            if state == "paused" and (killed or not paused):
                post(f"{path}/unpause")
            if killed and state not in ("exited", "created", "dead"):
                post(f"{path}/kill")
            if not killed and state in ("exited", "created", "dead"):
                post(f"{path}/start")
            if paused and not killed and state != "paused":
                post(f"{path}/pause")

    def enforce_limits(self, client):
        """Hold a client to its limits, and require of the kernel that it does."""
        container = self.container(f"client-{client}")
        if container is None:
            return
        record = inspect(container["Id"])
        labels, now = record["Config"]["Labels"], record["HostConfig"]
        wanted = self.entries.get(f"throttle {client}", {"parameters": {}})["parameters"]
        cpus = wanted.get("cpus", float(labels["fltestbed.cpus"] or 0))
        memory = wanted.get("memory", int(labels["fltestbed.memory"] or 0))
        change = {"Memory": memory or -1, "MemorySwap": memory or -1}
        if labels["fltestbed.cpus"]:
            change["NanoCpus"] = round(cpus * 1e9)
        elif cpus or now["CpuQuota"] > 0:  # NanoCpus can't be taken away again
            change |= {"CpuPeriod": 100000, "CpuQuota": round(cpus * 100000) or -1}
        if change := {key: value for key, value in change.items() if (now[key] or -1) != value}:
            post(f"/containers/{container['Id']}/update", change)
        if not record["State"]["Pid"]:
            return
        got_cpus, got_memory = cgroup_limits(record["State"]["Pid"])
        if abs((got_cpus or 0) - cpus) > 0.005 or abs((got_memory or 0) - memory) > 65536:
            raise Refused(
                f"the kernel holds {client} to {got_cpus} cpus and {as_size(got_memory or 0)}, "
                f"not to {cpus:g} and {as_size(memory)}"
            )


# A session


def lines(lease):
    """Yield the lines of the standard input, until it ends or none has come for the lease (s)."""
    text = b""
    while select.select([0], [], [], lease)[0]:
        more = os.read(0, 65536)
        if not more:
            return
        *whole, text = (text + more).split(b"\n")
        yield from whole


def answer(conditions, question):
    """Return what becomes of a question, as (done, text)."""
    try:
        if question["do"] == "end":
            return True, conditions.end()
        if question["do"] == "hello":
            with conditions.alone():
                return True, conditions.keep()
        arguments = question["kind"], question["parameters"], question["clients"]
        if question["do"] == "check":
            return True, conditions.check(*arguments) or "can be done"
        return True, conditions.apply(*arguments)
    except (Refused, EngineUnreachable, OSError, ValueError, subprocess.SubprocessError) as error:
        return False, str(error)


def serve(lease=LEASE):
    """Answer questions on the standard input until it ends, none comes any more, or a signal; then put all back."""
    for signal_number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: sys.exit())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    conditions = None
    try:
        for line in lines(lease):
            if not line:
                continue
            question = json.loads(line)
            if question["do"] == "hello":
                conditions = Conditions(question["project"], question["session"])
            started = time.time()
            done, text = answer(conditions, question)
            said = {"id": question["id"], "started": started, "ended": time.time(), "ok": done, "text": text}
            os.write(1, json.dumps(said).encode() + b"\n")
            if question["do"] == "end":
                return
    finally:
        if conditions:
            answer(conditions, {"do": "end"})
