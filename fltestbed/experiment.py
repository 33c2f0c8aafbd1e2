"""The schema of an experiment file, and how one is read with the settings of a run put on top."""

import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fltestbed.errors import ExperimentError
from fltestbed.paths import nearest
from fltestbed.yaml_files import NotYaml, compose, duplicates, line

# Numbers are read leniently, as YAML takes 1e-3 for a string.
PositiveNumber = Annotated[float, Field(gt=0, strict=False)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=False)]
PositiveInt = Annotated[int, Field(ge=1)]

EXAMPLES = {"fashion-mnist": 60_000}
"""How many examples a data set has to train on."""
MIN_EXAMPLES = 50
"""The least that a partition has, held-out part included."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(_Part):
    """The data set and where it comes from."""

    name: Literal["fashion-mnist"] = "fashion-mnist"
    source: Literal["debian"] = "debian"


class Iid(_Part):
    """Every client gets an equal, random share."""

    name: Literal["iid"]


class Dirichlet(_Part):
    """Every label is split by its own draw from Dir(alpha): the smaller alpha, the more the clients differ."""

    name: Literal["dirichlet"]
    alpha: PositiveNumber = 0.5


Partitioner = Annotated[Iid | Dirichlet, Field(discriminator="name")]


class FedAvg(_Part):
    """Federated averaging over a share of the clients that are online."""

    name: Literal["fedavg"] = "fedavg"
    fraction_train: Fraction = 1.0


class Train(_Part):
    """What a client does in a round, unless the inventory says otherwise for that client."""

    batch_size: PositiveInt = 32
    learning_rate: PositiveNumber = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1, strict=False)] = 0.9
    local_epochs: PositiveInt = 1
    data_fraction: Fraction = 1.0


class Experiment(_Part):
    """One experiment. Times are in seconds."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
    description: str = ""
    app: str = "fl_app"
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "cnn"
    data: Data = Data()
    partitioner: Partitioner = Iid(name="iid")
    strategy: FedAvg = FedAvg()
    rounds: PositiveInt = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    train: Train = Train()
    min_clients: PositiveInt | None = None
    client_wait: PositiveNumber = 120
    round_timeout: PositiveNumber = 600

    def run_config(self) -> dict[str, str | int | float]:
        """Return what `flwr run --run-config` takes: the values that a client reads too."""
        return {
            "model": self.model,
            "seed": self.seed,
            **{name.replace("_", "-"): value for name, value in self.train.model_dump().items()},
        }

    def require_clients(self, clients: int) -> None:
        """Raise ExperimentError unless a testbed with so many clients can run this."""
        if (self.min_clients or 1) > clients:
            raise ExperimentError(
                f"min_clients: is {self.min_clients}, but the inventory has {clients} clients",
                "lower min_clients or add clients to the inventory",
            )
        most = EXAMPLES[self.data.name] // MIN_EXAMPLES
        if clients > most:
            raise ExperimentError(
                f"data.name: {self.data.name} can be split into {most} partitions of at least {MIN_EXAMPLES} examples, "
                f"but the inventory has {clients} clients",
                "use fewer clients",
            )


def split(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the settings whose key an experiment has, and the others."""
    ours = [setting for setting in settings if _key(setting) in KEYS]
    return ours, [setting for setting in settings if setting not in ours]


def load(path: Path, settings: Sequence[str] = ()) -> Experiment:
    """Read the experiment file `path` and put `settings`, a list of `key=value` with dotted keys, on top.

    Raises ExperimentError, which names the file, line and key of everything that is wrong.
    """
    try:
        root = compose(path)
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(
            f"{path}: cannot be read: {error.strerror}", "give the path of an experiment file"
        ) from error
    except (NotYaml, yaml.constructor.ConstructorError) as error:
        mark = getattr(error, "problem_mark", None)
        number = mark.line + 1 if mark else getattr(error, "line", 1)
        raise ExperimentError(
            f"{path}:{number}: is not valid YAML: {getattr(error, 'problem', error)}",
            "look at indentation (no tabs), colons, quotes and brackets",
        ) from error
    twice = [
        f"{path}:{line(key)}: {key.value}: is here twice, first in line {first}" for key, first in duplicates(root)
    ]
    if twice:
        raise ExperimentError("\n".join(twice), "keep one of them")
    if not isinstance(tree, dict):
        raise ExperimentError(f"{path}: is not a mapping of keys to values", _LOOK)

    for setting in settings:
        _apply(tree, setting)
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        problems, hints = [], []
        for problem in error.errors():
            location = _without_tag(problem["loc"])
            key = ".".join(location)
            source = next((said for said in settings if f"{key}.".startswith(f"{_key(said)}.")), None)
            where = f"setting {source!r}: {key}" if source else f"{path}:{_line(root, location)}: {key}"
            what, hint = _explain(key, problem["type"], problem["input"], problem.get("ctx", {}))
            problems.append(f"{where}: {what}")
            hints.append(hint)
        raise ExperimentError("\n".join(problems), "; ".join(dict.fromkeys(hints))) from error


def _explain(key: str, kind: str, given: Any, context: Mapping[str, Any]) -> tuple[str, str]:
    """Return what is wrong with a value, and what to do, for a kind of pydantic's errors."""
    if kind == "extra_forbidden":
        elsewhere = "take it out, or choose the name that it belongs to"
        return "no such key", elsewhere if key in KEYS else nearest(key, KEYS)
    if kind in ("literal_error", "union_tag_invalid"):
        name = str(context.get("tag", given))
        known = re.findall("'(.+?)'", context.get("expected_tags") or context["expected"])
        return f"there is no {name!r}", nearest(name, known)
    if kind in ("missing", "union_tag_not_found"):
        return ("is missing", _LOOK) if kind == "missing" else ("has no name", "add one, as in {name: iid}")
    expected = _EXPECTED.get(kind, "another value; " + _LOOK).format(**context)
    return f"cannot be {given!r}", f"write {expected}"


_EXPECTED = {
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "int_type": "a whole number, without quotes",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "model_attributes_type": "keys and values, as in {{name: iid}}",
    "model_type": "keys and values, as in {{batch_size: 32}}",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "string_too_long": "a text of at most {max_length} characters",
    "string_type": "a text",
}
_LOOK = "compare it with experiments/fashion-mnist-cnn.yml, which shows every key"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for part in get_args(field.annotation) or (field.annotation,):
            if isclass(part) and issubclass(part, BaseModel):
                yield from _keys(part, f"{prefix}{name}.")


KEYS = frozenset(_keys(Experiment))
"""Every key of an experiment, with dots."""


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _apply(tree: dict[str, Any], setting: str) -> None:
    _, equals, text = setting.partition("=")
    key = _key(setting)
    if not equals:
        raise ExperimentError(f"setting {setting!r}: is not of the form key=value", "write for example rounds=2")
    if key not in KEYS:
        raise ExperimentError(f"setting {setting!r}: there is no key {key!r}", nearest(key, KEYS))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ExperimentError(f"setting {setting!r}: the value is not valid YAML", "quote it") from error
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    if parents and last == "name" and tree.get("name") != value:
        tree.clear()  # the arguments belong to what the name stood for
    tree[last] = value


def _without_tag(location: tuple[str | int, ...]) -> list[str]:
    """Return where an error is in the file: pydantic puts a union's tag behind the key of the union."""
    names = [str(name) for name in location]
    return names[:1] + names[2:] if names[0] == "partitioner" and len(names) > 2 else names


def _line(node: yaml.Node | None, location: list[str]) -> int:
    """Return the line of the key `location`, or of the mapping that lacks it."""
    line = 1
    for name in location:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == name), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
