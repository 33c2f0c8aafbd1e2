"""The strategies, and the view of the grid that they choose clients from."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.serverapp.strategy import FedAvg, Strategy

from testbed_app.errors import AppError


def _fedavg(fraction_train: float) -> Strategy:
    return FedAvg(fraction_train=fraction_train, min_train_nodes=1, min_available_nodes=1)


STRATEGIES: dict[str, Callable[..., Strategy]] = {"fedavg": _fedavg}


def create(wanted: Mapping[str, Any]) -> Strategy:
    """Return the strategy `name` with the other entries as its arguments. Raises AppError for an unknown name."""
    arguments = dict(wanted)
    name = arguments.pop("name")
    if name not in STRATEGIES:
        raise AppError(f"there is no strategy {name!r}; the app has {', '.join(STRATEGIES)}")
    return STRATEGIES[name](**arguments)


class Candidates:
    """The part of a Grid that a strategy samples from: the nodes of this run's clients that are online.

    A strategy of Flower that finds fewer nodes than it wants waits for ever, and knows nothing of which nodes are ours.
    """

    def __init__(self, node_ids: Iterable[int]) -> None:
        self._node_ids = list(node_ids)

    def get_node_ids(self) -> list[int]:
        """Return the node ids in the order of the clients."""
        return self._node_ids
