"""What `up` would do is said before it is done, and what was changed by hand is found and put right."""

import json
from typing import Any

from .lab import DEVICES, Lab, wait_for
from .test_a_testbed import newest_log, recap

HOSTS = ["server", *DEVICES]


def plan(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    said = lab.run("plan", "--format", "json")
    print(said)  # what a test waited for in vain
    return dict(json.loads(said))


def steps(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(row["action"], row["what"], row["name"]) for row in rows if row["what"] != "reason"]


def test_after_up_there_is_nothing_to_do(lab: Lab) -> None:
    lab.run("up")
    assert plan(lab) == {host: [] for host in sorted(HOSTS)}


def test_the_long_way_changes_nothing_either(lab: Lab) -> None:
    before = lab.started()
    for host in HOSTS:
        lab.on(host, "rm", "/opt/fltestbed/e2e/.fltestbed-settled.json")
    assert [steps(rows) for rows in plan(lab).values()] == [[], [], [], []]
    lab.run("up")
    counts = recap(newest_log(lab, "up"))
    assert all(counts[host]["ok"] > 1 for host in HOSTS)
    assert {host: row["changed"] for host, row in counts.items() if row["changed"]} == {}
    assert lab.started() == before


def test_a_changed_limit_is_planned_and_not_done(lab: Lab) -> None:
    before, hosts = lab.started(), lab.inventory / "hosts.yml"
    right = hosts.read_text()
    hosts.write_text(right.replace("cpus: 1.2,", "cpus: 1.1,"))
    try:
        found = plan(lab)
    finally:
        hosts.write_text(right)
    assert steps(found["laptop"]) == [("recreate", "file", "compose.yml"), ("recreate", "container", "client-laptop")]
    diff = next(row["diff"] for row in found["laptop"] if row["what"] == "file")
    assert "-    cpus: 1.2" in diff and "+    cpus: 1.1" in diff
    assert [found[host] for host in HOSTS if host != "laptop"] == [[], [], []]  # left alone, without a reason
    assert lab.started() == before
    assert plan(lab)["laptop"] == []


def test_what_was_changed_by_hand_is_found_and_put_right(lab: Lab) -> None:
    before = lab.started()
    client, supernode = "fltestbed-e2e-client-laptop-1", "fltestbed-e2e-supernode-pi-3-1"
    lab.on("laptop", "docker", "update", "--cpus", "0.7", client)
    lab.on("pi-3", "docker", "rm", "--force", supernode)
    lab.on("pi-4", "bash", "-c", "echo '# mine' >> /opt/fltestbed/e2e/compose.yml")
    found = plan(lab)
    assert steps(found["laptop"]) == [("recreate", "container", "client-laptop")]
    assert steps(found["pi-3"]) == [("create", "container", "supernode-pi-3")]
    assert steps(found["pi-4"]) == [("recreate", "file", "compose.yml")]
    assert found["server"] == []
    assert [row["name"] for row in found["laptop"] if row["what"] == "reason"] == [
        "the limits of container client-laptop were changed"
    ]

    lab.run("up")
    after = lab.started()
    assert {key for key in after if after[key] != before[key]} >= {
        ("laptop", "client-laptop"),
        ("pi-3", "supernode-pi-3"),
    }
    assert {host for host, _ in (key for key in after if after[key] != before[key])} == {"laptop", "pi-3"}
    assert lab.on("laptop", "docker", "inspect", "-f", "{{.HostConfig.NanoCpus}}", client).strip() == "1200000000"
    assert "# mine" not in lab.on("pi-4", "cat", "/opt/fltestbed/e2e/compose.yml")
    # SuperLink takes a SuperNode back once it has missed the killed one for about a minute.
    wait_for("nothing to do", lambda: plan(lab) == {host: [] for host in sorted(HOSTS)}, 240)
