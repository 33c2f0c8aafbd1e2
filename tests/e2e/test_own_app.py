"""A Flower app that knows nothing of fltestbed, on the virtual devices."""

import json
import re
import shutil

import pandas
import recorded_app

from .lab import DEVICES, REPOSITORY, Lab, rows

PLAIN = REPOSITORY / "tests" / "apps" / "logistic"


def test_a_plain_app_trains_as_it_is(lab: Lab) -> None:
    before = lab.images()
    settings = ("--set", "num-server-rounds=2", "--set", 'label=say "it"')
    [row] = json.loads(lab.run("run", "--app", str(PLAIN), *settings, "--format", "json"))["run"]
    assert (row["status"], row["reason"]) == ("finished", None)
    assert row["seconds"] > 0

    run = lab.latest_run()
    assert run.name.endswith("-logistic")
    said = (run / "logs" / "serverapp.log").read_text()
    accuracy = re.search(r'say "it": round 2 of 2: accuracy (\d\.\d+)', said)
    assert accuracy and float(accuracy[1]) > 0.85, said
    for device in DEVICES:
        log = (run / "logs" / f"client-{device}.log").read_text()
        assert "trained on 200 points" in log and "\x1b" not in log
    lock = json.loads((run / "lock.json").read_text())
    assert lock["run_config"] == {"num-server-rounds": 2, "label": 'say "it"'}
    assert (lock["app"]["name"], lock["experiment"], lock["partitions"]) == ("logistic", None, [])
    assert lock["versions"]["image"]["flwr"] == "1.41.0"
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert lab.images() == before


def test_an_app_with_the_lines_leaves_rows_of_rounds_and_clients(lab: Lab) -> None:
    app = recorded_app.make(lab.folder / "recorded")
    shown = json.loads(lab.run("run", "--app", str(app), "--set", "num-server-rounds=2", "--format", "json"))
    assert [row["client"] for row in shown["clients"]] == list(DEVICES)
    run = lab.latest_run()
    rounds, clients = rows(run, "rounds.jsonl"), rows(run, "clients.jsonl")
    assert [(row["round"], row["clients_ok"], row["clients_failed"]) for row in rounds] == [
        (number, len(DEVICES), 0) for number in (1, 2)
    ]
    assert rounds[1]["server_accuracy"] > 0.85
    assert [(row["round"], row["device"]) for row in clients] == [(n, name) for n in (1, 2) for name in DEVICES]
    assert {(row["run"], row["examples"], row["eval_examples"], row["failure"]) for row in clients} == {
        (run.name, 200, 200, None)
    }
    assert all(0 < row["train_seconds"] < row["app_seconds"] and row["peak_memory_mb"] > 20 for row in clients)
    record = json.loads((run / "run.json").read_text())
    assert (record["status"], record["round"], record["rounds"]) == ("finished", 2, None)
    assert (pandas.read_csv(run / "resources.csv")["training_seconds"] > 0).all()


def test_what_the_image_lacks_is_named_before_anything_is_submitted(lab: Lab) -> None:
    app = lab.folder / "needs_more"
    shutil.copytree(PLAIN, app)
    project = app / "pyproject.toml"
    project.write_text(project.read_text().replace('"numpy>=1.26"', '"numpy<2", "scikit-learn>=1.4"'))
    runs = lab.on("server", "ls", "/opt/fltestbed/e2e/runs")
    said = lab.start("run", "--app", str(app)).communicate(timeout=900)[0]
    assert "numpy<2 (there is 2.2.6), scikit-learn>=1.4 (not there)" in said
    assert 'images_extra_requirements: ["numpy<2", "scikit-learn>=1.4"]' in said
    assert lab.on("server", "ls", "/opt/fltestbed/e2e/runs") == runs


def test_an_app_that_flower_would_refuse_reaches_no_host(lab: Lab) -> None:
    logs = set((lab.folder / ".fltestbed" / "e2e" / "logs").iterdir())
    lab.run("run", "--app", str(lab.folder), code=3)
    lab.run("run", "--app", str(PLAIN), "--set", "num_server_rounds=2", code=3)
    assert set((lab.folder / ".fltestbed" / "e2e" / "logs").iterdir()) == logs
