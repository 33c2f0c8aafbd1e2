"""Rules that answer heterogeneity: what each client trains with, by what it is capable of."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fltestbed.errors import ExperimentError
from fltestbed.experiment import Experiment, When
from fltestbed.inventory import Client
from fltestbed.paths import state_dir

Measured = Mapping[str, Mapping[str, Any]]
"""What `fltestbed calibrate` found of each client, by its name.

A client has samples_per_second, peak_memory_bytes, and what they were measured with: model, batch_size, cpus (cores or
None), memory (bytes or None) and, unless it was 1, width. It may have batch_sizes, a list of those two figures of other
batch sizes.
"""

_CALIBRATE = "fltestbed calibrate measures the clients"
_WHOLE = {"batch_size": 65_536, "local_epochs": 1000}
_SHARES = ("data_fraction", "participation", "width")


class Resolved(NamedTuple):
    """What a client trains with, and the numbers, from 1, of the rules that had a say in it.

    `missed` says what the training takes instead of what the last `balance` asks for; empty where that is met.
    """

    settings: dict[str, float | int]
    rules: list[int]
    missed: str = ""


def resolve(
    experiment: Experiment, clients: Sequence[Client], examples: Sequence[int], measured: Measured
) -> list[Resolved]:
    """Return what each client trains with.

    What the inventory says of a client goes before the rules, which are applied in their order, and those before the
    experiment's `train`. `examples` are the sizes of the clients' shards, in their order.

    Raises ExperimentError where a rule needs of a client what is not known, or no setting can do what it asks.
    """
    require(experiment, clients, measured)
    shared = {*_WHOLE, "learning_rate", "data_fraction", "width"}
    train = {"participation": 1.0} | experiment.train.model_dump(include=shared)
    found = []
    for client, size in zip(clients, examples, strict=True):
        own = client["settings"]
        now, numbers, missed = train | own, [], ""
        balance: tuple[int, float] | None = None  # the last rule that has one, and its time
        by_figures = 0  # the last rule that takes them as they were measured
        for number, rule in enumerate(experiment.rules, start=1):
            if not _holds(rule.when, client, measured):
                continue
            wanted: dict[str, Any] = rule.set.model_dump(exclude_none=True) if rule.set else {}
            if rule.fit_memory or rule.balance:
                by_figures = number
            if rule.fit_memory:
                wanted["batch_size"] = _fitting(number, client, measured[client["client"]], rule.fit_memory)
            for key, by in (rule.scale.model_dump(exclude_none=True) if rule.scale else {}).items():
                if by == "batch_size":
                    share = (now | wanted | own)["batch_size"] / train["batch_size"]
                else:
                    most = max(
                        _figure(each, by, measured) or 0.0 for each in clients if _holds(rule.when, each, measured)
                    )
                    share = (_figure(client, by, measured) or 0.0) / most
                wanted[key] = _rounded(key, train[key] * share)
            if rule.balance:
                speed = _speed(measured[client["client"]], (now | wanted | own)["batch_size"])
                wanted |= _balanced(rule.balance.round_seconds * speed / size, own)
                balance = number, rule.balance.round_seconds
            wanted = {key: value for key, value in wanted.items() if key not in own}
            if wanted:
                now |= wanted
                numbers.append(number)
        if by_figures:
            _require_width(by_figures, client, now["width"], measured)
        if balance:
            seconds = size / _speed(measured[client["client"]], now["batch_size"])
            missed = _missed(*balance, seconds * now["local_epochs"] * now["data_fraction"])
        found.append(Resolved(now, numbers, missed))
    return found


def require(experiment: Experiment, clients: Sequence[Client], measured: Measured) -> None:
    """Raise ExperimentError unless all is known that the rules of an experiment ask of the clients."""
    for number, rule in enumerate(experiment.rules, start=1):
        if rule.balance and experiment.data.source == "device":
            raise ExperimentError(
                f"rules: rule {number} balances by numbers of examples, which data on devices tell in the run alone",
                "take balance out; scale and set work there",
            )
        asked = {"samples_per_second"} if {"samples_per_second"} & _figures(rule.when) else set()
        does = set(rule.scale.model_dump(exclude_none=True).values()) - {"batch_size"} if rule.scale else set()
        does |= {"memory", "peak_memory_bytes", "batch_size"} if rule.fit_memory else set()
        does |= {"samples_per_second", "batch_size"} if rule.balance else set()
        for client in clients:
            _require(number, asked, experiment, client, measured)
            if _holds(rule.when, client, measured):
                _require(number, does, experiment, client, measured)


def calibration_file(testbed: str) -> Path:
    """Return where `fltestbed calibrate` leaves what it measured of a testbed's clients."""
    return state_dir(testbed) / "calibration.json"


def read(file: Path) -> Measured:
    """Return what was measured of the clients; nothing where nothing was. Raises ExperimentError for a broken file."""
    try:
        measured = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{file}: cannot be read: {error}", f"remove it; {_CALIBRATE}") from error
    if not isinstance(measured, dict) or not all(isinstance(each, dict) for each in measured.values()):
        raise ExperimentError(f"{file}: is no calibration", f"remove it; {_CALIBRATE}")
    return measured


def _require(number: int, keys: set[str], experiment: Experiment, client: Client, measured: Measured) -> None:
    """Raise ExperimentError unless a client has the limits, and the measured figures, that are among the keys."""
    name = client["client"]
    for key, example in (("cpus", "1"), ("memory", "1g")):
        if key in keys and client[key] is None:
            raise ExperimentError(
                f"rules: rule {number} needs the {key} limit of {name}, which has none",
                f"give it one in the inventory, as testbed_client: {{{key}: {example}}}, or a testbed_profile",
            )
    figures = keys - {"cpus", "memory"}
    if not figures:
        return
    if name not in measured:
        raise ExperimentError(f"rules: rule {number} needs figures of {name} that were not measured", _CALIBRATE)
    found = {"width": 1.0, **measured[name]}
    width = client["settings"].get("width", experiment.train.width)
    limits = {"cpus": client["cpus"], "memory": client["memory"]}
    for key, value in ({"model": experiment.model, "width": width} | limits).items():
        if found.get(key) != value:
            raise ExperimentError(
                f"rules: rule {number}: {name} was measured with {key} {found.get(key)}, which is {value} now",
                _CALIBRATE,
            )
    for key in sorted(figures):
        if not isinstance(found.get(key), int | float) or not found[key] > 0:
            raise ExperimentError(f"rules: rule {number}: the calibration of {name} has no {key}", _CALIBRATE)


def _require_width(number: int, client: Client, width: float, measured: Measured) -> None:
    """Raise ExperimentError unless a client was measured with the width that the rules let it train."""
    found = measured[client["client"]].get("width", 1.0)
    if width != found:
        raise ExperimentError(
            f"rules: rule {number}: {client['client']} was measured with width {found:g}, "
            f"and the rules give it {width:g}",
            f"write the width into the inventory, as testbed_client: {{width: {width:g}}}, and run fltestbed calibrate",
        )


def _figures(when: When) -> set[str]:
    """Return what a condition asks of a client."""
    return {key.rpartition("_")[0] for key in when.model_dump(exclude_none=True)}


def _figure(client: Client, key: str, measured: Measured) -> float | None:
    value = measured.get(client["client"], {}).get(key) if key == "samples_per_second" else client[key]
    return None if value is None else float(value)


def _holds(when: When, client: Client, measured: Measured) -> bool:
    for key, bound in when.model_dump(exclude_none=True).items():
        name, _, side = key.rpartition("_")
        figure = _figure(client, name, measured)
        if (figure is not None and figure < bound) != (side == "below"):
            return False
    return True


def _rounded(key: str, value: float) -> float | int:
    """Return a scaled setting: a whole number, from 1 on, where it has to be one; a share is 1 at most."""
    if key in _WHOLE:
        return min(_WHOLE[key], max(1, math.floor(value + 0.5)))
    return min(1.0, value) if key in _SHARES else value


def _fitting(number: int, client: Client, found: Mapping[str, Any], share: float) -> int:
    """Return the largest batch size that was measured to stay within a share of the memory limit."""
    bound = share * client["memory"]
    rows = _rows(found)
    fitting = [row["batch_size"] for row in rows if row["peak_memory_bytes"] <= bound]
    if not fitting:
        least = min(rows, key=lambda row: row["batch_size"])
        raise ExperimentError(
            f"rules: rule {number}: {client['client']} took {least['peak_memory_bytes'] / 2**20:.0f}m with batch_size "
            f"{least['batch_size']}, which is more than {share:g} of its {client['memory'] / 2**20:g}m",
            "give it more memory in the inventory, or take a smaller model",
        )
    return int(max(fitting))


def _speed(found: Mapping[str, Any], batch_size: int) -> float:
    """Return the samples per second with the batch size that was measured nearest to one."""
    return float(min(_rows(found), key=lambda row: abs(row["batch_size"] - batch_size))["samples_per_second"])


def _rows(found: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return what was measured of a client with each batch size."""
    return found.get("batch_sizes") or [found]


def _balanced(passes: float, own: Mapping[str, float | int]) -> dict[str, float | int]:
    """Return the epochs, and the share of the examples in each, that make so many passes over all the examples.

    A fast client passes more than once over its examples, so that each of its passes has the same share of them. Of the
    two, what the client has of its `own` stays, and the other makes up for it as far as it can.
    """
    if "data_fraction" in own:
        return {"local_epochs": _rounded("local_epochs", passes / own["data_fraction"])}
    epochs = own.get("local_epochs") or min(_WHOLE["local_epochs"], max(1, math.ceil(passes - 1e-9)))
    return {"local_epochs": epochs, "data_fraction": _rounded("data_fraction", passes / epochs)}


def _missed(number: int, wanted: float, took: float) -> str:
    return "" if math.isclose(took, wanted) else f"rule {number}: {took:.3g} s instead of {wanted:g} s"
