"""Training on data that lie on the devices."""

import json

from .lab import DEVICES, OWN_DATA, Lab, rows

EXPERIMENT = "name: bars\ndata: {source: device, name: bars}\ntrain: {learning_rate: 0.02}\n"


def shards(lab: Lab) -> list[str]:
    """Return the data that the controller brought to the devices."""
    return [lab.on(device, "ls", f"/opt/fltestbed/e2e/data/{device}") for device in DEVICES]


def test_clients_train_on_what_lies_there(lab: Lab) -> None:
    (lab.folder / "bars.yml").write_text(EXPERIMENT)
    before = shards(lab)
    lab.run("run", "bars.yml", "--set", "rounds=1")
    run = lab.latest_run()
    clients = {row["client"]: row for row in rows(run, "clients.jsonl")}
    shares = {name: 0.3 if name == "pi-3" else 1 for name in DEVICES}  # as the inventory says
    assert {name: (row["examples"], row["eval_examples"]) for name, row in clients.items()} == {
        name: (300 * share, 60 * share) for name, share in shares.items()
    }
    (row,) = rows(run, "rounds.jsonl")
    assert row["clients_ok"] == len(DEVICES) and row["client_accuracy"] > 0.1
    assert row["server_loss"] > 2 and row["server_accuracy"] < 0.5, "they are of the model before it was trained"
    partitions = {part["client"]: part for part in json.loads((run / "lock.json").read_text())["partitions"]}
    for number, device in enumerate(DEVICES):
        part = partitions[device]
        assert (part["examples"], part["held_out"], sum(part["labels"]), part["labels"][number]) == (300, 60, 300, 0)
    assert shards(lab) == before
    assert len({part["sha256"] for part in partitions.values()}) == len(DEVICES)


def test_data_that_cannot_be_read_are_named_before_the_run(lab: Lab) -> None:
    (lab.folder / "bars.yml").write_text(EXPERIMENT)
    runs = lab.on("server", "ls", "/opt/fltestbed/e2e/runs")
    lab.on("pi-3", "cp", OWN_DATA, f"{OWN_DATA}.whole")
    try:
        lab.on("pi-3", "truncate", "--size=1000", OWN_DATA)
        said = lab.start("run", "bars.yml").communicate(timeout=900)[0]
    finally:
        lab.on("pi-3", "dd", f"if={OWN_DATA}.whole", f"of={OWN_DATA}")
    assert "bars.npz: the data set cannot be used" in said
    assert f"pi-3 ({OWN_DATA} on pi-3)" in said
    assert lab.on("server", "ls", "/opt/fltestbed/e2e/runs") == runs
