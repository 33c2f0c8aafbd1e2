"""The ClientApp: trains on the client's own shard and evaluates on its held-out part, in one message."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from fltestbed import limits, telemetry
from testbed_app import data, models, packing
from testbed_app.errors import AppError

REFUSED = 100  # the code of our own error replies; Flower's are below 10


def private(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip what was trained, where the run's differential privacy leaves that to the clients."""
    wanted = message.content.config_records["config"].get("privacy")
    mod = {"client-fixed": fixedclipping_mod, "client-adaptive": adaptiveclipping_mod}.get(str(wanted))
    return mod(message, context, call_next) if mod else call_next(message, context)


app = ClientApp(mods=[telemetry.client, private])


@dataclass(frozen=True)
class Settings:
    """How this client trains.

    data_fraction: the share of its examples that it trains on, and of those that it is evaluated on, drawn anew each
    round; width: the share of the model.
    """

    batch_size: int
    learning_rate: float
    local_epochs: int
    data_fraction: float
    width: float = 1.0

    @classmethod
    def resolve(cls, own: Mapping[str, object], run_config: Mapping[str, object]) -> "Settings":
        """Take each setting from the client's own, else from the run. Raises AppError."""
        given = {"width": cls.width, **run_config, **own}
        values = {}
        for name, kind in cls.__annotations__.items():
            key = name.replace("_", "-")
            value = given[key]
            whole, share = kind is int, name in ("data_fraction", "width")
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else int | float)
                or not value > 0
                or (share and value > 1)
            ):
                wanted = "a whole number above 0" if whole else "a number above 0"
                raise AppError(f"{key} must be {wanted}{', at most 1' * share}, it is {value!r}")
            values[name] = kind(value)
        return cls(**values)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply with the trained arrays and this client's figures, or with the reason why it could not train."""
    try:
        return Message(_train(message.content, context), reply_to=message)
    except AppError as error:
        return Message(Error(REFUSED, str(error)), reply_to=message)


def _train(content: RecordDict, context: Context) -> RecordDict:
    config, run_config = content.config_records["config"], context.run_config
    own = {**context.node_config, **config}  # the message has what was resolved for this run
    settings = Settings.resolve(own, run_config)
    share = float(cast(float, config.get("learning-rate-share", 1.0)))
    settings = replace(settings, learning_rate=share * settings.learning_rate)
    sha256 = str(config["partition-sha256"])
    if "data-set" in config:
        shard = data.load_own(str(config["data-set"]), sha256, int(str(config["classes"])))
    else:
        shard = data.load(sha256)
    torch.set_num_threads(limits.threads())

    momentum = float(run_config["momentum"])
    seed, server_round = int(run_config["seed"]), int(str(config["server-round"]))
    rng = np.random.default_rng([seed, int(context.node_config["partition-id"]), server_round])
    shape, classes = shard["train_inputs"].shape[1:], int(shard["classes"])
    scale = settings.width / float(cast(float, config.get("widest", settings.width)))
    model = models.create(str(run_config["model"]), seed, shape, classes, settings.width, scale)
    shapes = models.shapes(model)
    model.load_state_dict(packing.unpack(content.array_records["arrays"], shapes).to_torch_state_dict())
    chosen = _draw(rng, len(shard["train_labels"]), settings.data_fraction)
    held_out = np.sort(_draw(rng.spawn(1)[0], len(shard["held_out_labels"]), settings.data_fraction))
    test = shard["held_out_inputs"][held_out], shard["held_out_labels"][held_out]
    absent = np.setdiff1d(range(classes), shard["train_labels"]).tolist() if config.get("masked-loss") else []

    received: dict[str, float] = {}
    if "data-set" in config:  # the server has nothing to test the global model on
        received = dict(zip(("global-loss", "global-accuracy"), models.evaluate(model, *test), strict=True))
    print(f"round {server_round}: training on {len(chosen)} examples", flush=True)
    began = time.monotonic()
    trained = models.train(
        model,
        shard["train_inputs"][chosen],
        shard["train_labels"][chosen],
        epochs=settings.local_epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        momentum=momentum,
        optimizer=str(run_config["optimizer"]),
        proximal_mu=float(cast(float, config.get("proximal-mu", 0.0))),
        absent=absent,
        seconds=float(cast(float, own.get("deadline", math.inf))),
        rng=rng,
    )
    train_seconds = time.monotonic() - began
    loss, accuracy = models.evaluate(model, *test)
    figures = {
        "num-examples": trained.examples,
        "train-seconds": train_seconds,
        "train-loss": trained.loss,
        "rms-loss": trained.rms_loss,
        "steps": trained.steps,
        "momentum": momentum,
        "loss": loss,
        "accuracy": accuracy,
        "eval-examples": len(held_out),
        **received,
        **{name.replace("_", "-"): value for name, value in asdict(settings).items()},
    }
    arrays = packing.pack(ArrayRecord(model.state_dict()), shapes)
    return RecordDict({"arrays": arrays, "metrics": MetricRecord(figures)})


def _draw(rng: np.random.Generator, examples: int, share: float) -> NDArray[np.int64]:
    """Return the places of a share of the examples, of one at least."""
    return rng.permutation(examples)[: max(1, int(examples * share))]
