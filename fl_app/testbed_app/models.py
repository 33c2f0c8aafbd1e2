"""The models, and how one is trained and evaluated."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from testbed_app.errors import AppError

_EVALUATION_BATCH = 500


def cnn() -> nn.Module:
    """Return a CNN of 106,000 parameters for images of shape (1, 28, 28) and ten labels."""
    return nn.Sequential(
        nn.Conv2d(1, 16, kernel_size=5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, kernel_size=3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"cnn": cnn}


def create(name: str, seed: int) -> nn.Module:
    """Return the model, its weights drawn with the seed. Raises AppError for an unknown name."""
    if name not in MODELS:
        raise AppError(f"there is no model {name!r}; the app has {', '.join(MODELS)}")
    torch.manual_seed(seed)
    return MODELS[name]()


def train(
    model: nn.Module,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float,
    rng: np.random.Generator,
) -> float:
    """Train with SGD and momentum, and return the mean loss of the last epoch.

    The optimiser is written out: importing the one of torch.optim takes 2 CPU seconds, in every round.
    """
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(parameter) for parameter in parameters]
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    total = 0.0
    model.train()
    for _ in range(epochs):
        total = 0.0
        for batch in torch.split(torch.from_numpy(rng.permutation(len(labels))), batch_size):
            loss = cross_entropy(model(_scaled(inputs[batch])), targets[batch])
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
                    parameter.sub_(velocity.mul_(momentum).add_(gradient), alpha=learning_rate)
            total += loss.item() * len(batch)
    return total / len(labels)


def evaluate(model: nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean loss and the accuracy, from 0 to 1."""
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    loss, correct = 0.0, 0
    model.eval()
    with torch.no_grad():
        for batch, wanted in zip(*(torch.split(part, _EVALUATION_BATCH) for part in (inputs, targets)), strict=True):
            outputs = model(_scaled(batch))
            loss += cross_entropy(outputs, wanted, reduction="sum").item()
            correct += int((outputs.argmax(1) == wanted).sum())
    return loss / len(labels), correct / len(labels)


def _scaled(images: Tensor) -> Tensor:
    """Turn bytes of shape (n, 28, 28) into numbers from -1 to 1 of shape (n, 1, 28, 28)."""
    return images.unsqueeze(1).float().div_(127.5).sub_(1)
