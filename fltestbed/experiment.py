"""The schema of an experiment file, and how one is read with the settings of a run put on top."""

import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fltestbed.errors import ExperimentError
from fltestbed.inventory import memory_bytes
from fltestbed.paths import nearest
from fltestbed.yaml_files import NotYaml, compose, duplicates, line

# Numbers are read leniently, as YAML takes 1e-3 for a string.
PositiveNumber = Annotated[float, Field(gt=0, strict=False)]
Fraction = Annotated[float, Field(gt=0, le=1, strict=False)]
NotNegative = Annotated[float, Field(ge=0, strict=False)]
Share = Annotated[float, Field(ge=0, lt=1, strict=False)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


def _memory(value: object) -> int:
    number = memory_bytes(value)
    if number is None:
        raise _problem(f"cannot be {value!r}", "write a size with k, m or g, as in 512m or 2g")
    return number


Memory = Annotated[int, BeforeValidator(_memory), Field(gt=0)]

MIN_EXAMPLES = 50
"""The least that a partition has, held-out part included."""


class Known(NamedTuple):
    """What is known of a data set by its name, before it is read."""

    examples: int  # to train on
    shape: tuple[int, int, int]  # of an image: channels, height, width
    classes: int


KNOWN = {
    "cifar-10": Known(50_000, (3, 32, 32), 10),
    "cifar-100": Known(50_000, (3, 32, 32), 100),
    "fashion-mnist": Known(60_000, (1, 28, 28), 10),
    "mnist": Known(60_000, (1, 28, 28), 10),
}
"""The data sets that any source has to have as everybody else has them."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Data(_Part):
    """The data set and where it comes from.

    `path` is a folder, an archive or a file on the controller, relative to the experiment file. The sequences of a text
    are `sequence_length` tokens long, and the next token is the label.
    """

    source: Literal["debian", "folder", "hub"] = "debian"
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", validate_default=True)] = "fashion-mnist"
    path: Annotated[str | None, Field(validate_default=True)] = None
    tokens: Literal["characters", "words"] = "characters"
    sequence_length: PositiveInt = 80
    vocabulary: Annotated[int, Field(ge=2, le=65_536)] = 10_000

    @field_validator("name")
    @classmethod
    def _source_has_it(cls, name: str, info: ValidationInfo) -> str:
        had = {"debian": ["fashion-mnist"], "hub": list(KNOWN)}.get(info.data.get("source", "folder"), [name])
        if name not in had:
            raise _problem(f"there is no {name!r} in the source {info.data['source']}", nearest(name, had))
        return name

    @field_validator("path")
    @classmethod
    def _folder_has_a_path(cls, path: str | None, info: ValidationInfo) -> str | None:
        source = info.data.get("source")
        if source == "folder" and path is None:
            raise _problem("is missing", "write where the data lie, as in {source: folder, path: ../data/mnist}")
        if source in ("debian", "hub") and path is not None:
            raise _problem(f"the source {source} has no path", "take it out, or write source: folder")
        return path


class Iid(_Part):
    """Every client gets an equal, random share, or `examples` random ones."""

    name: Literal["iid"]
    examples: PositiveInt | None = None


class Dirichlet(_Part):
    """Every label is split by its own draw from Dir(alpha): the smaller alpha, the more the clients differ."""

    name: Literal["dirichlet"]
    alpha: PositiveNumber = 0.5


class QSampler(_Part):
    """Every client has a main label; the share q of a label goes to its clients, the rest evenly to the others."""

    name: Literal["q-sampler"]
    q: Fraction = 0.5


class LimitLabels(_Part):
    """The examples, sorted by label, are cut into pieces; every client gets `labels` of them."""

    name: Literal["limit-labels"]
    labels: PositiveInt = 2


class NLabels(_Part):
    """Every client has `labels` labels, and shares each evenly with the others that have it."""

    name: Literal["n-labels"]
    labels: PositiveInt = 2


class Emd(_Part):
    """Every client's shares of the labels are `emd` away from those of all examples, equally many for each client."""

    name: Literal["emd"]
    emd: Annotated[float, Field(ge=0, lt=2, strict=False)] = 1.0


class Quantity(_Part):
    """The clients have random examples, and as many as one draw from Dir(alpha) says."""

    name: Literal["quantity"]
    alpha: PositiveNumber = 0.5


class ByGroup(_Part):
    """No group of examples that belong together, as the texts of a writer, is divided."""

    name: Literal["by-group"]


Partitioner = Annotated[
    Iid | Dirichlet | QSampler | LimitLabels | NLabels | Emd | Quantity | ByGroup, Field(discriminator="name")
]


class _Strategy(_Part):
    fraction_train: Fraction = 1.0
    min_train_clients: PositiveInt = 1


class FedAvg(_Strategy):
    """Federated averaging over a share of the clients that are online."""

    name: Literal["fedavg"]


class FedAvgM(_Strategy):
    """Federated averaging with momentum on the server."""

    name: Literal["fedavgm"]
    server_learning_rate: PositiveNumber = 1.0
    server_momentum: Share = 0.0


class FedAdagrad(_Strategy):
    """Adagrad on the server."""

    name: Literal["fedadagrad"]
    eta: PositiveNumber = 0.1
    eta_l: PositiveNumber = 0.1
    tau: PositiveNumber = 1e-3


class FedAdam(_Strategy):
    """Adam on the server."""

    name: Literal["fedadam"]
    eta: PositiveNumber = 0.1
    eta_l: PositiveNumber = 0.1
    beta_1: Share = 0.9
    beta_2: Share = 0.99
    tau: PositiveNumber = 1e-3


class FedYogi(_Strategy):
    """Yogi on the server."""

    name: Literal["fedyogi"]
    eta: PositiveNumber = 0.01
    eta_l: PositiveNumber = 0.0316
    beta_1: Share = 0.9
    beta_2: Share = 0.99
    tau: PositiveNumber = 1e-3


class FedProx(_Strategy):
    """Federated averaging of clients that are held near the global model."""

    name: Literal["fedprox"]
    proximal_mu: NotNegative = 0.1


class QFedAvg(_Strategy):
    """Clients with a larger loss weigh more, the more so the larger q."""

    name: Literal["qfedavg"]
    q: NotNegative = 0.1


class FedMedian(_Strategy):
    """The median of every weight."""

    name: Literal["fedmedian"]


class FedTrimmedAvg(_Strategy):
    """The mean of every weight without the share `beta` of the largest and of the smallest."""

    name: Literal["fedtrimmedavg"]
    beta: Annotated[float, Field(ge=0, lt=0.5, strict=False)] = 0.2


class Krum(_Strategy):
    """The one model that is nearest to its neighbours."""

    name: Literal["krum"]
    num_malicious_nodes: Count = 0


class MultiKrum(_Strategy):
    """The mean of the models that are nearest to their neighbours."""

    name: Literal["multikrum"]
    num_malicious_nodes: Count = 0
    num_nodes_to_select: PositiveInt = 1


class Bulyan(_Strategy):
    """A trimmed mean of what Krum chooses."""

    name: Literal["bulyan"]
    num_malicious_nodes: Count = 0


class FedNova(_Strategy):
    """Averages what clients did a step, so that a client that took more steps does not pull harder."""

    name: Literal["fednova"]


class TiFL(_Strategy):
    """Sorts the clients into tiers by speed, and has each round trained by clients of one tier."""

    name: Literal["tifl"]
    tiers: PositiveInt = 3
    interval: PositiveInt = 5
    credits: PositiveInt | None = None


class Oort(_Strategy):
    """Chooses the clients whose losses are large and who are fast enough, and now and then one that is not known."""

    name: Literal["oort"]
    exploration: Fraction = 0.9
    exploration_decay: Fraction = 0.98
    exploration_min: Share = 0.2
    preferred_percentile: Annotated[float, Field(gt=0, le=100, strict=False)] = 50.0
    penalty: NotNegative = 2.0


class Deadline(_Strategy):
    """Asks more clients than are needed, and goes on with those that were first, or after a time."""

    name: Literal["deadline"]
    over_selection: Annotated[float, Field(ge=1, strict=False)] = 1.3
    seconds: PositiveNumber | None = None


Strategy = Annotated[
    FedAvg
    | FedAvgM
    | FedAdagrad
    | FedAdam
    | FedYogi
    | FedProx
    | QFedAvg
    | FedMedian
    | FedTrimmedAvg
    | Krum
    | MultiKrum
    | Bulyan
    | FedNova
    | TiFL
    | Oort
    | Deadline,
    Field(discriminator="name"),
]


class Train(_Part):
    """What a client does in a round, unless the inventory says otherwise for that client."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    batch_size: PositiveInt = 32
    learning_rate: PositiveNumber = 0.05
    momentum: Share = 0.9
    local_epochs: PositiveInt = 1
    data_fraction: Fraction = 1.0


class When(_Part):
    """What a client has, all of it: `below` a bound, or `from` a bound on. No limit is above any bound."""

    cpus_below: PositiveNumber | None = None
    cpus_from: PositiveNumber | None = None
    memory_below: Memory | None = None
    memory_from: Memory | None = None
    samples_per_second_below: PositiveNumber | None = None
    samples_per_second_from: PositiveNumber | None = None


class Settings(_Part):
    """Training settings of a client, as the inventory has them."""

    batch_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    learning_rate: Annotated[float, Field(gt=0, le=10, strict=False)] | None = None
    local_epochs: Annotated[int, Field(ge=1, le=1000)] | None = None
    data_fraction: Fraction | None = None
    participation: Fraction | None = None
    deadline: PositiveNumber | None = None


Capability = Literal["cpus", "memory", "samples_per_second"]


class Scale(_Part):
    """By what a setting is scaled: the client with the most of it has the setting in full, the others their part.

    A learning rate that is scaled by `batch_size` is that of `train` times the client's batch size over that of
    `train`: the linear scaling rule of Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677, 2017.
    """

    batch_size: Capability | None = None
    learning_rate: Literal["batch_size", "cpus", "memory", "samples_per_second"] | None = None
    local_epochs: Capability | None = None
    data_fraction: Capability | None = None
    participation: Capability | None = None


class Balance(_Part):
    """How long the training of each client is to take in a round."""

    round_seconds: PositiveNumber


class Rule(_Part):
    """What some clients, or all, train with because of what they are capable of."""

    when: When = When()
    set: Settings | None = None
    scale: Scale | None = None
    fit_memory: Fraction | None = None
    balance: Balance | None = None

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if not self.model_dump(exclude={"when"}, exclude_none=True):
            raise _problem("the rule sets nothing", "add set, scale, fit_memory or balance, or take the rule out")
        return self


class Experiment(_Part):
    """One experiment. Times are in seconds."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
    description: str = ""
    app: str = "fl_app"
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] = "cnn"
    data: Data = Data()
    partitioner: Partitioner = Iid(name="iid")
    strategy: Strategy = FedAvg(name="fedavg")
    rounds: PositiveInt = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    train: Train = Train()
    rules: list[Rule] = []
    min_clients: PositiveInt | None = None
    client_wait: PositiveNumber = 120
    round_timeout: PositiveNumber = 600
    sweep: dict[str, list[Any]] | None = None
    repeats: PositiveInt = 1

    @field_validator("sweep")
    @classmethod
    def _keys_and_values(cls, sweep: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        for key, values in (sweep or {}).items():
            known = KEYS - {"name", "sweep", "repeats"}
            if key not in known:
                raise _problem(f"there is no key {key!r} to sweep over", nearest(key, known))
            if not values:
                raise _problem(f"{key} has no values", "write a list of them, as in [0.1, 1.0]")
        return sweep

    @field_validator("repeats")
    @classmethod
    def _repeats_have_the_seed(cls, repeats: int, info: ValidationInfo) -> int:
        if repeats > 1 and "seed" in (info.data.get("sweep") or {}):
            raise _problem("each repeat has a seed of its own, and sweep has seeds too", "take one of them out")
        return repeats

    @field_validator("train")
    @classmethod
    def _strategy_can_have_it(cls, train: Train, info: ValidationInfo) -> Train:
        if isinstance(info.data.get("strategy"), FedNova) and train.optimizer != "sgd":
            raise _problem(
                f"fednova counts the steps of SGD, and train.optimizer is {train.optimizer}",
                "write train.optimizer: sgd, or another strategy",
            )
        return train

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
        known = KNOWN.get(self.data.name)
        if known and clients > (most := known.examples // MIN_EXAMPLES):
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


_PROBLEM = "fltestbed"


def _problem(what: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError(_PROBLEM, "{what}", {"what": what, "hint": hint})


def _explain(key: str, kind: str, given: Any, context: Mapping[str, Any]) -> tuple[str, str]:
    """Return what is wrong with a value, and what to do, for a kind of pydantic's errors."""
    if kind == _PROBLEM:
        return context["what"], context["hint"]
    if kind == "extra_forbidden":
        elsewhere = "take it out, or choose the name that it belongs to"
        plain = re.sub(r"\.\d+(?=\.)", "", key)
        beside = {known for known in _ALL_KEYS if known.rpartition(".")[0] == plain.rpartition(".")[0]}
        return "no such key", elsewhere if plain in _ALL_KEYS else nearest(plain, beside or _ALL_KEYS)
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
    "dict_type": "keys and lists of their values, as in {{partitioner.alpha: [0.1, 1.0]}}",
    "int_type": "a whole number, without quotes",
    "list_type": "a list: as in [0.1, 1.0], or each entry on a line of its own, after a hyphen",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "model_attributes_type": "keys and values, as in {{name: iid}}",
    "model_type": "keys and values, as in {{batch_size: 32}}",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "string_too_long": "a text of at most {max_length} characters",
    "string_type": "a text",
}
_LOOK = "compare it with experiments/fashion-mnist-cnn.yml, which shows every key"


def _keys(model: type[BaseModel], prefix: str = "", *, in_lists: bool = False) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        if get_origin(field.annotation) is list and not in_lists:
            continue
        for part in get_args(field.annotation) or (field.annotation,):
            if isclass(part) and issubclass(part, BaseModel):
                yield from _keys(part, f"{prefix}{name}.", in_lists=in_lists)


KEYS = frozenset(_keys(Experiment))
"""Every key of an experiment that can be set, with dots."""
_ALL_KEYS = frozenset(_keys(Experiment, in_lists=True))


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
    return names[:1] + names[2:] if names[0] in ("partitioner", "strategy") and len(names) > 2 else names


def _line(node: yaml.Node | None, location: list[str]) -> int:
    """Return the line of the key `location`, or of the mapping that lacks it."""
    line = 1
    for name in location:
        if isinstance(node, yaml.SequenceNode):
            node = node.value[int(name)]
            line = node.start_mark.line + 1
            continue
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((key, value) for key, value in node.value if key.value == name), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
