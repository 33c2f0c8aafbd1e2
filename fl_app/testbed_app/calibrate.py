"""Trains for a few seconds with each of several batch sizes, and says how fast that was. A program of its own.

Its one argument is JSON: sha256 (of the client's shard), width, batch_sizes, seconds, and of the run config model,
seed, optimizer, learning-rate and momentum. It prints a JSON object for each batch size, from the smallest on.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch

from fltestbed import limits
from testbed_app import data, models

_STEPS = 2  # of a batch size at least, the first of which is not counted


def measure(setup: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield batch_size, samples (trained on), seconds and threads for each batch size, as a ClientApp would train.

    A larger batch than the shard is left out, and what follows a batch size of which a step takes longer than
    `seconds`.
    """
    shard = data.load(setup["sha256"])
    threads = limits.threads()
    torch.set_num_threads(threads)
    shape, classes = shard["train_inputs"].shape[1:], int(shard["classes"])
    model = models.create(setup["model"], setup["seed"], shape, classes, setup["width"])
    rng = np.random.default_rng(setup["seed"])
    order = rng.permutation(len(shard["train_labels"]))
    inputs, labels = shard["train_inputs"][order], shard["train_labels"][order]

    def train(size: int, steps: int) -> float:
        """Train on so many batches and return the seconds that it took."""
        examples = np.arange(size * steps) % len(labels)
        began = time.monotonic()
        models.train(
            model,
            inputs[examples],
            labels[examples],
            epochs=1,
            batch_size=size,
            learning_rate=setup["learning-rate"],
            momentum=setup["momentum"],
            optimizer=setup["optimizer"],
            rng=rng,
        )
        return time.monotonic() - began

    for size in sorted(setup["batch_sizes"]):
        if size > len(labels):
            return
        first = train(size, _STEPS)
        steps, seconds = 0, 0.0
        while seconds < setup["seconds"]:
            more = max(1, round((setup["seconds"] - seconds) / (seconds / steps if steps else first / _STEPS) / 2))
            seconds += train(size, more)
            steps += more
        yield {"batch_size": size, "samples": steps * size, "seconds": seconds, "threads": threads}
        if seconds / steps > setup["seconds"]:
            return


def main() -> None:
    """Print the figures of every batch size."""
    for script in entry_points(group="console_scripts", name="flwr-clientapp"):
        script.load()  # what a ClientApp's process imports takes memory here too
    for row in measure(json.loads(sys.argv[1])):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
