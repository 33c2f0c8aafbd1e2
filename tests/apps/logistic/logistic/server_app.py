"""The ServerApp: federated averaging, and the global model's accuracy on points of its own."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from logistic import model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the rounds."""
    rounds = int(context.run_config["num-server-rounds"])
    points, classes = model.draw(10_000, 1000)

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        (weights,) = arrays.to_numpy_ndarrays()
        found = model.accuracy(weights, points, classes)
        print(f"{context.run_config['label']}: round {number} of {rounds}: accuracy {found:.3f}", flush=True)
        return MetricRecord({"accuracy": found})

    strategy = FedAvg(fraction_evaluate=0.0)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([np.zeros(3)]), num_rounds=rounds, evaluate_fn=evaluate)
