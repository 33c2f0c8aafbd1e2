"""The ServerApp: Flower's FedAvg as it comes, with a line for each round's times."""

import json
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from testbed_app import models

from fltestbed import limits

app = ServerApp()


class Timed(FedAvg):
    """FedAvg that knows when a round began, and the slowest client's training in it."""

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


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the rounds, and print what each one took with the evaluation of the global model in it."""
    torch.set_num_threads(limits.threads())
    model = models.create("cnn", 42, (1, 28, 28), 10)
    with np.load(next(Path("/data").glob("*.npz"))) as arrays:
        test_set = dict(arrays)
    strategy = Timed()

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = models.evaluate(model, test_set["inputs"], test_set["labels"])
        if server_round:
            took = {"seconds": time.monotonic() - strategy.began, "training": strategy.training}
            print("ROUND", json.dumps(took), flush=True)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=int(context.run_config["num-server-rounds"]),
        evaluate_fn=evaluate,
    )
