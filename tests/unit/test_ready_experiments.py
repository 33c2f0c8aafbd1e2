"""Every ready experiment, two rounds of it in this process, on a small file in the format of its data set."""

import json
from pathlib import Path
from typing import Any

import pytest
import ready_data
import test_fl_app_server as app
from ansible_modules import load
from flwr.app import Context, RecordDict

from fltestbed import plan

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiments").glob("*.yml"))
CLIENTS: list[dict[str, Any]] = [
    {"device": name, "client": name, "cpus": None, "memory": None, "settings": {}, "data": None} for name in app.NAMES
]
filters = load("filter", "testbed").FilterModule().filters()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_ready_experiment_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ROOT / "experiments" / f"{name}.yml"
    wanted = plan.resolve(file, ["data.source=folder", f"data.path={tmp_path}"], app=None, content_dir=ROOT).experiment
    assert wanted
    data = ready_data.write_data(wanted.data.name, tmp_path / "data")
    settings = [*ready_data.settings(name, wanted.model, data), "client_wait=1"]
    resolved = plan.resolve(file, settings, app=None, content_dir=ROOT)
    prepared = plan.prepare(resolved, CLIENTS, cache_dir=tmp_path / "cache", calibration=tmp_path / "none.json")
    monkeypatch.setenv("FLTESTBED_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("FLTESTBED_DATA", str(tmp_path / "shards"))
    monkeypatch.setenv("FLTESTBED_METRICS_PORT", "0")
    monkeypatch.setattr(app.server, "POLL_SECONDS", 0.01)
    (tmp_path / "shards").mkdir()
    for part in (*prepared["partitions"], prepared["test_set"]):
        (tmp_path / "shards" / f"{part['sha256']}.npz").hardlink_to(part["path"])
    run = tmp_path / "runs/r1"
    run.mkdir(parents=True)
    (run / "experiment.json").write_text(json.dumps(filters["run_plan"](prepared, "r1", CLIENTS)))
    config: dict[str, Any] = {"run": "r1", **prepared["run_config"]}
    monkeypatch.setattr(app, "RUN_CONFIG", config)
    app.server.app(app.LocalGrid(), Context(77, 1, {}, RecordDict(), config))
    assert not app.failures(run)
    first, last = app.rows(run, "rounds")
    assert last["server_loss"] < first["server_loss"]
