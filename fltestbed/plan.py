"""Everything that a run needs to know before a host is touched: the resolved experiment, the shards, the app."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from fltestbed import app as flower_app
from fltestbed import datasets, experiment, partition, rules
from fltestbed.app import App, Value
from fltestbed.errors import AppError, ExperimentError
from fltestbed.experiment import Experiment
from fltestbed.inventory import SETTINGS, Client
from fltestbed.known import KNOWN
from fltestbed.paths import cache_dir as default_cache_dir
from fltestbed.paths import nearest

_NET = re.compile(r"\w+/nets/([a-z]\w*)\.py")


@dataclass(frozen=True)
class Plan:
    """What is to be run. `experiment` is None for an app that goes without; `run_config` is what Flower hands to it.

    `folder` is the experiment file's, which its paths are relative to; `model_at` says where its model is written.
    """

    name: str
    folder: Path
    experiment: Experiment | None
    app: App
    run_config: Mapping[str, Value]
    model_at: str = "model"


def resolve(file: Path | None, settings: Sequence[str], *, app: Path | None, content_dir: Path) -> Plan:
    """Return the plan of an experiment file, of an app's folder, or of both; `settings` are `key=value`.

    A setting is the experiment's if it has such a key, else the app's own. The experiment's values go to the keys of
    the same name that the app declares. Raises ExperimentError and AppError; no host is needed to find the mistakes.
    """
    ours, apps = experiment.split(settings) if file else ([], list(settings))
    wanted = experiment.load(file, ours) if file else None
    if file and wanted and not app:
        app = _find_app(wanted.app, [file.parent, content_dir])
    if not app:
        raise AppError("there is nothing to run", "give an EXPERIMENT, or an app with --app, or both")
    found = flower_app.load(app)
    given: dict[str, Value] = {}
    if wanted:
        given = wanted.run_config() | ({} if found.reports else {"num-server-rounds": wanted.rounds})
    if found.reports:
        _require_keys(found, wanted)
        apps_keys = set(found.config) - set(given) - {"run"}
    else:
        given = {key: value for key, value in given.items() if key in found.config}
        apps_keys = set(found.config)
    run_config = given | found.overrides(apps, apps_keys, also=experiment.KEYS if wanted else ())
    model_at = "model"
    if file and wanted:
        datasets.require(wanted.data, cache_dir=default_cache_dir(), beside=file.parent)
        model_at = experiment.where(file, ours, "model")
        known = KNOWN.get(wanted.data.name)
        _require_model(found, wanted, model_at, known.shape if known else None)
        if wanted.rules and not found.reports:
            raise ExperimentError(
                f"rules: {found.path} is not written for fltestbed, and takes no settings of a client",
                "take the rules out, or read what is the client's in the app's own way: context.node_config",
            )
    name = wanted.name if wanted else re.sub("[^a-z0-9]+", "-", found.name.lower()).strip("-")[:60]
    return Plan(name, file.parent if file else Path(), wanted, found, run_config, model_at)


def prepare(plan: Plan, clients: Sequence[Client], *, cache_dir: Path, calibration: Path) -> dict[str, Any]:
    """Return what the Ansible module testbed_experiment returns; `changed` says whether shards had to be made.

    `clients` are in the order of their partitions; `calibration` is the file that rules may ask. Of data that lie on
    the devices, only those know what they are. Raises ExperimentError.
    """
    if not clients:
        raise ExperimentError("the inventory has no clients", "add hosts to the group supernodes")
    prepared: dict[str, Any] = {
        "changed": False,
        "name": plan.name,
        "experiment": None,
        "partition_set": None,
        "partitions": [],
        "test_set": None,
        "run_config": dict(plan.run_config),
        "app": {
            "path": str(plan.app.path),
            "name": plan.app.name,
            "version": plan.app.version,
            "requires_python": plan.app.requires_python,
            "dependencies": list(plan.app.dependencies),
            "reports": plan.app.reports,
            "sha256": sha256(json.dumps(dict(plan.app.files), sort_keys=True).encode()).hexdigest(),
        },
    }
    wanted = plan.experiment
    if wanted is None:
        return prepared
    wanted.require_clients(clients)
    measured = rules.read(calibration)
    rules.require(wanted, clients, measured)
    if wanted.data.source == "device":
        unknown = dict.fromkeys(("path", "sha256", "examples", "held_out", "labels"))
        shards = [unknown] * len(clients)
        resolved = rules.resolve(wanted, clients, [0] * len(clients), measured)
        return prepared | {"experiment": wanted.model_dump(), "partitions": _partitions(clients, shards, resolved)}
    split, made = partition.ensure(
        datasets.source(wanted.data, cache_dir=cache_dir, beside=plan.folder),
        wanted.partitioner,
        seed=wanted.seed,
        clients=len(clients),
        cache_dir=cache_dir,
    )
    test_set = split.test_set
    if wanted.data.name not in KNOWN:
        with np.load(test_set.path) as arrays:
            _require_model(plan.app, wanted, plan.model_at, arrays["inputs"].shape[1:])
    shards = [{**vars(shard), "path": str(shard.path)} for shard in split.shards]
    resolved = rules.resolve(wanted, clients, [shard.examples for shard in split.shards], measured)
    return prepared | {
        "changed": made,
        "experiment": wanted.model_dump(),
        "partition_set": split.id,
        "partitions": _partitions(clients, shards, resolved),
        "test_set": {"path": str(test_set.path), "sha256": test_set.sha256, "examples": test_set.examples},
    }


def client_rows(partitions: Sequence[Mapping[str, Any]], clients: Sequence[Client]) -> list[dict[str, Any]]:
    """Return a row a client of what `prepare` found: its limits, its data, what it trains with, and by which rules.

    Where rules miss what they ask for, each row says so.
    """
    rows = []
    are_missed = any(part.get("missed") for part in partitions)
    for part, client in zip(partitions, clients, strict=True):
        settings = {key: part["settings"].get(key) for key in SETTINGS}
        limits = {key: client[key] for key in ("device", "client", "cpus", "memory")}
        row = {**limits, "examples": part["examples"], **settings, "rules": ", ".join(map(str, part["rules"])) or None}
        rows.append(row | ({"missed": part["missed"] or None} if are_missed else {}))
    return rows


def _find_app(name: str, folders: list[Path]) -> Path:
    """Return the folder of the app that an experiment names."""
    places = [folder / name for folder in folders]
    found = next((place for place in places if (place / "pyproject.toml").is_file()), None)
    if found is None:
        raise ExperimentError(
            f"app: there is no Flower app {name!r}: no pyproject.toml in {' or '.join(map(str, places))}",
            "give the path of the app, relative to the experiment file",
        )
    return found


def _require_model(app: App, wanted: Experiment, at: str, shape: Sequence[int] | None) -> None:
    """Require the model of an app that keeps one a file in a folder `nets`, as the built-in one does.

    It has to take examples of this shape, unless the shape is not known yet, or the file does not say what it takes.
    """
    files = {match[1].replace("_", "-"): code for name, code in app.files.items() if (match := _NET.fullmatch(name))}
    if not files:
        return
    if wanted.model not in files:
        raise ExperimentError(f"{at}: {app.path} has no {wanted.model!r}", nearest(wanted.model, files))
    if shape and (problem := _problem(files[wanted.model], shape)):
        able = [name for name, code in sorted(files.items()) if not _problem(code, shape)]
        raise ExperimentError(
            f"{at}: {wanted.model} {problem}",
            f"write another model, as {', '.join(able)}, or other data" if able else "write other data",
        )


def _problem(code: str, shape: Sequence[int]) -> str | None:
    """Return why the model that this file makes cannot take examples of this shape, None if nothing is against it."""
    takes = _declared(code)
    dimensions, least = takes.get("DIMENSIONS", len(shape)), takes.get("LEAST", 1)
    kinds = {1: "text", 3: "images"}
    if len(shape) != dimensions:
        return f"takes {kinds.get(dimensions, dimensions)}, and the data are {kinds[len(shape)]}"
    sides = shape[-2:]
    if min(sides) < least:
        return f"takes {least} at least a side, and an example is {' by '.join(map(str, sides))}"
    return None


def _declared(code: str) -> dict[str, int]:
    """Return the whole numbers that a file of Python assigns to names, without running it, which would take torch."""
    try:
        assignments = [node for node in ast.parse(code).body if isinstance(node, ast.Assign)]
    except SyntaxError:
        return {}
    found = {}
    for node in assignments:
        names, values = (part.elts if isinstance(part, ast.Tuple) else [part] for part in (node.targets[0], node.value))
        for name, value in zip(names, values, strict=False):
            if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, int):
                found[name.id] = value.value
    return found


def _require_keys(app: App, wanted: Experiment | None) -> None:
    """Require what an app that is written for fltestbed has to have."""
    if wanted is None:
        raise AppError(
            f"{app.path}: is written for fltestbed, as it declares the key run, and there is no experiment",
            "give an EXPERIMENT too, as in fltestbed run fashion-mnist-cnn --app PATH",
        )
    if missing := sorted(wanted.run_config().keys() - app.config.keys()):
        raise AppError(
            f"{app.path / 'pyproject.toml'}: [tool.flwr.app.config] lacks {', '.join(missing)}",
            "add the keys with their defaults; or take out run, which only apps written for fltestbed have",
        )


def _partitions(
    clients: Sequence[Client], shards: Sequence[Mapping[str, Any]], resolved: Sequence[rules.Resolved]
) -> list[dict[str, Any]]:
    """Return of each client its place, its shard, and what it trains with."""
    return [
        {"device": client["device"], "client": client["client"], "id": number, **shard, **own._asdict()}
        for number, (client, shard, own) in enumerate(zip(clients, shards, resolved, strict=True))
    ]
