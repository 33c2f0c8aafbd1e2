"""What a run leaves behind: rows of clients and rounds, its state, and metrics for Prometheus. For any Flower app.

It takes a line in the ServerApp and one in the ClientApp, and where the app evaluates the global model a third one:

    @app.main()
    @telemetry.server
    def main(grid: Grid, context: Context) -> None: ...

    app = ClientApp(mods=[telemetry.client])

    @telemetry.evaluation
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord: ...

The containers of a testbed have this module; elsewhere, as in a simulation, `server` changes nothing.
"""

import functools
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fltestbed import limits

Row = dict[str, Any]
Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]

POLL_SECONDS = 0.5
_PORT = 9099
_OF_CLIENT = ("device", "client")
_RECORD = "fltestbed"  # in a reply, what `client` measured

# Codes of the errors that Flower replies with where a client cannot.
EXPIRED = (3, 4)
_NODE_UNAVAILABLE = 5
_CLIENT_APP_CRASHED = 8
_NO_REPLY = "no reply before the round ended"

FIGURES = {  # of a client's row, by the names that they have in a reply to train
    "train_seconds": ("train-seconds", "seconds"),
    "examples": ("num-examples",),
    "train_loss": ("train-loss",),
    "loss": ("loss", "eval-loss"),
    "accuracy": ("accuracy", "eval-accuracy", "eval-acc"),
    "eval_examples": ("eval-examples",),
    "batch_size": ("batch-size",),
    "learning_rate": ("learning-rate",),
    "local_epochs": ("local-epochs",),
    "data_fraction": ("data-fraction",),
    "width": ("width",),
    "threads": ("threads",),
    "peak_memory_mb": ("peak-memory-mb",),
    "app_start": ("app-start",),
    "app_seconds": ("app-seconds",),
}
_EVALUATED = {  # in a reply to evaluate
    "loss": FIGURES["loss"],
    "accuracy": FIGURES["accuracy"],
    "eval_examples": ("num-examples",),
}


class RunError(Exception):
    """An error whose text alone is the reason why a run failed."""


def now() -> str:
    """Return the time as ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def client(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Send with each reply what its process took: a mod for a ClientApp."""
    began = time.monotonic()
    reply = call_next(message, context)
    if not reply.has_error():
        reply.content[_RECORD] = ConfigRecord(
            {
                "seconds": time.monotonic() - began,
                "threads": limits.threads(),
                "peak-memory-mb": limits.peak_memory_mb(),
                "app-seconds": (age := limits.process_seconds()),
                "app-start": time.time() - age,
            }
        )
    return reply


def server(main: Callable[[Grid, Context], None]) -> Callable[[Grid, Context], None]:
    """Record the run that a ServerApp's main function leads."""

    @functools.wraps(main)
    def recorded(grid: Grid, context: Context) -> None:
        if (folder := _folder()) is None:
            return main(grid, context)
        plan = json.loads((folder / "experiment.json").read_text(encoding="utf-8"))
        rounds = (plan["experiment"] or {}).get("rounds")
        with Recorder(folder, plan["run"], plan["clients"], rounds, context.run_id) as recorder:
            recorder.status("running")
            watched = _Watched(grid, recorder, plan["clients"])
            _evaluations.append(watched.evaluated)
            try:
                main(watched, context)
            finally:
                _evaluations.remove(watched.evaluated)
                watched.close()

    return recorded


_evaluations: list[Callable[[int, MetricRecord], None]] = []
"""Who is told of the global model's figures: the run that is led now, if it is recorded."""


def evaluation(evaluate: Evaluate) -> Evaluate:
    """Record what a ServerApp's `evaluate_fn` finds of the global model: its loss and accuracy."""

    @functools.wraps(evaluate)
    def recorded(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        found = evaluate(server_round, arrays)
        if found is not None:
            for tell in _evaluations:
                tell(server_round, found)
        return found

    return recorded


def _folder() -> Path | None:
    """Return the folder of this run, which is the newest that has a plan; None where there is none."""
    plans = list(Path(os.environ.get("FLTESTBED_RUNS", "/runs")).glob("*/experiment.json"))
    return max(plans, key=lambda plan: plan.stat().st_mtime_ns).parent if plans else None


def figures(reply: Message, names: Mapping[str, Sequence[str]] = FIGURES) -> Row:
    """Return what a client tells, by column; None for each that it does not. A name may have _ or -."""
    content = RecordDict() if reply.has_error() else reply.content
    measured: Mapping[str, Any] = content.config_records.get(_RECORD, {})
    told = {
        name.replace("_", "-"): value
        for record in (measured, *content.metric_records.values())
        for name, value in record.items()
        if isinstance(value, int | float)
    }
    return {column: next((told[name] for name in each if name in told), None) for column, each in names.items()}


def failure(reply: Message) -> str | None:
    """Return in words why a client failed, None if it did not."""
    if not reply.has_error():
        return None
    words = dict.fromkeys(EXPIRED, "no reply in time") | {
        _NODE_UNAVAILABLE: "went offline in the middle of the round: its SuperNode stopped, or the network to it",
        _CLIENT_APP_CRASHED: "its training process died in the middle of the round: killed, or out of memory",
    }
    return words.get(reply.error.code) or reply.error.reason or f"error {reply.error.code}"


def client_row(device: str, client: str, number: int, start: str, told: Mapping[str, Any], failure: str | None) -> Row:
    """Return a row of clients.jsonl that ends now. `told` is from `figures`; a client that failed has none."""
    return {
        "device": device,
        "client": client,
        "round": number,
        "start": start,
        "end": now(),
        **{column: told.get(column) for column in FIGURES},
        "status": "failed" if failure else "ok",
        "failure": failure,
    }


def round_row(
    number: int,
    start: str,
    rows: Sequence[Mapping[str, Any]],
    *,
    seconds: float,
    selected: int,
    server_loss: float | None,
    server_accuracy: float | None,
    moved: int,
) -> Row:
    """Return a row of rounds.jsonl that ends now; `rows` are its clients', `moved` is in bytes."""
    ok = [row for row in rows if row["failure"] is None]
    return {
        "round": number,
        "start": start,
        "end": now(),
        "seconds": round(seconds, 3),
        "clients_selected": selected,
        "clients_ok": len(ok),
        "clients_failed": len(rows) - len(ok),
        "train_loss": _mean(ok, "train_loss", "examples"),
        "client_accuracy": _mean(ok, "accuracy", "eval_examples"),
        "server_loss": server_loss,
        "server_accuracy": server_accuracy,
        "bytes": moved,
    }


def _mean(rows: Iterable[Mapping[str, Any]], figure: str, weight: str) -> float | None:
    """Return the weighted mean of a figure over the rows that have it, None if none has."""
    known = [row for row in rows if row[figure] is not None and row[weight]]
    total = sum(row[weight] for row in known)
    return sum(row[figure] * row[weight] for row in known) / total if total else None


@dataclass
class _Round:
    """A round that is being recorded: when it began and when the last was heard of it, and its clients' rows."""

    number: int
    start: str = field(default_factory=now)
    began: float = field(default_factory=time.monotonic)
    heard: float = 0.0
    end: str = ""
    rows: dict[int, Row] = field(default_factory=dict)  # by node
    trained: set[int] = field(default_factory=set)
    moved: int = 0
    server_loss: float | None = None
    server_accuracy: float | None = None

    def hear(self) -> None:
        self.heard, self.end = time.monotonic(), now()


class _Watched(Grid):
    """A Grid that writes down who was sent what, and what came back, before the app sees it.

    A round is what a message's config calls `server-round`, as Flower's strategies do; without it, each training that
    begins when all replies are there. Its rows are written when the next one begins, as an evaluation belongs to it.
    """

    def __init__(self, grid: Grid, recorder: "Recorder", clients: Iterable[Mapping[str, Any]]) -> None:
        self._grid = grid
        self._recorder = recorder
        self._devices = {client["client"]: client["device"] for client in clients}
        self._names: dict[int, str] = {}
        self._waiting: dict[str, tuple[int, int, bool]] = {}  # round, node, and whether it trains, by message
        self._round: _Round | None = None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            self._open(message)
        ids = list(self._grid.push_messages(messages))
        for message_id, message in zip(ids, messages, strict=True):
            if message_id and self._round:
                node, trains = message.metadata.dst_node_id, _trains(message)
                self._waiting[message_id] = (self._round.number, node, trains)
                self._round.moved += size(message)
                self._round.trained |= {node} if trains else set()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self._grid.pull_messages(message_ids))
        for reply in replies:
            self._hear(reply)
            if not reply.has_error():
                reply.content.pop(_RECORD, None)  # the app's strategy does not know it
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        waiting = set(self.push_messages(messages)) - {""}
        end = math.inf if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and time.monotonic() < end:
            arrived = list(self.pull_messages(waiting))
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
            time.sleep(POLL_SECONDS if waiting else 0)
        for message_id in waiting:  # the app will not ask for these replies again
            number, node, _ = self._waiting.pop(message_id)
            if self._round and number == self._round.number:
                self._round.hear()
                self._note(self._round, node, {}, _NO_REPLY)
        return replies

    def evaluated(self, number: int, found: MetricRecord) -> None:
        """Take note of the global model's figures."""
        if self._round and self._round.number == number:
            told = {name.replace("_", "-"): value for name, value in found.items()}
            for key in ("loss", "accuracy"):
                names = (*FIGURES[key], f"server-{key}", f"test-{key}")
                value = next((told[name] for name in names if name in told), None)
                setattr(self._round, f"server_{key}", value)
            self._round.hear()

    def close(self) -> None:
        """Write down the round that is open, if one is."""
        done, self._round = self._round, None
        if done is None:
            return
        for number, node, _ in self._waiting.values():
            if number == done.number:
                self._note(done, node, {}, _NO_REPLY)
                done.rows[node]["end"] = done.end
        self._waiting = {key: sent for key, sent in self._waiting.items() if sent[0] != done.number}
        rows = sorted(done.rows.values(), key=lambda row: str(row["client"]))
        # A client that only evaluates has a row, but is not among those that train.
        failures = [row["failure"] for node, row in done.rows.items() if node in done.trained or not done.trained]
        failed = sum(each is not None for each in failures)
        for row in rows:
            self._recorder.client(row)
        self._recorder.round(
            round_row(
                done.number,
                done.start,
                rows,
                seconds=done.heard - done.began,
                selected=len(failures),
                server_loss=done.server_loss,
                server_accuracy=done.server_accuracy,
                moved=done.moved,
            )
            | {"end": done.end, "clients_ok": len(failures) - failed, "clients_failed": failed}
        )

    def _open(self, message: Message) -> None:
        """Begin the round of a message that is to be sent, unless it goes on."""
        told = [record.get("server-round") for record in message.content.config_records.values()]
        number = next((each for each in told if isinstance(each, int)), None)
        current = self._round.number if self._round else 0
        if number is None:
            anew = self._round is None or (_trains(message) and bool(self._round.trained) and not self._waiting)
            number = current + 1 if anew else current
        if number != current:
            self.close()
            self._round = _Round(number)
            self._round.hear()
        if _trains(message) and not message.metadata.group_id:
            message.metadata.group_id = str(number)  # Flower's logs name the round by it

    def _hear(self, reply: Message) -> None:
        number, node, trains = self._waiting.pop(reply.metadata.reply_to_message_id, (0, 0, False))
        if self._round is None or number != self._round.number:
            return  # its round is written already
        self._round.hear()
        self._round.moved += size(reply)
        self._note(self._round, node, figures(reply, FIGURES if trains else _EVALUATED), failure(reply))

    def _note(self, of: _Round, node: int, told: Mapping[str, Any], why: str | None) -> None:
        """Put what a client told, or why it did not, into its row; one that failed already stays as it is."""
        if before := of.rows.get(node):
            if before["failure"]:
                return
            told = {key: told.get(key) if before[key] is None else before[key] for key in FIGURES}
            why = f"evaluation: {why}" if why else None
        if node not in self._names:
            self._names |= {each.node_id: each.name for each in self._grid.get_nodes()}
        name = self._names.get(node) or str(node)
        of.rows[node] = client_row(self._devices.get(name, name), name, of.number, of.start, told, why)

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return self._grid.get_nodes()


def _trains(message: Message) -> bool:
    return message.metadata.message_type.partition(".")[0] == MessageType.TRAIN


def size(message: Message) -> int:
    """Return the bytes of the models in a message."""
    if message.has_error():
        return 0
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())


def _json(row: Mapping[str, Any]) -> str:
    """Return the row as JSON, which has no word for a number that is none: it becomes null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(plain, ensure_ascii=False)


class Recorder:
    """Writes a run's folder: run.json is replaced as a whole, the two .jsonl files only grow.

    As a context, it writes at its end how the run ended. `clients` have `device` and `client`; `rounds` is None where
    nobody knows how many there will be; `versions` are of packages beside flwr and numpy.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        clients: Sequence[Mapping[str, Any]],
        rounds: int | None,
        flwr_run_id: int,
        **versions: str,
    ) -> None:
        self._folder = folder
        self._state: dict[str, Any] = {
            "run": run,
            "status": "waiting",
            "reason": None,
            "round": 0,
            "rounds": rounds,
            "started": now(),
            "updated": now(),
            "flwr_run_id": str(flwr_run_id),
            "versions": {"python": platform.python_version()}
            | versions
            | {package: version(package) for package in ("flwr", "numpy")},
        }
        self._exporter = Exporter(run, clients)
        self.status("waiting")

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, Exception):
            reason = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
            self._close("failed", reason)
        elif error:
            self._close("stopped", "stopped before its last round")
        else:
            self._close("finished")

    def status(self, status: str, reason: str | None = None) -> None:
        """Write run.json. Status: waiting, running, finished, failed or stopped."""
        self._state.update(status=status, reason=reason, updated=now())
        temporary = self._folder / ".run.json"
        temporary.write_text(f"{_json(self._state)}\n", encoding="utf-8")
        temporary.replace(self._folder / "run.json")

    def client(self, row: Mapping[str, Any]) -> None:
        """Add a row to clients.jsonl."""
        self._append("clients.jsonl", {"run": self._state["run"], **row})
        self._exporter.client(row)

    def round(self, row: Mapping[str, Any]) -> None:
        """Add a row to rounds.jsonl."""
        self._append("rounds.jsonl", row)
        self._exporter.round(row)
        self._state["round"] = row["round"]
        self.status("running")

    def _close(self, status: str, reason: str | None = None) -> None:
        """Write the last state and close the port of the metrics."""
        self.status(status, reason)
        self._exporter.close(linger=status == "finished")

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(f"{_json(row)}\n")


class Exporter:
    """Serves the newest figures on port $FLTESTBED_METRICS_PORT, or 9099, at /metrics.

    Losses are cross entropies, accuracies go from 0 to 1, times are in seconds.
    """

    def __init__(self, run: str, clients: Iterable[Mapping[str, Any]]) -> None:
        # Slow, and no client needs it.
        from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

        registry = CollectorRegistry()
        self._round = {
            key: Gauge(name, text, registry=registry)
            for key, name, text in (
                ("round", "fl_round", "The last round that is complete"),
                ("seconds", "fl_round_duration_seconds", "How long that round took"),
                ("server_loss", "model_loss", "Loss of the global model; of data on devices, before the round"),
                ("server_accuracy", "model_accuracy", "Accuracy of the global model; on devices' data, before it"),
            )
        }
        self._client = {
            key: Gauge(name, text, _OF_CLIENT, registry=registry)
            for key, name, text in (
                ("train_seconds", "fl_client_train_seconds", "How long the client trained in its last round"),
                ("loss", "fl_client_loss", "Loss of the client's model on its held-out part, after training"),
                ("accuracy", "fl_client_accuracy", "Accuracy of the client's model on its held-out part"),
                ("examples", "fl_client_examples", "Examples that the client trained on in its last round"),
            )
        }
        self._failures = Counter(
            "fl_client_failures", "Rounds that the client failed in", _OF_CLIENT, registry=registry
        )
        # The one series that names the run: as a label of every figure, each run would add all of them anew.
        Gauge("fl_run_info", "The run that is led now", ["run"], registry=registry).labels(run).set(1)
        self._finished = Gauge(
            "fl_round_finished_timestamp_seconds", "When the last round ended, or the run began", registry=registry
        )
        self._finished.set_to_current_time()
        for client in clients:
            self._failures.labels(client["device"], client["client"])
        port = int(os.environ.get("FLTESTBED_METRICS_PORT", _PORT))
        self._served: tuple[WSGIServer, Thread] | None = None
        try:
            self._served = start_http_server(port, registry=registry)
        except OSError as error:
            logging.getLogger("flwr").warning("No metrics: port %s cannot be opened: %s", port, error.strerror)

    def client(self, row: Mapping[str, Any]) -> None:
        """Show a client's row."""
        labels = [row[name] for name in _OF_CLIENT]
        if row["failure"] is not None:
            self._failures.labels(*labels).inc()
            return
        for key, gauge in self._client.items():
            if row[key] is not None:
                gauge.labels(*labels).set(row[key])

    def round(self, row: Mapping[str, Any]) -> None:
        """Show a round's row."""
        for key, gauge in self._round.items():
            if row[key] is not None:
                gauge.set(row[key])
        self._finished.set_to_current_time()

    def close(self, *, linger: bool = False) -> None:
        """Close the port, with `linger` after $FLTESTBED_METRICS_LINGER s, so that the last round is scraped."""
        if self._served:
            time.sleep(float(os.environ.get("FLTESTBED_METRICS_LINGER", 0)) if linger else 0)
            server, thread = self._served
            server.shutdown()
            server.server_close()
            thread.join()
