"""The ClientApp: trains and evaluates on points of its own."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from logistic import model

app = ClientApp()


def _data(context: Context) -> tuple[np.ndarray, np.ndarray]:
    return model.draw(int(context.node_config["partition-id"]), int(context.run_config["data.points"]))


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's points."""
    points, classes = _data(context)
    (weights,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    weights = model.train(weights, points, classes, float(context.run_config["learning_rate"]))
    print(f"client {context.node_config['partition-id']} trained on {len(classes)} points", flush=True)
    metrics = MetricRecord({"num-examples": len(classes), "accuracy": model.accuracy(weights, points, classes)})
    return Message(RecordDict({"arrays": ArrayRecord([weights]), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model on this client's points."""
    points, classes = _data(context)
    (weights,) = message.content.array_records["arrays"].to_numpy_ndarrays()
    metrics = MetricRecord({"num-examples": len(classes), "accuracy": model.accuracy(weights, points, classes)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
