"""A run's results in TensorBoard's and MLflow's own stores, read back with their own libraries."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import run_folder

from fltestbed import export, results
from fltestbed.errors import ResultsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = run_folder.copy(tmp_path)
    run_folder.add_hardware(made)
    return made


def expected(folder: Path, column: str, client: str = "") -> dict[int, float]:
    """Return what the files say, by round."""
    rows: list[dict[str, Any]] = run_folder.rows(folder, "clients.jsonl" if client else "rounds.jsonl")
    known = [row for row in rows if row.get("client", "") == client and row[column] is not None]
    return {row["round"]: row[column] for row in known}


def test_every_number_has_its_round_and_time(folder: Path) -> None:
    found = list(export.figures(results.load(folder)))
    for name, wanted in (
        ("round/server_accuracy", expected(folder, "server_accuracy")),
        ("client/pi-4/train_seconds", expected(folder, "train_seconds", "pi-4")),
    ):
        assert {each.round: each.value for each in found if each.name == name} == pytest.approx(wanted)
    assert len(expected(folder, "train_seconds", "pi-4")) == 2  # of three rounds
    assert {each.value for each in found if each.name == "client/laptop/energy_joules"} == {30.0}
    assert min(each.time for each in found) > 1.7e9
    assert not {each.name for each in found if "failure" in each.name or each.name.endswith(("/device", "/round"))}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_tensorboard_reads_what_was_written(folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # the second time in the first one's place
        place = export.tensorboard(folder, tmp_path / "board")
    assert place == tmp_path / "board" / folder.name
    read = EventAccumulator(str(place)).Reload()
    assert set(read.Tags()["tensors"]) == {each.name for each in export.figures(results.load(folder))}
    events = read.Tensors("round/server_accuracy")
    assert len(events) == 3
    told = {event.step: event.tensor_proto.float_val[0] for event in events}
    assert told == pytest.approx(expected(folder, "server_accuracy"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_mlflow_reads_what_was_written(folder: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    for _ in range(2):
        said = export.mlflow(folder, str(tmp_path / "store"))
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/store/mlflow.db")
    lock = json.loads((folder / "lock.json").read_text())
    experiment = client.get_experiment_by_name(lock["experiment"]["name"])
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.run_id in said
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    assert run.data.params["strategy.name"] == lock["experiment"]["strategy"]["name"]
    history = client.get_metric_history(run.info.run_id, "client/pi-4/train_seconds")
    assert {each.step: each.value for each in history} == pytest.approx(expected(folder, "train_seconds", "pi-4"))
    assert {"lock.json", "rounds.jsonl"} <= {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_store_that_cannot_be_reached_is_named_without_its_password(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ResultsError) as caught:
        export.mlflow(folder, f"http://me:secret@{place}")
    assert f"MLflow's store http://{place} does not take the run: " in caught.value.message
    assert "secret" not in caught.value.message + caught.value.hint


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_folder_that_cannot_be_written_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match=r"store .*/file does not take the run"):
        export.mlflow(folder, str(tmp_path / "file"))


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_library_that_lacks_is_named(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded in [each for each in sys.modules if each.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ResultsError) as caught:
        getattr(export, name)(folder, folder / "at")
    assert f"pip install 'fltestbed[{name}]'" in caught.value.hint


def test_a_run_without_rounds_is_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("rounds.jsonl", "clients.jsonl", "resources.parquet"):
        (folder / name).unlink()
    with pytest.raises(ResultsError, match="has no rounds to export"):
        export.tensorboard(folder, tmp_path)
