"""What is watched: real exporters, a real Prometheus, and a real run that the dashboards look at."""

import json
import signal
import time
import urllib.request
from typing import Any
from urllib.parse import urlencode

import yaml

from .conftest import Trained
from .lab import DEVICES, REPOSITORY, SUBNET, Lab, wait_for
from .prometheus import Prometheus, queries_with_data

PROJECT = "fltestbed-e2e"
HOSTS = ("server", *DEVICES)


def alert_names() -> set[str]:
    text = (REPOSITORY / "roles/prometheus/files/rules/alerts.yml").read_text()
    return {rule["alert"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]}


def test_every_exporter_is_scraped_with_its_labels(prometheus: Prometheus) -> None:
    wanted = {(job, device) for job in ("node_exporter", "cadvisor") for device in HOSTS} | {("prometheus", "server")}

    def up() -> list[dict[str, Any]]:
        (series,) = prometheus.query('up{job!="serverapp"} == 1')
        there = {(each["metric"]["job"], each["metric"]["device"]) for each in series}
        print(f"missing: {wanted - there}")
        return series if there == wanted else []

    for each in wait_for("every target is up", up):
        labels = each["metric"]
        if labels["job"] == "prometheus":
            continue
        assert labels["group"] == ("superlink,monitoring" if labels["device"] == "server" else "supernodes")
        assert labels["arch"] in ("x86_64", "aarch64")
        assert labels["profile"] == "none"


def test_every_alert_is_loaded(prometheus: Prometheus) -> None:
    (rules,) = prometheus.get("/api/v1/rules")
    loaded = [rule for group in rules["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in loaded if rule["type"] == "alerting"} == alert_names()
    assert {rule["name"] for rule in loaded if rule["health"] == "err"} == set()


KNOCK = f"""
import ssl, urllib.request
tree = "/opt/fltestbed/e2e"
def knock(port, *certificate):
    trust = ssl.create_default_context(cafile=tree + "/node-exporter/ca.crt")
    if certificate:
        trust.load_cert_chain(*certificate)
    try:
        with urllib.request.urlopen(f"https://{SUBNET}10:{{port}}/metrics", context=trust, timeout=10) as answer:
            return answer.status
    except OSError as error:
        return type(error).__name__
own = (tree + "/node-exporter/server.crt", tree + "/node-exporter/server.key")
print(knock(9100), knock(9100, *own), knock(8080), knock(8080, *own))
"""


def test_exporters_answer_nobody_but_prometheus(lab: Lab) -> None:
    """Neither a stranger on the LAN nor a device that shows its own certificate."""
    assert "200" not in lab.on("pi-3", "python3", "-c", KNOCK).split()
    for port in (9090, 3000, 9099):
        assert "refused" in lab.on("pi-3", "bash", "-c", f"(exec 3<>/dev/tcp/{SUBNET}10/{port}) 2>&1", code=None), port


def test_what_watches_can_change_nothing(lab: Lab) -> None:
    for host in HOSTS:
        for container in lab.on(host, "docker", "ps", "-q").split():
            record = json.loads(lab.on(host, "docker", "inspect", container))[0]
            name, settings = record["Name"].removeprefix(f"/{PROJECT}-").removesuffix("-1"), record["HostConfig"]
            assert settings["CapDrop"] == ["ALL"], name
            assert settings["CapAdd"] in ([["CAP_SYS_PTRACE"], ["SYS_PTRACE"]] if name == "cadvisor" else [None, []]), (
                name
            )
            assert settings["ReadonlyRootfs"] and "no-new-privileges:true" in settings["SecurityOpt"], name
            users = {"cadvisor": ("0:",), "node-exporter": ("0:", "10001:")}.get(name, ("10001:",))
            assert record["Config"]["User"].startswith(users), name


def test_prometheus_can_be_opened(lab: Lab) -> None:
    with lab.start("open", "prometheus") as opened:
        try:
            assert opened.stdout
            address = next(line for line in opened.stdout if line.startswith("http")).strip()
            with urllib.request.urlopen(f"{address}/api/v1/labels", timeout=20) as answer:  # noqa: S310
                assert "device" in json.load(answer)["data"]
        finally:
            opened.send_signal(signal.SIGINT)
            assert opened.wait(20) == 0


def test_every_query_of_every_dashboard_has_data(prometheus: Prometheus, trained: Trained) -> None:
    assert len(queries_with_data()) > 40
    assert trained.without_data == []
    (series,) = prometheus.query("count by (run) (max_over_time(fl_run_info[2h]))")
    assert any(each["metric"]["run"].endswith("-watched") for each in series)
    (series,) = prometheus.query('max_over_time(fl_round{device="server"}[2h])')
    assert "run" not in series[0]["metric"], "a run's name as a label of every series makes more of them each time"
    assert float(series[0]["value"][1]) >= 3, "the last round is scraped before the ServerApp ends"


def test_a_client_out_of_memory_raises_the_alarm(lab: Lab, prometheus: Prometheus) -> None:
    client = f"{PROJECT}-client-pi-3-1"
    greedy = "x = []\nwhile True: x.append(b'x' * 2**24)"
    before = lab.started()[("pi-3", "client-pi-3")]
    # cAdvisor has to have looked at the client before and after.
    wait_for("cAdvisor shows the client", lambda: prometheus.query('client:memory_limit:bytes{client="pi-3"}')[0])
    lab.on("pi-3", "docker", "exec", client, "python3", "-c", greedy, code=137)
    wait_for("the alert", lambda: ("ClientOutOfMemory", "pi-3") in prometheus.firing())
    assert lab.started()[("pi-3", "client-pi-3")] == before, "the container outlives what was killed in it"


def test_a_changed_config_is_loaded_without_a_restart(lab: Lab, prometheus: Prometheus) -> None:
    before = lab.started()[("server", "prometheus")]
    (first,) = prometheus.query("min_over_time(timestamp(up{job='prometheus'})[1h:10s])")
    variables = lab.inventory / "group_vars" / "testbed.yml"
    text = variables.read_text()
    try:
        variables.write_text(f"{text}\nprometheus_scrape_interval: 9\n")
        lab.run("up", "--limit", "server")
        wait_for(
            "the new interval", lambda: "scrape_interval: 9s" in prometheus.get("/api/v1/status/config")[0]["yaml"]
        )
    finally:
        variables.write_text(text)
        lab.run("up", "--limit", "server")
    wait_for("the old interval", lambda: "scrape_interval: 10s" in prometheus.get("/api/v1/status/config")[0]["yaml"])
    assert lab.started()[("server", "prometheus")] == before
    (now,) = prometheus.query("min_over_time(timestamp(up{job='prometheus'})[1h:10s])")
    assert float(now[0]["value"][1]) <= float(first[0]["value"][1]) + 20


def test_a_killed_prometheus_keeps_its_history(lab: Lab, prometheus: Prometheus) -> None:
    name = f"{PROJECT}-prometheus-1"
    before = lab.started()[("server", "prometheus")]
    start = time.time() - 60
    asked = urlencode({"query": 'count_over_time(up{job="prometheus"}[1m])', "time": start})
    count = f"/api/v1/query?{asked}"
    (held,) = prometheus.get(count)
    lab.on("server", "bash", "-c", f"kill -9 $(docker inspect -f '{{{{.State.Pid}}}}' {name})")
    wait_for("Prometheus is back", lambda: lab.started()[("server", "prometheus")] != before)
    wait_for("it answers", lambda: "error" not in prometheus.get(count)[0])
    assert prometheus.get(count)[0]["result"] == held["result"] != []


def test_a_config_that_promtool_refuses_does_not_land(lab: Lab) -> None:
    variables = lab.inventory / "group_vars" / "testbed.yml"
    text = variables.read_text()
    landed = lab.on("server", "cat", "/opt/fltestbed/e2e/prometheus/prometheus.yml")
    try:
        variables.write_text(f"{text}\nprometheus_scrape_interval: {10**30}\n")
        lab.run("up", "--limit", "server", code=5)
    finally:
        variables.write_text(text)
    assert lab.on("server", "cat", "/opt/fltestbed/e2e/prometheus/prometheus.yml") == landed
