"""The inventory as data: one server, its devices and their clients, checked before any host is touched.

`python -m fltestbed.inventory FOLDER` prints what Ansible makes of a folder; `load` runs it apart, with the environment
that the playbooks get, so that both see the same variables.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fltestbed.errors import InventoryError
from fltestbed.paths import ansible_environment, content_dir, nearest

SERVER_SERVICES = ("superlink", "serverapp", "proxy")
"""What runs on the server host, by the names in its compose file."""

Client = dict[str, Any]
"""One client: device, client (names), cpus (cores or None), memory (bytes or None), settings (training settings)."""

_SETTINGS = ("batch_size", "learning_rate", "local_epochs", "data_fraction")
CLIENT_KEYS = ("cpus", "memory", *_SETTINGS)
_PROFILE_KEYS = (*CLIENT_KEYS, "source")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)([kmg]?)b?", re.IGNORECASE)
_MEMORY_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3}
_LEAST_MEMORY = 6 * 1024**2  # Docker refuses less
_CONNECTION = (
    "ansible_connection",
    "ansible_host",
    "ansible_port",
    "ansible_user",
    "ansible_ssh_private_key_file",
    "ansible_ssh_common_args",
    "ansible_become",
)


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
    """An inventory folder that passed every check. `devices` are the hosts of group supernodes."""

    name: str
    path: Path
    server: Host
    devices: tuple[Host, ...]
    clients: tuple[Client, ...]
    monitoring: Monitoring | None = None

    @property
    def hosts(self) -> tuple[Host, ...]:
        """The server, the host that monitors and the devices, each once."""
        monitoring = [self.monitoring.host] if self.monitoring else []
        return tuple({host.name: host for host in (self.server, *monitoring, *self.devices)}.values())


class _ValueError(InventoryError):
    """A variable of a host is wrong; `at` is the way to it, as in `testbed_clients.0.memory`."""

    def __init__(self, at: str, message: str, hint: str) -> None:
        super().__init__(message, hint)
        self.at = at


def load(folder: Path) -> Testbed:
    """Return the testbed that an inventory folder describes.

    Raises InventoryError, with the file and line where they are known.
    """
    _require_name(folder.name, f"the inventory folder {folder}", "the folder's name is the testbed's name")
    _check_syntax(folder)
    dump = _ask_ansible(folder)
    groups, variables = dump["groups"], dump["hosts"]
    servers, devices = groups.get("superlink", []), groups.get("supernodes", [])
    if len(servers) != 1:
        what = f"has {len(servers)} hosts: {', '.join(servers)}" if servers else "is empty"
        raise InventoryError(f"{folder}: group superlink {what}", "put exactly one host, the server, in it")
    watchers = groups.get("monitoring", [])
    if len(watchers) > 1:
        raise InventoryError(
            f"{folder}: group monitoring has {len(watchers)} hosts: {', '.join(watchers)}",
            "put one host in it, where Prometheus and Grafana run; or none, and nothing is monitored",
        )
    if not devices:
        raise InventoryError(f"{folder}: group supernodes is empty", "put the devices that train in it")

    clients: list[Client] = []
    defaults = _shared_defaults()
    for name in dict.fromkeys([*servers, *watchers, *devices]):
        _require_name(
            name, f"{folder}: host {name!r}", "name the host as one names a computer; its address goes in ansible_host"
        )
        try:
            _check_names(variables[name], defaults)
            if name in devices:
                hostvars = defaults | variables[name]
                clients += resolve_clients(
                    name, hostvars, hostvars["testbed_profiles"], hostvars["testbed_own_profiles"]
                )
        except _ValueError as error:
            where = dump["origins"][name].get(error.at, str(folder))
            raise InventoryError(f"{where}: {error.message}", error.hint) from None
    _check_unique(clients, folder)

    hosts = {
        name: Host(name, {key: variables[name][key] for key in _CONNECTION if key in variables[name]})
        for name in {*servers, *watchers, *devices}
    }
    monitoring = None
    for name in watchers:
        known = defaults | variables[name]
        ports = {program: known[f"testbed_{program}_port"] for program in ("prometheus", "grafana")}
        monitoring = Monitoring(hosts[name], ports)
    return Testbed(
        folder.name, folder, hosts[servers[0]], tuple(hosts[name] for name in devices), tuple(clients), monitoring
    )


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
    known: dict[str, Mapping[str, Any]] = {**profiles, **(own_profiles or {})}
    group = _checked(hostname, "testbed_client_defaults", hostvars.get("testbed_client_defaults") or {})
    host = _checked(hostname, "testbed_client", hostvars.get("testbed_client") or {})
    profile_name = hostvars.get("testbed_profile") or ""
    if profile_name and profile_name not in known:
        raise _ValueError(
            "testbed_profile", f"{hostname}: there is no profile {profile_name!r}", nearest(profile_name, known)
        )
    profile: dict[str, Any] = {}
    if profile_name:
        where = "testbed_own_profiles" if profile_name in (own_profiles or {}) else "testbed_profiles"
        profile = _checked(hostname, f"{where}.{profile_name}", known[profile_name], _PROFILE_KEYS)

    entries = hostvars.get("testbed_clients") or [{}]
    if not isinstance(entries, list):
        raise _ValueError(
            "testbed_clients",
            f"{hostname}: testbed_clients must be a list",
            "write one entry a client, as in [{cpus: 1}]",
        )
    clients: list[Client] = []
    for index, entry in enumerate(entries):
        merged = group | profile | host | _checked(hostname, f"testbed_clients.{index}", entry or {})
        clients.append(
            {
                "device": hostname,
                "client": hostname if len(entries) == 1 else f"{hostname}-{index + 1}",
                "cpus": merged.get("cpus"),
                "memory": merged.get("memory"),
                "settings": {key: merged[key] for key in _SETTINGS if key in merged},
            }
        )
    if len(clients) > 1:
        for limit in ("cpus", "memory"):
            asked = sum(client[limit] or 0 for client in clients)
            if limit in profile and asked > profile[limit]:
                raise _ValueError(
                    "testbed_clients",
                    f"{hostname}: its {len(clients)} clients ask for {_quantity(limit, asked)} together, "
                    f"but a device of profile {profile_name} has {_quantity(limit, profile[limit])}",
                    f"give each entry of testbed_clients a {limit} limit, so that together they fit the device",
                )
    return clients


def client_services(client: str) -> tuple[str, str]:
    """Return what runs for a client on its device: its SuperNode, and what trains."""
    return f"supernode-{client}", f"client-{client}"


def _checked(hostname: str, at: str, entry: Any, known: tuple[str, ...] = CLIENT_KEYS) -> dict[str, Any]:
    """Return an entry's client keys as numbers."""
    if not isinstance(entry, Mapping):
        raise _ValueError(
            at, f"{hostname}: {at} must be a mapping, not {entry!r}", "write it like {cpus: 1, memory: 512m}"
        )
    values = {}
    for key, value in entry.items():
        if key not in known:
            message = f"{hostname}: {at} has an unknown key {key!r}"
            raise _ValueError(f"{at}.{key}", message, nearest(str(key), CLIENT_KEYS))
        if key in CLIENT_KEYS:
            values[key] = _number(hostname, f"{at}.{key}", key, value)
    return values


def _number(hostname: str, at: str, key: str, value: Any) -> float | int:
    """Return the value of a client key, in cores, bytes or as it is."""
    rules: dict[str, tuple[str, type, float, float]] = {
        "cpus": ("a number of cores from 0.01, as in 0.5 or 4", float, 0.01, 1024),
        "memory": ("a size of at least 6m, with k, m or g, as in 512m or 2g", int, _LEAST_MEMORY, 2**50),
        "batch_size": ("a whole number from 1 to 65536", int, 1, 65536),
        "learning_rate": ("a number above 0, at most 10", float, 1e-12, 10),
        "local_epochs": ("a whole number from 1 to 1000", int, 1, 1000),
        "data_fraction": ("a number above 0, at most 1", float, 1e-12, 1),
    }
    expected, kind, least, most = rules[key]
    number: float | int | None = None
    if key == "memory" and (match := _MEMORY.fullmatch(str(value))):
        number = int(float(match[1]) * _MEMORY_UNITS[match[2].lower()])
    elif key != "memory" and not isinstance(value, bool):
        try:
            number = kind(str(value))
        except ValueError:
            number = None
    if number is None or not least <= number <= most:
        raise _ValueError(at, f"{hostname}: {key} cannot be {value!r}", f"write {expected}")
    return number


def _quantity(limit: str, value: float) -> str:
    return f"{value / 1024**2:g}m" if limit == "memory" else f"{value:g} cpus"


def _require_name(name: str, what: str, hint: str) -> None:
    if not _NAME.fullmatch(name):
        raise InventoryError(
            f"{what} has no usable name", f"{hint}: a to z, 0 to 9 and hyphens between them, at most 63 characters"
        )


def _check_names(variables: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    for name in variables:
        if name.startswith("testbed_") and name not in defaults:
            raise _ValueError(name, f"there is no variable {name}", nearest(name, defaults))


def _check_unique(clients: list[Client], folder: Path) -> None:
    devices: dict[str, str] = {}
    for client in clients:
        other = devices.setdefault(client["client"], client["device"])
        if other != client["device"]:
            raise InventoryError(
                f"{folder}: a client of {other} and one of {client['device']} are both called {client['client']}",
                f"rename one of the hosts {other} and {client['device']}",
            )


def _check_syntax(folder: Path) -> None:
    import yaml

    for file in sorted(folder.rglob("*")):
        if file.suffix in (".yml", ".yaml") and file.is_file():
            try:
                yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
            except yaml.MarkedYAMLError as error:
                line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
                raise InventoryError(
                    f"{file}{line}: {error.problem}", "this is not YAML; look at indentation, colons and brackets"
                ) from None
            except (yaml.YAMLError, UnicodeDecodeError) as error:
                raise InventoryError(f"{file}: {error}", "the file must be YAML in UTF-8") from None


def _shared_defaults() -> dict[str, Any]:
    """Return what the role testbed sets where an inventory does not."""
    import yaml

    files = sorted((content_dir() / "roles/testbed/defaults/main").glob("*.yml"))
    return {key: value for file in files for key, value in yaml.safe_load(file.read_text(encoding="utf-8")).items()}


def _ask_ansible(folder: Path) -> dict[str, Any]:
    """Return Ansible's view of a folder: groups, the hosts' variables, and where each value was written."""
    process = subprocess.run(
        [sys.executable, "-P", "-m", "fltestbed.inventory", str(folder)],
        env=ansible_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if process.returncode == 2:
        raise InventoryError(f"{folder}: {process.stderr.strip()}", "this is Ansible's own message about the folder")
    if process.returncode:
        raise RuntimeError(process.stderr)
    answer: dict[str, Any] = json.loads(process.stdout)
    return answer


def _main(folder: str) -> None:
    from ansible._internal._datatag._tags import Origin
    from ansible.errors import AnsibleError
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar
    from ansible.vars.manager import VariableManager

    loader = DataLoader()
    defaults: dict[str, Any] = {}
    for file in sorted((content_dir() / "roles/testbed/defaults/main").glob("*.yml")):
        defaults |= loader.load_from_file(str(file), trusted_as_template=True)

    def origins(value: Any, at: str) -> Iterator[tuple[str, str]]:
        if origin := Origin.get_tag(value):
            yield at, f"{origin.path}:{origin.line_num}"
        items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            yield from origins(item, f"{at}.{key}")

    try:
        inventory = InventoryManager(loader=loader, sources=[folder])
        manager = VariableManager(loader=loader, inventory=inventory)
        answer: dict[str, Any] = {"groups": {}, "hosts": {}, "origins": {}}
        for name, group in inventory.groups.items():
            answer["groups"][name] = [host.name for host in group.get_hosts()]
        for host in inventory.get_hosts():
            variables = manager.get_vars(host=host)
            templar = Templar(loader=loader, variables=defaults | variables)
            names = [name for name in variables if name in _CONNECTION or name.startswith("testbed_")]
            answer["origins"][host.name] = dict(pair for name in names for pair in origins(variables[name], name))
            answer["hosts"][host.name] = {name: templar.template(variables[name]) for name in names}
    except AnsibleError as error:
        sys.stderr.write(str(error))
        sys.exit(2)
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main(sys.argv[1])
