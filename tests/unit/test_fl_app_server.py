"""The ServerApp's rounds, with the real ClientApp behind a grid that can lose clients."""

import hashlib
import json
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity
from small_dataset import images_and_labels, write_npz

sys.path.insert(0, str(Path(__file__).parents[2] / "fl_app"))

from testbed_app import client, server, strategies
from testbed_app.errors import AppError

from fltestbed import device_data, telemetry
from fltestbed.telemetry import Exporter

# What Flower sets before it starts an app.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

NAMES = ("pi-1", "pi-2")
RUN_CONFIG: dict[str, bool | float | int | str] = {
    "run": "r1",
    "model": "cnn",
    "seed": 42,
    "optimizer": "sgd",
    "momentum": 0.9,
    "batch-size": 32,
    "learning-rate": 0.05,
    "local-epochs": 2,
    "data-fraction": 1.0,
}
Reply = Callable[[Message, Context], Message | None]


def failing(code: int) -> Reply:
    """Return what a SuperLink replies with, in its own name, for a client that cannot."""

    def reply(message: Message, _context: Context) -> Message:
        answer = Message(Error(code), reply_to=message)
        answer.metadata.__dict__["_src_node_id"] = 1
        return answer

    return reply


def silent(_message: Message, _context: Context) -> None:
    """Never reply."""


@dataclass
class LocalGrid(Grid):
    """Runs the ClientApp where a message is pushed. By (client, round), `replies` puts another reply in its place.

    By round, `offline` names the clients that are not there; a name in `restarting` is a SuperNode that starts anew
    after every look.
    """

    replies: dict[tuple[str, int], Reply] = field(default_factory=dict)
    offline: dict[int, set[str]] = field(default_factory=dict)
    restarting: set[str] = field(default_factory=set)
    node_config: dict[str, dict[str, Any]] = field(default_factory=dict)
    round: int = 1
    looks: int = 0
    waiting: dict[str, Message] = field(default_factory=dict)

    def get_nodes(self) -> list[NodeInfo]:
        self.looks += 1
        online = [name for name in NAMES if name not in self.offline.get(self.round, set())]
        return [NodeInfo(node_id=999, name="of-another-testbed")] + [
            NodeInfo(
                node_id=100 + NAMES.index(name),
                name=name,
                last_activated_at=str(self.looks if name in self.restarting else 0),
            )
            for name in online
        ]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            number = message.content.config_records["config"]["server-round"]
            assert isinstance(number, int)
            name = NAMES[message.metadata.dst_node_id - 100]
            message_id = f"{name}/{number}"
            message.metadata.__dict__["_message_id"] = message_id
            node = {"client": name, "partition-id": NAMES.index(name), **self.node_config.get(name, {})}
            context = Context(1, message.metadata.dst_node_id, node, RecordDict(), RUN_CONFIG)
            reply = self.replies.get((name, number), client.app)(message, context)
            if reply is not None:
                self.waiting[message_id] = reply
            ids.append(message_id)
            self.round = number + 1
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.waiting.pop(message_id) for message_id in message_ids if message_id in self.waiting]

    def get_node_ids(self) -> Iterable[int]:
        raise AssertionError("a strategy has to choose from the run's clients")

    run = property(lambda self: None)  # type: ignore[assignment]

    def set_run(self, run: Any) -> None: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        raise NotImplementedError


def put(folder: Path, **arrays: Any) -> str:
    """Write a data file under its hash."""
    np.savez(folder / "new.npz", **arrays)
    sha256 = hashlib.sha256((folder / "new.npz").read_bytes()).hexdigest()
    (folder / "new.npz").rename(folder / f"{sha256}.npz")
    return sha256


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prepare a run of two rounds with two clients, as the deployer does, and return its folder."""
    monkeypatch.setenv("FLTESTBED_DATA", str(tmp_path))
    monkeypatch.setenv("FLTESTBED_RUNS", str(tmp_path))
    monkeypatch.setenv("FLTESTBED_METRICS_PORT", "0")
    monkeypatch.setattr(server, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(server, "ONLINE_POLL_SECONDS", 0.01)
    clients = []
    for number, name in enumerate(NAMES):
        images, labels = images_and_labels(250, seed=number)
        train, held_out = slice(0, 200), slice(200, None)
        sha256 = put(
            tmp_path,
            classes=10,
            train_inputs=images[train, None],
            train_labels=labels[train],
            held_out_inputs=images[held_out, None],
            held_out_labels=labels[held_out],
        )
        partition = {"id": number, "sha256": sha256, "examples": 200}
        clients.append({"device": name, "client": name, "partition": partition, "settings": {}})
    images, labels = images_and_labels(300, seed=9)
    plan = {
        "run": "r1",
        "experiment": {
            "model": "cnn",
            "seed": 42,
            "rounds": 2,
            "strategy": {"name": "fedavg", "fraction_train": 1.0},
            "train": {"learning_rate": 0.05, "schedule": {"name": "constant"}},
            "min_clients": None,
            "client_wait": 0.2,
            "round_timeout": 20,
        },
        "clients": clients,
        "partition_set": "x",
        "test_set": {"sha256": put(tmp_path, classes=10, inputs=images[:, None], labels=labels), "examples": 300},
    }
    (tmp_path / "r1").mkdir()
    (tmp_path / "r1/experiment.json").write_text(json.dumps(plan))
    return tmp_path / "r1"


def change(folder: Path, **values: Any) -> None:
    plan = json.loads((folder / "experiment.json").read_text())
    plan["experiment"].update(values)
    (folder / "experiment.json").write_text(json.dumps(plan))


def lead(grid: Grid) -> None:
    server.app(grid, Context(77, 1, {}, RecordDict(), RUN_CONFIG))


def strict(text: str) -> Any:
    """Read JSON, without the NaN that Python writes and others refuse."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [strict(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def failures(folder: Path) -> dict[tuple[str, int], str]:
    return {(row["client"], row["round"]): row["failure"] for row in rows(folder, "clients") if row["failure"]}


def state(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = strict((folder / "run.json").read_text())
    return read


def test_a_run_leaves_its_rows_its_state_and_its_model(folder: Path) -> None:
    lead(LocalGrid())
    clients, rounds = rows(folder, "clients"), rows(folder, "rounds")
    assert sorted((row["round"], row["client"], row["status"]) for row in clients) == [
        (number, name, "ok") for number in (1, 2) for name in NAMES
    ]
    assert clients[0].keys() == {
        "run",
        "device",
        "client",
        "round",
        "start",
        "end",
        "status",
        "failure",
        *telemetry.FIGURES,
    }
    assert rounds[0].keys() >= {"start", "end", "seconds", "clients_selected", "clients_failed", "client_accuracy"}
    assert [row["clients_ok"] for row in rounds] == [2, 2]
    assert [row["round"] for row in rounds] == [1, 2]
    assert rounds[1]["server_loss"] < rounds[0]["server_loss"]
    assert rounds[0]["train_loss"] == pytest.approx((clients[0]["train_loss"] + clients[1]["train_loss"]) / 2)
    assert rounds[0]["start"] <= clients[0]["start"] <= clients[0]["end"] <= rounds[0]["end"]
    ended = state(folder)
    assert (ended["status"], ended["reason"], ended["round"], ended["rounds"]) == ("finished", None, 2, 2)
    assert ended["flwr_run_id"] == "77"
    model = server.models.create("cnn", 0, (1, 28, 28), 10)
    model.load_state_dict(server.torch.load(folder / "model.pt"))
    images, labels = images_and_labels(300, seed=9)
    assert server.models.evaluate(model, images[:, None], labels)[1] == rounds[1]["server_accuracy"]
    assert {path.name for path in folder.iterdir()} == {
        "clients.jsonl",
        "experiment.json",
        "model.pt",
        "rounds.jsonl",
        "run.json",
    }


def test_a_run_that_lacks_a_client_ends_with_its_name(folder: Path) -> None:
    with pytest.raises(AppError):
        lead(LocalGrid(offline={1: {"pi-2"}}))
    assert state(folder)["status"] == "failed"
    assert state(folder)["reason"] == "1 of 2 clients were online after 0.2 s (client_wait): pi-2 missing"
    assert not (folder / "rounds.jsonl").exists()


def test_fewer_clients_are_enough_where_the_experiment_says_so(folder: Path) -> None:
    change(folder, min_clients=1)
    lead(LocalGrid(offline={1: {"pi-2"}}))
    assert failures(folder) == {("pi-2", 1): "offline when the round began"}
    assert [row["clients_ok"] for row in rows(folder, "rounds")] == [1, 2]


def test_a_client_that_goes_is_named_and_takes_part_again(folder: Path) -> None:
    change(folder, rounds=3)
    lead(LocalGrid(replies={("pi-1", 1): failing(5)}, offline={2: {"pi-1"}}))
    said = failures(folder)
    assert said.keys() == {("pi-1", 1), ("pi-1", 2)}
    assert said["pi-1", 1].startswith("went offline in the middle of the round")
    counted = [(row["clients_selected"], row["clients_ok"], row["clients_failed"]) for row in rows(folder, "rounds")]
    assert counted == [(2, 1, 1), (1, 1, 1), (2, 2, 0)]
    assert state(folder)["status"] == "finished"


def test_a_run_whose_clients_are_all_gone_ends_with_their_names(folder: Path) -> None:
    with pytest.raises(AppError):
        lead(LocalGrid(offline={2: {"pi-1", "pi-2"}}))
    assert state(folder)["reason"] == "0 of 1 clients were online after 0.2 s (client_wait): pi-1, pi-2 missing"
    assert len(rows(folder, "rounds")) == 1


def test_a_client_that_never_replies_does_not_hold_up_the_run(folder: Path) -> None:
    change(folder, round_timeout=0.3)
    lead(LocalGrid(replies={("pi-2", 1): silent}))
    assert failures(folder) == {("pi-2", 1): "no reply within 0.3 s (round_timeout)"}


def test_a_supernode_that_starts_anew_is_not_waited_for(folder: Path) -> None:
    change(folder, rounds=1)
    lead(LocalGrid(replies={("pi-2", 1): silent}, restarting={"pi-2"}))
    assert failures(folder) == {("pi-2", 1): "its SuperNode was started anew in the middle of the round"}
    assert rows(folder, "rounds")[0]["seconds"] < 10


def test_a_client_without_its_data_is_named_with_the_file(folder: Path) -> None:
    sha256 = json.loads((folder / "experiment.json").read_text())["clients"][1]["partition"]["sha256"]
    (folder.parent / f"{sha256}.npz").write_bytes(b"another file")
    lead(LocalGrid())
    assert failures(folder).keys() == {("pi-2", 1), ("pi-2", 2)}
    assert f"{sha256}.npz is not the file of this run" in failures(folder)["pi-2", 1]


def test_two_rounds_without_any_result_end_the_run(folder: Path) -> None:
    change(folder, rounds=5)
    with pytest.raises(AppError):
        lead(LocalGrid(replies={(name, number): failing(8) for name in NAMES for number in (2, 3)}))
    assert len(rows(folder, "rounds")) == 3
    assert rows(folder, "rounds")[2]["train_loss"] is None
    reason = state(folder)["reason"]
    assert reason.startswith("no client succeeded in round 3: pi-1: its training process died")
    assert "pi-2: " in reason


def test_one_round_without_any_result_does_not(folder: Path) -> None:
    change(folder, rounds=3)
    lead(LocalGrid(replies={(name, 2): failing(8) for name in NAMES}))
    losses = [row["server_loss"] for row in rows(folder, "rounds")]
    assert losses[1] == losses[0] != losses[2]


def test_a_loss_that_is_no_number_ends_the_run(folder: Path) -> None:
    with pytest.raises(AppError):
        lead(LocalGrid(node_config={"pi-2": {"learning-rate": 1e30}}))
    assert state(folder)["status"] == "failed"
    assert state(folder)["reason"].startswith("round 1: pi-2: its loss is nan after training: lower the learning rate")
    diverged = rows(folder, "clients")[1]
    assert (diverged["status"], diverged["train_loss"]) == ("failed", None)
    assert np.isfinite(rows(folder, "rounds")[0]["server_loss"])


def test_a_share_of_the_clients_is_the_same_for_the_same_seed(folder: Path) -> None:
    change(folder, rounds=4, strategy={"name": "fedavg", "fraction_train": 0.5})
    lead(LocalGrid())
    chosen = [row["client"] for row in rows(folder, "clients")]
    assert len(chosen) == 4
    (folder / "clients.jsonl").unlink()
    lead(LocalGrid())
    assert [row["client"] for row in rows(folder, "clients")] == chosen


def test_a_client_takes_part_in_its_share_of_the_rounds_and_trains_as_the_plan_says(folder: Path) -> None:
    plan = json.loads((folder / "experiment.json").read_text())
    plan["clients"][0]["settings"] = {"batch_size": 64, "participation": 1.0}
    plan["clients"][1]["settings"] = {"learning_rate": 0.01, "participation": 0.5}
    (folder / "experiment.json").write_text(json.dumps(plan))
    change(folder, rounds=8)
    lead(LocalGrid())
    trained = [
        (row["round"], row["client"], row["batch_size"], row["learning_rate"]) for row in rows(folder, "clients")
    ]
    share = [number for number in range(1, 9) if np.random.default_rng([42, number, 1]).random() < 0.5]
    assert 0 < len(share) < 8
    assert sorted(trained) == sorted(
        [(number, "pi-1", 64, 0.05) for number in range(1, 9)] + [(number, "pi-2", 32, 0.01) for number in share]
    )
    assert failures(folder) == {}


def test_a_round_that_nobody_would_take_part_in_has_one(folder: Path) -> None:
    plan = json.loads((folder / "experiment.json").read_text())
    for each in plan["clients"]:
        each["settings"] = {"participation": 1e-9}
    (folder / "experiment.json").write_text(json.dumps(plan))
    lead(LocalGrid())
    assert [row["clients_ok"] for row in rows(folder, "rounds")] == [1, 1]


def test_a_stopped_run_says_so(folder: Path) -> None:
    def stop(_message: Message, _context: Context) -> None:
        raise SystemExit(0)

    with pytest.raises(SystemExit):
        lead(LocalGrid(replies={("pi-1", 2): stop}))
    assert (state(folder)["status"], state(folder)["reason"]) == ("stopped", "stopped before its last round")
    assert (folder / "model.pt").exists()


def test_the_metrics_are_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lead(LocalGrid())
    exporter = Exporter("20260101-a", [{"device": "pi-1", "client": "pi-1"}])
    try:
        exporter.round(rows(folder, "rounds")[1])
        exporter.client(rows(folder, "clients")[0])
        exporter.client({"device": "pi-1", "client": "pi-1", "failure": "gone"})
        assert exporter._served is not None
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter._served[0].server_port}/metrics") as answer:
            lines = answer.read().decode().splitlines()
    finally:
        exporter.close()
    served = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert served["fl_round"] == 2
    assert served["model_accuracy"] == rows(folder, "rounds")[1]["server_accuracy"]
    assert served['fl_client_examples{client="pi-1",device="pi-1"}'] == 200
    assert served['fl_client_failures_total{client="pi-1",device="pi-1"}'] == 1
    assert {"model_loss", "fl_round_duration_seconds"} < served.keys()


def test_a_port_in_use_costs_only_the_metrics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:  # noqa: S104
        monkeypatch.setenv("FLTESTBED_METRICS_PORT", str(taken.getsockname()[1]))
        lead(LocalGrid())
    assert state(folder)["status"] == "finished"


def test_a_buffer_takes_what_comes_and_waits_for_nobody(folder: Path) -> None:
    """pi-2's reply of round 1 comes in round 3, after two steps of pi-1 alone."""
    change(folder, rounds=5, strategy={"name": "fedbuff", "buffer": 1, "server_learning_rate": 1.0})
    grid = LocalGrid()
    kept: list[Message] = []

    def late(message: Message, context: Context) -> None:
        kept.append(client.app(message, context))

    def after_the_late_one(message: Message, context: Context) -> None:
        grid.waiting["pi-2/1"] = kept.pop()

    grid.replies = {("pi-2", 1): late, ("pi-1", 3): after_the_late_one}
    change(folder, round_timeout=60)
    lead(grid)
    assert [(row["client"], row["round"]) for row in rows(folder, "clients")][:3] == [
        ("pi-1", 1),
        ("pi-1", 2),
        ("pi-2", 3),
    ]
    assert not failures(folder)
    first, _, third, *_ = rows(folder, "rounds")
    assert rows(folder, "clients")[2]["start"] == first["start"]
    assert (first["clients_selected"], third["clients_selected"]) == (2, 1)
    assert rows(folder, "rounds")[-1]["server_loss"] < first["server_loss"]


def test_a_buffer_waits_for_those_at_work_where_nobody_is_free(folder: Path) -> None:
    change(folder, rounds=3, round_timeout=0.3)
    change(folder, strategy={"name": "fedbuff", "buffer": 1, "server_learning_rate": 1.0})
    lead(LocalGrid(replies={("pi-2", 1): silent}, offline={2: {"pi-1"}}))
    assert failures(folder)["pi-2", 2] == "no reply within 0.3 s (round_timeout)"
    assert [row["clients_selected"] for row in rows(folder, "rounds")] == [2, 0, 1]


def test_a_buffer_gives_up_on_whom_the_network_lost(folder: Path) -> None:
    change(folder, rounds=4, round_timeout=0.3)
    change(folder, strategy={"name": "fedbuff", "buffer": 2, "server_learning_rate": 1.0})
    lead(LocalGrid(replies={("pi-2", 1): silent, ("pi-2", 3): failing(8)}))
    said = failures(folder)
    assert said["pi-2", 1] == "no reply within 0.3 s (round_timeout)"
    assert any(text.startswith("its training process died") for text in said.values())
    assert state(folder)["status"] == "finished"


@pytest.mark.parametrize("name", strategies.PRIVACY)
def test_privacy_is_kept_around_a_strategy(folder: Path, name: str) -> None:
    """Without noise, clipping to next to nothing keeps the model where it was; a wide norm lets it learn."""
    fixed = name.endswith("fixed")
    losses = {}
    for norm in (1e-6, 100.0):
        norms = {"clipping_norm": norm} if fixed else {"initial_clipping_norm": norm}
        change(folder, rounds=1, privacy={"name": name, "noise_multiplier": 0.0, **norms})
        lead(LocalGrid())
        assert not failures(folder)
        losses[norm] = rows(folder, "rounds")[-1]["server_loss"]
    start = server.models.create("cnn", 42, (1, 28, 28), 10)
    images, labels = images_and_labels(300, seed=9)
    untrained, _ = server.models.evaluate(start, images[:, None], labels)
    assert losses[1e-6] == pytest.approx(untrained, rel=1e-4)
    assert losses[100.0] < 0.9 * untrained


def test_the_noise_is_as_large_as_asked_for_and_the_same_for_the_same_seed(folder: Path) -> None:
    models = []
    for _ in range(2):
        change(folder, rounds=1, privacy={"name": "server-fixed", "noise_multiplier": 3.0, "clipping_norm": 1e-6})
        lead(LocalGrid())
        models.append(server.torch.load(folder / "model.pt"))
    start = server.models.create("cnn", 42, (1, 28, 28), 10).state_dict()
    noise = server.torch.cat([(models[0][key] - start[key]).flatten() for key in start])
    assert float(noise.std()) == pytest.approx(3.0 * 1e-6 / len(NAMES), rel=0.1)
    assert all(models[0][key].equal(models[1][key]) for key in start)


def test_the_noise_is_that_of_the_clients_that_replied(folder: Path) -> None:
    change(folder, rounds=1, privacy={"name": "server-fixed", "noise_multiplier": 3.0, "clipping_norm": 1e-6})
    lead(LocalGrid(replies={("pi-2", 1): failing(8)}))
    model = server.torch.load(folder / "model.pt")
    start = server.models.create("cnn", 42, (1, 28, 28), 10).state_dict()
    noise = server.torch.cat([(model[key] - start[key]).flatten() for key in start])
    assert float(noise.std()) == pytest.approx(3.0 * 1e-6, rel=0.1)


def test_replies_that_a_strategy_makes_no_model_of_end_the_run(folder: Path) -> None:
    change(folder, strategy={"name": "bulyan", "num_malicious_nodes": 0})
    with pytest.raises(AppError):
        lead(LocalGrid())
    reason = "round 1: bulyan makes no model of 2 replies: have more clients train, or take another strategy"
    assert (state(folder)["status"], state(folder)["reason"]) == ("failed", reason)
    assert [row["clients_ok"] for row in rows(folder, "rounds")] == [2]


@pytest.mark.parametrize("name", strategies.PRIVACY)
def test_a_round_without_any_result_does_not_end_a_private_run(folder: Path, name: str) -> None:
    tifl = {"name": "tifl", "tiers": 2, "interval": 5, "credits": None, "fraction_train": 1.0}
    change(folder, rounds=2, strategy=tifl, privacy={"name": name, "noise_multiplier": 0.01})
    if name.endswith("fixed"):
        change(folder, privacy={"name": name, "noise_multiplier": 0.01, "clipping_norm": 1.0})
    lead(LocalGrid(replies={(client, 1): failing(8) for client in NAMES}))
    first, last = rows(folder, "rounds")
    assert (first["clients_selected"], first["clients_ok"]) == (2, 0)
    assert last["clients_selected"] == 2, "as nobody was timed in the first"
    assert last["server_loss"] != first["server_loss"]


def test_data_of_the_devices_are_trained_on_without_a_test_set(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(folder.parent / "own.npz", seed=3)
    monkeypatch.setenv("FLTESTBED_DEVICE_DATA", str(folder.parent / "own.npz"))
    plan = json.loads((folder / "experiment.json").read_text())
    report = device_data.report("bars")
    plan["clients"][0]["partition"] = {"sha256": report["sha256"]}
    plan |= {"test_set": None, "data": {"shape": report["shape"], "classes": 12}}
    plan["experiment"]["data"] = {"source": "device", "name": "bars"}
    (folder / "experiment.json").write_text(json.dumps(plan))
    lead(LocalGrid())
    assert failures(folder).keys() == {("pi-2", 1), ("pi-2", 2)}
    assert "is not what it was when the run began" in failures(folder)["pi-2", 1]
    trained = rows(folder, "clients")[0]
    assert (trained["client"], trained["round"], trained["examples"], trained["eval_examples"]) == ("pi-1", 1, 300, 60)
    first, last = rows(folder, "rounds")
    assert last["train_loss"] < first["train_loss"]
    own = device_data.load("bars", report["sha256"], 12)
    untrained = server.models.create("cnn", 42, (1, 28, 28), 12)
    found = server.models.evaluate(untrained, own["held_out_inputs"], own["held_out_labels"])
    assert (first["server_loss"], first["server_accuracy"]) == pytest.approx(found)
    assert (last["server_loss"], last["server_accuracy"]) == pytest.approx((trained["loss"], trained["accuracy"]))
    assert server.torch.load(folder / "model.pt").popitem()[1].shape[0] == 12


def test_the_global_model_is_evaluated_on_the_clients_by_their_examples(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(folder.parent / "own.npz", seed=3)
    monkeypatch.setenv("FLTESTBED_DEVICE_DATA", str(folder.parent / "own.npz"))
    plan = json.loads((folder / "experiment.json").read_text())
    report = device_data.report("bars")
    for each, share in zip(plan["clients"], (1.0, 0.25), strict=True):
        each |= {"partition": {"sha256": report["sha256"]}, "settings": {"data_fraction": share}}
    plan |= {"test_set": None, "data": {"shape": report["shape"], "classes": 10}}
    plan["experiment"] |= {"data": {"source": "device", "name": "bars"}, "rounds": 1}
    (folder / "experiment.json").write_text(json.dumps(plan))
    told = []

    def listening(message: Message, context: Context) -> Message:
        reply = client.app(message, context)
        told.append(reply.content.metric_records["metrics"])
        return reply

    lead(LocalGrid(replies={(name, 1): listening for name in NAMES}))
    assert [each["eval-examples"] for each in told] == [60, 15]
    losses, accuracies = ([float(each[f"global-{key}"]) for each in told] for key in ("loss", "accuracy"))
    assert losses[0] != losses[1]
    [row] = rows(folder, "rounds")
    assert row["server_loss"] == pytest.approx(0.8 * losses[0] + 0.2 * losses[1])
    assert row["server_accuracy"] == pytest.approx(0.8 * accuracies[0] + 0.2 * accuracies[1])


def test_a_round_without_replies_says_nothing_of_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_npz(folder.parent / "own.npz", seed=3)
    monkeypatch.setenv("FLTESTBED_DEVICE_DATA", str(folder.parent / "own.npz"))
    plan = json.loads((folder / "experiment.json").read_text())
    report = device_data.report("bars")
    for each in plan["clients"]:
        each["partition"] = {"sha256": report["sha256"]}
    plan |= {"test_set": None, "data": {"shape": report["shape"], "classes": 10}}
    plan["experiment"]["data"] = {"source": "device", "name": "bars"}
    (folder / "experiment.json").write_text(json.dumps(plan))
    lead(LocalGrid(replies={(name, 1): failing(8) for name in NAMES}))
    first, last = rows(folder, "rounds")
    assert first["server_loss"] is first["server_accuracy"] is None
    assert last["server_accuracy"] is not None


def test_a_schedule_is_of_every_clients_own_learning_rate(folder: Path) -> None:
    plan = json.loads((folder / "experiment.json").read_text())
    plan["clients"][1]["settings"] = {"learning_rate": 0.01}
    (folder / "experiment.json").write_text(json.dumps(plan))
    change(folder, rounds=3, train={"learning_rate": 0.05, "schedule": {"name": "exponential", "factor": 0.5}})
    lead(LocalGrid())
    found = {(row["client"], row["round"]): row["learning_rate"] for row in rows(folder, "clients")}
    rates = {"pi-1": 0.05, "pi-2": 0.01}
    assert found == pytest.approx(
        {(name, number): rate * 0.5 ** (number - 1) for name, rate in rates.items() for number in (1, 2, 3)}
    )


def test_qfedavg_scales_by_the_learning_rate_of_the_round(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    create = strategies.create

    def watched(*arguments: Any) -> Any:
        made.append(create(*arguments))
        return made[-1]

    monkeypatch.setattr(strategies, "create", watched)
    change(folder, rounds=3, strategy={"name": "qfedavg", "q": 0.1, "fraction_train": 1.0})
    change(folder, train={"learning_rate": 0.05, "schedule": {"name": "step", "every": 2, "factor": 0.1}})
    lead(LocalGrid())
    assert made[0].client_learning_rate == pytest.approx(0.005)


def test_a_deadline_goes_on_with_the_first_and_leaves_the_late_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[int] = []
    configure = server.strategies.Deadline.configure_train

    def configure_train(self: Any, *arguments: Any) -> Any:
        late.append(self.late)
        return configure(self, *arguments)

    monkeypatch.setattr(server.strategies.Deadline, "configure_train", configure_train)
    strategy = {"name": "deadline", "over_selection": 2, "seconds": None, "fraction_train": 0.5}
    change(folder, rounds=3, round_timeout=60, strategy=strategy)
    lead(LocalGrid(replies={("pi-2", 1): silent}))
    assert failures(folder) == {("pi-2", 1): "not among the first 1 clients that replied"}
    assert [(row["clients_selected"], row["clients_ok"]) for row in rows(folder, "rounds")] == [(2, 1), (1, 1), (1, 1)]
    assert late == [0, 1, 1]


def test_a_late_client_is_asked_again_once_it_has_replied(folder: Path) -> None:
    change(folder, rounds=3, round_timeout=60)
    change(folder, strategy={"name": "deadline", "over_selection": 1, "seconds": 0.2})
    grid = LocalGrid()
    kept: list[Message] = []

    def late(message: Message, context: Context) -> None:
        kept.append(client.app(message, context))

    def brings_the_late_one(message: Message, context: Context) -> Message:
        grid.waiting["pi-2/1"] = kept.pop()
        return client.app(message, context)

    grid.replies = {("pi-2", 1): late, ("pi-1", 2): brings_the_late_one}
    lead(grid)
    assert failures(folder) == {("pi-2", 1): "no reply within 0.2 s (strategy.seconds)"}
    assert [(row["clients_selected"], row["clients_ok"]) for row in rows(folder, "rounds")] == [(2, 1), (1, 1), (2, 2)]


def test_fewer_clients_than_a_strategy_wants_are_all_asked(folder: Path) -> None:
    change(folder, min_clients=1, strategy={"name": "fedavg", "fraction_train": 0.1, "min_train_clients": 2})
    lead(LocalGrid(offline={1: {"pi-2"}}))
    assert [row["clients_ok"] for row in rows(folder, "rounds")] == [1, 2]


@pytest.mark.parametrize("widths", [(1.0, 0.5), (0.5, 0.25)])
def test_clients_of_different_width_train_one_model(folder: Path, widths: tuple[float, float]) -> None:
    plan = json.loads((folder / "experiment.json").read_text())
    for each, width in zip(plan["clients"], widths, strict=True):
        each["settings"] = {"width": width}
    (folder / "experiment.json").write_text(json.dumps(plan))
    change(folder, rounds=3, strategy={"name": "heterofl", "fraction_train": 1.0})
    told: dict[str, Any] = {}

    def listening(message: Message, context: Context) -> Message:
        told.update(message.content.config_records["config"])
        return client.app(message, context)

    lead(LocalGrid(replies={("pi-2", 1): listening}))
    assert not failures(folder)
    assert (told["width"], told["widest"], told["masked-loss"]) == (widths[1], widths[0], True)
    assert {row["client"]: row["width"] for row in rows(folder, "clients")} == dict(zip(NAMES, widths, strict=True))
    parts = [server.models.create("cnn", 42, (1, 28, 28), 10, width).state_dict() for width in widths]
    size = sum(4 * sum(weights.numel() for weights in part.values()) + 128 for part in parts)  # as .npy files
    assert [row["bytes"] for row in rows(folder, "rounds")] == [2 * size] * 3  # there and back
    losses = [row["server_loss"] for row in rows(folder, "rounds")]
    assert losses[2] < losses[1] < losses[0]
    model = server.torch.load(folder / "model.pt")
    assert {name: value.shape for name, value in model.items()} == {
        name: value.shape for name, value in parts[0].items()
    }
    assert not any(model[name].equal(value) for name, value in parts[0].items())


@pytest.mark.parametrize("name", ["fednova", "fedprox", "fedadam", "qfedavg", "tifl", "oort"])
def test_a_strategy_leads_real_clients(folder: Path, name: str) -> None:
    strategy = {
        "fedprox": {"proximal_mu": 0.1},
        "fedadam": {"eta": 0.03, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3},
        "qfedavg": {"q": 0.1},
        "tifl": {"tiers": 2, "interval": 5, "credits": None},
        "oort": {
            "exploration": 0.9,
            "exploration_decay": 0.98,
            "exploration_min": 0.2,
            "preferred_percentile": 50,
            "penalty": 2,
        },
    }.get(name, {})
    change(folder, rounds=3, strategy={"name": name, "fraction_train": 1.0, "min_train_clients": 1, **strategy})
    lead(LocalGrid())
    losses = [row["server_loss"] for row in rows(folder, "rounds")]
    assert losses[-1] < losses[0]
    assert not failures(folder)
