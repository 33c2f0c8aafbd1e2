"""The ClientApp: its settings, its data, its training, and its replies when it cannot train."""

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from small_dataset import images_and_labels
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "fl_app"))

from testbed_app import client, data, models, packing
from testbed_app.errors import AppError

from fltestbed import limits, telemetry

# What Flower sets before it starts an app.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

RUN_CONFIG: dict[str, bool | float | int | str] = {
    "model": "cnn",
    "seed": 42,
    "optimizer": "sgd",
    "momentum": 0.9,
    "batch-size": 32,
    "learning-rate": 0.05,
    "local-epochs": 1,
    "data-fraction": 0.5,
}


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a client's file into its data folder and return the hash."""
    images, labels = images_and_labels(500, seed=0)
    file = tmp_path / "shard.npz"
    np.savez(
        file,
        classes=10,
        train_inputs=images[:400, None],
        train_labels=labels[:400],
        held_out_inputs=images[400:, None],
        held_out_labels=labels[400:],
    )
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(tmp_path / f"{sha256}.npz")
    monkeypatch.setenv("FLTESTBED_DATA", str(tmp_path))
    return sha256


def ask(sha256: str, number: int = 1, message: Mapping[str, Any] | None = None, **node_config: Any) -> Message:
    """Send the ClientApp a train message and return its reply."""
    width = float((message or {}).get("width", 1.0))
    model = models.create("cnn", 42, (1, 28, 28), 10, width)
    arrays = packing.pack(ArrayRecord(model.state_dict()), models.shapes(model))
    config = ConfigRecord({"server-round": number, "partition-sha256": sha256, **(message or {})})
    asked = Message(RecordDict({"arrays": arrays, "config": config}), dst_node_id=5, message_type="train")
    node = {"device": "pi-1", "client": "pi-1-2", "partition-id": 1, "num-partitions": 2}
    node |= {name.replace("_", "-"): value for name, value in node_config.items()}
    return client.app(asked, Context(1, 5, node, RecordDict(), RUN_CONFIG))


def trained(reply: Message, width: float = 1.0) -> dict[str, Tensor]:
    """Return the weights in a reply by their names."""
    shapes = models.shapes(models.create("cnn", 42, (1, 28, 28), 10, width))
    return packing.unpack(reply.content.array_records["arrays"], shapes).to_torch_state_dict()


def test_a_reply_has_the_trained_arrays_and_the_figures(shard: str) -> None:
    reply = ask(shard, batch_size=16, learning_rate=0.02)
    figures = reply.content.metric_records["metrics"]
    assert figures["num-examples"] == 200
    assert figures["eval-examples"] == 50
    assert "global-loss" not in figures, "the server evaluates the global model itself"
    assert (figures["batch-size"], figures["learning-rate"]) == (16, 0.02)
    assert (figures["local-epochs"], figures["data-fraction"]) == (1, 0.5)
    told = telemetry.figures(reply)
    assert told["threads"] == limits.threads()
    assert told["peak_memory_mb"] > 50
    assert told["app_seconds"] > told["train_seconds"] == figures["train-seconds"]
    after, before = trained(reply), models.create("cnn", 42, (1, 28, 28), 10).state_dict()
    assert any(not after[name].equal(value) for name, value in before.items())


def test_all_of_the_data_are_trained_on_and_evaluated_on_in_the_same_order(shard: str, tmp_path: Path) -> None:
    reply = ask(shard, data_fraction=1.0)
    with np.load(tmp_path / f"{shard}.npz") as arrays:
        whole = dict(arrays)
    model = models.create("cnn", 42, (1, 28, 28), 10)
    rng = np.random.default_rng([42, 1, 1])
    order = rng.permutation(400)
    inputs, labels = whole["train_inputs"][order], whole["train_labels"][order]
    models.train(model, inputs, labels, epochs=1, batch_size=32, learning_rate=0.05, momentum=0.9, rng=rng)
    assert all(trained(reply)[name].equal(value) for name, value in model.state_dict().items())
    figures = reply.content.metric_records["metrics"]
    found = models.evaluate(model, whole["held_out_inputs"], whole["held_out_labels"])
    assert (figures["loss"], figures["accuracy"]) == found
    assert figures["eval-examples"] == 100


def test_the_held_out_examples_are_drawn_anew_each_round(shard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    evaluate = models.evaluate

    def watched(model: Any, inputs: Any, labels: Any) -> Any:
        seen.append(inputs)
        return evaluate(model, inputs, labels)

    monkeypatch.setattr(models, "evaluate", watched)
    for number in (1, 2, 1):
        ask(shard, number)
    images, _ = images_and_labels(500, seed=0)
    whole = {image.tobytes() for image in images[400:]}
    first, second, again = ({image.tobytes() for image in each} for each in seen)
    assert first == again != second
    assert first < whole and second < whole
    figures = ask(shard, data_fraction=1e-9).content.metric_records["metrics"]
    assert (figures["num-examples"], figures["eval-examples"]) == (1, 1)


def test_a_file_is_mapped(shard: str, tmp_path: Path) -> None:
    mapped = data.load(shard)
    with np.load(tmp_path / f"{shard}.npz") as arrays:
        whole = dict(arrays)
    assert mapped.keys() == whole.keys()
    for name, array in whole.items():
        assert isinstance(mapped[name], np.memmap)
        assert (mapped[name].dtype, mapped[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(mapped[name], array)
    assert type(mapped["train_inputs"][np.array([3, 1])]) is np.ndarray, "what is trained on is not mapped"


def test_a_learning_rate_is_scaled_by_the_rounds_share(shard: str) -> None:
    half = ask(shard, learning_rate=0.02, message={"learning-rate-share": 0.5})
    plain = ask(shard, learning_rate=0.01)
    assert telemetry.figures(half)["learning_rate"] == 0.01
    assert all(trained(half)[name].equal(value) for name, value in trained(plain).items())


def test_training_learns(shard: str) -> None:
    few = ask(shard, data_fraction=1.0).content.metric_records["metrics"]
    many = ask(shard, data_fraction=1.0, local_epochs=6).content.metric_records["metrics"]
    assert many["train-loss"] < few["train-loss"]
    assert many["accuracy"] > 0.9


def test_the_same_round_trains_the_same_and_another_differs(shard: str) -> None:
    def loss(number: int) -> Any:
        return ask(shard, number).content.metric_records["metrics"]["train-loss"]

    assert loss(1) == loss(1)
    assert loss(1) != loss(2)


def test_what_the_message_says_goes_before_the_clients_own(shard: str) -> None:
    figures = ask(shard, batch_size=16, message={"batch-size": 8, "local-epochs": 2}).content.metric_records["metrics"]
    assert (figures["batch-size"], figures["local-epochs"]) == (8, 2)


def test_a_narrow_client_trains_its_part_as_the_server_scales_it(shard: str) -> None:
    alone, beside = (ask(shard, message={"width": 0.5, "widest": widest}) for widest in (0.5, 1.0))
    assert telemetry.figures(alone)["width"] == 0.5
    assert trained(alone, 0.5)["0.weight"].shape == (8, 1, 5, 5)
    assert telemetry.figures(alone)["loss"] != telemetry.figures(beside)["loss"]


def test_a_masked_loss_leaves_alone_what_the_client_has_no_example_of(shard: str, tmp_path: Path) -> None:
    with np.load(tmp_path / f"{shard}.npz") as whole:
        arrays = dict(whole)
    few = arrays["train_labels"] < 4
    arrays |= {"train_inputs": arrays["train_inputs"][few], "train_labels": arrays["train_labels"][few]}
    np.savez(tmp_path / "few.npz", **arrays)
    sha256 = hashlib.sha256((tmp_path / "few.npz").read_bytes()).hexdigest()
    (tmp_path / "few.npz").rename(tmp_path / f"{sha256}.npz")
    before = models.create("cnn", 42, (1, 28, 28), 10).state_dict()
    for masked in (False, True):
        reply = ask(sha256, message={"masked-loss": masked})
        after = trained(reply)
        moved = (after["7.weight"] != before["7.weight"]).any(dim=1).tolist()
        assert moved == [True] * 4 + [not masked] * 6


def test_no_step_is_begun_after_the_deadline(shard: str) -> None:
    """The first step is always done: 16 of the 400 examples, and none of the second epoch."""
    figures = ask(shard, batch_size=16, local_epochs=2, data_fraction=1.0, deadline=1e-9).content.metric_records[
        "metrics"
    ]
    assert (figures["steps"], figures["num-examples"]) == (1, 16)
    assert figures["train-loss"] > 0
    figures = ask(shard, batch_size=16, data_fraction=1.0, deadline=600.0).content.metric_records["metrics"]
    assert (figures["steps"], figures["num-examples"]) == (25, 400)


def test_evaluation_counts_every_example() -> None:
    images, labels = images_and_labels(1203, seed=0)  # no multiple of the batch
    model = models.create("cnn", 1, (1, 28, 28), 10)
    loss, accuracy = models.evaluate(model, images[:, None], labels)
    parts = [models.evaluate(model, images[cut, None], labels[cut]) for cut in (slice(0, 400), slice(400, None))]
    assert accuracy == pytest.approx((400 * parts[0][1] + 803 * parts[1][1]) / 1203)
    assert loss == pytest.approx((400 * parts[0][0] + 803 * parts[1][0]) / 1203)


def test_another_file_is_refused_with_the_reason(shard: str, tmp_path: Path) -> None:
    with (tmp_path / f"{shard}.npz").open("ab") as file:
        file.write(b"more")
    reply = ask(shard)
    assert reply.has_error()
    assert reply.error.code == client.REFUSED
    assert reply.error.reason is not None
    assert reply.error.reason.startswith(f"{tmp_path}/{shard}.npz is not the file of this run: its hash is ")


def test_a_missing_file_is_refused_with_the_reason(shard: str, tmp_path: Path) -> None:
    (tmp_path / f"{shard}.npz").unlink()
    reason = ask(shard).error.reason
    assert reason == f"{tmp_path}/{shard}.npz cannot be read: No such file or directory; bring the partitions again"


def test_an_impossible_setting_is_refused_with_the_reason(shard: str) -> None:
    assert ask(shard, batch_size=0).error.reason == "batch-size must be a whole number above 0, it is 0"


def test_a_clients_own_settings_go_before_the_runs() -> None:
    run = client.Settings.resolve({}, RUN_CONFIG)
    assert run == client.Settings(batch_size=32, learning_rate=0.05, local_epochs=1, data_fraction=0.5)
    own = client.Settings.resolve({"local-epochs": 3, "data-fraction": 1}, RUN_CONFIG)
    assert own == client.Settings(batch_size=32, learning_rate=0.05, local_epochs=3, data_fraction=1.0)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("batch-size", 1.5, "batch-size must be a whole number above 0"),
        ("batch-size", True, "batch-size must be a whole number above 0"),
        ("learning-rate", "fast", "learning-rate must be a number above 0"),
        ("learning-rate", float("nan"), "learning-rate must be a number above 0"),
        ("data-fraction", 1.1, "data-fraction must be a number above 0, at most 1"),
        ("width", 2, "width must be a number above 0, at most 1"),
    ],
)
def test_impossible_settings(key: str, value: object, said: str) -> None:
    with pytest.raises(AppError, match=said):
        client.Settings.resolve({key: value}, RUN_CONFIG)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "40000 100000\n"}, 0.4),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_the_control_group(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert limits.cpu_quota(tmp_path) == quota
