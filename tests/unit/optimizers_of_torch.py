"""Prints by how much our optimizers' weights differ from those of torch's, after five steps of a small model.

A program of its own: torch's optimizers cannot be imported into a process that has imported Ansible.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[2] / "fl_app"))

from testbed_app import models

RATES = {"sgd": 0.05, "adam": 0.001}


def difference(name: str, momentum: float, mu: float) -> float:
    """Return the largest difference of a weight."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 1, 8, 8), dtype=np.uint8), rng.integers(0, 10, 8)
    ours, theirs = (models.create("mlp", 1, (1, 8, 8), 10) for _ in range(2))
    models.train(
        ours,
        images,
        labels,
        epochs=5,
        batch_size=8,
        learning_rate=RATES[name],
        momentum=momentum,
        optimizer=name,
        proximal_mu=mu,
        rng=rng,
    )
    start = [parameter.detach().clone() for parameter in theirs.parameters()]
    if name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(theirs.parameters(), lr=RATES[name], momentum=momentum)
    else:
        optimizer = torch.optim.Adam(theirs.parameters(), lr=RATES[name])
    inputs, targets = torch.from_numpy(images).float().div(127.5).sub(1), torch.from_numpy(labels)
    for _ in range(5):
        optimizer.zero_grad()
        far = torch.stack([((now - then) ** 2).sum() for now, then in zip(theirs.parameters(), start, strict=True)])
        (cross_entropy(theirs(inputs), targets) + mu / 2 * far.sum()).backward()
        optimizer.step()
    return max(
        float((one - other).abs().max()) for one, other in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


if __name__ == "__main__":
    wanted = {"sgd": ("sgd", 0.0, 0.0), "momentum": ("sgd", 0.9, 0.0), "proximal": ("sgd", 0.9, 1.0)}
    wanted["adam"] = ("adam", 0.0, 0.0)
    print(json.dumps({name: difference(*arguments) for name, arguments in wanted.items()}))
