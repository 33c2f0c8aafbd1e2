"""The strategies, and the view of the grid that they choose clients from."""

import math
import random
import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy.dp_adaptive_clipping import DifferentialPrivacyAdaptiveBase
from numpy.typing import NDArray

from testbed_app.errors import AppError

_MOST_USEFUL = 95  # the percentile above which Oort takes all clients for equally useful


class Chosen(flower.FedAvg):
    """Federated averaging of clients that a subclass chooses, and of what it learns of them from their replies."""

    @abstractmethod
    def choose(self, server_round: int, node_ids: Sequence[int], number: int) -> list[int]:
        """Return the nodes that train in this round; a plain random sample would be `number` of them."""

    def learn(self, server_round: int, asked: Sequence[int], replies: Mapping[int, Mapping[str, Any]]) -> None:
        """Take note of the figures of the nodes that replied; a node that was asked and is not there failed."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each node that is chosen."""
        node_ids = list(grid.get_node_ids())
        number = min(len(node_ids), max(int(len(node_ids) * self.fraction_train), self.min_train_nodes))
        self._asked = self.choose(server_round, node_ids, number)
        config["server-round"] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return self._construct_messages(record, self._asked, "train")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the replies."""
        replies = list(replies)
        self.learn(server_round, self._asked, {reply.metadata.src_node_id: metrics(reply) for reply in replies})
        return super().aggregate_train(server_round, replies)


class FedNova(flower.FedAvg):
    """Averages what the clients did a step, and goes as many steps as they did on average.

    Wang et al., Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization, NeurIPS 2020. A
    client's steps are counted as `effective_steps` does.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep the global model, which the replies are compared with."""
        self._global = {name: array.numpy() for name, array in arrays.items()}
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the global model after a normalized step."""
        replies = list(replies)
        averaged, figures = super().aggregate_train(server_round, replies)
        if averaged is None:
            return averaged, figures
        told = [metrics(reply) for reply in replies]
        examples = np.array([each["num-examples"] for each in told], dtype=float)
        shares = examples / examples.sum()
        steps = np.array([effective_steps(each["steps"], each["momentum"]) for each in told])
        weights = shares * (shares @ steps) / steps  # of each client's change
        changed = {}
        for name, before in self._global.items():
            changes = (
                weight * (reply.content.array_records["arrays"][name].numpy() - before)
                for weight, reply in zip(weights, replies, strict=True)
            )
            changed[name] = Array(np.asarray(before + sum(changes), dtype=before.dtype))
        return ArrayRecord(changed), figures


def effective_steps(steps: float, momentum: float) -> float:
    """Return the 1-norm of the factors that each step's gradient enters the result with, for SGD with momentum.

    Section 3 of FedNova's paper; without momentum, it is the number of steps.
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


class TiFL(Chosen):
    """Sorts the clients into tiers by how long they train, and has each round trained by clients of one tier.

    Chai et al., TiFL: A Tier-based Federated Learning System, HPDC 2020. The first round asks all clients, to time
    them. A client that failed when it was asked last is in no tier: it is asked beside one every `interval` rounds, to
    be timed again. As often the tiers' chances are set anew: the lower the mean of what its clients' accuracies were
    when they trained last, the larger; a tier without any has the mean chance. `credits` bounds the rounds of a tier,
    until none has any left.
    """

    def __init__(self, tiers: int, interval: int, credits: int | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._number = tiers
        self._interval = interval
        self._seconds: dict[int, float] = {}  # inf where it failed
        self._accuracies: dict[int, float] = {}  # both by node
        self._chances: list[float] = [1.0] * tiers
        self._credits: list[float] = [math.inf if credits is None else credits] * tiers

    def tiers(self) -> list[list[int]]:
        """Return the nodes that were timed, the fastest tier first; tiers differ by one node at most."""
        timed = [node for node, seconds in self._seconds.items() if seconds < math.inf]
        ordered = sorted(timed, key=lambda node: (self._seconds[node], node))
        return [part.tolist() for part in np.array_split(np.array(ordered, dtype=object), self._number)]

    def choose(self, server_round: int, node_ids: Sequence[int], number: int) -> list[int]:
        """Return clients that were not asked yet, if there are any, else a sample of one tier.

        Every `interval` rounds, those that failed come on top.
        """
        if unknown := [node for node in node_ids if node not in self._seconds]:
            return unknown
        failed = [node for node in node_ids if self._seconds[node] == math.inf]
        if len(failed) == len(node_ids):
            return failed
        tiers = self.tiers()
        anew = server_round % self._interval == 0
        if anew:
            self._chances = self._chances_of(tiers)
        online = [[node for node in tier if node in set(node_ids)] for tier in tiers]
        able = [tier for tier in range(self._number) if online[tier]]
        rich = [tier for tier in able if self._credits[tier] > 0] or able
        chances = [max(self._chances[tier], 1e-9) for tier in rich]
        tier = random.choices(rich, chances)[0]  # noqa: S311
        self._credits[tier] -= 1
        return random.sample(online[tier], min(number, len(online[tier]))) + (failed if anew else [])

    def _chances_of(self, tiers: Sequence[Sequence[int]]) -> list[float]:
        """Return each tier's chance, up to a common factor."""
        errors = [[1 - self._accuracies[node] for node in tier if node in self._accuracies] for tier in tiers]
        known = [float(np.mean(each)) for each in errors if each]
        mean = float(np.mean(known or [1.0]))
        return [float(np.mean(each)) if each else mean for each in errors]

    def learn(self, server_round: int, asked: Sequence[int], replies: Mapping[int, Mapping[str, Any]]) -> None:
        """Take note of times and accuracies."""
        for node in asked:
            self._seconds[node] = replies[node]["train-seconds"] if node in replies else math.inf
        self._accuracies |= {node: told["accuracy"] for node, told in replies.items()}


class Oort(Chosen):
    """Chooses clients whose losses are large and who are fast enough, and for a share of the places unknown ones.

    Lai et al., Oort: Efficient Federated Learning via Guided Participant Selection, OSDI 2021. As there, a client's
    utility is its number of examples times the root mean square of their losses, cut off at the 95th percentile and
    scaled to reach from 0 to 1, plus an allowance that grows while it is not chosen; one that takes longer than the
    preferred time is marked down by the power `penalty` of the ratio. Unlike there, the preferred time is a percentile
    of the known ones, without a pacer, and the most useful clients are taken, without a lottery among those near the
    cut. A client that fails keeps what was known of it.
    """

    def __init__(
        self,
        exploration: float,
        exploration_decay: float,
        exploration_min: float,
        preferred_percentile: float,
        penalty: float,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._exploration = exploration
        self._decay = exploration_decay
        self._least = exploration_min
        self._percentile = preferred_percentile
        self._penalty = penalty
        self._known: dict[int, tuple[float, float, int]] = {}  # utility and seconds, nan if not known, last round

    def choose(self, server_round: int, node_ids: Sequence[int], number: int) -> list[int]:
        """Return unknown clients, a share of them that falls from round to round, and the most useful of the others."""
        known = [node for node in node_ids if node in self._known]
        unknown = [node for node in node_ids if node not in self._known]
        explored = min(len(unknown), max(round(self._exploration * number), number - len(known)))
        self._exploration = max(self._least, self._exploration * self._decay)
        useful = sorted(known, key=lambda node: (-self.utility(node, server_round), node))
        return random.sample(unknown, explored) + useful[: number - explored]

    def utility(self, node: int, server_round: int) -> float:
        """Return how much a round with this client, which is known, promises."""
        statistical, seconds, last = self._known[node]
        allowance = math.sqrt(0.1 * math.log(server_round) / last)
        if math.isnan(seconds):
            return allowance
        known = np.array([figures[:2] for figures in self._known.values()])
        low, high = float(np.nanmin(known[:, 0])), float(np.nanpercentile(known[:, 0], _MOST_USEFUL))
        utility = allowance + ((min(statistical, high) - low) / (high - low) if high > low else 1.0)
        preferred = float(np.nanpercentile(known[:, 1], self._percentile))
        return utility * (preferred / seconds) ** self._penalty if seconds > preferred else utility

    def learn(self, server_round: int, asked: Sequence[int], replies: Mapping[int, Mapping[str, Any]]) -> None:
        """Take note of losses and times, and of when a client was asked, whether it succeeded or not."""
        for node in asked:
            useful, seconds, _ = self._known.get(node, (math.nan, math.nan, 0))
            if told := replies.get(node):
                useful, seconds = told["num-examples"] * told["rms-loss"], told["train-seconds"]
            self._known[node] = (useful, seconds, server_round)


class Deadline(flower.FedAvg):
    """Asks `over_selection` times as many clients as are needed, and averages those that reply first.

    Bonawitz et al., Towards Federated Learning at Scale: System Design, MLSys 2019. With `seconds`, a round also ends
    after that time, with whoever has replied.

    `late` is how many clients are online and still work on an earlier round: they are not asked, but count in the share
    of the clients that is wanted.
    """

    def __init__(self, over_selection: float, seconds: float | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.seconds = seconds
        self.late = 0
        self._wanted = self.fraction_train
        self._over = over_selection

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return a message for each client, those included that are only asked in case."""
        free = len(list(grid.get_node_ids()))
        self.goal = min(free, max(int((free + self.late) * self._wanted), self.min_train_nodes))
        # Half a client more, as Flower rounds down.
        self.fraction_train = min(1.0, (math.ceil(self.goal * self._over) + 0.5) / free)
        return super().configure_train(server_round, arrays, config, grid)


class FedBuff(flower.FedAvg):
    """Steps on the server as soon as `buffer` updates are there, whichever model each of them began with.

    Nguyen et al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022: the mean of the updates,
    each divided by the root of 1 + its staleness, which is how many steps the server took since. Unlike there, a client
    that is in the buffer is asked again after the step. A message's `group_id` is the round that it was asked in.

    `flying` are the rounds of the messages that no reply is there for.
    """

    def __init__(self, buffer: int, server_learning_rate: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.buffer = buffer
        self.flying: list[int] = []
        self._rate = server_learning_rate
        self._models: dict[int, dict[str, Any]] = {}  # by the round that began with them

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return messages for as many of the free clients as are to be busy beside those that are."""
        self._models = {number: self._models[number] for number in {*self.flying}}
        self._models[server_round] = {name: array.numpy() for name, array in arrays.items()}
        free = list(grid.get_node_ids())
        clients = len(free) + len(self.flying)
        wanted = max(int(clients * self.fraction_train), self.min_train_nodes) - len(self.flying)
        config["server-round"] = server_round
        record = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        messages = list(self._construct_messages(record, random.sample(free, max(0, min(wanted, len(free)))), "train"))
        for message in messages:
            message.metadata.group_id = str(server_round)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the model after a step; without replies, none."""
        replies = list(replies)
        if not replies:
            return None, None
        changes = dict.fromkeys(self._models[server_round], 0.0)
        for reply in replies:
            began = int(reply.metadata.group_id)
            weight = self._rate / math.sqrt(1 + server_round - began) / len(replies)
            for name, array in reply.content.array_records["arrays"].items():
                changes[name] += weight * (array.numpy() - self._models[began][name])
        model = self._models[server_round]
        return ArrayRecord(
            {name: Array(np.asarray(model[name] + changes[name], dtype=model[name].dtype)) for name in model}
        ), None


class HeteroFL(flower.FedAvg):
    """Averages each weight over the clients whose part of the model has it; one that nobody has stays as it is.

    Diao et al., HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients, ICLR
    2021. A narrow client's model has the first channels of every layer (`part`). A client's loss leaves out the labels
    that it has no example of. Unlike there, clients weigh by their examples.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Keep the global model, and have the clients mask their losses."""
        self._global = {name: array.numpy() for name, array in arrays.items()}
        config["masked-loss"] = True
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the global model with the mean of each weight that a reply has; without replies, none."""
        replies = list(replies)
        if not replies:
            return None, None
        averaged = {}
        for name, before in self._global.items():
            total, weight = np.zeros(before.shape), np.zeros(before.shape)
            for reply in replies:
                trained = reply.content.array_records["arrays"][name].numpy()
                has = _first(name, before.shape, trained.shape)
                total[has] += metrics(reply)["num-examples"] * trained
                weight[has] += metrics(reply)["num-examples"]
            mean = np.divide(total, weight, out=before.astype(float), where=weight > 0)
            averaged[name] = Array(mean.astype(before.dtype))
        return ArrayRecord(averaged), None


def part(arrays: ArrayRecord, shapes: Mapping[str, Sequence[int]]) -> ArrayRecord:
    """Return the part of a model that a narrower one of these shapes is."""
    return ArrayRecord(
        {name: Array(array.numpy()[_first(name, array.shape, shapes[name])]) for name, array in arrays.items()}
    )


def _first(name: str, whole: Sequence[int], narrow: Sequence[int]) -> tuple[NDArray[np.int64], ...]:
    """Return the index of a narrow model's weights in an array of the whole one, of these shapes: the first ones.

    Of an LSTM's, which torch has its four gates in one behind the other, the first ones of each gate.
    """
    gates = 4 if re.search("(weight|bias)_[ih]h_l", name) else 1
    rows = np.arange(whole[0]).reshape(gates, -1)[:, : narrow[0] // gates].ravel()
    return np.ix_(rows, *map(np.arange, narrow[1:]))


FLOWER: dict[str, type[flower.FedAvg]] = {
    name.lower(): getattr(flower, name)
    for name in (
        "FedAvg",
        "FedAvgM",
        "FedAdagrad",
        "FedAdam",
        "FedYogi",
        "FedProx",
        "FedMedian",
        "FedTrimmedAvg",
        "Krum",
        "MultiKrum",
        "Bulyan",
    )
}
STRATEGIES: dict[str, Callable[..., flower.FedAvg]] = {
    **FLOWER,
    "fednova": FedNova,
    "tifl": TiFL,
    "oort": Oort,
    "deadline": Deadline,
    "fedbuff": FedBuff,
    "heterofl": HeteroFL,
}


def create(wanted: Mapping[str, Any], learning_rate: float) -> flower.FedAvg:
    """Return the strategy `name` with the other entries as its arguments. Raises AppError for an unknown name.

    `learning_rate` is that of the clients: qfedavg scales by it.
    """
    arguments = dict(wanted)
    name = arguments.pop("name")
    arguments["min_train_nodes"] = arguments.pop("min_train_clients", 1)
    arguments["min_available_nodes"] = 1
    if name == "qfedavg":
        return flower.QFedAvg(learning_rate, train_loss_key="train-loss", **arguments)
    if name not in STRATEGIES:
        raise AppError(f"there is no strategy {name!r}; the app has {', '.join(sorted([*STRATEGIES, 'qfedavg']))}")
    return STRATEGIES[name](**arguments)


class _Following(DifferentialPrivacyAdaptiveBase):
    """Has the norm follow the quantile, and the noise be that of the norm that was clipped to.

    Andrew et al., Differentially Private Learning with Adaptive Clipping, NeurIPS 2021, algorithm 1. Flower 1.41 counts
    the clients that were clipped where the paper counts the others, which drives the norm away from the quantile, and
    takes the noise from the norm of the next round.
    """

    def _geometric_update(self, clipped_fraction: float) -> None:
        self._clipped_to = self.clipping_norm
        super()._geometric_update(1 - clipped_fraction)

    def _add_noise_to_aggregated_arrays(self, aggregated: ArrayRecord) -> ArrayRecord:
        following, self.clipping_norm = self.clipping_norm, self._clipped_to
        noisy = super()._add_noise_to_aggregated_arrays(aggregated)
        self.clipping_norm = following
        return noisy


class ServerAdaptive(_Following, flower.DifferentialPrivacyServerSideAdaptiveClipping):
    """The server clips to a norm that follows a quantile of the clients' own."""


class ClientAdaptive(_Following, flower.DifferentialPrivacyClientSideAdaptiveClipping):
    """Each client clips to it, and tells whether it had to."""


PRIVACY: dict[str, Callable[..., flower.Strategy]] = {
    "server-fixed": flower.DifferentialPrivacyServerSideFixedClipping,
    "client-fixed": flower.DifferentialPrivacyClientSideFixedClipping,
    "server-adaptive": ServerAdaptive,
    "client-adaptive": ClientAdaptive,
}


def private(strategy: flower.FedAvg, wanted: Mapping[str, Any] | None, clients: int) -> flower.Strategy:
    """Return the strategy in the wrapper for differential privacy that is wanted, if one is.

    `clients` is how many a round asks to train. Raises AppError for an unknown name.
    """
    if wanted is None:
        return strategy
    arguments = dict(wanted)
    name = arguments.pop("name")
    if name not in PRIVACY:
        raise AppError(f"there is no privacy {name!r}; the app has {', '.join(sorted(PRIVACY))}")
    try:
        return PRIVACY[name](strategy, num_sampled_clients=clients, **arguments)
    except ValueError as error:
        raise AppError(f"privacy: {error}") from error


def metrics(reply: Message) -> Mapping[str, Any]:
    """Return the figures in a client's reply."""
    return cast(Mapping[str, Any], reply.content.metric_records["metrics"])


class Candidates:
    """The part of a Grid that a strategy samples from: the nodes of this run's clients that are online.

    A strategy of Flower that finds fewer nodes than it wants waits for ever, and knows nothing of which nodes are ours.
    """

    def __init__(self, node_ids: Iterable[int]) -> None:
        self._node_ids = list(node_ids)

    def get_node_ids(self) -> list[int]:
        """Return the node ids in the order of the clients."""
        return self._node_ids
