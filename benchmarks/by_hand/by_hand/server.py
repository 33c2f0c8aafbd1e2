"""The ServerApp: Flower's FedAvg as it comes, with a line for each round's times."""

import json
import time
from collections.abc import Iterable

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from testbed_app import models

app = ServerApp()


class Timed(FedAvg):
    """FedAvg that prints how long a round took, evaluation included, and the slowest client's training in it."""

    began = training = 0.0

    def configure_train(self, *arguments: object) -> Iterable[Message]:
        self.began = time.monotonic()
        return super().configure_train(*arguments)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        self.training = max(reply.content.metric_records["metrics"]["train-seconds"] for reply in replies)
        return super().aggregate_train(server_round, replies)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        found = super().aggregate_evaluate(server_round, list(replies))
        print("ROUND", json.dumps({"seconds": time.monotonic() - self.began, "training": self.training}), flush=True)
        return found


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the rounds."""
    arrays = ArrayRecord(models.create("cnn", 42, (1, 28, 28), 10).state_dict())
    Timed().start(grid=grid, initial_arrays=arrays, num_rounds=int(context.run_config["num-server-rounds"]))
