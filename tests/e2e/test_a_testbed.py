"""The whole way on virtual devices: SSH, Docker engines, Flower, training. The tests run in this order."""

import json
import re
import shutil
import signal
import subprocess

import pytest

from .conftest import Trained
from .lab import DEVICES, REPOSITORY, SUBNET, Lab, rows, wait_for


def recap(log: str) -> dict[str, dict[str, int]]:
    """Return Ansible's counts by host, from a log."""
    found = {}
    for host, counts in re.findall(r"^(\S+)\s+: (ok=.*)$", log, re.MULTILINE):
        found[host] = {key: int(value) for key, value in (pair.split("=") for pair in counts.split())}
    return found


def newest_log(lab: Lab, verb: str) -> str:
    return max((lab.folder / ".fltestbed" / "e2e" / "logs").glob(f"*-{verb}.log")).read_text()


def finished_rounds(lab: Lab, name: str) -> list[str]:
    """Return the rows of rounds.jsonl as they stand on the server host, of the run that was given this name."""
    file = f"/opt/fltestbed/e2e/runs/*-{name}/rounds.jsonl"
    return lab.on("server", "bash", "-c", f"cat {file}", code=None).splitlines()


def supernodes(lab: Lab) -> dict[str, str]:
    """Return each SuperNode's state as SuperLink sees it; empty while SuperLink can't be asked."""
    ask = ["docker", "exec", "fltestbed-e2e-superlink-1", "flwr", "supernode", "ls", "testbed", "--format", "json"]
    said = lab.on("server", *ask, code=None)
    answer = json.loads(said) if said.startswith("{") else {}
    if "nodes" not in answer:
        return {}
    states = {str(node["node-id"]): node["status"] for node in answer["nodes"]}
    held = json.loads(lab.on("server", "cat", "/opt/fltestbed/e2e/state/nodes.json"))
    return {client: states[node["id"]] for client, node in held.items()}


def test_every_client_is_online_with_the_limits_asked_for(lab: Lab) -> None:
    status = lab.status()
    clients = {row["client"]: row for row in status["clients"]}
    assert sorted(clients) == list(DEVICES)
    for row in clients.values():
        assert row["supernode"] == "online"
        assert row["cpus"] == pytest.approx(row["cpus_asked"], abs=0.005)
        assert row["memory"] == row["memory_asked"]
    # Docker's own word, read without our code.
    limits = "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}}"
    said = lab.on("pi-3", "docker", "inspect", "-f", limits, "fltestbed-e2e-client-pi-3-1")
    assert said.split() == ["500000000", str(640 * 2**20)]


def test_a_second_up_changes_nothing(lab: Lab) -> None:
    before = lab.started()
    lab.run("up")
    counts = recap(newest_log(lab, "up"))
    assert set(counts) >= {"server", *DEVICES}
    assert {host: row["changed"] for host, row in counts.items() if row["changed"]} == {}
    assert lab.started() == before


def test_clients_have_no_privileges(lab: Lab) -> None:
    for device in DEVICES:
        for container in lab.on(device, "docker", "ps", "-q", "--filter", "label=fltestbed.client").split():
            record = json.loads(lab.on(device, "docker", "inspect", container))[0]
            assert record["Config"]["User"] == "10001:10001"
            assert record["HostConfig"]["CapDrop"] == ["ALL"]
            assert "no-new-privileges:true" in record["HostConfig"]["SecurityOpt"]
            assert record["HostConfig"]["ReadonlyRootfs"] is True
            assert not [mount for mount in record["Mounts"] if "docker.sock" in mount["Source"]]


FORBIDDEN = ("/v1/control/runs", "/v1/runtime/x", "/v1/fleet/../control/runs", "/v1/fleet/%2e%2e/control/runs", "/")
ASK_SERVER = f"""
import ssl, sys, urllib.error, urllib.request
trust = ssl.create_default_context(cafile="/opt/fltestbed/e2e/nodes/pi-3/ca.crt")
for path in sys.argv[1:]:
    body = None if path == "/health" else b""
    try:
        code = urllib.request.urlopen("https://{SUBNET}10:9092" + path, data=body, context=trust, timeout=10).status
    except urllib.error.HTTPError as error:
        code = error.code
    print(path, code)
"""


def test_a_device_reaches_the_fleet_and_nothing_else(lab: Lab) -> None:
    paths = ("/health", "/v1/fleet/nodes", *FORBIDDEN)
    answers = dict(line.split() for line in lab.on("pi-3", "python3", "-c", ASK_SERVER, *paths).splitlines())
    assert answers["/health"] == "200"
    assert answers["/v1/fleet/nodes"] in ("401", "404", "405", "422"), "the proxy has to pass the fleet API on"
    assert {path: answers[path] for path in FORBIDDEN} == dict.fromkeys(FORBIDDEN, "403")
    for port in (8000, 9094, 9099):
        assert "refused" in lab.on("pi-3", "bash", "-c", f"(exec 3<>/dev/tcp/{SUBNET}10/{port}) 2>&1", code=None), port


UNREGISTERED = f"""
openssl ecparam -name secp384r1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out /tmp/key
timeout 60 flower-supernode --superlink {SUBNET}10:9092 \\
  --root-certificates /ca.crt --auth-supernode-private-key /tmp/key
echo rc=$?
"""


def test_an_unregistered_supernode_is_refused(lab: Lab) -> None:
    image = lab.on("pi-3", "docker", "inspect", "-f", "{{.Config.Image}}", "fltestbed-e2e-supernode-pi-3-1").strip()
    authority = "/opt/fltestbed/e2e/nodes/pi-3/ca.crt:/ca.crt:ro"
    said = lab.on("pi-3", "docker", "run", "--rm", "-v", authority, image, "bash", "-c", f"({UNREGISTERED}) 2>&1")
    assert "rc=0" not in said and "rc=124" not in said, said
    assert set(json.loads(lab.on("server", "cat", "/opt/fltestbed/e2e/state/nodes.json"))) == set(DEVICES)


def test_training_on_fashion_mnist(trained: Trained) -> None:
    run = trained.folder
    assert [row["round"] for row in trained.result["rounds"]] == [1, 2, 3]
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    last = rows(run, "rounds.jsonl")[-1]
    assert last["server_accuracy"] > 0.80
    clients = rows(run, "clients.jsonl")
    assert {row["device"] for row in clients} == set(DEVICES)
    assert {row["client"]: row["batch_size"] for row in clients} == {"pi-3": 16, "pi-4": 32, "laptop": 64}
    assert all(row["failure"] is None and row["peak_memory_mb"] > 100 for row in clients)
    assert (run / "model.pt").stat().st_size > 10_000
    lock = json.loads((run / "lock.json").read_text())
    assert len({part["sha256"] for part in lock["partitions"]}) == 3
    assert set(lock["hosts"]) == {"server", *DEVICES}
    for name in ("server", *(f"client-{device}" for device in DEVICES)):
        assert (run / "logs" / f"{name}.log").stat().st_size > 0, name


def test_a_device_holds_its_own_part_of_the_data_alone(lab: Lab, trained: Trained) -> None:
    lock = json.loads((trained.folder / "lock.json").read_text())
    for part in lock["partitions"]:
        files = lab.on(part["device"], "bash", "-c", "find /opt/fltestbed/e2e/data -type f -printf '%P\n'").split()
        assert files == [f"{part['client']}/{part['sha256']}.npz"]


def test_a_changed_limit_touches_that_client_alone(lab: Lab) -> None:
    before = lab.started()
    hosts = lab.inventory / "hosts.yml"
    hosts.write_text(hosts.read_text().replace("cpus: 0.8,", "cpus: 0.6,"))
    lab.run("up")
    after = lab.started()
    assert {key for key in after if after[key] != before[key]} == {("pi-4", "client-pi-4")}
    assert {row["client"]: row["cpus"] for row in lab.status()["clients"]}["pi-4"] == pytest.approx(0.6)


def test_an_interrupted_run_leaves_what_it_has(lab: Lab) -> None:
    training = lab.start("run", "fashion-mnist-cnn", "--set", "rounds=50", "--name", "interrupted")
    try:
        wait_for("the first round", lambda: finished_rounds(lab, "interrupted"))
        training.send_signal(signal.SIGINT)
        said = training.communicate(timeout=120)[0]
    finally:
        training.kill()
    assert training.returncode == 130, said
    run = lab.latest_run()
    assert run.name.endswith("interrupted")
    assert rows(run, "rounds.jsonl")
    assert json.loads((run / "run.json").read_text())["status"] == "stopped"
    assert (run / "logs" / "server.log").exists()


def test_a_run_that_lacks_clients_ends_with_the_reason(lab: Lab) -> None:
    lab.on("laptop", "systemctl", "stop", "docker.socket", "docker")
    try:
        # SuperLink takes a silent SuperNode for gone after about a minute.
        wait_for("the laptop offline", lambda: supernodes(lab).get("laptop") == "offline", 240)
        lab.run("run", "fashion-mnist-cnn", "--set", "client_wait=10", "--name", "lacking", code=7)
    finally:
        lab.on("laptop", "systemctl", "start", "docker")
    record = json.loads((lab.latest_run() / "run.json").read_text())
    assert record["status"] == "failed"
    assert "laptop missing" in record["reason"]


def test_everything_comes_back_after_a_reboot(lab: Lab) -> None:
    subprocess.run(["docker", "restart", "e2e-pi-3"], check=True, capture_output=True, timeout=120)
    subprocess.run(["docker", "restart", "e2e-server"], check=True, capture_output=True, timeout=120)
    wait_for("all clients online", lambda: set(supernodes(lab).values()) == {"online"}, 240)


def test_a_change_of_the_app_needs_no_image(lab: Lab) -> None:
    """The first run after the reboot."""
    before, started = lab.images(), lab.started()
    app = lab.folder / "my_app"
    shutil.copytree(REPOSITORY / "fl_app", app)
    client = app / "testbed_app" / "client.py"
    client.write_text(client.read_text() + '\nprint("a line that was not there before", flush=True)\n')
    lab.run("run", "fashion-mnist-cnn", "--set", f"app={app}", "--set", "rounds=1", "--name", "changed-app")
    run = lab.latest_run()
    assert "a line that was not there before" in (run / "logs" / "client-laptop.log").read_text()
    assert lab.images() == before
    assert lab.started() == started


def test_a_typo_is_refused_before_a_host_is_touched(lab: Lab) -> None:
    hosts = lab.inventory / "hosts.yml"
    right = hosts.read_text()
    logs = set((lab.folder / ".fltestbed" / "e2e" / "logs").iterdir())
    hosts.write_text(right.replace("memory: 640m", "memory: 2gg"))
    try:
        lab.run("up", code=3)
        lab.run("run", "fashion-mnist-cn", code=3)
    finally:
        hosts.write_text(right)
    assert set((lab.folder / ".fltestbed" / "e2e" / "logs").iterdir()) == logs
