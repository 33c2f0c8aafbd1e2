"""The inventory as data: one server, its devices and their clients, checked before any host is touched."""

import functools
import ipaddress
import json
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fltestbed import inventory_stamp, network
from fltestbed.errors import InventoryError
from fltestbed.findings import Finding
from fltestbed.inventory_ansible import CONNECTION, SSH_ARGUMENTS
from fltestbed.inventory_files import GROUPS, Files, read, shown
from fltestbed.paths import ansible_environment, content_dir, nearest

SERVER_SERVICES = ("superlink", "serverapp", "proxy")
"""What runs on the server host, by the names in its compose file."""
DIALABLE = "write an IPv4 address or a name that DNS knows"
"""What to do about an address that is `undialable`."""

Client = dict[str, Any]
"""One client: device, client (names), cpus (cores or None), memory (bytes or None), settings (of training), data."""

_WATCHERS = ("prometheus", "grafana")
SETTINGS = ("batch_size", "learning_rate", "local_epochs", "data_fraction", "participation", "deadline", "width")
_NUMBERS = ("cpus", "memory", *SETTINGS)
CLIENT_KEYS = (*_NUMBERS, "data")
_PROFILE_KEYS = (*_NUMBERS, "speed", "network", "source")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NAME_RULE = "a to z, 0 to 9 and hyphens between them, at most 63 characters"
_DOMAIN = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*\.?"
)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@\\-]*\$?")
_MEMORY = re.compile(r"(\d{1,18}(?:\.\d+)?)([kmg]?)b?", re.IGNORECASE)
_MEMORY_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_LEAST_MEMORY = 6 * 1024**2  # Docker refuses less
_PATIENCE = 60.0  # s that Ansible gets for an inventory, its scripts included


@dataclass(frozen=True)
class Host:
    """A host, with the connection variables that its inventory sets (`ansible_host`, …), templates resolved."""

    name: str
    connection: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Monitoring:
    """Where Prometheus and Grafana run, and the ports of that host's own loopback address that they listen on."""

    host: Host
    ports: Mapping[str, int]


@dataclass(frozen=True)
class Testbed:
    """An inventory folder that passed every check.

    `devices` are the hosts of group supernodes, `root` is the testbed's folder on the server host.
    """

    name: str
    path: Path
    server: Host
    devices: tuple[Host, ...]
    clients: tuple[Client, ...]
    root: str
    monitoring: Monitoring | None = None
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The devices of each group of the inventory."""

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The server, the host that monitors and the devices, each once."""
        monitoring = [self.monitoring.host] if self.monitoring else []
        return tuple({host.name: host for host in (self.server, *monitoring, *self.devices)}.values())


class _Problem(InventoryError):
    """A variable of a host is wrong; `at` is the way to it, as in `testbed_clients.0.memory`."""

    def __init__(self, at: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.at = at


def load(folder: Path) -> Testbed:
    """Return the testbed that an inventory folder describes.

    A folder that was found right before, and is the same with all that bears on it, is not looked at again. Raises
    InventoryError for the first of its errors, with the file and line where they are known.
    """
    stamp = inventory_stamp.key(folder)
    if stamp and (kept := inventory_stamp.recall(folder.name, stamp)):
        return Testbed(
            kept["name"],
            Path(kept["path"]),
            Host(**kept["server"]),
            tuple(Host(**device) for device in kept["devices"]),
            tuple(kept["clients"]),
            kept["root"],
            _monitoring(kept["monitoring"]),
            {name: tuple(devices) for name, devices in kept["groups"].items()},
        )
    found, testbed = _inspect(folder)
    errors = [finding for finding in found if finding.severity == "error"]
    if errors or testbed is None:
        more = f"\nfltestbed check shows {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InventoryError(f"{errors[0].where}: {errors[0].what}", errors[0].fix + more)
    return testbed


def findings(folder: Path) -> list[Finding]:
    """Return all that is wrong with an inventory folder; no host is touched."""
    return _inspect(folder)[0]


def is_name(name: str) -> bool:
    """Return whether a testbed or a host can be called that."""
    return bool(_NAME.fullmatch(name))


def is_address(address: str) -> bool:
    """Return whether this is an IP address or a name that can be looked up: no user, port or path with it."""
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return bool(_DOMAIN.fullmatch(address)) and not re.fullmatch(r"[0-9.]+", address)
    return True


def undialable(address: str) -> str:
    """Return why containers on other devices cannot dial the server by this address; nothing where they can."""
    if ":" in address:
        return f"{address} is IPv6, and Docker on the devices pulls no image from such an address"
    if re.fullmatch(r"[^.]+\.local\.?", address, re.IGNORECASE):
        return f"{address} is a name of mDNS, which containers on the devices cannot look up"
    if re.fullmatch(r"(.+\.)?localhost(\.localdomain)?\.?|127(\.\d+){3}|0\.0\.0\.0", address, re.IGNORECASE):
        return f"{address} is every machine's own address, and a device that dials it reaches itself"
    return ""


def is_user(name: str) -> bool:
    """Return whether SSH can log in as that."""
    return bool(_USER.fullmatch(name))


def profiles() -> dict[str, dict[str, Any]]:
    """Return the built-in profiles by name."""
    return dict(_shared_defaults()["testbed_profiles"])


def device_network(entry: Any, profile: str, known: Mapping[str, Any]) -> Any:
    """Return a testbed_network; where it is the word profile, the network of that profile, of those that are known.

    Raises InventoryError where there is none.
    """
    if entry != "profile":
        return entry
    found = known.get(str(profile))
    if not isinstance(found, Mapping) or "network" not in found:
        what = f"the profile {profile} has no network" if profile else "there is no testbed_profile"
        fix = "write the figures, as in testbed_network: {rate_down: 5mbit}"
        raise _Problem("testbed_network", f"testbed_network is profile, and {what}", fix)
    return found["network"]


def resolve_clients(
    hostname: str,
    hostvars: Mapping[str, Any],
    profiles: Mapping[str, Mapping[str, Any]],
    own_profiles: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Client]:
    """Return the clients of one device, each with its limits and training settings.

    Precedence: entry of testbed_clients > testbed_client > profile > testbed_client_defaults. A limit that nobody sets
    is None; a setting that nobody sets is left out. Memory comes back in bytes (k, m, g are 1024-based, as Docker's).

    Raises InventoryError when a value is of the wrong type or out of range, or a name is unknown.
    """
    problems: list[_Problem] = []
    clients = _resolve(hostname, hostvars, profiles, own_profiles or {}, problems)
    if problems:
        raise InventoryError(f"{hostname}: {problems[0].message}", problems[0].hint)
    return clients


def _resolve(
    hostname: str,
    hostvars: Mapping[str, Any],
    profiles: Mapping[str, Any],
    own_profiles: Mapping[str, Any],
    problems: list[_Problem],
) -> list[Client]:
    """Return the clients of a device without what is wrong, which goes to `problems`."""
    for at, profiles_of in (("testbed_profiles", profiles), ("testbed_own_profiles", own_profiles)):
        if not isinstance(profiles_of, Mapping):
            fix = "write them as {rock-5b: {cpus: 8, memory: 15g}}"
            problems.append(_Problem(at, f"{at} must be profiles by name, not {profiles_of!r}", fix))
            return []
    known = {**profiles, **own_profiles}
    group = _checked("testbed_client_defaults", hostvars.get("testbed_client_defaults") or {}, problems)
    host = _checked("testbed_client", hostvars.get("testbed_client") or {}, problems)
    own = {
        name: _checked(f"testbed_own_profiles.{name}", entry, problems, _PROFILE_KEYS)
        for name, entry in own_profiles.items()
    }
    name = hostvars.get("testbed_profile") or ""
    profile: dict[str, Any] = {}
    if name and (not isinstance(name, str) or name not in known):
        problems.append(_Problem("testbed_profile", f"there is no profile {name!r}", nearest(str(name), known)))
    elif name:
        profile = (
            own[name] if name in own else _checked(f"testbed_profiles.{name}", known[name], problems, _PROFILE_KEYS)
        )

    entries = hostvars.get("testbed_clients") or [{}]
    if not isinstance(entries, list):
        what = f"testbed_clients must be a list, not {entries!r}"
        problems.append(_Problem("testbed_clients", what, "write one entry a client, as in [{cpus: 1}, {cpus: 0.5}]"))
        return []
    clients: list[Client] = []
    for index, entry in enumerate(entries):
        merged = group | profile | host | _checked(f"testbed_clients.{index}", entry or {}, problems)
        clients.append(
            {
                "device": hostname,
                "client": hostname if len(entries) == 1 else f"{hostname}-{index + 1}",
                "cpus": merged.get("cpus"),
                "memory": merged.get("memory"),
                "settings": {key: merged[key] for key in SETTINGS if key in merged},
                "data": merged.get("data"),
            }
        )
    for limit in ("cpus", "memory") if len(clients) > 1 and not problems else ():
        asked = sum(client[limit] or 0 for client in clients)
        if limit in profile and asked > profile[limit]:
            problems.append(
                _Problem(
                    "testbed_clients",
                    f"its {len(clients)} clients ask for {_quantity(limit, asked)} together, "
                    f"but a device of profile {name} has {_quantity(limit, profile[limit])}",
                    f"give each entry of testbed_clients a {limit} limit, so that together they fit the device",
                )
            )
    return clients


def memory_bytes(size: object) -> int | None:
    """Return a size, as in 512m or 2g, in bytes (k, m, g are 1024-based, as Docker's), None when it is none."""
    match = _MEMORY.fullmatch(str(size))
    return int(float(match[1]) * _MEMORY_UNITS[match[2].lower()]) if match else None


def client_number(key: str, value: Any) -> float | int:
    """Return the value of a client's key in cores, bytes or as it is. Raises InventoryError when it cannot be that."""
    problems: list[_Problem] = []
    number = _number(key, key, value, problems)
    if number is None:
        raise problems[0]
    return number


def client_services(client: str) -> tuple[str, str]:
    """Return what runs for a client on its device: its SuperNode, and what trains."""
    return f"supernode-{client}", f"client-{client}"


def _monitoring(kept: Mapping[str, Any] | None) -> Monitoring | None:
    return Monitoring(Host(**kept["host"]), kept["ports"]) if kept else None


def _inspect(folder: Path) -> tuple[list[Finding], Testbed | None]:
    """Return what is wrong with a folder and, unless that is an error, its testbed, which is remembered then."""
    stamp = inventory_stamp.key(folder)
    found: list[Finding] = []
    if not is_name(folder.name):
        what = f"the folder's name is the testbed's, and {folder.name!r} cannot be one"
        found.append(Finding("error", "", shown(folder), what, f"rename the folder: {_NAME_RULE}"))
    files = read(folder)
    found += files.findings
    if files.findings:
        return found, None
    try:
        view = _ask_ansible(folder)
    except InventoryError as error:
        return [*found, Finding("error", "", shown(folder), error.message, error.hint)], None
    if "error" in view:
        return [*found, _ansibles_error(view["error"], folder)], None

    groups, hosts = view["groups"], view["hosts"]
    found += _check_groups(folder, files, groups, hosts)
    found += _check_names(folder, files, groups, hosts)
    specs, defaults = _specifications(), _shared_defaults()
    clients: list[Client] = []
    problems: list[tuple[str, _Problem]] = []
    for name, host in hosts.items():
        own: list[_Problem] = list(_check_variables(folder.name, host, specs, hosts))
        if name in groups.get("supernodes", []):
            variables = defaults | {
                key: value for key, value in host["variables"].items() if not _template_in(key, value)
            }
            clients += _resolve(name, variables, variables["testbed_profiles"], variables["testbed_own_profiles"], own)
            own += _check_network(variables, name in groups.get("superlink", []))
        problems += [(name, problem) for problem in own]
    problems += _check_addresses(groups.get("testbed", []), hosts)
    problems += _check_server(groups, hosts)
    problems += _check_ports(groups, hosts, defaults)
    problems += _check_unique(clients)
    said = set()
    for name, problem in problems:
        where = _where(hosts[name]["origins"], problem.at, files.hosts.get(name) or shown(folder))
        if (where, problem.message) not in said:
            said.add((where, problem.message))
            found.append(Finding("error", "", where, f"{name}: {problem.message}", problem.hint))
    if any(finding.severity == "error" for finding in found):
        return found, None

    made = {
        name: Host(name, {key: host["variables"][key] for key in CONNECTION if key in host["variables"]})
        for name, host in hosts.items()
    }
    server = groups["superlink"][0]
    root = hosts[server]["variables"].get("testbed_root", f"/opt/fltestbed/{folder.name}")
    devices = tuple(made[name] for name in groups["supernodes"])
    monitoring = None
    for name in groups.get("monitoring", []):
        known = defaults | hosts[name]["variables"]
        monitoring = Monitoring(made[name], {program: known[f"testbed_{program}_port"] for program in _WATCHERS})
    of_devices = {
        name: tuple(device.name for device in devices if device.name in members) for name, members in groups.items()
    }
    testbed = Testbed(folder.name, folder, made[server], devices, tuple(clients), root, monitoring, of_devices)
    if stamp:
        inventory_stamp.remember(folder.name, stamp, asdict(testbed) | {"path": str(folder)})
    return found, testbed


def _check_groups(folder: Path, files: Files, groups: Mapping[str, Any], hosts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with who is in which group."""

    def error(group: str, what: str, fix: str) -> Finding:
        return Finding("error", "", files.groups.get(group, shown(folder)), what, fix)

    meant = {
        close[0]: name
        for name in groups
        if name not in GROUPS
        and (close := get_close_matches(name, [each for each in GROUPS if not groups.get(each)], 1, 0.8))
    }
    for right, name in meant.items():
        yield error(name, f"there is no group {name}", f"did you mean {right}?")
    servers, devices, monitors = (groups.get(name, []) for name in GROUPS[1:])
    if len(servers) != 1 and "superlink" not in meant:
        what = f"has {len(servers)} hosts: {', '.join(servers)}" if servers else "is empty"
        yield error("superlink", f"group superlink {what}", "put exactly one host, the server, in it")
    if not devices and "supernodes" not in meant:
        yield error("supernodes", "group supernodes is empty", "put the devices that train in it")
    if "monitoring" in groups and len(monitors) != 1:
        what = f"has {len(monitors)} hosts: {', '.join(monitors)}" if monitors else "is empty"
        yield error("monitoring", f"group monitoring {what}", "put exactly one host in it, or leave the group out")
    for name in monitors if len(monitors) == 1 else ():
        if name not in (*servers, *devices) and "ansible_host" not in hosts[name]["variables"]:
            yield Finding(
                *("error", "", files.hosts.get(name, shown(folder))),
                f"group monitoring has the host {name}, which nothing else is said of",
                f"{nearest(name, [*servers, *devices])} A host of its own needs ansible_host",
            )
    for group, members in zip(GROUPS[1:], (servers, devices, monitors), strict=True):
        outside = [name for name in members if name not in groups.get("testbed", [])]
        if outside and "testbed" not in meant:
            what = f"group {group} is not below testbed, so {', '.join(outside)} would not be deployed"
            yield error(group, what, f"write {group} below `children:` of testbed")
    for name in groups.get("testbed", []):
        if name not in (*servers, *devices, *monitors) and not meant:
            yield Finding(
                *("warning", "", files.hosts.get(name, shown(folder))),
                f"{name} is in testbed, but is neither server nor device, so nothing runs there",
                "put it in superlink, supernodes or monitoring, or take it out",
            )


def _check_names(folder: Path, files: Files, groups: Mapping[str, Any], hosts: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with the names of hosts, and with files that are named after hosts and groups."""
    for name in hosts:
        where = files.hosts.get(name, shown(folder))
        if not is_name(name) and name != "localhost":
            what = f"a host cannot be called {name!r}"
            yield Finding("error", "", where, what, f"use {_NAME_RULE}; the address goes in ansible_host")
        elif name in groups:
            what = f"a host and a group are both called {name}"
            yield Finding("error", "", where, what, "rename the host; the groups' names are fixed")
    for (kind, name), where in files.variables.items():
        known = groups if kind == "group_vars" else hosts
        if name not in known:
            thing = kind.partition("_")[0]
            close = get_close_matches(name, known, 1, 0.8)
            severity: Any = "error" if close and thing == "group" else "warning"
            yield Finding(
                severity,
                "",
                where,
                f"the file is of a {thing} {name}, which there is not: nothing reads it",
                nearest(name, known),
            )


def _check_variables(
    testbed: str, host: Mapping[str, Any], specs: Mapping[str, Any], hosts: Mapping[str, Any]
) -> Iterator[_Problem]:
    """Yield what is wrong with the names and the types of a host's variables; the clients are left to `_resolve`."""
    roles = tuple({f"{spec['role']}_" for spec in specs.values()})
    for name, reason in host["failed"].items():
        yield _Problem(name, f"{name} cannot be resolved: {reason}", "mend the template, or write the value itself")
    for name, value in host["variables"].items():
        if at := _template_in(name, value):
            fix = "write the value itself; templates are for Ansible's own variables, as ansible_user"
            yield _Problem(at, f"{at} is data, so the template in it is not run", fix)
        elif name in specs:
            yield from _check_type(name, value, specs[name])
        elif name.startswith(roles):
            yield _Problem(name, f"there is no variable {name}", nearest(name, specs))
        elif name in CLIENT_KEYS:
            yield _Problem(name, f"{name} is a client's", f"write testbed_client: {{{name}: {value}}}")
        elif f"testbed_{name}" in specs:
            yield _Problem(name, f"there is no variable {name}", f"did you mean testbed_{name}?")
        elif name.startswith("ansible_"):
            if name not in _ANSIBLES and get_close_matches(name, _ANSIBLES, 1, 0.85):
                yield _Problem(name, f"there is no variable {name}", nearest(name, _ANSIBLES))
        elif get_close_matches(name, specs, 1, 0.85):
            yield _Problem(name, f"there is no variable {name}", nearest(name, specs))
        rule = _PORT if _PORT_NAME.fullmatch(name) else _RULES.get(name)
        if rule and not _is_template(value) and not rule[0](value):
            yield _Problem(name, f"{name} cannot be {value!r}", f"write {rule[1]}")
    variables = host["variables"]
    if variables.get("testbed_name", testbed) != testbed and not _is_template(variables["testbed_name"]):
        what = f"testbed_name is {variables['testbed_name']!r}, but the folder is called {testbed!r}"
        yield _Problem("testbed_name", what, "rename the folder and leave testbed_name out")
    builder = variables.get("images_builder", "localhost")
    if builder not in ("localhost", *hosts) and not _is_template(builder):
        yield _Problem("images_builder", f"images_builder: there is no host {builder!r}", nearest(str(builder), hosts))
    subnet, address = variables.get("virtual_device_subnet"), variables.get("ansible_host")
    if _is_subnet(subnet) and isinstance(address, str) and is_address(address):
        try:
            inside = ipaddress.ip_address(address) in ipaddress.ip_network(str(subnet))
        except ValueError:
            inside = False
        if not inside:
            what = f"ansible_host {address} is not an address of virtual_device_subnet {subnet}"
            yield _Problem("ansible_host", what, "change one of the two")


def _check_type(name: str, value: Any, spec: Mapping[str, Any]) -> Iterator[_Problem]:
    """Yield what is wrong with a role's variable, by the role's specification. A template is left to Ansible."""
    if _is_template(value) or name in _DATA:
        return
    kind = spec.get("type", "str")
    kinds, expected = _KINDS[kind]
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not fits:
        yield _Problem(name, f"{name} cannot be {value!r}", f"write {expected}")
    elif value not in spec.get("choices", [value]):
        yield _Problem(name, f"{name} cannot be {value!r}", nearest(str(value), spec["choices"]))
    elif kind in ("int", "float") and not 0 <= value < math.inf:
        fix = "write a number that is not negative" if value < 0 else "write a finite number"
        yield _Problem(name, f"{name} cannot be {value!r}", fix)
    elif kind == "list" and "elements" in spec:
        for index, item in enumerate(value):
            for problem in _check_type(name, item, {"type": spec["elements"]}):
                yield _Problem(f"{name}.{index}", problem.message, problem.hint)


def _check_network(variables: Mapping[str, Any], is_server: bool) -> Iterator[_Problem]:
    """Yield what is wrong with a device's testbed_network."""
    profiles = [variables[name] for name in ("testbed_profiles", "testbed_own_profiles")]
    known = {name: each for some in profiles if isinstance(some, Mapping) for name, each in some.items()}
    try:
        entry = device_network(variables["testbed_network"], variables["testbed_profile"], known)
    except _Problem as problem:
        yield problem
        return
    yield from _network_problems("testbed_network", entry)
    if entry and is_server:
        what = "testbed_network is of the server's own host, so what its clients say to the server never leaves it"
        yield _Problem("testbed_network", what, "set testbed_network: {} there")


def _is_port(value: Any) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,5}", str(value))) and 0 < int(value) < 65536


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _are_arguments(value: Any) -> bool:
    try:
        shlex.split(str(value or ""))
    except ValueError:
        return False
    return True


def _is_subnet(value: Any) -> bool:
    try:
        return ipaddress.IPv4Network(str(value)).prefixlen <= 29
    except ValueError:
        return False


_DATA = (
    *("testbed_clients", "testbed_client", "testbed_client_defaults", "testbed_profile"),
    *("testbed_own_profiles", "testbed_population", "testbed_profiles", "testbed_network"),
)
"""What is never templated."""
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str, int, float), "a text"),
    "path": ((str,), "a path"),
    "int": ((int,), "a whole number, without quotes"),
    "float": ((int, float), "a number, without quotes"),
    "bool": ((bool,), "true or false, without quotes"),
    "list": ((list,), "a list, as in [one, two]"),
    "dict": ((dict,), "keys and values, as in {key: value}"),
}
_SIZE = (lambda value: bool(_MEMORY.fullmatch(str(value))), "a size with k, m or g, as in 512m or 2g")
_PORT = (_is_port, "a port from 1 to 65535")
_PORT_NAME = re.compile(r"ansible_port|testbed_\w+_port")
_ARGUMENTS = (_are_arguments, "arguments as a shell takes them, with an end to every quote")
_ADDRESS = (
    lambda value: isinstance(value, str) and is_address(value),
    "an IP address or a host's name alone: no user, port, spaces or path",
)
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "ansible_host": _ADDRESS,
    "ansible_user": (lambda value: is_user(str(value)), "a login name, as in pi"),
    "testbed_superlink_address": _ADDRESS,
    "testbed_exporter_address": _ADDRESS,
    **dict.fromkeys(SSH_ARGUMENTS, _ARGUMENTS),
    "testbed_root": (
        lambda value: bool(re.fullmatch(r"(/(?!\.{1,2}(/|$))[\w.-]+)+", str(value))),
        "an absolute path of letters, digits, dots, hyphens and underscores, without . and .. as a part",
    ),
    "superlink_max_message": _SIZE,
    "virtual_device_cpus": (_is_amount, "a number of cores above 0"),
    "virtual_device_memory": _SIZE,
    "virtual_device_subnet": (_is_subnet, "an IPv4 network of /29 or larger, as in 172.28.1.0/24"),
}
"""What a type alone does not say of a variable."""
_ANSIBLES = [
    *CONNECTION,
    *("ansible_password", "ansible_ssh_pass", "ansible_ssh_password", "ansible_ssh_executable"),
    *("ansible_sftp_extra_args", "ansible_scp_extra_args"),
    *("ansible_ssh_pipelining", "ansible_pipelining", "ansible_ssh_timeout", "ansible_timeout", "ansible_ssh_retries"),
    *("ansible_ssh_transfer_method", "ansible_ssh_use_tty", "ansible_connection_user"),
    *("ansible_control_path", "ansible_control_path_dir"),
    *("ansible_become_user", "ansible_become_method", "ansible_become_exe", "ansible_become_flags"),
    *("ansible_become_password", "ansible_become_pass", "ansible_sudo_pass", "ansible_sudo_password"),
    *("ansible_python_interpreter", "ansible_shell_type", "ansible_shell_executable"),
    *("ansible_remote_tmp", "ansible_module_compression", "ansible_async_dir", "ansible_network_os"),
]


def _is_template(value: Any) -> bool:
    return isinstance(value, str) and any(mark in value for mark in ("{{", "{%", "{#"))


def _template_in(at: str, value: Any) -> str:
    """Return where in a variable that is data a template stands, if one does."""
    if at.partition(".")[0] not in _DATA:
        return ""
    if isinstance(value, Mapping):
        return next(
            (
                found
                for key, item in value.items()
                if (found := _template_in(f"{at}.{key}", item) or (at if _is_template(key) else ""))
            ),
            "",
        )
    if isinstance(value, list):
        return next((found for index, item in enumerate(value) if (found := _template_in(f"{at}.{index}", item))), "")
    return at if _is_template(value) else ""


def _checked(at: str, entry: Any, problems: list[_Problem], known: tuple[str, ...] = CLIENT_KEYS) -> dict[str, Any]:
    """Return an entry's client keys, as numbers where they are."""
    if not isinstance(entry, Mapping):
        what, fix = f"{at} must be a mapping, not {entry!r}", "write it like {cpus: 1, memory: 512m}"
        problems.append(_Problem(at, what, fix))
        return {}
    values: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in known:
            what = f"{at} has an unknown key {key!r}"
            problems.append(_Problem(f"{at}.{key}", what, nearest(str(key), known)))
        elif key == "speed" and not _is_amount(value):
            problems.append(_Problem(f"{at}.speed", f"speed cannot be {value!r}", "write a number above 0, as in 0.5"))
        elif key == "network":
            problems += _network_problems(f"{at}.network", value)
        elif key == "data":
            if isinstance(value, str) and re.fullmatch(r"/[^:,$\s]+", value):
                values[key] = value
            else:
                fix = "write an absolute path on the device, without spaces, colons, commas and $, as in /srv/data"
                problems.append(_Problem(f"{at}.data", f"data cannot be {value!r}", fix))
        elif key in _NUMBERS and (number := _number(f"{at}.{key}", key, value, problems)) is not None:
            values[key] = number
    return values


def _network_problems(at: str, entry: Any) -> list[_Problem]:
    """Return what is wrong with the figures of a network."""
    if not isinstance(entry, Mapping):
        return [_Problem(at, f"{at} cannot be {entry!r}", "write it like {rate_down: 5mbit}")]
    return [_Problem(f"{at}.{wrong.key}", f"{at}: {wrong.what}", wrong.fix) for wrong in network.parse(entry)[1]]


def _number(at: str, key: str, value: Any, problems: list[_Problem]) -> float | int | None:
    """Return the value of a client key, in cores, bytes or as it is."""
    rules: dict[str, tuple[str, type, float, float]] = {
        "cpus": ("a number of cores from 0.01, as in 0.5 or 4", float, 0.01, 1024),
        "memory": ("a size of at least 6m, with k, m or g, as in 512m or 2g", int, _LEAST_MEMORY, 2**50),
        "batch_size": ("a whole number from 1 to 65536", int, 1, 65536),
        "learning_rate": ("a number above 0, at most 10", float, 1e-12, 10),
        "local_epochs": ("a whole number from 1 to 1000", int, 1, 1000),
        "data_fraction": ("a number above 0, at most 1", float, 1e-12, 1),
        "participation": ("a number above 0, at most 1", float, 1e-12, 1),
        "deadline": ("a number of seconds above 0", float, 1e-3, 1e6),
        "width": ("a number above 0, at most 1", float, 1e-12, 1),
    }
    expected, kind, least, most = rules[key]
    number: float | int | None = None
    if key == "memory":
        number = memory_bytes(value)
    elif not isinstance(value, bool):
        try:
            number = kind(str(value))
        except ValueError:
            number = None
    if number is None or not least <= number <= most:
        problems.append(_Problem(at, f"{key} cannot be {value!r}", f"write {expected}"))
        return None
    return number


def _quantity(limit: str, value: float) -> str:
    return f"{value / 1024**2:g}m" if limit == "memory" else f"{value:g} cpus"


def _check_addresses(names: list[str], hosts: Mapping[str, Any]) -> Iterator[tuple[str, _Problem]]:
    """Yield hosts at one address; behind another gate, which SSH's arguments name, it is another host's."""
    seen: dict[tuple[str, ...], str] = {}
    for name in names:
        variables = hosts[name]["variables"]
        if variables.get("ansible_connection") == "local":
            continue
        gate = (str(variables.get(argument) or "") for argument in SSH_ARGUMENTS)
        address = (str(variables.get("ansible_host", name)), str(variables.get("ansible_port", 22)), *gate)
        other = seen.setdefault(address, name)
        if other != name:
            fix = "give each its own; several clients of one device go into testbed_clients"
            yield name, _Problem("ansible_host", f"has the address of {other}, {address[0]}", fix)


def _check_server(groups: Mapping[str, list[str]], hosts: Mapping[str, Any]) -> Iterator[tuple[str, _Problem]]:
    """Yield the server's addresses that the containers of devices cannot dial."""
    server = next(iter(groups.get("superlink", [])), "")
    for device in groups.get("supernodes", []) if server else []:
        own = hosts[device]["variables"].get("testbed_superlink_address")
        name, at = (device, "testbed_superlink_address") if own else (server, "ansible_host")
        address = str(own or hosts[server]["variables"].get("ansible_host", server))
        if device == server or _is_template(address):
            continue
        if what := undialable(address):
            yield name, _Problem(at, what, DIALABLE)


def _check_ports(
    groups: Mapping[str, list[str]], hosts: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Iterator[tuple[str, _Problem]]:
    """Yield ports that a host would publish twice, by what the role check binds there."""
    server, monitor = (next(iter(groups.get(group, [])), "") for group in ("superlink", "monitoring"))
    for name in groups.get("testbed", []):
        variables = hosts[name]["variables"]
        known = defaults | variables
        seen: dict[str, str] = {}
        for variable in (f"testbed_{each}_port" for each in _publishes(name, server, monitor, known)):
            port = str(known[variable])
            other = seen.setdefault(port, variable)
            if other != variable and _is_port(port):
                at, other = (variable, other) if variable in variables else (other, variable)
                what = f"{at} is {port}, and so is {other}, which the host publishes too"
                yield name, _Problem(at, what, "give one of them another port")


def _publishes(name: str, server: str, monitor: str, known: Mapping[str, Any]) -> list[str]:
    """Return what a host has ports for. cAdvisor counts on every host: whether it runs, the host's kernel says."""
    programs = ["fleet", "registry"] if name == server else []
    if name == server and monitor not in ("", name):
        programs.append("metrics")
    if monitor:
        programs += ["node_exporter", "cadvisor"]
    if name == monitor:
        has_grafana = known["testbed_images_source"] == "upstream" or known.get("images_grafana_archive")
        watchers = _WATCHERS if has_grafana else _WATCHERS[:1]
        programs += [*watchers, *(f"{each}_lan" for each in watchers if known["testbed_monitoring_open"] is True)]
    return programs


def _check_unique(clients: list[Client]) -> Iterator[tuple[str, _Problem]]:
    devices: dict[str, str] = {}
    for client in clients:
        name, device = client["client"], client["device"]
        other = devices.setdefault(name, device)
        if other != device:
            yield device, _Problem("", f"has a client called {name}, as {other} has", f"rename {other} or {device}")


def _where(origins: Mapping[str, str], at: str, otherwise: str) -> str:
    """Return the file and line of a variable's part, or of what it is part of."""
    while at and not origins.get(at):
        at = at.rpartition(".")[0]
    if not at:
        return otherwise
    path, _, line = origins[at].rpartition(":")
    return f"{shown(Path(path))}:{line}"


def _ansibles_error(said: str, folder: Path) -> Finding:
    """Return Ansible's own message about a folder, on one line."""
    origin = re.search(r"^Origin: (.+?:\d+)", said, re.MULTILINE)
    lines = [line for line in said.splitlines() if line.strip()]
    where = shown(Path(origin[1])) if origin else shown(folder)
    fix = "this is what Ansible says of the folder; ansible-inventory --list shows more"
    if "vault" in lines[0]:
        fix = "name the file that holds the vault's password in the environment variable ANSIBLE_VAULT_PASSWORD_FILE"
    return Finding("error", "", where, lines[0], fix)


@functools.cache
def _shared_defaults() -> dict[str, Any]:
    """Return what the role testbed sets where an inventory does not."""
    import yaml

    file = content_dir() / "roles/testbed/defaults/main.yml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


@functools.cache
def _specifications() -> dict[str, dict[str, Any]]:
    """Return the roles' variables: each one's specification, and its role."""
    import yaml

    specs: dict[str, dict[str, Any]] = {}
    for file in sorted((content_dir() / "roles").glob("*/meta/*_specs.yml")):
        for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["argument_specs"].values():
            for name, option in (entry.get("options") or {}).items():
                specs[name] = option | {"role": file.parents[1].name}
    return specs


def _ask_ansible(folder: Path) -> dict[str, Any]:
    """Return `inventory_ansible.view` of a folder, made by a process of its own. Raises InventoryError."""
    fix = f"ansible-inventory -i {shown(folder)} --list shows more"
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-m", "fltestbed.inventory_ansible", str(folder)],
            env=ansible_environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        what = f"Ansible has not read the folder within {_PATIENCE:g} s, and was ended"
        raise InventoryError(what, f"a script or a plugin in it takes too long; {fix}") from None
    try:
        answer: dict[str, Any] = json.loads(process.stdout)
    except ValueError:
        said = process.stderr.strip().splitlines() or [f"it ended with exit code {process.returncode}"]
        raise InventoryError(f"Ansible cannot read the folder: {said[-1]}", fix) from None
    return answer
