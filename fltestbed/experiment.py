"""The schema of an experiment file, and how one is read with the settings of a run put on top."""

from collections.abc import Iterator, Sequence
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fltestbed.errors import ExperimentError
from fltestbed.paths import nearest

# Numbers are read leniently, as YAML takes 1e-3 for a string.
PositiveNumber = Annotated[float, Field(gt=0, strict=False)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=False)]
PositiveInt = Annotated[int, Field(ge=1)]


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


def load(path: Path, settings: Sequence[str] = ()) -> Experiment:
    """Read the experiment file `path` and put `settings`, a list of `key=value` with dotted keys, on top.

    Raises ExperimentError, which names the file, line and key of everything that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except OSError as error:
        raise ExperimentError(
            f"{path}: cannot be read: {error.strerror}", "give the path of an experiment file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: is not valid YAML: {error}", "correct the file") from error
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
            if problem["type"] == "extra_forbidden":
                problems.append(f"{where}: no such key")
                hints.append(nearest(key, set(_keys(Experiment))))
            elif problem["type"] == "missing":
                problems.append(f"{where}: is missing")
            else:
                problems.append(f"{where}: {problem['msg']}, but it is {problem['input']!r}")
        raise ExperimentError("\n".join(problems), "; ".join(dict.fromkeys(hints)) or _LOOK) from error


_LOOK = "compare it with experiments/fashion-mnist-cnn.yml, which shows every key"


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for part in get_args(field.annotation) or (field.annotation,):
            if isclass(part) and issubclass(part, BaseModel):
                yield from _keys(part, f"{prefix}{name}.")


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _apply(tree: dict[str, Any], setting: str) -> None:
    _, equals, text = setting.partition("=")
    key = _key(setting)
    if not equals:
        raise ExperimentError(f"setting {setting!r}: is not of the form key=value", "write for example rounds=2")
    if key not in _keys(Experiment):
        raise ExperimentError(f"setting {setting!r}: there is no key {key!r}", nearest(key, set(_keys(Experiment))))
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
