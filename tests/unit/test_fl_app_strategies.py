"""The strategies: what each makes of a round, worked out by hand; and that the schema knows their arguments."""

import inspect
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import adaptiveclipping_mod
from flwr.supercore.task_identity import TaskIdentity

sys.path.insert(0, str(Path(__file__).parents[2] / "fl_app"))

from testbed_app import models, strategies
from testbed_app.errors import AppError

from fltestbed import experiment

TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

SCHEMA = {kind.model_fields["name"].annotation: kind for kind in get_args(get_args(experiment.Strategy)[0])}
SCHEMA = {get_args(name)[0]: kind for name, kind in SCHEMA.items()}


def make(name: str, **arguments: Any) -> Any:
    """Return a strategy with the schema's defaults, as the ServerApp makes it."""
    return strategies.create(SCHEMA[name](name=name, **arguments).model_dump(), learning_rate=0.5)


def arrays(*values: float) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.array(values, dtype=np.float32))})


def ask(strategy: Any, number: int, nodes: list[int], weights: ArrayRecord | None = None) -> list[Message]:
    grid: Any = strategies.Candidates(nodes)
    return list(strategy.configure_train(number, weights or arrays(0.0), ConfigRecord(), grid))


def answer(message: Message, weights: ArrayRecord | None = None, **figures: float) -> Message:
    told = {"num-examples": 1, "train-seconds": 1.0, "accuracy": 0.5, "rms-loss": 1.0, "steps": 1, "momentum": 0.0}
    told |= {name.replace("_", "-"): value for name, value in figures.items()}
    metrics = MetricRecord({"train-loss": 1.0, **told})
    message.metadata.__dict__["_message_id"] = str(message.metadata.dst_node_id)
    return Message(RecordDict({"arrays": weights or arrays(0.0), "metrics": metrics}), reply_to=message)


def chosen(messages: list[Message]) -> list[int]:
    return [message.metadata.dst_node_id for message in messages]


def mean_of(strategy: Any, start: float, replies: Mapping[int, tuple[float, dict[str, float]]]) -> float:
    """Lead a round of one weight; `replies` are the weight and the figures of each node."""
    messages = ask(strategy, 1, list(replies), arrays(start))
    answers = [answer(message, arrays(replies[node][0]), **replies[node][1]) for node, message in by_node(messages)]
    trained, _ = strategy.aggregate_train(1, answers)
    return float(trained["w"].numpy()[0])


def by_node(messages: list[Message]) -> list[tuple[int, Message]]:
    return sorted((message.metadata.dst_node_id, message) for message in messages)


@pytest.mark.parametrize("name", SCHEMA)
def test_the_schema_has_the_arguments_and_defaults_of_the_strategy(name: str) -> None:
    fields = {key: field.default for key, field in SCHEMA[name].model_fields.items() if key != "name"}
    fields["min_train_nodes"] = fields.pop("min_train_clients")
    if name in strategies.FLOWER:
        taken = inspect.signature(strategies.FLOWER[name].__init__).parameters
        kept = set(inspect.signature(strategies.flower.FedAvg.__init__).parameters) | {"selection_rule", "eta_l"}
        own = {key: parameter.default for key, parameter in taken.items() if key not in kept}
        differ = {"proximal_mu"}  # 0, Flower's, is plain FedAvg
        assert {key: own[key] for key in own if key not in differ} == {
            key: value for key, value in fields.items() if key in own and key not in differ
        }
        assert set(fields) == {"fraction_train", "min_train_nodes", *own}
    strategy = make(name)
    assert strategy.fraction_train == 1.0


def test_every_strategy_of_the_app_is_in_the_schema() -> None:
    assert set(SCHEMA) == {*strategies.STRATEGIES, "qfedavg"}


@pytest.mark.parametrize("name", sorted(SCHEMA))
def test_every_strategy_leads_a_round(name: str) -> None:
    """Six clients that all came to the same weight: whatever the rule, it is the weight or a step towards it."""
    got = mean_of(make(name), 1.0, {node: (2.0, {}) for node in range(6)})
    assert 1.0 < got <= 2.0 + 1e-6


def test_fedavg_weighs_by_examples() -> None:
    assert mean_of(make("fedavg"), 0.0, {1: (1.0, {"num_examples": 1}), 2: (5.0, {"num_examples": 3})}) == 4.0


def test_fedprox_tells_the_clients_mu() -> None:
    (message,) = ask(make("fedprox", proximal_mu=0.3), 1, [7])
    assert message.content.config_records["config"]["proximal-mu"] == 0.3


def test_fedmedian_and_fedtrimmedavg_leave_outliers() -> None:
    replies = {node: (weight, {}) for node, weight in enumerate([1.0, 2.0, 3.0, 4.0, 1000.0])}
    assert mean_of(make("fedmedian"), 0.0, replies) == 3.0
    assert mean_of(make("fedtrimmedavg", beta=0.2), 0.0, replies) == 3.0


def test_fednova_normalizes_by_steps() -> None:
    """Two clients with as many examples: 10 steps to 10 and 2 steps to 1, from 0.

    The changes a step are 1 and 0.5, their mean is 0.75, and the mean number of steps is 6: 4.5. The plain mean is 5.5.
    """
    replies = {1: (10.0, {"steps": 10}), 2: (1.0, {"steps": 2})}
    assert mean_of(make("fednova"), 0.0, replies) == pytest.approx(4.5)
    assert mean_of(make("fedavg"), 0.0, replies) == pytest.approx(5.5)


def test_fednova_is_fedavg_where_all_take_as_many_steps() -> None:
    replies = {1: (3.0, {"steps": 4, "num_examples": 1}), 2: (7.0, {"steps": 4, "num_examples": 3})}
    assert mean_of(make("fednova"), 1.0, replies) == pytest.approx(6.0)


def test_effective_steps_with_momentum() -> None:
    """Three steps with momentum 0.5 move by g1, g2 + g1 / 2, g3 + g2 / 2 + g1 / 4: 1.75 + 1.5 + 1 in all."""
    assert strategies.effective_steps(3, 0.5) == pytest.approx(4.25)
    assert strategies.effective_steps(3, 0.0) == 3


def test_a_buffered_step_by_hand() -> None:
    """Three models of rounds 1 to 3: 0, 2 and 3. Two replies, one of them asked in round 1, step from the third."""
    strategy = make("fedbuff", buffer=2, server_learning_rate=0.5)
    asked = {}
    for number, start in enumerate((0.0, 2.0, 3.0), start=1):
        (message,) = ask(strategy, number, [number], arrays(start))
        asked[number] = message
        strategy.flying.append(number)
    replies = [
        Message(
            RecordDict({"arrays": arrays(end), "metrics": MetricRecord({"num-examples": 1})}), reply_to=asked[number]
        )
        for number, end in ((1, 6.0), (3, 4.0))
    ]
    trained, _ = strategy.aggregate_train(3, replies)
    # 3 + 0.5 * (6 / sqrt(3) + 1 / sqrt(1)) / 2
    assert trained["w"].numpy()[0] == pytest.approx(3 + 0.5 * (6 / 3**0.5 + 1) / 2)
    assert strategy.aggregate_train(3, []) == (None, None)


def test_a_buffered_strategy_keeps_as_many_busy_as_asked_for() -> None:
    strategy = make("fedbuff", fraction_train=0.5)
    strategy.configure_train(1, arrays(0.0), ConfigRecord(), strategies.Candidates([1]))
    strategy.flying = [1]
    assert len(ask(strategy, 2, [1, 2, 3])) == 1  # two of four
    strategy.flying = [1, 2]
    assert ask(strategy, 3, [3, 4]) == []


def test_heterofl_averages_each_weight_over_those_who_have_it() -> None:
    """One client has all four weights and 3 examples, the other the first weight alone and 1 example."""

    def matrix(*rows: list[float]) -> ArrayRecord:
        return ArrayRecord({"w": Array(np.array(rows, dtype=np.float32))})

    strategy = make("heterofl")
    wide, narrow = ask(strategy, 1, [1, 2], matrix([1, 2], [3, 4]))
    assert wide.content.config_records["config"]["masked-loss"] is True
    replies = [answer(wide, matrix([5, 6], [7, 8]), num_examples=3), answer(narrow, matrix([1]), num_examples=1)]
    trained, _ = strategy.aggregate_train(1, replies)
    assert trained["w"].numpy().tolist() == [[(3 * 5 + 1 * 1) / 4, 6], [7, 8]]
    assert trained["w"].dtype == "float32"
    (message,) = ask(strategy, 2, [2], trained)
    trained, _ = strategy.aggregate_train(2, [answer(message, matrix([10]))])
    assert trained["w"].numpy().tolist() == [[10, 6], [7, 8]]  # nobody had the others
    assert strategy.aggregate_train(3, []) == (None, None)


def test_the_part_of_an_lstm_is_the_first_of_each_gate() -> None:
    """Gates of two units, of which the part has one; two inputs, of which it has one."""
    whole = np.arange(16, dtype=np.float32).reshape(8, 2)
    part = strategies.part(ArrayRecord({"_lstm.weight_hh_l0": Array(whole)}), {"_lstm.weight_hh_l0": (4, 1)})
    assert part["_lstm.weight_hh_l0"].numpy().ravel().tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize("width", [0.5, 0.3])
@pytest.mark.parametrize("name", models.names())
def test_a_narrow_model_is_what_the_whole_one_is_without_the_rest(name: str, width: float) -> None:
    """A whole model of zeros with the narrow one's weights in their places says what the narrow one says."""
    shape, classes = ((8,), 90) if name == "lstm" else ((3, 32, 32), 10)
    narrow, whole = (models.create(name, 1, shape, classes, each).eval() for each in (width, 1.0))
    nothing = {key: Array(np.zeros(value.shape, dtype=np.float32)) for key, value in whole.state_dict().items()}
    strategy = make("heterofl")
    (message,) = ask(strategy, 1, [1], ArrayRecord(nothing))
    trained, _ = strategy.aggregate_train(1, [answer(message, ArrayRecord(narrow.state_dict()))])
    whole.load_state_dict(trained.to_torch_state_dict())
    inputs = torch.arange(16).reshape(2, 8) if name == "lstm" else torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(whole(inputs), narrow(inputs), atol=1e-5)
    shapes = {key: value.shape for key, value in narrow.state_dict().items()}
    for key, value in strategies.part(trained, shapes).to_torch_state_dict().items():
        assert value.equal(narrow.state_dict()[key])


def lead(strategy: Any, number: int, nodes: list[int], figures: Mapping[int, dict[str, float]]) -> list[int]:
    """Lead a round; a node that has no figures fails. Return whom the strategy asked."""
    messages = ask(strategy, number, nodes)
    strategy.aggregate_train(
        number,
        [answer(message, **figures[node]) for node, message in by_node(messages) if node in figures],
    )
    return sorted(chosen(messages))


def test_tifl_times_all_and_then_asks_one_tier() -> None:
    random.seed(1)
    strategy = make("tifl", tiers=3, interval=100, fraction_train=0.5)
    nodes = [1, 2, 3, 4, 5, 6]
    speeds = {1: 9.0, 2: 1.0, 3: 5.0, 4: 1.5, 6: 4.0}
    figures = {node: {"train_seconds": seconds} for node, seconds in speeds.items()}
    assert lead(strategy, 1, nodes, figures) == nodes  # 5 fails: it is in no tier
    assert strategy.tiers() == [[2, 4], [6, 3], [1]]
    asked = {tuple(lead(strategy, number, nodes, figures)) for number in range(2, 30)}
    assert asked == {(2, 4), (3, 6), (1,)}


def test_tifl_times_who_failed_once_in_an_interval() -> None:
    random.seed(1)
    strategy = make("tifl", tiers=2, interval=5)
    nodes = [1, 2, 3, 4, 5]
    figures = {node: {"train_seconds": float(node), "accuracy": 0.9} for node in nodes[:4]}
    asked = [lead(strategy, number, nodes, figures) for number in range(1, 31)]
    assert [number for number, each in enumerate(asked, start=1) if 5 in each] == [1, 5, 10, 15, 20, 25, 30]
    assert {tuple({*each} - {5}) for each in asked[1:]} == {(1, 2), (3, 4)}, "beside a tier, which trains as ever"
    for number in range(31, 36):
        lead(strategy, number, nodes, figures | {5: {"train_seconds": 0.5, "accuracy": 0.9}})
    assert strategy.tiers() == [[5, 1, 2], [3, 4]]


def test_tifl_asks_all_again_where_all_failed() -> None:
    strategy = make("tifl", interval=100)
    assert lead(strategy, 1, [1, 2], {}) == [1, 2]
    assert lead(strategy, 2, [1, 2], {1: {}}) == [1, 2]
    assert lead(strategy, 3, [1, 2], {1: {}}) == [1]


def test_a_tier_that_nothing_is_known_of_has_the_mean_chance() -> None:
    strategy = make("tifl", tiers=3)
    figures = {1: {"train-seconds": 1.0, "accuracy": 0.9}, 2: {"train-seconds": 2.0, "accuracy": 0.5}}
    strategy.learn(1, [1, 2], figures)
    assert strategy._chances_of(strategy.tiers()) == pytest.approx([0.1, 0.5, 0.3])


def test_tifl_prefers_the_tier_with_the_lower_accuracy() -> None:
    random.seed(1)
    strategy = make("tifl", tiers=2, interval=2)
    figures = {1: {"train_seconds": 1.0, "accuracy": 0.9}, 2: {"train_seconds": 2.0, "accuracy": 0.1}}
    asked = [lead(strategy, number, [1, 2], figures) for number in range(1, 60)]
    assert asked.count([2]) > 4 * asked.count([1]) > 0


def test_tifl_knows_the_accuracies_of_the_first_round() -> None:
    random.seed(1)
    figures = {1: {"train_seconds": 1.0, "accuracy": 0.5}, 2: {"train_seconds": 2.0, "accuracy": 0.99}}
    first = []
    for _ in range(40):
        strategy = make("tifl", tiers=2, interval=2)
        lead(strategy, 1, [1, 2], figures)
        first.append(lead(strategy, 2, [1, 2], figures))
    assert first.count([1]) > 35


def test_tifls_credits_bound_a_tiers_rounds() -> None:
    random.seed(1)
    strategy = make("tifl", tiers=2, interval=100, credits=5)
    figures = {1: {"train_seconds": 1.0}, 2: {"train_seconds": 2.0}}
    asked = [lead(strategy, number, [1, 2], figures) for number in range(1, 12)]
    assert (asked.count([1]), asked.count([2])) == (5, 5)


def test_tifl_goes_on_when_a_tier_is_offline_and_times_who_is_new() -> None:
    random.seed(1)
    strategy = make("tifl", tiers=2)
    figures: dict[int, dict[str, float]] = {node: {"train_seconds": node} for node in (1, 2, 3, 4, 5)}
    lead(strategy, 1, [1, 2, 3, 4], figures)
    assert {tuple(lead(strategy, number, [3, 4], figures)) for number in range(2, 10)} == {(3, 4)}
    assert lead(strategy, 10, [1, 2, 3, 4, 5], figures) == [5]


def test_oorts_utility() -> None:
    """200, 200 and 50 become 1, 1 and 0; the first is left (2 / 4) ** 2, for 4 s where 2 s are preferred."""
    strategy = make("oort", penalty=2.0, preferred_percentile=50)
    strategy.learn(
        1,
        [1, 2, 3],
        {
            1: {"num-examples": 100, "rms-loss": 2.0, "train-seconds": 4.0},
            2: {"num-examples": 100, "rms-loss": 2.0, "train-seconds": 2.0},
            3: {"num-examples": 50, "rms-loss": 1.0, "train-seconds": 1.0},
        },
    )
    assert [strategy.utility(node, 1) for node in (1, 2, 3)] == [0.25, 1, 0]
    allowance = (0.1 * np.log(10)) ** 0.5  # known since round 1, not chosen until round 10
    found = [strategy.utility(node, 10) for node in (1, 2, 3)]
    assert found == pytest.approx([(1 + allowance) / 4, 1 + allowance, allowance])


def test_oorts_largest_utilities_are_cut_off() -> None:
    """Of 40 clients one has a loss that dwarfs all others', which are 1 to 39: those differ nonetheless."""
    strategy = make("oort")
    losses = {node: 1e6 if node == 40 else float(node) for node in range(1, 41)}
    told = {node: {"num-examples": 1, "rms-loss": loss, "train-seconds": 1.0} for node, loss in losses.items()}
    strategy.learn(1, list(losses), told)
    assert strategy.utility(40, 1) == strategy.utility(39, 1) == 1
    assert strategy.utility(20, 1) == pytest.approx(19 / 37.05)  # the percentile is 38.05


def test_oorts_allowance_brings_back_who_was_not_asked_for_long() -> None:
    strategy = make("oort")
    losses = {1: 10.0, 2: 9.0, 3: 1.0}
    told = {node: {"num-examples": 100, "rms-loss": loss, "train-seconds": 1.0} for node, loss in losses.items()}
    strategy.learn(1, [1, 2, 3], told)
    assert strategy.utility(1, 2) > strategy.utility(2, 2) > strategy.utility(3, 2)
    strategy.learn(20, [1], told)
    assert strategy.utility(2, 21) > strategy.utility(1, 21) > strategy.utility(3, 21)


def test_oort_takes_the_most_useful_and_explores() -> None:
    random.seed(1)
    nodes = list(range(10))
    figures = {node: {"num_examples": 10.0, "rms_loss": float(node), "train_seconds": 1.0} for node in nodes}
    strategy = make("oort", fraction_train=0.5, exploration=0.4, exploration_decay=1.0, exploration_min=0.0)
    assert len(lead(strategy, 1, nodes, figures)) == 5  # nobody is known: all are explored
    second = lead(strategy, 2, nodes, figures)
    assert len(second) == 5
    assert len(lead(strategy, 3, nodes, figures)) == 5
    asked = [node for number in range(4, 20) for node in lead(strategy, number, nodes, figures)]
    assert {*asked} > {5, 6, 7, 8, 9}
    assert sum(node >= 5 for node in asked) > 0.8 * len(asked)


def test_who_failed_does_not_change_the_time_that_oort_prefers() -> None:
    strategy = make("oort", penalty=2.0, preferred_percentile=50)
    figures = {node: {"num-examples": 100, "rms-loss": 2.0, "train-seconds": 60.0} for node in (1, 2)}
    strategy.learn(1, [1, 2, 3, 4, 5], figures)
    assert [strategy.utility(node, 1) for node in (1, 2, 3)] == [1, 1, 0]
    strategy.learn(2, [3, 4, 5], {3: figures[1] | {"train-seconds": 120.0}})
    assert strategy.utility(1, 1) == 1
    assert strategy.utility(3, 1) == 0.25


def test_a_failure_takes_from_a_client_neither_its_utility_nor_its_time() -> None:
    strategy = make("oort", penalty=1.0, preferred_percentile=50)
    told = {node: {"num-examples": 100, "rms-loss": node, "train-seconds": 2.0 * node} for node in (1, 2, 3)}
    strategy.learn(1, [1, 2, 3], told)
    strategy.learn(2, [3], {})
    allowance = (0.1 * np.log(3) / 2) ** 0.5
    assert strategy.utility(3, 3) == pytest.approx((1 + allowance) * 4 / 6)


def test_oort_asks_a_useful_client_again_after_a_failure() -> None:
    random.seed(1)
    strategy = make("oort", fraction_train=0.5)
    figures = {node: {"num_examples": 10.0, "rms_loss": 5.0 if node == 4 else 1.0} for node in (1, 2, 3, 4)}
    for number in range(1, 5):
        lead(strategy, number, [1, 2, 3, 4], figures)
    assert 4 in lead(strategy, 5, [1, 2, 3, 4], {node: figures[node] for node in (1, 2, 3)})
    assert 4 in lead(strategy, 6, [1, 2, 3, 4], figures)


def test_oort_leaves_who_never_succeeded() -> None:
    random.seed(1)
    strategy = make("oort", fraction_train=0.5)
    figures = {node: {"num_examples": 10.0} for node in (1, 2, 3)}
    for number in range(1, 6):
        lead(strategy, number, [1, 2, 3, 4], figures)
    assert 4 not in lead(strategy, 6, [1, 2, 3, 4], figures)


@pytest.mark.parametrize(
    ("fraction", "over", "least", "goal", "asked"),
    [(0.5, 1.3, 1, 5, 7), (0.5, 1.0, 1, 5, 5), (1.0, 1.3, 1, 10, 10), (0.01, 2.0, 3, 3, 6)],
)
def test_deadline_asks_more_than_it_needs(fraction: float, over: float, least: int, goal: int, asked: int) -> None:
    strategy = make("deadline", fraction_train=fraction, over_selection=over, min_train_clients=least)
    for number in (1, 2):
        assert len(ask(strategy, number, list(range(10)))) == asked
        assert strategy.goal == goal


@pytest.mark.parametrize(("free", "asked"), [(22, 15), (23, 13), (26, 15), (39, 31)])
def test_deadline_asks_no_client_too_few(free: int, asked: int) -> None:
    strategy = make("deadline", fraction_train=(asked + 0.1) / free, over_selection=1.0)
    assert len(ask(strategy, 1, list(range(free)))) == strategy.goal == asked


def test_a_deadlines_share_is_of_those_too_who_are_late() -> None:
    strategy = make("deadline", fraction_train=0.34, over_selection=1.5)
    strategy.late = 2
    assert len(ask(strategy, 1, [1, 2, 3, 4])) == 3
    assert strategy.goal == 2


def private(name: str, clients: int, **arguments: float) -> Any:
    """Return FedAvg in a wrapper with the schema's defaults, as the ServerApp makes it."""
    kinds = get_args(get_args(experiment.Privacy)[0])
    [kind] = [each for each in kinds if get_args(each.model_fields["name"].annotation) == (name,)]
    return strategies.private(make("fedavg"), kind(name=name, **arguments).model_dump(), clients)


@pytest.mark.parametrize("start", [0.1, 100.0])
@pytest.mark.parametrize(("quantile", "low", "high"), [(0.5, 5, 6), (0.8, 8, 9)])
@pytest.mark.parametrize("name", ["server-adaptive", "client-adaptive"])
def test_the_norm_follows_the_quantile_of_the_clients(
    name: str, quantile: float, low: float, high: float, start: float
) -> None:
    """Ten clients whose changes have the norms 1 to 10."""
    arguments = {"initial_clipping_norm": start, "target_clipped_quantile": quantile}
    strategy = private(name, 10, noise_multiplier=0.0, **arguments)
    for number in range(1, 101):
        replies = []
        for node, message in by_node(ask(strategy, number, list(range(1, 11)))):
            reply = answer(message, arrays(float(node)))
            if name == "client-adaptive":
                context = Context(1, node, {}, RecordDict(), {})
                reply = adaptiveclipping_mod(message, context, lambda _message, _context, reply=reply: reply)
            replies.append(reply)
        trained, _ = strategy.aggregate_train(number, replies)
    assert low <= strategy.clipping_norm <= high
    clipped = np.minimum(np.arange(1, 11), strategy.clipping_norm)
    assert trained["w"].numpy()[0] == pytest.approx(clipped.mean(), rel=0.01)


@pytest.mark.parametrize("name", ["server-adaptive", "client-adaptive"])
def test_the_noise_is_that_of_the_norm_that_was_clipped_to(name: str) -> None:
    np.random.seed(1)
    strategy = private(name, 1, initial_clipping_norm=10.0, clip_norm_lr=3.0, clipped_count_stddev=1.0)
    (message,) = ask(strategy, 1, [1], arrays(*[0.0] * 20_000))
    reply = answer(message, arrays(*[1e-3] * 20_000))
    reply.content.metric_records["metrics"]["norm_bit"] = 0
    trained, _ = strategy.aggregate_train(1, [reply])
    deviation = 10 * (1 - 1 / 4) ** -0.5  # what is left for the model, with the count's deviation of 1
    assert float(trained["w"].numpy().std()) == pytest.approx(deviation, rel=0.03)
    assert abs(np.log(strategy.clipping_norm / 10)) > 0.1, "the norm of the next round is another one"


def test_an_unknown_strategy() -> None:
    with pytest.raises(AppError, match="there is no strategy 'fedfoo'; the app has bulyan, deadline, fedadagrad, "):
        strategies.create({"name": "fedfoo"}, 0.1)
