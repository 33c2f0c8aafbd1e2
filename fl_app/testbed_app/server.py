"""The ServerApp: leads the rounds, and writes down which client did what in each of them."""

import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from testbed_app import data, limits, models, strategies
from testbed_app.errors import AppError
from testbed_app.telemetry import Recorder, now

POLL_SECONDS = 0.2
ONLINE_POLL_SECONDS = 1.0

# Codes of the errors that Flower replies with where a client cannot.
EXPIRED = (3, 4)
NODE_UNAVAILABLE = 5
CLIENT_APP_CRASHED = 8

FIGURES = {  # of a client's row, by their names in its reply
    "train_seconds": "train-seconds",
    "examples": "num-examples",
    "train_loss": "train-loss",
    "loss": "loss",
    "accuracy": "accuracy",
    "eval_examples": "eval-examples",
    "batch_size": "batch-size",
    "learning_rate": "learning-rate",
    "local_epochs": "local-epochs",
    "data_fraction": "data-fraction",
    "threads": "threads",
    "peak_memory_mb": "peak-memory-mb",
    "app_start": "app-start",
    "app_seconds": "app-seconds",
}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the run that the run config names, whose plan the deployer put into its folder."""
    torch.set_num_threads(limits.threads())
    folder = Path(os.environ.get("FLTESTBED_RUNS", "/runs")) / str(context.run_config["run"])
    plan = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    recorder = Recorder(folder, plan, context.run_id)
    try:
        Rounds(grid, plan, recorder).run()
    except AppError as error:
        recorder.close("failed", str(error))
        raise
    except Exception as error:
        recorder.close("failed", f"{type(error).__name__}: {error}")
        raise
    except BaseException:
        recorder.close("stopped", "stopped before its last round")
        raise
    recorder.close("finished")


@dataclass(frozen=True)
class Node:
    """A client that is online. `activated` changes when its SuperNode starts anew."""

    client: str
    node_id: int
    activated: str


@dataclass(frozen=True)
class Late:
    """A client that still works on a round that went on without it, at most until `until`, a monotonic time."""

    node: Node
    until: float


class Rounds:
    """The rounds of one run."""

    def __init__(self, grid: Grid, plan: Mapping[str, Any], recorder: Recorder) -> None:
        self._grid = grid
        self._recorder = recorder
        self._experiment: Mapping[str, Any] = plan["experiment"]
        self._clients: dict[str, Mapping[str, Any]] = {client["client"]: client for client in plan["clients"]}
        self._test_set = data.load(plan["test_set"]["sha256"])
        self._model = models.create(
            self._experiment["model"],
            self._experiment["seed"],
            self._test_set["inputs"].shape[1:],
            int(self._test_set["classes"]),
        )
        self._strategy = strategies.create(self._experiment["strategy"], self._experiment["train"]["learning_rate"])
        self._least = self._strategy.min_train_nodes
        self._late: dict[str, Late] = {}  # by the ids of their messages

    def run(self) -> None:
        """Wait for the clients and lead all rounds. Raises AppError when the run has to end before."""
        random.seed(self._experiment["seed"])  # Flower's strategies sample with it
        nodes = self._wait(self._experiment["min_clients"] or len(self._clients))
        arrays = ArrayRecord(self._model.state_dict())
        rounds, empty = self._experiment["rounds"], 0
        for number in range(1, rounds + 1):
            rows, arrays = self._round(number, arrays, nodes or self._wait(1))
            failures = [f"{row['client']}: {row['failure']}" for row in rows if row["failure"]]
            empty = empty + 1 if len(failures) == len(rows) else 0
            if empty and (empty == 2 or number == rounds):
                raise AppError(f"no client succeeded in round {number}: {'; '.join(failures)}")
            nodes = self._online()

    def _round(self, number: int, arrays: ArrayRecord, nodes: list[Node]) -> tuple[list[dict[str, Any]], ArrayRecord]:
        """Lead one round with the clients that are online. Return the clients' rows and the global model's arrays."""
        start, began = now(), time.monotonic()
        rows = [self._row(client, number, start, {}, "offline when the round began") for client in self._missing(nodes)]
        sent = self._send(number, arrays, nodes)
        selected = len(sent)
        replies: dict[str, Message] = {}
        for node, reply in self._replies(sent):
            failure = reply if isinstance(reply, str) else self._failure(reply)
            rows.append(self._row(node.client, number, start, _figures(reply), failure))
            if not failure:
                replies[node.client] = cast(Message, reply)

        # In the same order whoever was first, as a sum of floats depends on it.
        trained, _ = self._strategy.aggregate_train(number, [replies[client] for client in sorted(replies)])
        arrays = trained or arrays
        self._model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = models.evaluate(self._model, self._test_set["inputs"], self._test_set["labels"])
        ok = [row for row in rows if row["failure"] is None]
        self._recorder.round(
            {
                "round": number,
                "start": start,
                "end": now(),
                "seconds": round(time.monotonic() - began, 3),
                "clients_selected": selected,
                "clients_ok": len(ok),
                "clients_failed": len(rows) - len(ok),
                "train_loss": _mean(ok, "train_loss", "examples"),
                "client_accuracy": _mean(ok, "accuracy", "eval_examples"),
                "server_loss": loss,
                "server_accuracy": accuracy,
                "bytes": (selected + len(ok)) * sum(len(array.data) for array in arrays.values()),
            },
            self._model,
        )
        for row in rows:
            if _diverged(row["train_loss"]):
                raise AppError(f"round {number}: {row['client']}: {row['failure']}")
        if _diverged(loss):
            raise AppError(f"round {number}: the global model's loss is {loss}: lower the learning rate")
        return rows, arrays

    def _send(self, number: int, arrays: ArrayRecord, nodes: list[Node]) -> dict[str, Node]:
        """Let the strategy choose clients and send them the arrays. Return the nodes by the id of their message."""
        nodes = self._taking_part(number, self._free(nodes))
        candidates = cast(Grid, strategies.Candidates(node.node_id for node in nodes))
        self._strategy.min_train_nodes = min(self._least, len(nodes))
        messages = list(self._strategy.configure_train(number, arrays, ConfigRecord(), candidates))
        of_id = {node.node_id: node for node in nodes}
        chosen = [of_id[message.metadata.dst_node_id] for message in messages]
        for message, node in zip(messages, chosen, strict=True):
            message.metadata.ttl = self._experiment["round_timeout"]
            message.metadata.group_id = str(number)  # Flower's logs name the round by it
            client = self._clients[node.client]
            settings = {key.replace("_", "-"): value for key, value in client["settings"].items()}
            sha256 = client["partition"]["sha256"]
            config = ConfigRecord({**message.content.config_records["config"], **settings, "partition-sha256": sha256})
            message.content = RecordDict({**message.content, "config": config})
        ids = list(self._grid.push_messages(messages))
        if len(ids) != len(chosen) or not all(ids):
            raise AppError("the SuperLink refused the round's messages: the model may be too large for it")
        return dict(zip(ids, chosen, strict=True))

    def _replies(self, sent: dict[str, Node]) -> Iterator[tuple[Node, Message | str]]:
        """Yield every node of `sent` as soon as it has replied, or with the reason why its reply does not count."""
        timeout = self._experiment["round_timeout"]
        began, look, good = time.monotonic(), 0.0, 0
        goal, seconds = len(sent), timeout
        if isinstance(self._strategy, strategies.Deadline):
            goal, seconds = self._strategy.goal, min(timeout, self._strategy.seconds or timeout)
        while sent:
            for reply in self._grid.pull_messages(list(sent)):
                good += not reply.has_error()
                yield sent.pop(reply.metadata.reply_to_message_id), reply
            over = time.monotonic() - began > seconds
            if over or good >= goal:
                late = {message_id: Late(node, began + timeout) for message_id, node in sent.items()}
                self._late |= late if seconds < timeout or not over else {}
                why = _timed_out(seconds, timeout) if over else f"not among the first {goal} clients that replied"
                yield from ((node, why) for node in sent.values())
                return
            if time.monotonic() > look:
                look = time.monotonic() + ONLINE_POLL_SECONDS
                activated = {node.node_id: node.activated for node in self._online()}
                for message_id, node in list(sent.items()):
                    if activated.get(node.node_id, node.activated) != node.activated:
                        yield sent.pop(message_id), "its SuperNode was started anew in the middle of the round"
            time.sleep(POLL_SECONDS)

    def _free(self, nodes: list[Node]) -> list[Node]:
        """Return the nodes that do not work on an earlier round any more, as soon as there is one."""
        while True:
            for reply in self._grid.pull_messages(list(self._late)) if self._late else ():
                del self._late[reply.metadata.reply_to_message_id]
            self._late = {key: late for key, late in self._late.items() if late.until > time.monotonic()}
            busy = {late.node for late in self._late.values()}
            if free := [node for node in nodes if node not in busy]:
                return free
            time.sleep(POLL_SECONDS)

    def _taking_part(self, number: int, nodes: list[Node]) -> list[Node]:
        """Return the nodes that are to be chosen from in a round, each by its own chance, and one of them at least."""
        order = list(self._clients)
        luck = {}
        for node in nodes:
            draw = np.random.default_rng([self._experiment["seed"], number, order.index(node.client)]).random()
            luck[node] = draw / self._clients[node.client]["settings"].get("participation", 1.0)
        return [node for node in nodes if luck[node] < 1] or [min(nodes, key=lambda node: luck[node])]

    def _wait(self, wanted: int) -> list[Node]:
        """Return the clients that are online as soon as they are `wanted` many. Raises AppError after client_wait."""
        seconds = self._experiment["client_wait"]
        deadline = time.monotonic() + seconds
        reason = None
        while len(nodes := self._online()) < wanted:
            missing = ", ".join(self._missing(nodes))
            if time.monotonic() > deadline:
                raise AppError(
                    f"{len(nodes)} of {wanted} clients were online after {seconds:g} s (client_wait): {missing} missing"
                )
            if reason != (reason := f"waiting for {missing}"):
                self._recorder.status("waiting", reason)
            time.sleep(ONLINE_POLL_SECONDS)
        self._recorder.status("running")
        return nodes

    def _online(self) -> list[Node]:
        """Return the clients that are online, in the order of the plan."""
        nodes = {node.name: node for node in self._grid.get_nodes()}
        return [
            Node(client, nodes[client].node_id, nodes[client].last_activated_at)
            for client in self._clients
            if client in nodes
        ]

    def _missing(self, nodes: list[Node]) -> list[str]:
        """Return the names of the clients that are not among the nodes."""
        return [client for client in self._clients if client not in {node.client for node in nodes}]

    def _row(
        self,
        client: str,
        number: int,
        start: str,
        figures: Mapping[str, Any],
        failure: str | None,
    ) -> dict[str, Any]:
        """Write and return the row of a client: from when it was asked until its reply or failure was known."""
        row = {
            "device": self._clients[client]["device"],
            "client": client,
            "round": number,
            "start": start,
            "end": now(),
            **{name: figures.get(key) for name, key in FIGURES.items()},
            "status": "failed" if failure else "ok",
            "failure": failure,
        }
        self._recorder.client(row)
        return row

    def _failure(self, reply: Message) -> str | None:
        """Return in our words why a client failed, None if it did not."""
        if not reply.has_error():
            loss = _figures(reply)["train-loss"]
            return f"its loss is {loss} after training: lower the learning rate" if _diverged(loss) else None
        if reply.error.code in EXPIRED:
            return _timed_out(timeout := self._experiment["round_timeout"], timeout)
        if reply.error.code == NODE_UNAVAILABLE:
            return "went offline in the middle of the round: its SuperNode stopped, or the network to it"
        if reply.error.code == CLIENT_APP_CRASHED:
            return "its training process died in the middle of the round: killed, or out of memory"
        return reply.error.reason or f"error {reply.error.code}"


def _figures(reply: Message | str) -> Mapping[str, Any]:
    """Return what a client tells of its training; nothing where it failed."""
    return {} if isinstance(reply, str) or reply.has_error() else reply.content.metric_records["metrics"]


def _diverged(loss: float | None) -> bool:
    return loss is not None and not math.isfinite(loss)


def _timed_out(seconds: float, timeout: float) -> str:
    return f"no reply within {seconds:g} s ({'round_timeout' if seconds == timeout else 'strategy.seconds'})"


def _mean(rows: list[dict[str, Any]], figure: str, weight: str) -> float | None:
    """Return the weighted mean of a figure, None without rows."""
    total = sum(row[weight] for row in rows)
    return sum(row[figure] * row[weight] for row in rows) / total if total else None
