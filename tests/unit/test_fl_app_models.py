"""The models and the optimizers: each model learns, each optimizer does what torch's own does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2] / "fl_app"))

from testbed_app import models
from testbed_app.errors import AppError

APP = Path(__file__).parents[2] / "fl_app"
PARAMETERS = {  # with images of 3 by 32 by 32, or 90 characters, and ten labels
    "cnn": 137_642,
    "cnn-deep": 551_466,
    "cnn-dropout": 1_626_442,
    "cnn-quickstart": 62_006,
    "lstm": 822_570,
    "mlp": 428_938,
    "mobilenet-v2": 2_236_682,
    "resnet-18": 11_173_962,
    "vgg-11": 9_231_114,
}


def examples(name: str, number: int) -> tuple[NDArray[Any], NDArray[np.int64], int]:
    """Return examples that can be learnt, for a model: a bright row, or a sequence of one character, is the label."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, number)
    if name == "lstm":
        return np.repeat(labels[:, None], 8, axis=1).astype(np.uint8), labels, 90
    inputs = rng.integers(0, 60, (number, 3, 32, 32), dtype=np.uint8)
    for image, label in zip(inputs, labels, strict=True):
        image[:, 7 * label + 2 : 7 * label + 6] = 220
    return inputs, labels, 10


def test_every_model_is_here() -> None:
    assert models.names() == sorted(PARAMETERS)


@pytest.mark.parametrize("width", [1.0, 0.25])
@pytest.mark.parametrize("name", PARAMETERS)
def test_a_model_learns(name: str, width: float) -> None:
    inputs, labels, classes = examples(name, 8)
    model = models.create(name, 1, inputs.shape[1:], classes, width, width)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == PARAMETERS[name] if width == 1 else parameters < 0.3 * PARAMETERS[name]
    assert not list(model.buffers()), "running averages do not survive averaging"
    before, _ = models.evaluate(model, inputs, labels)
    rng = np.random.default_rng(1)
    trained = models.train(
        model, inputs, labels, epochs=3, batch_size=4, learning_rate=0.001, optimizer="adam", rng=rng
    )
    after, _ = models.evaluate(model, inputs, labels)
    assert after < before
    assert trained.steps == 6
    assert trained.rms_loss >= trained.loss > 0


def test_a_text_of_more_tokens_than_a_byte_tells_is_learnt() -> None:
    """Its tokens are uint16, which torch does little with."""
    labels = np.random.default_rng(0).integers(0, 400, 8)
    losses = []
    for kind in (np.uint16, np.int64):
        inputs = np.repeat(labels[:, None], 8, axis=1).astype(kind)
        model = models.create("lstm", 1, inputs.shape[1:], 400)
        rng = np.random.default_rng(1)
        trained = models.train(model, inputs, labels, epochs=1, batch_size=4, learning_rate=0.1, rng=rng)
        losses.append((trained.loss, *models.evaluate(model, inputs, labels)))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["cnn", "cnn-dropout", "cnn-quickstart", "mlp", "resnet-18"])
def test_a_model_takes_images_of_28_by_28(name: str) -> None:
    model = models.create(name, 1, (1, 28, 28), 10)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_the_same_seed_trains_the_same_with_dropout() -> None:
    inputs, labels, classes = examples("cnn-dropout", 16)

    def loss(seed: int) -> float:
        model = models.create("cnn-dropout", 1, inputs.shape[1:], classes)
        rng = np.random.default_rng(seed)
        return models.train(model, inputs, labels, epochs=2, batch_size=8, learning_rate=0.01, rng=rng).loss

    assert loss(1) == loss(1) != loss(2)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("resnet", (3, 32, 32), "there is no model 'resnet'; the app has cnn, "),
        ("lstm", (3, 32, 32), "the model lstm takes text, and the data are images"),
        ("cnn", (80,), "the model cnn takes images, and the data are text"),
        ("vgg-11", (1, 28, 28), "the model vgg-11 takes 32 at least a side, and an example is 28 by 28"),
    ],
)
def test_a_model_that_cannot_be(name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(AppError, match=said):
        models.create(name, 1, shape, 10)


def test_what_hidden_layers_say_is_scaled() -> None:
    plain, scaled = (models.create("mlp", 1, (1, 4, 4), 3, 0.5, scale) for scale in (1.0, 0.5))
    inputs = torch.rand(2, 1, 4, 4)
    _, first, _, second, _, last = plain
    hidden = torch.relu(second(torch.relu(first(inputs.flatten(1)) / 0.5)) / 0.5)
    assert torch.allclose(scaled(inputs), last(hidden))
    assert not torch.allclose(scaled(inputs), plain(inputs))


def test_a_loss_without_absent_labels_is_that_of_the_others() -> None:
    inputs, labels, _ = examples("cnn-dropout", 4)
    model = models.create("mlp", 1, inputs.shape[1:], 10)
    outputs = model(torch.from_numpy(inputs) / 127.5 - 1)[:, :4]
    wanted = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels)).item()
    rng = np.random.default_rng(1)
    arguments: dict[str, Any] = {"epochs": 1, "batch_size": 4, "learning_rate": 0.1, "rng": rng}
    assert models.train(model, inputs, labels, absent=range(4, 10), **arguments).loss == pytest.approx(wanted)


def test_the_optimizers_are_those_of_torch() -> None:
    script = Path(__file__).with_name("optimizers_of_torch.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    differences = json.loads(done.stdout)
    assert set(differences) == {"sgd", "momentum", "proximal", "adam"}
    assert max(differences.values()) < 1e-5


def test_an_unknown_optimizer() -> None:
    inputs, labels, _ = examples("mlp", 8)
    model = models.create("mlp", 1, inputs.shape[1:], 10)
    with pytest.raises(AppError, match="there is no optimizer 'rmsprop'; the app has sgd, adam"):
        models.train(
            model,
            inputs,
            labels,
            epochs=1,
            batch_size=8,
            learning_rate=1,
            optimizer="rmsprop",
            rng=np.random.default_rng(1),
        )


def test_a_client_imports_its_own_model_alone() -> None:
    """What is imported is paid for by every client in every round."""
    script = (
        "import sys\nfrom testbed_app import client, models\nmodels.create('cnn', 1, (1, 28, 28), 10)\n"
        "print(*(name for name in sys.modules if name.startswith('testbed_app.nets.')), 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=APP, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["testbed_app.nets.cnn", "False"]
