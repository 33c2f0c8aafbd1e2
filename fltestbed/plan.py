"""Everything that a run needs to know before a host is touched: the resolved experiment, the shards, the app."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fltestbed import experiment, partition
from fltestbed.datasets import SOURCES
from fltestbed.errors import ExperimentError


def prepare(
    file: Path, settings: Sequence[str], clients: Sequence[Mapping[str, str]], *, cache_dir: Path, content_dir: Path
) -> dict[str, Any]:
    """Return what the Ansible module testbed_experiment returns; `changed` says whether shards had to be made.

    `clients` have `device` and `client`, in the order of their partitions. Raises ExperimentError.
    """
    wanted = experiment.load(file, settings)
    if not clients:
        raise ExperimentError("the inventory has no clients", "add hosts to the group supernodes")
    if (wanted.min_clients or 1) > len(clients):
        raise ExperimentError(
            f"min_clients: is {wanted.min_clients}, but the inventory has {len(clients)} clients",
            "lower min_clients or add clients to the inventory",
        )
    run_config = wanted.run_config()
    app_dir = _find_app(wanted.app, [file.parent, content_dir], {"run", *run_config})
    partitions, made = partition.ensure(
        SOURCES[wanted.data.name, wanted.data.source](cache_dir),
        wanted.partitioner,
        seed=wanted.seed,
        clients=len(clients),
        cache_dir=cache_dir,
    )
    test_set = partitions.test_set
    return {
        "changed": made,
        "experiment": wanted.model_dump(),
        "partition_set": partitions.id,
        "partitions": [
            {**client, "id": number, **vars(shard), "path": str(shard.path)}
            for number, (client, shard) in enumerate(zip(clients, partitions.shards, strict=True))
        ],
        "test_set": {"path": str(test_set.path), "sha256": test_set.sha256, "examples": test_set.examples},
        "run_config": run_config,
        "app_dir": str(app_dir),
    }


def _find_app(app: str, folders: list[Path], keys: set[str]) -> Path:
    """Return the folder of the Flower app, which must declare the keys of the run config."""
    places = [folder / app for folder in folders]
    found = next((place for place in places if (place / "pyproject.toml").is_file()), None)
    if found is None:
        raise ExperimentError(
            f"app: there is no Flower app {app!r}: no pyproject.toml in {' or '.join(map(str, places))}",
            "give the path of the app, relative to the experiment file",
        )
    file = found / "pyproject.toml"
    try:
        declared = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["flwr"]["app"].get("config", {})
    except (tomllib.TOMLDecodeError, KeyError) as error:
        raise ExperimentError(
            f"{file}: is not the one of a Flower app: {error}", "it needs a table [tool.flwr.app]"
        ) from error
    if missing := sorted(keys - set(declared)):
        raise ExperimentError(
            f"{file}: [tool.flwr.app.config] lacks {', '.join(missing)}", "add the keys with their defaults"
        )
    return found.resolve()
