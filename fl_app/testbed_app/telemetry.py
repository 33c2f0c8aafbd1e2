"""What a run leaves behind: rows of clients and rounds, its state, its model, and metrics for Prometheus."""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

_PORT = 9099
_OF_CLIENT = ("device", "client")


def now() -> str:
    """Return the time as ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _json(row: Mapping[str, Any]) -> str:
    """Return the row as JSON, which has no word for a number that is none: it becomes null."""
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
    return json.dumps(plain, ensure_ascii=False)


class Recorder:
    """Writes a run's folder: run.json and model.pt are replaced as a whole, the two .jsonl files only grow."""

    def __init__(self, folder: Path, plan: Mapping[str, Any], flwr_run_id: int) -> None:
        self._folder = folder
        self._state: dict[str, Any] = {
            "run": plan["run"],
            "status": "waiting",
            "reason": None,
            "round": 0,
            "rounds": plan["experiment"]["rounds"],
            "started": now(),
            "updated": now(),
            "flwr_run_id": str(flwr_run_id),
            "versions": {"python": platform.python_version(), "torch": torch.__version__}
            | {package: version(package) for package in ("flwr", "numpy")},
        }
        self._exporter = Exporter(plan["run"], plan["clients"])
        self.status("waiting")

    def status(self, status: str, reason: str | None = None) -> None:
        """Write run.json. Status: waiting, running, finished, failed or stopped."""
        self._state.update(status=status, reason=reason, updated=now())
        self._replace("run.json", f"{_json(self._state)}\n".encode())

    def client(self, row: Mapping[str, Any]) -> None:
        """Add a row to clients.jsonl."""
        self._append("clients.jsonl", {"run": self._state["run"], **row})
        self._exporter.client(row)

    def round(self, row: Mapping[str, Any], model: torch.nn.Module) -> None:
        """Add a row to rounds.jsonl, after the model of that round was put into model.pt."""
        temporary = self._folder / ".model.pt"
        torch.save(model.state_dict(), temporary)
        temporary.replace(self._folder / "model.pt")
        self._append("rounds.jsonl", row)
        self._exporter.round(row)
        self._state["round"] = row["round"]
        self.status("running")

    def close(self, status: str, reason: str | None = None) -> None:
        """Write the last state and close the port of the metrics."""
        self.status(status, reason)
        self._exporter.close(linger=status == "finished")

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(f"{_json(row)}\n")

    def _replace(self, name: str, content: bytes) -> None:
        temporary = self._folder / f".{name}"
        temporary.write_bytes(content)
        temporary.replace(self._folder / name)


class Exporter:
    """Serves the newest figures on port $FLTESTBED_METRICS_PORT, or 9099, at /metrics.

    Losses are cross entropies, accuracies go from 0 to 1, times are in seconds.
    """

    def __init__(self, run: str, clients: list[Mapping[str, Any]]) -> None:
        registry = CollectorRegistry()
        self._round = {
            key: Gauge(name, text, registry=registry)
            for key, name, text in (
                ("round", "fl_round", "The last round that is complete"),
                ("seconds", "fl_round_duration_seconds", "How long that round took"),
                ("server_loss", "model_loss", "Loss of the global model on the server's test set"),
                ("server_accuracy", "model_accuracy", "Accuracy of the global model on the server's test set"),
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
            gauge.labels(*labels).set(row[key])

    def round(self, row: Mapping[str, Any]) -> None:
        """Show a round's row."""
        for key, gauge in self._round.items():
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
