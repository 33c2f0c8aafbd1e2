"""The schema of an experiment file, and how one is read with the settings of a run put on top."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator

from fltestbed.errors import ExperimentError
from fltestbed.fields import (
    PROBLEM,
    Count,
    Fraction,
    Memory,
    NotNegative,
    PositiveInt,
    PositiveNumber,
    Share,
)
from fltestbed.fields import Part as _Part
from fltestbed.fields import problem as _problem
from fltestbed.known import KNOWN
from fltestbed.paths import nearest
from fltestbed.timeline.schema import Timeline
from fltestbed.yaml_files import NotYaml, compose, duplicates, line

MIN_EXAMPLES = 50
"""The least that a partition has, held-out part included."""


class Data(_Part):
    """The data set and where it comes from.

    `path` is a folder, an archive or a file on the controller, relative to the experiment file. The sequences of a text
    are `sequence_length` tokens long, and the next token is the label.
    """

    source: Literal["debian", "device", "folder", "hub"] = "debian"
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
        if source == "device" and path is not None:
            raise _problem("of the source device, the inventory says where", "write data: /path at each client there")
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


_MORE_CLIENTS = "raise strategy.fraction_train, or add clients to the inventory"


class _Strategy(_Part):
    fraction_train: Fraction = 1.0
    min_train_clients: PositiveInt = 1

    def require_asked(self, clients: int) -> None:
        """Raise ExperimentError unless so many clients a round are enough for what the strategy is to do."""


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
    tau: PositiveNumber = 1e-3


class FedAdam(_Strategy):
    """Adam on the server."""

    name: Literal["fedadam"]
    eta: PositiveNumber = 0.1
    beta_1: Share = 0.9
    beta_2: Share = 0.99
    tau: PositiveNumber = 1e-3


class FedYogi(_Strategy):
    """Yogi on the server."""

    name: Literal["fedyogi"]
    eta: PositiveNumber = 0.01
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

    def require_asked(self, clients: int) -> None:
        """Raise ExperimentError where the share is less than one of the clients, as Flower rounds it down."""
        if self.beta and int(self.beta * clients) < 1:
            enough = f"{math.ceil(1000 / clients) / 1000:g} or more, or " if clients > 2 else ""
            raise ExperimentError(
                f"strategy.beta: {self.beta:g} of the {clients} clients that a round asks is not one, "
                "and nothing would be left out",
                f"write strategy.beta: {enough}0 for the plain mean, {_MORE_CLIENTS}",
            )


class _Resilient(_Strategy):
    """What holds out against `num_malicious_nodes` of the clients, if a round has so many for each of them, and 3."""

    _each: ClassVar[int] = 2

    num_malicious_nodes: Count = 0

    def require_asked(self, clients: int) -> None:
        """Raise ExperimentError for fewer clients than the proof takes."""
        if clients < (least := self._each * self.num_malicious_nodes + 3):
            fewer = "lower strategy.num_malicious_nodes, " if self.num_malicious_nodes else ""
            raise ExperimentError(
                f"strategy: {self.name} needs {least} clients a round "  # type: ignore[attr-defined]
                f"({self._each} x num_malicious_nodes + 3), and {clients} are asked",
                f"{fewer}{_MORE_CLIENTS}",
            )


class Krum(_Resilient):
    """The one model that is nearest to its neighbours."""

    name: Literal["krum"]


class MultiKrum(_Resilient):
    """The mean of the models that are nearest to their neighbours."""

    name: Literal["multikrum"]
    num_nodes_to_select: PositiveInt = 1

    def require_asked(self, clients: int) -> None:
        """Raise ExperimentError, too, where all would be selected and some are wanting."""
        super().require_asked(clients)
        if self.num_nodes_to_select > clients:
            raise ExperimentError(
                f"strategy.num_nodes_to_select: is {self.num_nodes_to_select}, but a round asks {clients} clients",
                f"write strategy.num_nodes_to_select: {clients} or less, {_MORE_CLIENTS}",
            )


class Bulyan(_Resilient):
    """A trimmed mean of what Krum chooses."""

    _each: ClassVar[int] = 4

    name: Literal["bulyan"]


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


class FedBuff(_Strategy):
    """Keeps clients busy, and steps on the server for every `buffer` updates, by less for old ones."""

    name: Literal["fedbuff"]
    buffer: PositiveInt = 2
    server_learning_rate: PositiveNumber = 1.0


class HeteroFL(_Strategy):
    """Has each client train a part of the model that is as wide as it can bear, and averages what the parts share."""

    name: Literal["heterofl"]


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
    | Deadline
    | FedBuff
    | HeteroFL,
    Field(discriminator="name"),
]


class _Fixed(_Part):
    noise_multiplier: NotNegative = 1.0
    clipping_norm: PositiveNumber = 1.0


class _Adaptive(_Part):
    noise_multiplier: NotNegative = 1.0
    initial_clipping_norm: PositiveNumber = 0.1
    target_clipped_quantile: Annotated[float, Field(ge=0, le=1, strict=False)] = 0.5
    clip_norm_lr: PositiveNumber = 0.2
    clipped_count_stddev: NotNegative | None = None

    def require_deviation(self, clients: int) -> None:
        """Raise ExperimentError unless so many clients a round let Flower split the noise between count and model."""
        noise = self.noise_multiplier
        deviation = clients / 20 if self.clipped_count_stddev is None else self.clipped_count_stddev
        if noise and noise >= 2 * deviation:
            told = f"is null, which with {clients} clients a round is" if self.clipped_count_stddev is None else "is"
            raise ExperimentError(
                f"privacy.clipped_count_stddev: {told} {deviation:g}, "
                f"but has to be above half of noise_multiplier, {noise:g}",
                f"write privacy.clipped_count_stddev: {noise:g}, or lower privacy.noise_multiplier",
            )


class ServerFixed(_Fixed):
    """The server clips what the clients did to a norm, and adds noise to the mean."""

    name: Literal["server-fixed"]


class ClientFixed(_Fixed):
    """The same, clipped by each client, so that the server sees no more of it."""

    name: Literal["client-fixed"]


class ServerAdaptive(_Adaptive):
    """The server clips to a norm that follows a quantile of the clients' own, and adds noise to the mean."""

    name: Literal["server-adaptive"]


class ClientAdaptive(_Adaptive):
    """The same, clipped by each client."""

    name: Literal["client-adaptive"]


Privacy = Annotated[ServerFixed | ClientFixed | ServerAdaptive | ClientAdaptive, Field(discriminator="name")]


class Constant(_Part):
    """The same in all rounds."""

    name: Literal["constant"]


class Step(_Part):
    """Times `factor` after `every` so many rounds."""

    name: Literal["step"]
    every: PositiveInt = 10
    factor: Fraction = 0.1


class Exponential(_Part):
    """Times `factor` after each round."""

    name: Literal["exponential"]
    factor: Fraction = 0.95


class Cosine(_Part):
    """Along half a cosine from all of it towards the share `least`, which a round after the last one would have."""

    name: Literal["cosine"]
    least: Share = 0.0


Schedule = Annotated[Constant | Step | Exponential | Cosine, Field(discriminator="name")]


class Train(_Part):
    """What a client does in a round, unless the inventory says otherwise for that client.

    `schedule` is of the learning rate, also of one that the inventory or a rule says; its name alone will do.
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    batch_size: PositiveInt = 32
    learning_rate: PositiveNumber = 0.05
    schedule: Schedule = Constant(name="constant")
    momentum: Share = 0.9
    local_epochs: PositiveInt = 1
    data_fraction: Fraction = 1.0
    width: Fraction = 1.0

    @field_validator("schedule", mode="before")
    @classmethod
    def _of_a_name(cls, schedule: object) -> object:
        return {"name": schedule} if isinstance(schedule, str) else schedule


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
    width: Fraction | None = None


Capability = Literal["cpus", "memory", "samples_per_second"]


class Scale(_Part):
    """By what a setting is scaled: of a rule's clients, the one with the most has it in full, the others their part.

    A learning rate that is scaled by `batch_size` is that of `train` times the client's batch size over that of
    `train`: the linear scaling rule of Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677, 2017.
    """

    batch_size: Capability | None = None
    learning_rate: Literal["batch_size", "cpus", "memory", "samples_per_second"] | None = None
    local_epochs: Capability | None = None
    data_fraction: Capability | None = None
    participation: Capability | None = None
    width: Capability | None = None


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
    privacy: Privacy | None = None
    rounds: PositiveInt = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    train: Train = Train()
    rules: Annotated[list[Rule], Field(default_factory=list)]
    min_clients: PositiveInt | None = None
    client_wait: PositiveNumber = 120
    round_timeout: PositiveNumber = 600
    timeline: Timeline | None = None
    sweep: dict[str, list[Any]] | None = None
    repeats: PositiveInt = 1

    @field_validator("privacy")
    @classmethod
    def _strategy_can_be_private(cls, privacy: Privacy | None, info: ValidationInfo) -> Privacy | None:
        strategy = info.data.get("strategy")
        if privacy and isinstance(strategy, FedBuff | HeteroFL):
            what = f"Flower's wrappers take all clients to begin with one model, and those of {strategy.name} do not"
            raise _problem(what, "take it out, or write another strategy")
        return privacy

    @field_validator("partitioner")
    @classmethod
    def _data_on_devices_stay(cls, partitioner: Partitioner, info: ValidationInfo) -> Partitioner:
        data = info.data.get("data")
        if data and data.source == "device" and partitioner != Iid(name="iid"):
            raise _problem("data that lie on the devices are not split", "take partitioner out, or write {name: iid}")
        return partitioner

    @field_validator("sweep")
    @classmethod
    def _keys_and_values(cls, sweep: dict[str, list[Any]] | None) -> dict[str, list[Any]] | None:
        for key, values in (sweep or {}).items():
            known = KEYS - {"name", "sweep", "repeats"}
            if key not in known:
                raise _problem(f"there is no key {key!r} to sweep over", _GONE.get(key) or nearest(key, known))
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
        if train.width < 1:
            _require_parts(f"train.width is {train.width:g}", info)
        return train

    @field_validator("rules")
    @classmethod
    def _strategy_can_have_widths(cls, rules: list[Rule], info: ValidationInfo) -> list[Rule]:
        for number, rule in enumerate(rules, start=1):
            if (rule.set and (rule.set.width or 1) < 1) or (rule.scale and rule.scale.width):
                _require_parts(f"rule {number} makes clients' models narrower", info)
        return rules

    def run_config(self) -> dict[str, str | int | float]:
        """Return what `flwr run --run-config` takes: the values that a client reads too."""
        return {
            "model": self.model,
            "seed": self.seed,
            **{
                name.replace("_", "-"): value
                for name, value in self.train.model_dump(exclude={"schedule", "width"}).items()
            },
        }

    def require_clients(self, clients: Sequence[Mapping[str, Any]]) -> None:
        """Raise ExperimentError unless a testbed with these clients, as an inventory resolves them, can run this."""
        if (self.min_clients or 1) > len(clients):
            raise ExperimentError(
                f"min_clients: is {self.min_clients}, but the inventory has {len(clients)} clients",
                "lower min_clients or add clients to the inventory",
            )
        narrow = [client["client"] for client in clients if client.get("settings", {}).get("width", 1) < 1]
        if narrow and not isinstance(self.strategy, HeteroFL):
            raise ExperimentError(
                f"strategy: {_WHOLE.format(self.strategy.name)}, "
                f"but the inventory gives {', '.join(narrow)} a width below 1",
                _PARTS,
            )
        asked = min(
            len(clients), max(int(len(clients) * self.strategy.fraction_train), self.strategy.min_train_clients)
        )
        self.strategy.require_asked(asked)
        if isinstance(self.privacy, _Adaptive):
            self.privacy.require_deviation(asked)
        if self.data.source == "device":
            if without := [client["client"] for client in clients if not client.get("data")]:
                raise ExperimentError(
                    f"data.source: is device, but the inventory names no data of {', '.join(without)}",
                    "write the path on the device, as in testbed_client: {data: /srv/data}, and run fltestbed up",
                )
            return
        known = KNOWN.get(self.data.name)
        if known and len(clients) > (most := known.examples // MIN_EXAMPLES):
            raise ExperimentError(
                f"data.name: {self.data.name} can be split into {most} partitions of at least {MIN_EXAMPLES} examples, "
                f"but the inventory has {len(clients)} clients",
                "use fewer clients",
            )


_WHOLE = "{} has every client train the whole model"
_PARTS = "write strategy: {name: heterofl}, or take width out"


def _require_parts(what: str, info: ValidationInfo) -> None:
    """Raise a problem unless the strategy, if it is one, lets clients train parts of the model."""
    strategy = info.data.get("strategy")
    if strategy and not isinstance(strategy, HeteroFL):
        raise _problem(f"{what}, and {_WHOLE.format(strategy.name)}", _PARTS)


def split(settings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the settings whose key an experiment has, or had, and the others."""
    ours = [setting for setting in settings if _key(setting) in KEYS | _GONE.keys()]
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
    except (NotYaml, yaml.constructor.ConstructorError, ValueError) as error:  # the last of a date that there is not
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

    for setting in _names_first(settings):
        _apply(tree, setting)
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        problems, hints = [], []
        for problem in error.errors():
            key = ".".join(_without_tag(problem["loc"]))
            what, hint = _explain(key, problem["type"], problem["input"], problem.get("ctx", {}))
            problems.append(f"{_where(path, root, settings, key)}: {what}")
            hints.append(hint)
        raise ExperimentError("\n".join(problems), "; ".join(dict.fromkeys(hints))) from error


def where(path: Path, settings: Sequence[str], key: str) -> str:
    """Return the place of a key for an error: its file and line, or the setting that has it."""
    return _where(path, compose(path), settings, key)


def _where(path: Path, root: yaml.Node | None, settings: Sequence[str], key: str) -> str:
    source = next((said for said in settings if f"{key}.".startswith(f"{_key(said)}.")), None)
    return f"setting {source!r}: {key}" if source else f"{path}:{_line(root, key.split('.'))}: {key}"


def _explain(key: str, kind: str, given: Any, context: Mapping[str, Any]) -> tuple[str, str]:
    """Return what is wrong with a value, and what to do, for a kind of pydantic's errors."""
    if kind == PROBLEM:
        return context["what"], context["hint"]
    if kind == "extra_forbidden" and key in _GONE:
        return "no such key", _GONE[key]
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
        if kind == "missing":
            return "is missing", _LOOK
        examples = {"timeline": "{model: markov}", "train": "{name: cosine}"}
        example = examples.get(key.partition(".")[0], "{name: iid}")
        return f"has no {example[1:].partition(':')[0]}", f"add one, as in {example}"
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
    "list_type": "a list of values, as in [0.1, 1.0], or one a line, each after a hyphen",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "model_attributes_type": "keys and values, as in {{name: iid}}",
    "model_type": "keys and values, as in {{batch_size: 32}}",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "string_too_long": "a text of at most {max_length} characters",
    "string_type": "a text",
}
_GONE = {"strategy.eta_l": "take it out: the clients' learning rate is train.learning_rate"}
_LOOK = "compare it with experiments/fashion-mnist-cnn.yml, which shows every key"


def _keys(model: type[BaseModel], prefix: str = "", of_lists: bool = False) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + (field.alias or name)
        parts: list[Any] = [field.annotation]
        for part in parts:
            if isclass(part) and issubclass(part, BaseModel):
                yield from _keys(part, f"{prefix}{name}.", of_lists)
            elif of_lists or get_origin(part) is not list:
                parts += get_args(part)


KEYS = frozenset(_keys(Experiment))
"""Every key of an experiment, with dots."""
_ALL_KEYS = frozenset(_keys(Experiment, of_lists=True))
"""These, and the keys of what is in lists."""


def _key(setting: str) -> str:
    return setting.partition("=")[0].strip()


def _apply(tree: dict[str, Any], setting: str) -> None:
    _, equals, text = setting.partition("=")
    key = _key(setting)
    if not equals:
        raise ExperimentError(f"setting {setting!r}: is not of the form key=value", "write for example rounds=2")
    if key not in KEYS:
        raise ExperimentError(f"setting {setting!r}: there is no key {key!r}", _GONE.get(key) or nearest(key, KEYS))
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ExperimentError(f"setting {setting!r}: the value is not valid YAML", "quote it") from error
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    if parents and last == "name":
        old, new = (_kind(parents, name) for name in (tree.get("name"), value))
        for argument in old.keys() - new.keys() if new else ():
            tree.pop(argument, None)
    tree[last] = value


def _names_first(settings: Sequence[str]) -> list[str]:
    """Return settings with the name of a part before its arguments, unless the whole part is set between them."""
    ordered: list[str] = []
    for setting in settings:
        part, _, last = _key(setting).rpartition(".")
        place = len(ordered)
        if part and last == "name":
            while place and _key(ordered[place - 1]) not in (part, f"{part}.name"):
                place -= 1
        ordered.insert(place, setting)
    return ordered


def _kind(parts: Sequence[str], name: object) -> Mapping[str, Any]:
    """Return the keys of what a part of an experiment is by its name; none where the name says nothing of the keys."""
    whole: Any = Experiment
    for part in parts:
        whole = whole.model_fields[part].annotation
    kinds = [whole]
    for kind in kinds:
        if not isclass(kind):
            kinds += get_args(kind)
        elif issubclass(kind, BaseModel) and name in get_args(kind.model_fields["name"].annotation):
            return kind.model_fields
    return {}


def _without_tag(location: tuple[str | int, ...]) -> list[str]:
    """Return where an error is in the file: pydantic puts a union's tag behind the key of the union."""
    names = [str(name) for name in location]
    tag = (
        3
        if names[:2] == ["timeline", "churn"]
        else 2
        if names[:2] == ["train", "schedule"]
        else 1
        if names[0] in ("partitioner", "privacy", "strategy")
        else len(names)
    )
    return names[:tag] + names[tag + 1 :] if len(names) > tag + 1 else names


def _line(node: yaml.Node | None, location: Sequence[str]) -> int:
    """Return the line of the key `location`, or of the mapping that lacks it."""
    line = 1
    for name in location:
        if isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
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
