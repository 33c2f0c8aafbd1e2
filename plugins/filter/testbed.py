"""Filters that see the testbed as a whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleFilterError
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from fltestbed import app, conditions, network, paths
from fltestbed.errors import FltestbedError
from fltestbed.inventory import device_network, resolve_clients


def testbed_clients(
    devices: list[str], hostvars: Mapping[str, Any], profiles: Mapping[str, Any], own_profiles: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return every client in partition order: device, client, cpus, memory (bytes), settings, partition."""
    try:
        clients = [
            client for device in devices for client in resolve_clients(device, hostvars[device], profiles, own_profiles)
        ]
    except FltestbedError as error:
        raise AnsibleFilterError(str(error)) from error
    return [dict(client) | {"partition": number} for number, client in enumerate(clients)]


def flower_config(settings: Mapping[str, Any]) -> str:
    """Return settings as Flower's ``--node-config`` and ``--run-config`` take them: ``key=value`` with TOML values.

    Flower finds the end of a text by its next quote, so that no quote can be escaped in it.
    """

    def toml(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int | float):
            return repr(value)
        return f"'{value}'"

    return " ".join(f"{key}={toml(value)}" for key, value in settings.items())


def hyphenated(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a client's training settings by the names that Flower's apps give to keys."""
    return {key.replace("_", "-"): value for key, value in settings.items()}


def run_plan(prepared: Mapping[str, Any], name: str, clients: list[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the ServerApp reads as experiment.json, from what the module testbed_experiment returned.

    Without an experiment, no client has a partition, and there is no test set; nor is there one of data that lie on
    the devices, of which `data` has the shape and the number of labels.
    """
    partitions = {
        part["client"]: {key: part[key] for key in ("id", "sha256", "examples", "held_out", "labels")}
        for part in prepared["partitions"]
    }
    settings = {part["client"]: part["settings"] for part in prepared["partitions"]}
    test_set = prepared["test_set"]
    return {
        "run": name,
        "experiment": prepared["experiment"],
        "partition_set": prepared["partition_set"],
        "test_set": test_set and {key: test_set[key] for key in ("sha256", "examples")},
        "data": prepared.get("data"),
        "clients": [
            {
                "device": client["device"],
                "client": client["client"],
                "partition": partitions.get(client["client"]),
                "settings": settings.get(client["client"], {}),
            }
            for client in clients
        ],
    }


def calibrations(
    clients: list[Mapping[str, Any]], prepared: Mapping[str, Any], batch_sizes: Mapping[str, list[int]]
) -> list[dict[str, Any]]:
    """Return what the module testbed_calibrate takes of a host's clients, each with its batch sizes."""
    own = {
        part["client"]: {"sha256": str(part["sha256"]), "width": part["settings"]["width"]}
        for part in prepared["partitions"]
    }
    config = {key: prepared["run_config"][key] for key in ("model", "seed", "optimizer", "learning-rate", "momentum")}
    config["seconds"] = 3  # of training with each batch size
    return [
        {"client": name, "setup": config | own[name] | {"batch_sizes": batch_sizes[name]}}
        for name in (client["client"] for client in clients)
    ]


def with_device_data(prepared: Mapping[str, Any], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """Return what testbed_experiment returned, with what the devices told of the data that lie there.

    `data` is then their common shape and their number of labels, and `shapes` says which client has which.
    """
    told = {
        part["client"]: report
        for part in prepared["partitions"]
        if (report := hostvars[part["device"]].get("__run_device_data", {}).get(part["client"]))
    }
    if not told:
        return dict(prepared)
    classes = max(len(report["labels"]) for report in told.values())
    shapes = {client: report["shape"] for client, report in told.items()}
    partitions = []
    for part in prepared["partitions"]:
        report = told.get(part["client"], {"labels": []})
        labels = report["labels"] + [0] * (classes - len(report["labels"]))
        partitions.append({**part, **report, "labels": labels})
    data = {"classes": classes, "shape": next(iter(shapes.values()))}
    return {**prepared, "partitions": partitions, "data": data, "shapes": shapes}


def shards_of(prepared: Mapping[str, Any], host: str, server: bool) -> dict[str, dict[str, str]]:
    """Return the data files that a host is to hold, by folder: ``path`` on the controller and ``sha256``."""
    shards = {
        f"data/{part['client']}": part for part in prepared["partitions"] if part["device"] == host and part["path"]
    }
    if server and prepared["test_set"]:
        shards["test"] = prepared["test_set"]
    return {owner: {key: str(shard[key]) for key in ("path", "sha256")} for owner, shard in shards.items()}


def with_extra(requirements: list[str], extra: list[str]) -> list[str]:
    """Return requirements, as pip takes them, with further ones; each of those takes the place of its package's own."""

    def name(requirement: str) -> str:
        try:
            return canonicalize_name(Requirement(requirement).name)
        except InvalidRequirement as error:
            raise AnsibleFilterError(
                f"images_extra_requirements: {requirement!r} is none that pip takes: {error}"
            ) from error

    replaced = set(map(name, extra))
    return [requirement for requirement in requirements if name(requirement) not in replaced] + extra


def dict_of(rows: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return one value of each row, by the rows' names."""
    return {name: row[key] for name, row in rows.items()}


def items_of(rows: list[Mapping[str, Any]], keys: list[str]) -> list[dict[str, Any]]:
    """Return the rows with these keys alone."""
    return [{key: row[key] for key in keys} for row in rows]


def client_logs(clients: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the log files of a host's clients: ``name``, and the Compose ``services`` whose output goes into it."""
    names = [client["client"] for client in clients]
    return [{"name": f"client-{name}", "services": [f"supernode-{name}", f"client-{name}"]} for name in names]


def run_records(variables: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what the server host said of the run, in order, of its variables: from its start to its end or stop."""
    said = [variables.get(f"__run_{step}") or {} for step in ("submitted", "followed", "watched", "stopped")]
    looks = [look for step in said for look in step.get("results", [step])]
    return [look["run"] for look in looks if "run" in look]


def host_facts(hosts: list[str], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run's lock says of each host that could be looked at."""
    facts = {}
    for host in hosts:
        probe = hostvars[host].get("ansible_facts", {}).get("testbed_probe")
        status = hostvars[host].get("__run_status")
        if probe and status:
            known = ("arch", "os", "kernel", "python", "cpus", "memory_mb", "docker", "cgroup")
            facts[host] = {key: probe[key] for key in known} | {"containers": status["containers"]}
    return facts


def program_files(folder: str) -> dict[str, str]:
    """Return the modules that an app can import in its containers: files of the controller by path below a folder."""
    return {f"{folder}/{name}": str(path) for name, path in paths.program().items()}


def app_files(folder: str) -> dict[str, dict[str, str]]:
    """Return what goes to the server of a Flower app, as the module testbed_tree takes it: content by path."""
    return {name: {"content": content} for name, content in app.load(Path(folder)).files.items()}


def app_lacks(wanted: Mapping[str, Any], image: Mapping[str, Any]) -> list[str]:
    """Return which of its dependencies an app (as testbed_experiment returns it) does not find in an image."""
    return app.lacking(wanted["dependencies"], wanted["requires_python"], image)


def exporter_names(hosts: list[str], hostvars: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names by which Prometheus dials each host's exporters: its own is `host.docker.internal` to it."""
    return {
        host: list(dict.fromkeys([host, exporter_address(host, hostvars), "host.docker.internal"])) for host in hosts
    }


def exporter_address(host: str, hostvars: Mapping[str, Any]) -> str:
    """Return the name or address by which Prometheus dials a host that is not its own."""
    variables = hostvars[host]
    return str(variables.get("testbed_exporter_address") or variables.get("ansible_host", host))


def exporter_addresses(hosts: list[str], hostvars: Mapping[str, Any]) -> dict[str, str]:
    """Return the names or addresses by which Prometheus dials these hosts."""
    return {host: exporter_address(host, hostvars) for host in hosts}


def unseen(hosts: list[str], hostvars: Mapping[str, Any]) -> list[str]:
    """Return the hosts that could not be looked at."""
    return [host for host in hosts if not _kind(hostvars[host])]


def _kind(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    facts = variables.get("ansible_facts", {})
    kind: Mapping[str, Any] = facts.get("testbed_probe") or facts.get("testbed_kind", {})
    return kind


def scrape_targets(
    hosts: list[str],
    hostvars: Mapping[str, Any],
    own_host: str,
    port: int,
    program: str,
    cadvisor_cgroups: list[int],
) -> list[dict[str, Any]]:
    """Return the hosts that run an exporter as Prometheus' files of targets list them, each with its labels.

    A host that could not be looked at stays a target of node_exporter: its silence is what an alert is for.
    """
    targets = []
    for host in hosts:
        variables = hostvars[host]
        probe = _kind(variables)
        if program == "cadvisor" and probe.get("cgroup", {}).get("version") not in cadvisor_cgroups:
            continue
        address = "host.docker.internal" if host == own_host else exporter_address(host, hostvars)
        address = f"[{address}]" if ":" in address else address
        groups = [name for name in ("superlink", "monitoring", "supernodes") if name in variables["group_names"]]
        labels = {
            "device": host,
            "profile": variables.get("testbed_profile") or "none",
            "arch": probe.get("arch", "unknown"),
            "group": ",".join(groups),
        }
        targets.append({"targets": [f"{address}:{port}"], "labels": labels})
    return targets


def program_images(recipes: Mapping[str, Any], base: Any, store: str, arch: str) -> dict[str, dict[str, str]]:
    """Return each program's image: `ref`, whose tag is the hash of what it is made from, and `layout`, its folder.

    `base` is what the images have in common. An archive is told from its successor by its size and time.
    """
    images = {}
    for name, recipe in recipes.items():
        made_from: list[Any] = [base, recipe]
        if "archive" in recipe:
            try:
                status = Path(recipe["archive"]).stat()
            except OSError as error:
                raise AnsibleFilterError(f"the archive of {name} cannot be read: {error}") from error
            made_from.append([status.st_size, status.st_mtime_ns])
        tag = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
        images[name] = {"ref": f"fltestbed/{name}:{tag}", "layout": f"{store}/{name}-{tag}-{arch}"}
    return images


def condition_numbers(parameters: Mapping[str, Any], kind: str) -> dict[str, float | int]:
    """Return the parameters of a condition without units, as testbed_conditions takes them."""
    try:
        return dict(conditions.action(kind, parameters).parameters)
    except FltestbedError as error:
        raise AnsibleFilterError(str(error)) from error


def network_numbers(
    entry: Any, profile: str, profiles: Mapping[str, Any], own_profiles: Mapping[str, Any]
) -> dict[str, float]:
    """Return a testbed_network, its profile's if it says so, without units, as testbed_conditions takes it."""
    try:
        entry = device_network(entry, profile, {**profiles, **own_profiles})
    except FltestbedError as error:
        raise AnsibleFilterError(str(error)) from error
    numbers, wrong = network.parse(entry)
    if wrong:
        raise AnsibleFilterError(f"testbed_network: {wrong[0].what}; {wrong[0].fix}")
    return numbers


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        return {
            "testbed_clients": testbed_clients,
            "flower_config": flower_config,
            "calibrations": calibrations,
            "client_logs": client_logs,
            "with_extra": with_extra,
            "dict_of": dict_of,
            "host_facts": host_facts,
            "items_of": items_of,
            "scrape_targets": scrape_targets,
            "shards_of": shards_of,
            "unseen": unseen,
            "hyphenated": hyphenated,
            "app_files": app_files,
            "app_lacks": app_lacks,
            "condition_numbers": condition_numbers,
            "network_numbers": network_numbers,
            "exporter_addresses": exporter_addresses,
            "exporter_names": exporter_names,
            "program_files": program_files,
            "program_images": program_images,
            "run_plan": run_plan,
            "with_device_data": with_device_data,
            "run_records": run_records,
        }
