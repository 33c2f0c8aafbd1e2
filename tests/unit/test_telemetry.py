"""The rows and metrics of an app of one's own, which a line in the ServerApp and one in the ClientApp bring."""

import importlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded_app
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fltestbed import paths, telemetry

# What Flower sets before it starts an app.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

NAMES = {101: "pi-1", 102: "laptop-1-1"}
CONFIG: dict[str, bool | float | int | str] = {
    "num-server-rounds": 2,
    "learning_rate": 0.5,
    "label": "plain",
    "data.points": 200,
}


@dataclass
class LocalGrid(Grid):
    """Runs the ClientApp where a message is pushed; `errors` replies for a node, a kind of message and a round."""

    app: ClientApp
    errors: dict[tuple[int, str, int | None], int | None] = field(default_factory=dict)
    waiting: dict[str, Message] = field(default_factory=dict)
    pushed: list[Message] = field(default_factory=list)

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=name) for node, name in NAMES.items()]

    def get_node_ids(self) -> list[int]:
        return list(NAMES)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            self.pushed.append(message)
            message_id = str(len(self.pushed))
            message.metadata.__dict__["_message_id"] = message_id
            node, number = message.metadata.dst_node_id, message.content.config_records["config"].get("server-round")
            assert isinstance(number, int | None)
            code = self.errors.get((node, message.metadata.message_type, number), 0)
            if code:
                self.waiting[message_id] = Message(Error(code, "as planned"), reply_to=message)
            elif code is not None:
                context = Context(1, node, {"partition-id": node}, RecordDict(), CONFIG)
                self.waiting[message_id] = self.app(message, context)
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.waiting.pop(each) for each in list(message_ids) if each in self.waiting]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    run = property(lambda self: None)  # type: ignore[assignment]

    def set_run(self, run: Any) -> None: ...

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError  # the abstract class wants it; apps make their messages without it


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ServerApp, ClientApp]]:
    """Return the apps with the lines."""
    monkeypatch.syspath_prepend(recorded_app.make(tmp_path / "app"))
    monkeypatch.setattr(telemetry, "POLL_SECONDS", 0.01)
    yield (
        importlib.import_module("logistic.server_app").app,
        importlib.import_module("logistic.client_app").app,
    )
    for name in [name for name in sys.modules if name.startswith("logistic")]:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the run as the deployer leaves it, beside that of an older one."""
    monkeypatch.setenv("FLTESTBED_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FLTESTBED_METRICS_PORT", "0")
    clients = [{"device": name[:8], "client": name, "partition": None} for name in NAMES.values()]
    for name in ("z-older", "newer"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        plan = {"run": name, "experiment": None, "partition_set": None, "test_set": None, "clients": clients}
        (tmp_path / "runs" / name / "experiment.json").write_text(json.dumps(plan))
    return tmp_path / "runs/newer"


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def lead(apps: tuple[ServerApp, ClientApp], **errors: Any) -> LocalGrid:
    grid = LocalGrid(apps[1], **errors)
    apps[0](grid, Context(77, 1, {}, RecordDict(), CONFIG))
    return grid


def test_an_app_with_the_lines_leaves_the_rows_of_ours(
    apps: tuple[ServerApp, ClientApp], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grid = lead(apps)
    clients, rounds = rows(folder, "clients"), rows(folder, "rounds")
    assert [(row["round"], row["device"], row["client"], row["status"]) for row in clients] == [
        (number, name[:8], name, "ok") for number in (1, 2) for name in sorted(NAMES.values())
    ]
    first = clients[0]
    assert first.keys() == {"run", *telemetry.client_row("", "", 1, "", {}, None)}
    assert (first["run"], first["examples"], first["eval_examples"]) == ("newer", 200, 200)
    assert 0.5 < first["accuracy"] <= 1
    assert 0 < first["train_seconds"] < first["app_seconds"]
    assert first["peak_memory_mb"] > 20 and first["threads"] >= 1 and first["train_loss"] is None
    assert (
        rounds[0].keys()
        == telemetry.round_row(1, "", [], seconds=0, selected=0, server_loss=None, server_accuracy=None, moved=0).keys()
    )
    assert [(row["round"], row["clients_selected"], row["clients_ok"]) for row in rounds] == [(1, 2, 2), (2, 2, 2)]
    assert rounds[0]["bytes"] == sum(len(grid.pushed[0].content["arrays"]["0"].data) for _ in range(6))
    assert f"round 2 of 2: accuracy {rounds[1]['server_accuracy']:.3f}" in capfd.readouterr().out
    assert rounds[0]["start"] <= first["start"] <= first["end"] <= rounds[0]["end"] <= rounds[1]["start"]
    record = json.loads((folder / "run.json").read_text())
    assert (record["run"], record["status"], record["round"], record["flwr_run_id"]) == ("newer", "finished", 2, "77")
    assert not (folder.parent / "z-older/run.json").exists()
    groups = [(message.metadata.message_type, message.metadata.group_id) for message in grid.pushed]
    assert groups == [("train", "1")] * 2 + [("evaluate", "")] * 2 + [("train", "2")] * 2 + [("evaluate", "")] * 2


def test_a_client_that_fails_has_its_reason_and_no_figures(apps: tuple[ServerApp, ClientApp], folder: Path) -> None:
    lead(apps, errors={(101, "train", 1): 8, (102, "evaluate", 2): 5})
    failures = {(row["client"], row["round"]): row["failure"] for row in rows(folder, "clients")}
    assert failures["pi-1", 1].startswith("its training process died")
    assert failures["laptop-1-1", 2].startswith("evaluation: went offline")
    assert failures["pi-1", 2] is failures["laptop-1-1", 1] is None
    assert [(row["clients_ok"], row["clients_failed"]) for row in rows(folder, "rounds")] == [(1, 1), (1, 1)]


def test_a_client_that_never_replies_has_a_row(
    apps: tuple[ServerApp, ClientApp], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = telemetry._Watched.send_and_receive
    monkeypatch.setattr(
        telemetry._Watched, "send_and_receive", lambda grid, messages, *, timeout: wait(grid, messages, timeout=0.1)
    )
    lead(apps, errors={(101, "train", 1): None})
    assert [row["failure"] for row in rows(folder, "clients")][:2] == [None, "no reply before the round ended"]


def push(grid: Grid, kind: str, *nodes: int) -> None:
    content = RecordDict({"arrays": ArrayRecord([np.zeros(3)]), "config": ConfigRecord()})
    grid.send_and_receive([Message(content, node, kind) for node in nodes], timeout=0.1)


def test_rounds_that_an_app_does_not_number_go_on_behind_a_lost_reply(
    apps: tuple[ServerApp, ClientApp], folder: Path
) -> None:
    @telemetry.server
    def main(grid: Grid, _: Context) -> None:
        for node in (101, 102, 102):
            push(grid, "train", node)
            push(grid, "evaluate", node)

    main(LocalGrid(apps[1], {(101, "train", None): None}), Context(77, 1, {}, RecordDict(), CONFIG))
    assert [(row["round"], row["client"], row["failure"]) for row in rows(folder, "clients")] == [
        (1, "pi-1", "no reply before the round ended"),
        (2, "laptop-1-1", None),
        (3, "laptop-1-1", None),
    ]
    first = rows(folder, "rounds")[0]
    assert rows(folder, "clients")[0]["end"] <= first["end"]
    assert first["seconds"] >= 0.1


def test_who_evaluates_alone_does_not_count_and_who_failed_has_no_figures(
    apps: tuple[ServerApp, ClientApp], folder: Path
) -> None:
    @telemetry.server
    def main(grid: Grid, _: Context) -> None:
        push(grid, "train", 101)
        push(grid, "evaluate", 101, 102)

    main(LocalGrid(apps[1], {(101, "train", None): 8}), Context(77, 1, {}, RecordDict(), CONFIG))
    alone, failed = rows(folder, "clients")
    assert (alone["client"], alone["status"], alone["eval_examples"]) == ("laptop-1-1", "ok", 200)
    assert {failed[figure] for figure in telemetry.FIGURES} == {None}
    (counted,) = rows(folder, "rounds")
    assert [counted[f"clients_{each}"] for each in ("selected", "ok", "failed")] == [1, 0, 1]
    assert counted["client_accuracy"] == alone["accuracy"]


def test_an_app_that_fails_ends_with_its_reason(apps: tuple[ServerApp, ClientApp], folder: Path) -> None:
    def explode(*_: Any) -> None:
        raise ValueError("out of ideas")

    evaluate = {(node, kind, 1): 8 for node in NAMES for kind in ("train", "evaluate")}
    main = telemetry.server(explode)
    with pytest.raises(ValueError, match="out of ideas"):
        main(LocalGrid(apps[1], evaluate), Context(77, 1, {}, RecordDict(), CONFIG))
    record = json.loads((folder / "run.json").read_text())
    assert (record["status"], record["reason"]) == ("failed", "ValueError: out of ideas")


def test_where_there_is_no_testbed_nothing_is_written(
    apps: tuple[ServerApp, ClientApp], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLTESTBED_RUNS", str(tmp_path / "none"))
    lead(apps)
    assert {path.name for path in tmp_path.iterdir()} == {"app"}


def test_the_metrics_are_those_of_ours(
    apps: tuple[ServerApp, ClientApp], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    close = telemetry.Exporter.close

    def look(exporter: telemetry.Exporter, *, linger: bool = False) -> None:
        assert exporter._served
        with urllib.request.urlopen(f"http://127.0.0.1:{exporter._served[0].server_port}/metrics") as answer:
            served.extend(answer.read().decode().splitlines())
        close(exporter, linger=linger)

    monkeypatch.setattr(telemetry.Exporter, "close", look)
    lead(apps)
    assert "fl_round 2.0" in served
    assert 'fl_client_examples{client="laptop-1-1",device="laptop-1"} 200.0' in served
    assert f"model_accuracy {rows(folder, 'rounds')[1]['server_accuracy']}" in served


def test_what_an_app_can_import_takes_only_what_its_image_has(tmp_path: Path) -> None:
    """The modules alone, where everything else of fltestbed and what only the controller has cannot be imported."""
    for name, path in paths.program().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(path.read_bytes())
    names = [name.removesuffix(".py").replace("/", ".") for name in paths.program() if "__init__" not in name]
    code = f"""
import sys
for name in ("altair", "ansible", "ansible_runner", "pandas", "pyarrow", "torch"):
    sys.modules[name] = None
import {", ".join(names)}
assert all(sys.modules[name].__file__.startswith({str(tmp_path)!r}) for name in {names})
assert "prometheus_client" not in sys.modules
"""
    environment = {"PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, timeout=60)
