"""A population of devices, drawn from distributions with a seed: the same seed gives the same devices everywhere."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fltestbed import network
from fltestbed.errors import InventoryError
from fltestbed.inventory import memory_bytes, profiles
from fltestbed.paths import nearest
from fltestbed.yaml_files import NotYaml, compose, duplicates, line

Quantity = Annotated[str | int | float, Field(union_mode="left_to_right")]
Weight = Annotated[float, Field(gt=0, strict=False)]

_MEBI = 2**20
_FORMATS: dict[str, Callable[[float], Any]] = {
    "cpus": lambda value: round(value, 3),
    "memory": lambda value: f"{value / _MEBI:.0f}m",
    "rate_up": lambda value: f"{round(value / 1e6, 3):g}mbit",
    "rate_down": lambda value: f"{round(value / 1e6, 3):g}mbit",
    "delay": lambda value: f"{round(value * 1e3, 1):g}ms",
    "jitter": lambda value: f"{round(value * 1e3, 1):g}ms",
    "loss": lambda value: f"{round(value * 100, 2):g}%",
}
_FLOORS = {"cpus": 0.1, "memory": 512 * _MEBI, "rate_up": 8e3, "rate_down": 8e3}  # of what trains, and of tc
_CEILINGS = {"loss": 0.99, "delay": 60.0, "jitter": 60.0}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Uniform(_Part):
    """Anything from `least` to `most`, with the same chance."""

    name: Literal["uniform"]
    least: Quantity
    most: Quantity


class Gaussian(_Part):
    """A normal distribution; what is below `least` or above `most` is put there."""

    name: Literal["gaussian"]
    mean: Quantity
    deviation: Quantity
    least: Quantity | None = None
    most: Quantity | None = None


class Pareto(_Part):
    """Few have much: the share of devices with more than x is (`least` / x) to the power `shape`."""

    name: Literal["pareto"]
    least: Quantity
    shape: Annotated[float, Field(gt=0, strict=False)]
    most: Quantity | None = None


class Table(_Part):
    """One of some values, each with its weight: shares, or counts of what was seen."""

    name: Literal["table"]
    values: Annotated[dict[Quantity, Weight], Field(min_length=1)]


Distribution = Annotated[Uniform | Gaussian | Pareto | Table, Field(discriminator="name")]


class Network(_Part):
    """Where the figures of a testbed_network are drawn from."""

    rate_up: Distribution | None = None
    rate_down: Distribution | None = None
    delay: Distribution | None = None
    jitter: Distribution | None = None
    loss: Distribution | None = None


class Population(_Part):
    """So many devices, of profiles by weight, or with cpus and memory of their own."""

    devices: Annotated[int, Field(ge=1, le=200)]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    profiles: Annotated[dict[str, Weight], Field(min_length=1)] | None = None
    cpus: Distribution | None = None
    memory: Distribution | None = None
    network: Network | Literal["profile"] | None = None


@dataclass(frozen=True)
class Device:
    """A device that was drawn, with the quantities as an inventory has them. `clipped`: what was drawn instead."""

    name: str
    cpus: float
    memory: str
    profile: str = ""
    network: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    clipped: Mapping[str, str] = field(default_factory=dict)


def load(file: Path) -> Population:
    """Read the population of a file. Raises InventoryError, with file and line, for what cannot be meant."""
    try:
        root = compose(file)
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InventoryError(
            f"{file}: cannot be read: {error.strerror}", "give the path of a population file"
        ) from error
    except NotYaml as error:
        raise InventoryError(
            f"{file}:{error.line}: is not valid YAML: {error}", "look at indentation and colons"
        ) from None
    for key, first in duplicates(root):
        raise InventoryError(
            f"{file}:{line(key)}: {key.value} is here twice, first in line {first}", "keep one of them"
        )
    try:
        population = Population.model_validate(tree)
    except ValidationError as error:
        problem = error.errors()[0]
        place = [str(part) for part in problem["loc"] if part not in _TAGS]
        raise InventoryError(
            f"{file}:{_line(root, place)}: {'.'.join(place)}: {_what(problem)}", _fix(problem, place)
        ) from None
    for place, what, fix in _wrong(population):
        raise InventoryError(f"{file}:{_line(root, place)}: {'.'.join(place)}: {what}", fix)
    return population


def draw(population: Population, scale: float = 1.0) -> list[Device]:
    """Return the devices of a population that `load` returned, with `scale` times their cpus and memory.

    A device of a profile has the profile's cpus times its speed, as all devices here have cores of the same kind. What
    comes out below what a client needs, or above what a network can be, is put to that bound.
    """
    figures = profiles()
    width = len(str(population.devices))
    return [
        _device(population, f"device-{number:0{width}}", number, figures, scale)
        for number in range(1, population.devices + 1)
    ]


def scaled(device: Device, scale: float) -> Device:
    """Return a device with `scale` times the cpus and the memory, or the least that a client needs."""
    drawn = {"cpus": device.cpus * scale, "memory": (memory_bytes(device.memory) or 0) * scale}
    values, clipped = _clip(drawn)
    return Device(
        device.name, values["cpus"], values["memory"], device.profile, device.network, device.settings, clipped
    )


def chance(seed: int, figure: str, number: int) -> float:
    """Return the number between 0 and 1 that decides a figure of a device.

    It is made of the first 53 bits of the SHA-256 of `seed figure number`. So it is the same on every platform and for
    every version, and another device or another figure changes no other.
    """
    digest = hashlib.sha256(f"{seed} {figure} {number}".encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 11) + 0.5) / 2**53


def value(distribution: Uniform | Gaussian | Pareto | Table, figure: str, at: float) -> float:
    """Return the quantile `at`, between 0 and 1, of a distribution: cores, bytes, bit/s, s, or a share of 1."""

    def number(quantity: Quantity | None, otherwise: float) -> float:
        return otherwise if quantity is None else _number(figure, quantity)

    if isinstance(distribution, Table):
        keys = list(distribution.values)
        return _number(figure, keys[_chosen(distribution.values.values(), at)])
    if isinstance(distribution, Uniform):
        least, most = number(distribution.least, 0), number(distribution.most, 0)
        return least + (most - least) * at
    least, most = number(distribution.least, 0), number(distribution.most, float("inf"))
    if isinstance(distribution, Pareto):
        found = least / float((1 - at) ** (1 / distribution.shape))
    else:
        found = NormalDist(number(distribution.mean, 0), number(distribution.deviation, 0)).inv_cdf(at)
    return min(max(found, least), most)


def _device(
    population: Population, name: str, number: int, figures: Mapping[str, Mapping[str, Any]], scale: float
) -> Device:
    profile = ""
    drawn: dict[str, float] = {}
    if population.profiles:
        profile = list(population.profiles)[
            _chosen(population.profiles.values(), chance(population.seed, "profile", number))
        ]
        known = figures[profile]
        drawn = {"cpus": known["cpus"] * known.get("speed", 1), "memory": memory_bytes(known["memory"]) or 0}
        if population.network == "profile":
            drawn |= network.parse(known.get("network", {}))[0]
    wanted = {"cpus": population.cpus, "memory": population.memory}
    if isinstance(population.network, Network):
        wanted |= dict(population.network)
    for figure, distribution in wanted.items():
        if distribution:
            drawn[figure] = value(distribution, figure, chance(population.seed, figure, number))
    drawn["cpus"] *= scale
    drawn["memory"] *= scale
    values, clipped = _clip(drawn)
    shaped = {key: values[key] for key in network.KEYS if key in values}
    return Device(name, values["cpus"], values["memory"], profile, shaped, {}, clipped)


def _clip(drawn: Mapping[str, float]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return figures as an inventory has them, within their bounds, and as they were drawn what was not."""
    values, clipped = {}, {}
    for figure, found in drawn.items():
        most = drawn.get("delay", 0.0) if figure == "jitter" else _CEILINGS.get(figure, float("inf"))
        within = min(max(found, _FLOORS.get(figure, 0.0)), most)
        values[figure] = _FORMATS[figure](within)
        if values[figure] != _FORMATS[figure](found):
            clipped[figure] = str(_FORMATS[figure](found))
    return values, clipped


def _chosen(weights: Iterable[float], at: float) -> int:
    """Return the place of the weight that a number between 0 and 1 falls on."""
    weights = list(weights)
    left = at * sum(weights)
    for place, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return place
    return len(weights) - 1


_TAGS = ("uniform", "gaussian", "pareto", "table", "Network", "literal['profile']")
_UNITS = {"cpus": "cores, as in 0.5", "memory": "a size with k, m or g, as in 512m or 2g"}


def _number(figure: str, quantity: Quantity) -> float:
    """Return a quantity in cores, bytes, bit/s, s, or as a share of 1. Raises InventoryError when it is none."""
    number: float | None
    if figure == "cpus":
        number = float(quantity) if re.fullmatch(r"\d{1,9}(\.\d+)?", str(quantity)) else None
    elif figure == "memory":
        number = memory_bytes(quantity)
    else:
        alone = "delay" if figure == "jitter" else figure  # a jitter is a time, and is checked with its delay
        parsed, wrong = network.parse({alone: quantity})
        if wrong:
            raise InventoryError(wrong[0].what, wrong[0].fix)
        number = parsed[alone]
    if number is None:
        raise InventoryError(f"cannot be {quantity!r}", f"write {_UNITS[figure]}")
    return number


def _wrong(population: Population) -> Iterable[tuple[list[str], str, str]]:
    """Yield what the schema does not say of a population: where, what, and what to do."""
    known = profiles()
    for name in population.profiles or ():
        if name not in known:
            yield ["profiles", name], f"there is no profile {name!r}", nearest(name, known)
    if population.profiles and (population.cpus or population.memory):
        yield ["profiles"], "profiles have cpus and memory already", "take out profiles, or cpus and memory"
    if not population.profiles and not (population.cpus and population.memory):
        fix = "write cpus and memory, as in cpus: {name: uniform, least: 0.2, most: 1}, or profiles by weight"
        yield [], "says not how large its devices are", fix
    if population.network == "profile" and not population.profiles:
        yield (
            ["network"],
            "there are no profiles to take the network from",
            "write the figures, as rate_up and rate_down",
        )
    parts = {"cpus": population.cpus, "memory": population.memory}
    places = {figure: [figure] for figure in parts}
    if isinstance(population.network, Network):
        parts |= dict(population.network)
        places |= {figure: ["network", figure] for figure in dict(population.network)}
    for figure, distribution in parts.items():
        for key, quantity in _quantities(distribution) if distribution else ():
            try:
                _number(figure, quantity)
            except InventoryError as error:
                yield [*places[figure], key], error.message, error.hint
                return
        if isinstance(distribution, Uniform | Gaussian | Pareto) and distribution.most is not None:
            least = distribution.least
            if least is not None and _number(figure, least) > _number(figure, distribution.most):
                yield (
                    [*places[figure], "most"],
                    f"{distribution.most} is below the least, {least}",
                    "change one of them",
                )
        if isinstance(distribution, Pareto) and not _number(figure, distribution.least):
            yield [*places[figure], "least"], "cannot be 0 of a Pareto distribution", "write a least above 0"
        if isinstance(distribution, Gaussian) and not _number(figure, distribution.deviation):
            yield [*places[figure], "deviation"], "cannot be 0", "write a table of one value for what does not vary"


def _quantities(distribution: Uniform | Gaussian | Pareto | Table) -> Iterable[tuple[str, Quantity]]:
    if isinstance(distribution, Table):
        return [("values", quantity) for quantity in distribution.values]
    given = distribution.model_dump(exclude={"name", "shape"}, exclude_none=True)
    return list(given.items())


def _what(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "no such key"
    if problem["type"] == "missing":
        return "is missing"
    if problem["type"].startswith("union_tag"):
        return (
            f"there is no distribution {problem['ctx']['tag']!r}"
            if "ctx" in problem and "tag" in problem["ctx"]
            else "has no name"
        )
    return f"cannot be {problem['input']!r}"


def _fix(problem: Any, place: list[str]) -> str:
    if problem["type"] == "extra_forbidden":
        kinds: dict[int, Iterable[str]] = {1: Population.model_fields}
        known = kinds.get(len(place), {"name", *Gaussian.model_fields, "shape", "values"})
        return nearest(place[-1], Network.model_fields if place[:1] == ["network"] and len(place) == 2 else known)
    if problem["type"].startswith("union_tag"):
        return "write {name: uniform, least: 0.2, most: 1}, or one of gaussian, pareto, table"
    return "docs/reference-profiles.md shows every key"


def _line(node: Any, place: list[str]) -> int:
    """Return the line of a key, or of the mapping that lacks it."""
    found = 1
    for name in place:
        pair = next(
            (each for each in getattr(node, "value", []) if isinstance(each, tuple) and each[0].value == name), None
        )
        if not pair:
            break
        found, node = line(pair[0]), pair[1]
    return found
