"""The ServerApp: leads the rounds, and writes down which client did what in each of them."""

import json
import math
import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import QFedAvg

from fltestbed import limits, telemetry
from testbed_app import data, models, packing, schedules, strategies
from testbed_app.errors import AppError

POLL_SECONDS = 0.2
ONLINE_POLL_SECONDS = 1.0
_ANEW = "its SuperNode was started anew in the middle of the round"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Lead the run that the run config names, whose plan the deployer put into its folder."""
    torch.set_num_threads(limits.threads())
    folder = Path(os.environ.get("FLTESTBED_RUNS", "/runs")) / str(context.run_config["run"])
    plan = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
    rounds = plan["experiment"]["rounds"]
    with telemetry.Recorder(
        folder, plan["run"], plan["clients"], rounds, context.run_id, torch=torch.__version__
    ) as recorder:
        Rounds(grid, plan, recorder, folder / "model.pt").run()


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


@dataclass(frozen=True)
class Flight:
    """A message that a strategy with a buffer waits for beyond its round, at most until `until`, a monotonic time."""

    node: Node
    round: int
    until: float


class Rounds:
    """The rounds of one run."""

    def __init__(self, grid: Grid, plan: Mapping[str, Any], recorder: telemetry.Recorder, file: Path) -> None:
        self._grid = grid
        self._recorder = recorder
        self._file = file  # of the model
        self._experiment: Mapping[str, Any] = plan["experiment"]
        self._clients: dict[str, Mapping[str, Any]] = {client["client"]: client for client in plan["clients"]}
        test_set = data.load(plan["test_set"]["sha256"]) if plan["test_set"] else {}
        self._test_set = {name: np.array(part) for name, part in test_set.items()}
        # Of data that lie on the devices, the server knows this alone.
        self._own: dict[str, Any] = {}
        if self._test_set:
            shape, classes = self._test_set["inputs"].shape[1:], int(self._test_set["classes"])
        else:
            shape, classes = plan["data"]["shape"], plan["data"]["classes"]
            self._own = {"data-set": self._experiment["data"]["name"], "classes": classes}
        made = {
            width: models.create(self._experiment["model"], self._experiment["seed"], shape, classes, width)
            for width in {_width(client) for client in plan["clients"]}
        }
        self._widest = max(made)
        self._shapes = {width: models.shapes(model) for width, model in made.items()}
        self._model = made[self._widest]
        self._chooser = strategies.create(self._experiment["strategy"], self._experiment["train"]["learning_rate"])
        self._buffered = self._chooser if isinstance(self._chooser, strategies.FedBuff) else None
        self._least = self._chooser.min_train_nodes
        sampled = min(len(self._clients), max(int(len(self._clients) * self._chooser.fraction_train), self._least))
        privacy = self._experiment.get("privacy")
        self._privacy = privacy["name"] if privacy else ""
        self._strategy = strategies.private(self._chooser, privacy, sampled)
        self._late: dict[str, Late] = {}  # by the ids of their messages
        self._flying: dict[str, Flight] = {}  # the same
        self._asked: dict[str, str] = {}  # when each client was asked last

    def run(self) -> None:
        """Wait for the clients and lead all rounds. Raises AppError when the run has to end before."""
        random.seed(self._experiment["seed"])  # Flower's strategies sample with it
        np.random.seed(self._experiment["seed"])  # and draw noise with this
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
        start, began = telemetry.now(), time.monotonic()
        flying = {flight.node.client for flight in self._flying.values()}
        missing = [client for client in self._missing(nodes) if client not in flying]
        rows = [self._row(client, number, start, {}, "offline when the round began") for client in missing]
        sent, moved = self._send(number, arrays, nodes)
        selected = len(sent)
        self._asked |= {node.client: start for node in sent.values()}
        replies: dict[str, Message] = {}
        for node, reply in self._arrivals(number, sent) if self._buffered else self._replies(sent):
            failure = reply if isinstance(reply, str) else self._failure(reply)
            told = {} if isinstance(reply, str) else telemetry.figures(reply)
            rows.append(self._row(node.client, number, self._asked[node.client], told, failure))
            if not failure:
                replies[node.client] = message = cast(Message, reply)
                moved += telemetry.size(message)
                shapes = self._shapes[_width(self._clients[node.client])]
                message.content["arrays"] = packing.unpack(message.content.array_records["arrays"], shapes)

        # In the same order whoever was first, as a sum of floats depends on it.
        ordered = [replies[client] for client in sorted(replies)]
        if self._privacy:
            cast(Any, self._strategy).num_sampled_clients = len(ordered)  # which the noise is divided by
        # Flower's wrappers for privacy cannot do without replies.
        trained, _ = (self._strategy if ordered else self._chooser).aggregate_train(number, ordered)
        arrays = trained or arrays
        self._model.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = self._evaluate(ordered)
        self._save()
        self._recorder.round(
            telemetry.round_row(
                number,
                start,
                rows,
                seconds=time.monotonic() - began,
                selected=selected,
                server_loss=loss,
                server_accuracy=accuracy,
                moved=moved,
            )
        )
        for row in rows:
            if _diverged(row["train_loss"]):
                raise AppError(f"round {number}: {row['client']}: {row['failure']}")
        if replies and not trained:
            raise AppError(
                f"round {number}: {self._experiment['strategy']['name']} makes no model of {len(replies)} replies: "
                "have more clients train, or take another strategy"
            )
        if _diverged(loss):
            raise AppError(f"round {number}: the global model's loss is {loss}: lower the learning rate")
        return rows, arrays

    def _evaluate(self, replies: Sequence[Message]) -> tuple[float | None, float | None]:
        """Return the loss and the accuracy of the global model on the test set.

        Without one they are those of the models that the replies began with, on the clients' held-out parts.
        """
        if self._test_set:
            return models.evaluate(self._model, self._test_set["inputs"], self._test_set["labels"])
        told = [strategies.metrics(reply) for reply in replies]
        if not told:
            return None, None
        examples = [each["eval-examples"] for each in told]
        loss, accuracy = (
            float(np.average([each[key] for each in told], weights=examples))
            for key in ("global-loss", "global-accuracy")
        )
        return loss, accuracy

    def _save(self) -> None:
        """Put the model into its file, which is replaced as a whole."""
        temporary = self._file.with_name(f".{self._file.name}")
        torch.save(self._model.state_dict(), temporary)
        temporary.replace(self._file)

    def _send(self, number: int, arrays: ArrayRecord, nodes: list[Node]) -> tuple[dict[str, Node], int]:
        """Let the strategy choose clients and send each its part of the arrays.

        Return the nodes by the id of their message, and the bytes of all parts.
        """
        online, nodes = nodes, self._taking_part(number, self._free(nodes))
        candidates = cast(Grid, strategies.Candidates(node.node_id for node in nodes))
        self._chooser.min_train_nodes = min(self._least, len(nodes) + len(self._flying))
        if self._buffered:
            self._buffered.flying = [flight.round for flight in self._flying.values()]
        if isinstance(self._chooser, strategies.Deadline):
            self._chooser.late = len({late.node for late in self._late.values()}.intersection(online))
        train = self._experiment["train"]
        share = schedules.share(train["schedule"], number, self._experiment["rounds"])
        if isinstance(self._chooser, QFedAvg):
            self._chooser.client_learning_rate = share * train["learning_rate"]
        messages = list(self._strategy.configure_train(number, arrays, ConfigRecord(), candidates))
        of_id = {node.node_id: node for node in nodes}
        chosen = [of_id[message.metadata.dst_node_id] for message in messages]
        parts = {
            width: packing.pack(strategies.part(arrays, shapes) if width < self._widest else arrays, shapes)
            for width, shapes in self._shapes.items()
        }
        run = {"privacy": self._privacy, "widest": self._widest, "learning-rate-share": share, **self._own}
        for message, node in zip(messages, chosen, strict=True):
            message.metadata.ttl = self._experiment["round_timeout"]
            message.metadata.group_id = str(number)  # Flower's logs name the round by it
            client = self._clients[node.client]
            settings = {key.replace("_", "-"): value for key, value in client["settings"].items()}
            own = {**settings, "partition-sha256": client["partition"]["sha256"]}
            config = ConfigRecord({**message.content.config_records["config"], **run, **own})
            message.content = RecordDict({**message.content, "arrays": parts[_width(client)], "config": config})
        moved = sum(telemetry.size(message) for message in messages)
        ids = list(self._grid.push_messages(messages))
        if len(ids) != len(chosen) or not all(ids):
            raise AppError("the SuperLink refused the round's messages: the model may be too large for it")
        return dict(zip(ids, chosen, strict=True)), moved

    def _replies(self, sent: dict[str, Node]) -> Iterator[tuple[Node, Message | str]]:
        """Yield every node of `sent` as soon as it has replied, or with the reason why its reply does not count."""
        timeout = self._experiment["round_timeout"]
        began, look, good = time.monotonic(), 0.0, 0
        goal, seconds = len(sent), timeout
        if isinstance(self._chooser, strategies.Deadline):
            goal, seconds = self._chooser.goal, min(timeout, self._chooser.seconds or timeout)
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
                for message_id in self._anew(sent):
                    yield sent.pop(message_id), _ANEW
            time.sleep(POLL_SECONDS)

    def _arrivals(self, number: int, sent: Mapping[str, Node]) -> Iterator[tuple[Node, Message | str]]:
        """Yield nodes that were asked, in this round or before, as they reply or fail, until the buffer is full."""
        assert self._buffered  # noqa: S101 for mypy
        timeout, look, good = self._experiment["round_timeout"], 0.0, 0
        until = time.monotonic() + timeout
        self._flying |= {message_id: Flight(node, number, until) for message_id, node in sent.items()}
        while self._flying and good < self._buffered.buffer:
            for reply in self._grid.pull_messages(list(self._flying)):
                good += not reply.has_error()
                yield self._flying.pop(reply.metadata.reply_to_message_id).node, reply
            for message_id in [key for key, flight in self._flying.items() if flight.until < time.monotonic()]:
                yield self._flying.pop(message_id).node, _timed_out(timeout, timeout)
            if time.monotonic() > look:
                look = time.monotonic() + ONLINE_POLL_SECONDS
                for message_id in self._anew({key: flight.node for key, flight in self._flying.items()}):
                    yield self._flying.pop(message_id).node, _ANEW
            if good < self._buffered.buffer:
                time.sleep(POLL_SECONDS)

    def _anew(self, sent: Mapping[str, Node]) -> list[str]:
        """Return the messages that will not be answered, as the SuperNodes that had them were started anew."""
        activated = {node.node_id: node.activated for node in self._online()}
        return [key for key, node in sent.items() if activated.get(node.node_id, node.activated) != node.activated]

    def _free(self, nodes: list[Node]) -> list[Node]:
        """Return the nodes that do not work on an earlier round any more, as soon as there is one.

        With a strategy that has a buffer for the others' replies there need not be one.
        """
        flying = {flight.node.client for flight in self._flying.values()}
        while True:
            for reply in self._grid.pull_messages(list(self._late)) if self._late else ():
                del self._late[reply.metadata.reply_to_message_id]
            self._late = {key: late for key, late in self._late.items() if late.until > time.monotonic()}
            busy = {late.node for late in self._late.values()}
            free = [node for node in nodes if node not in busy and node.client not in flying]
            if free or flying:
                return free
            time.sleep(POLL_SECONDS)

    def _taking_part(self, number: int, nodes: list[Node]) -> list[Node]:
        """Return the nodes that are to be chosen from in a round, each by its own chance, and one of them at least."""
        if not nodes:
            return []
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
        told: Mapping[str, Any],
        failure: str | None,
    ) -> dict[str, Any]:
        """Write and return the row of a client: from when it was asked until its reply or failure was known."""
        row = telemetry.client_row(self._clients[client]["device"], client, number, start, told, failure)
        self._recorder.client(row)
        return row

    def _failure(self, reply: Message) -> str | None:
        """Return in our words why a client failed, None if it did not."""
        if reply.has_error() and reply.error.code in telemetry.EXPIRED:
            return _timed_out(timeout := self._experiment["round_timeout"], timeout)
        if _diverged(loss := telemetry.figures(reply)["train_loss"]):
            return f"its loss is {loss} after training: lower the learning rate"
        return telemetry.failure(reply)


def _width(client: Mapping[str, Any]) -> float:
    """Return which share of the model a client of the plan trains."""
    return float(client["settings"].get("width", 1.0))


def _diverged(loss: float | None) -> bool:
    return loss is not None and not math.isfinite(loss)


def _timed_out(seconds: float, timeout: float) -> str:
    return f"no reply within {seconds:g} s ({'round_timeout' if seconds == timeout else 'strategy.seconds'})"
