"""Measures what the exporters cost a host of a testbed: as they run there, and beside them with their own defaults.

Runs on the host, as root, for five minutes: `ssh HOST sudo python3 - < scripts/monitoring_cost.py`, or on a virtual
device `docker exec -i virtual-pi-4 python3 - < scripts/monitoring_cost.py`. CPU is in percent of one core, memory is
what the exporter has for itself (RSS), both over two minutes with a scrape every 10 s.
"""

import contextlib
import http.client
import json
import socket
import subprocess
import time
import urllib.request

SECONDS, SCRAPE = 120, 10
MOUNTS = ["/:/rootfs:ro", "/var/run:/var/run:ro", "/sys:/sys:ro", "/var/lib/docker:/var/lib/docker:ro"]
UNTUNED = {
    "node-exporter": (
        ["--network=host", "--volume=/:/rootfs:ro", "--entrypoint=/bin/node_exporter"],
        ["--path.rootfs=/rootfs", "--web.listen-address=127.0.0.1:19100"],
        19100,
    ),
    "cadvisor": (
        ["--network=host", *(f"--volume={mount}" for mount in MOUNTS), "--entrypoint=/usr/bin/cadvisor"],
        ["--listen_ip=127.0.0.1", "--port=18080"],
        18080,
    ),
}


class Engine(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/docker.sock")


def stats(container: str) -> tuple[float, float]:
    """Return the seconds of CPU that a container has used and the MB that it has now."""
    engine = Engine("localhost")
    engine.request("GET", f"/containers/{container}/stats?stream=false&one-shot=true")
    record = json.load(engine.getresponse())
    memory = record["memory_stats"]["stats"]
    return record["cpu_stats"]["cpu_usage"]["total_usage"] / 1e9, memory.get("rss", memory.get("anon", 0)) / 2**20


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout.strip()


def measure(containers: dict[str, str], ports: list[int]) -> dict[str, tuple[float, float]]:
    """Return percent of one core and MB of each container, after a time to settle."""
    begin: dict[str, tuple[float, float]] = {}
    for passed in range(0, SECONDS + 20, SCRAPE):
        if passed == 20:
            began = time.monotonic()
            begin = {name: stats(container) for name, container in containers.items()}
        for port in ports:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SCRAPE).read()
        time.sleep(SCRAPE)
    end, seconds = {name: stats(container) for name, container in containers.items()}, time.monotonic() - began
    return {name: ((end[name][0] - begin[name][0]) / seconds * 100, end[name][1]) for name in containers}


def main() -> None:
    running = docker("ps", "--filter=name=^fltestbed-", "--format={{.Names}}").split()
    deployed = {name: each for name in (*UNTUNED, "cadvisor-proxy") for each in running if each.endswith(f"-{name}-1")}
    rows = {f"{name}, as deployed": figures for name, figures in measure(deployed, []).items()}
    started = {}
    try:
        for name, (options, arguments, _port) in UNTUNED.items():
            if name not in deployed:
                continue
            image = docker("inspect", "--format={{.Config.Image}}", deployed[name])
            started[name] = docker("run", "--detach", *options, image, *arguments)
        untuned = measure(started, [UNTUNED[name][2] for name in started])
    finally:
        if started:
            docker("rm", "--force", *started.values())
    rows |= {f"{name}, untuned": figures for name, figures in untuned.items()}
    print("| what | CPU, % of a core | memory, MB |\n|---|---|---|")
    for what, (cpu, memory) in rows.items():
        print(f"| {what} | {cpu:.2f} | {memory:.0f} |")


if __name__ == "__main__":
    main()
