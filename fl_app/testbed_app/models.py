"""How a model is made, trained and evaluated. The models themselves are in `nets`."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from testbed_app.errors import AppError

_EVALUATION_BATCH = 100  # more of them cost a small device memory, and win no time
_NETS = Path(__file__).parent / "nets"

Step = Callable[[Sequence[Tensor]], None]


@dataclass(frozen=True)
class Trained:
    """What training came to. The losses are of the last epoch, each example's as it was when it was trained on."""

    loss: float  # the mean
    rms_loss: float  # the root of the mean square
    steps: int  # of the optimizer, in all epochs
    examples: int  # that were trained on once at least


def names() -> list[str]:
    """Return the names of the models."""
    return sorted(path.stem.replace("_", "-") for path in _NETS.glob("[!_]*.py"))


def create(
    name: str, seed: int, shape: Sequence[int], classes: int, width: float = 1.0, scale: float = 1.0
) -> nn.Module:
    """Return the model for examples of this shape, its weights drawn with the seed.

    Its hidden layers have the share `width` of their channels. What its convolutions and dense layers say, but for the
    last, is divided by `scale`: the scaler of HeteroFL, which lets a narrow layer say as much as a wide one.

    Raises AppError for an unknown name, and for examples that the model cannot take.
    """
    if name not in names():
        raise AppError(f"there is no model {name!r}; the app has {', '.join(names())}")
    net = import_module(f"testbed_app.nets.{name.replace('-', '_')}")
    kinds = {1: "text", 3: "images"}
    if len(shape) != net.DIMENSIONS:
        raise AppError(f"the model {name} takes {kinds[net.DIMENSIONS]}, and the data are {kinds[len(shape)]}")
    sides = shape[-2:]
    if min(sides) < net.LEAST:
        size = " by ".join(map(str, sides))
        raise AppError(f"the model {name} takes {net.LEAST} at least a side, and an example is {size}")
    torch.manual_seed(seed)
    model: nn.Module = net.build(tuple(shape), classes, width)
    if scale != 1:
        *hidden, _ = (layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear))
        for layer in hidden:
            layer.register_forward_hook(lambda _layer, _inputs, outputs: outputs / scale)
    return model


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each of the model's arrays, in their order."""
    return {name: tuple(array.shape) for name, array in model.state_dict().items()}


def train(
    model: nn.Module,
    inputs: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    momentum: float = 0.0,
    optimizer: str = "sgd",
    proximal_mu: float = 0.0,
    absent: Sequence[int] = (),
    seconds: float = math.inf,
    rng: np.random.Generator,
) -> Trained:
    """Train with SGD and momentum, or with Adam, which has no use for `momentum`. Raises AppError for another.

    With `proximal_mu`, mu / 2 times the squared distance from the weights at the beginning is added to the loss (Li et
    al., Federated Optimization in Heterogeneous Networks, MLSys 2020). The loss takes no note of the labels `absent`.
    After `seconds` no further step is begun.
    """
    if optimizer not in OPTIMIZERS:
        raise AppError(f"there is no optimizer {optimizer!r}; the app has {', '.join(OPTIMIZERS)}")
    parameters = list(model.parameters())
    start = [parameter.detach().clone() for parameter in parameters] if proximal_mu else []
    step = OPTIMIZERS[optimizer](parameters, learning_rate, momentum)
    torch.manual_seed(int(rng.integers(2**63)))  # what dropout draws from
    examples, targets = torch.from_numpy(inputs), torch.from_numpy(labels)
    masked = torch.tensor(absent, dtype=torch.int64)
    end = time.monotonic() + seconds
    total, squares, seen, steps = 0.0, 0.0, 0, 0
    model.train()
    for epoch in range(epochs):
        if epoch and time.monotonic() >= end:
            break
        total, squares, seen = 0.0, 0.0, 0
        for batch in torch.split(torch.from_numpy(rng.permutation(len(labels))), batch_size):
            outputs = model(_prepared(examples[batch])).index_fill(1, masked, -math.inf)
            losses = cross_entropy(outputs, targets[batch], reduction="none")
            gradients = torch.autograd.grad(losses.mean(), parameters)
            with torch.no_grad():
                for gradient, parameter, origin in zip(gradients, parameters, start, strict=False):
                    gradient.add_(parameter - origin, alpha=proximal_mu)
                step(gradients)
            total += losses.sum().item()
            squares += losses.square().sum().item()
            seen += len(batch)
            steps += 1
            if time.monotonic() >= end:
                break
    return Trained(total / seen, math.sqrt(squares / seen), steps, min(len(labels), steps * batch_size))


def _sgd(parameters: Sequence[Tensor], learning_rate: float, momentum: float) -> Step:
    velocities = [torch.zeros_like(parameter) for parameter in parameters]

    def step(gradients: Sequence[Tensor]) -> None:
        for parameter, velocity, gradient in zip(parameters, velocities, gradients, strict=True):
            parameter.sub_(velocity.mul_(momentum).add_(gradient), alpha=learning_rate)

    return step


def _adam(parameters: Sequence[Tensor], learning_rate: float, _momentum: float) -> Step:
    """Kingma and Ba, Adam: A Method for Stochastic Optimization, ICLR 2015, with its defaults."""
    decays, epsilon = (0.9, 0.999), 1e-8
    means = [(torch.zeros_like(parameter), torch.zeros_like(parameter)) for parameter in parameters]
    number = 0

    def step(gradients: Sequence[Tensor]) -> None:
        nonlocal number
        number += 1
        first, second = (1 - decay**number for decay in decays)
        for parameter, (mean, square), gradient in zip(parameters, means, gradients, strict=True):
            mean.lerp_(gradient, 1 - decays[0])
            square.lerp_(gradient * gradient, 1 - decays[1])
            parameter.addcdiv_(mean, (square / second).sqrt_().add_(epsilon), value=-learning_rate / first)

    return step


# Written out: importing those of torch.optim takes 2 CPU seconds, in every round.
OPTIMIZERS: dict[str, Callable[[Sequence[Tensor], float, float], Step]] = {"sgd": _sgd, "adam": _adam}


def evaluate(model: nn.Module, inputs: NDArray[Any], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean loss and the accuracy, from 0 to 1."""
    examples, targets = torch.from_numpy(inputs), torch.from_numpy(labels)
    loss, correct = 0.0, 0
    model.eval()
    with torch.no_grad():
        for batch, wanted in zip(*(torch.split(part, _EVALUATION_BATCH) for part in (examples, targets)), strict=True):
            outputs = model(_prepared(batch))
            loss += cross_entropy(outputs, wanted, reduction="sum").item()
            correct += int((outputs.argmax(1) == wanted).sum())
    return loss / len(labels), correct / len(labels)


def _prepared(examples: Tensor) -> Tensor:
    """Turn an image's bytes into numbers from -1 to 1; leave tokens whole numbers."""
    return examples.long() if examples.ndim == 2 else examples.float().div_(127.5).sub_(1)
