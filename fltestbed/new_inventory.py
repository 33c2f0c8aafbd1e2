"""A new inventory folder: a copy of a built-in one, drawn from a population, or made from answers."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from fltestbed.errors import InventoryError
from fltestbed.inventory import is_address, is_name, memory_bytes
from fltestbed.inventory_files import GROUPS
from fltestbed.paths import content_dir

if TYPE_CHECKING:
    from fltestbed.population import Device

_GROUPS = (*GROUPS, "all", "ungrouped")
_LAB_SUBNET = "172.28.1."  # of inventories/virtual


@dataclass(frozen=True)
class Answers:
    """What a testbed of one's own is made of. `devices`: address and profile by name."""

    server: str
    user: str
    devices: Mapping[str, tuple[str, str]]


def folder_for(name: str) -> Path:
    """Return where the inventory of a new testbed goes. Raises InventoryError when the name cannot be had."""
    if not is_name(name):
        raise InventoryError(
            f"a testbed cannot be called {name!r}", "use a to z, 0 to 9 and hyphens between them, at most 63 characters"
        )
    folder = Path.cwd() / "inventories" / name
    if folder.exists() or folder.is_symlink():
        raise InventoryError(f"{folder} is there already", "choose another name, or remove the folder first")
    return folder


def templates() -> list[str]:
    """Return the names of the built-in inventories, published ones last."""
    root = content_dir() / "inventories"
    names = [str(file.parent.relative_to(root)) for file in root.rglob("hosts.yml")]
    return sorted(names, key=lambda name: ("/" in name, name))


def is_virtual(template: str) -> bool:
    """Return whether a built-in inventory is of virtual devices."""
    return bool(_subnet(content_dir() / "inventories" / template))


def copy(name: str, template: str, scale: float = 1.0) -> Path:
    """Write ./inventories/`name` as a copy of a built-in inventory; return the folder.

    A virtual lab gets a subnet that no network of this machine and no inventory here has, and `scale` times the cpus
    and memory of its clients. Raises InventoryError.
    """
    source = content_dir() / "inventories" / template
    start = _subnet(source)
    subnet = next(_free_subnets()) if start else ""
    files = {
        str(file.relative_to(source)): file.read_text(encoding="utf-8")
        .replace(start or _LAB_SUBNET, subnet or _LAB_SUBNET)
        .replace(f"-i {template}", f"-i {name}")
        for file in sorted(source.rglob("*.yml"))
    }
    if scale != 1:
        from fltestbed.population import scaled

        head = "".join(re.findall(r"\A(?:#.*\n)*", files["hosts.yml"]))
        head += f"#\n# cpus and memory: {scale:g} times those of {template}, and no less than a client needs.\n"
        files["hosts.yml"] = _virtual_hosts(head, [scaled(each, scale) for each in _devices(source)], subnet)
    return _write(name, files)


def populate(name: str, file: Path, scale: float = 1.0) -> Path:
    """Write ./inventories/`name` with virtual devices drawn from the population of a file; return the folder.

    What was drawn from is kept in the variable testbed_population, and goes into every run's lock. Raises
    InventoryError.
    """
    import yaml

    from fltestbed.population import draw, load

    wanted = load(file)
    devices = draw(wanted, scale)
    record = wanted.model_dump(exclude_none=True) | {"scale": scale}
    if clipped := {device.name: dict(device.clipped) for device in devices if device.clipped}:
        record["clipped"] = clipped
    subnet = next(_free_subnets())
    common = (content_dir() / "inventories/virtual/group_vars/testbed.yml").read_text(encoding="utf-8")
    head = f"# {len(devices)} virtual devices, drawn from {file.name} with the seed {wanted.seed}.\n"
    kept = yaml.safe_dump({"testbed_population": record}, sort_keys=False, allow_unicode=True)
    common = f"{common.replace(_LAB_SUBNET, subnet)}\n# What the devices were drawn from.\n{kept}"
    return _write(name, {"hosts.yml": _virtual_hosts(head, devices, subnet), "group_vars/testbed.yml": common})


def make(name: str, answers: Answers) -> Path:
    """Write ./inventories/`name` from answers; return the folder. Raises InventoryError."""
    devices = "\n".join(
        f"        {_scalar(device)}: {{ansible_host: {_scalar(address)}, testbed_profile: {_scalar(profile)}}}"
        for device, (address, profile) in answers.devices.items()
    )
    return _write(
        name,
        {
            "hosts.yml": _HOSTS.format(
                name=name, server=_scalar(answers.server), user=_scalar(answers.user), devices=devices
            )
        },
    )


def parse_devices(text: str, known: Mapping[str, str]) -> dict[str, str]:
    """Return the addresses by name of devices written as `pi-1=192.0.2.21 pi-2=192.0.2.22`; a comma separates too.

    `known` are the hosts that there are already. Raises InventoryError for what cannot be meant.
    """
    devices: dict[str, str] = {}
    for word in re.split(r"[\s,]+", text.strip()):
        name, equals, address = word.partition("=")
        if not (equals and is_name(name) and is_address(address)):
            raise InventoryError(
                f"{word!r} is not a device",
                "write name=address, as in pi-1=192.0.2.21; names are a to z, 0 to 9 and hyphens",
            )
        if name in _GROUPS:
            raise InventoryError(f"{word!r} has the name of a group", f"call it otherwise than {', '.join(_GROUPS)}")
        taken = {**known, **devices}
        if name in taken or address in taken.values():
            raise InventoryError(f"{word!r} has the name or the address of another host", "give each host its own")
        devices[name] = address
    return devices


def _subnet(folder: Path) -> str:
    """Return the first three numbers of a virtual lab's /24 network, nothing of another inventory."""
    file = folder / "group_vars/testbed.yml"
    found = (
        re.search(r"^virtual_device_subnet: ((?:\d+\.){3})0/24$", file.read_text(encoding="utf-8"), re.M)
        if file.exists()
        else None
    )
    return found[1] if found else ""


def _devices(folder: Path) -> list["Device"]:
    """Return the devices of a built-in virtual lab, each with the one client that it has."""
    import yaml

    from fltestbed.population import Device

    tree = yaml.safe_load((folder / "hosts.yml").read_text(encoding="utf-8"))["testbed"]["children"]["supernodes"]
    devices = []
    for name, host in tree["hosts"].items():
        client = dict(host.get("testbed_client") or host["testbed_clients"][0])
        devices.append(
            Device(
                name,
                client.pop("cpus"),
                client.pop("memory"),
                host.get("testbed_profile", ""),
                host.get("testbed_network", {}),
                client,
            )
        )
    return devices


def _virtual_hosts(head: str, devices: Sequence["Device"], subnet: str) -> str:
    """Return the hosts.yml of a virtual lab: a device is larger than its client by what runs beside it."""
    lines = []
    for number, device in enumerate(devices, start=21):
        client = {"cpus": device.cpus, "memory": device.memory, **device.settings}
        note = ", ".join(f"{figure} {value}" for figure, value in device.clipped.items())
        lines += [
            f"        {device.name}:" + (f"   # would have {note}: put to the bound" if note else ""),
            f"          ansible_host: {subnet}{number}",
            f"          virtual_device_cpus: {round(device.cpus + 0.1, 3):g}",
            f"          virtual_device_memory: {(memory_bytes(device.memory) or 0) // 2**20 + 384}m",
            *([f"          testbed_profile: {device.profile}"] if device.profile else []),
            f"          testbed_client: {_flow(client)}",
            *([f"          testbed_network: {_flow(device.network)}"] if device.network else []),
        ]
    return head + _VIRTUAL.format(subnet=subnet, devices="\n".join(lines))


def _flow(entry: Mapping[str, object]) -> str:
    return (
        "{"
        + ", ".join(
            f"{key}: {value:g}" if isinstance(value, float) else f"{key}: {value}" for key, value in entry.items()
        )
        + "}"
    )


def _write(name: str, files: Mapping[str, str]) -> Path:
    """Write the folder in one step, so that an interrupted command leaves none."""
    folder = folder_for(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=folder.parent))
    try:
        for path, content in files.items():
            (new / path).parent.mkdir(exist_ok=True)
            (new / path).write_text(content, encoding="utf-8")
        new.chmod(0o755)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new)
        raise
    return folder


def _scalar(text: str) -> str:
    """Return a text as YAML reads it: quoted only where it would be a number or the like."""
    import yaml  # slow, and --help does without

    try:
        plain = yaml.safe_load(f"{{key: {text}}}") == {"key": text}
    except yaml.YAMLError:
        plain = False
    return text if plain else json.dumps(text)


def _free_subnets() -> Iterator[str]:
    """Yield the first three numbers of the /24 networks of 172.28 that nobody here has."""
    routes = Path("/proc/net/route")
    taken = [
        IPv4Network((int.from_bytes(bytes.fromhex(fields[1]), "little"), int(fields[7], 16).bit_count()), strict=False)
        for line in (routes.read_text(encoding="ascii").splitlines()[1:] if routes.exists() else [])
        if (fields := line.split()) and fields[1] != "00000000"
    ]
    written = "".join(
        file.read_text(encoding="utf-8", errors="replace") for file in Path.cwd().glob("inventories/**/*.yml")
    )
    for number in range(2, 255):
        start = f"172.28.{number}."
        if start not in written and not any(IPv4Network(f"{start}0/24").overlaps(network) for network in taken):
            yield start
    raise InventoryError("no subnet of 172.28.0.0/16 is free for another virtual lab", "remove an inventory of one")


_VIRTUAL = """\
testbed:
  children:
    superlink:
      hosts:
        server:
          ansible_host: {subnet}10
          virtual_device_cpus: 1.5
          virtual_device_memory: 2g
    monitoring:
      hosts:
        server:
    supernodes:
      hosts:
{devices}
"""

_HOSTS = """\
# The testbed {name}: its server and its devices. Any device can say more: docs/reference-inventory.md lists what.
testbed:
  vars:
    ansible_user: {user}   # the user that SSH logs in as, who becomes root with sudo

  children:
    # The server: devices must reach its ports 9092 and 5000.
    superlink:
      hosts:
        server: {{ansible_host: {server}}}

    # Where measurements are gathered.
    monitoring:
      hosts:
        server:

    # The devices that train. The profile says how many cores and how much memory training may take; testbed_client
    # goes before it, as in testbed_client: {{cpus: 2, memory: 1g, batch_size: 16}}.
    supernodes:
      hosts:
{devices}
"""
