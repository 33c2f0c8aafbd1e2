"""The ClientApp: trains in one message and evaluates in another, as Flower's strategies ask for it."""

import time
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from testbed_app import models

from fltestbed import limits

app = ClientApp()


def load(message: Message) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    """Return the model as it was sent, and this client's shard."""
    torch.set_num_threads(limits.threads())
    with np.load(next(Path("/data").glob("*.npz"))) as arrays:
        shard = dict(arrays)
    model = models.create("cnn", 42, shard["train_inputs"].shape[1:], int(shard["classes"]))
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    return model, shard


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the trained arrays."""
    model, shard = load(message)
    config = context.run_config
    examples = int(len(shard["train_labels"]) * float(config["data-fraction"]))
    began = time.monotonic()
    models.train(
        model,
        shard["train_inputs"][:examples],
        shard["train_labels"][:examples],
        epochs=1,
        batch_size=int(config["batch-size"]),
        learning_rate=float(config["learning-rate"]),
        momentum=float(config["momentum"]),
        optimizer="sgd",
        proximal_mu=0.0,
        rng=np.random.default_rng(42),
    )
    metrics = {"num-examples": examples, "train-seconds": time.monotonic() - began}
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord(metrics)})
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Reply with the accuracy on the held-out part."""
    model, shard = load(message)
    loss, accuracy = models.evaluate(model, shard["held_out_inputs"], shard["held_out_labels"])
    metrics = {"num-examples": len(shard["held_out_labels"]), "loss": loss, "accuracy": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
