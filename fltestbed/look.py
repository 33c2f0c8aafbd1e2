"""Looks at a host again and again while its output is read; runs there, below plugins/module_utils/testbed_docker.py.

Arguments: Compose project, the folder of the testbed's runs (empty: not the server), seconds between two looks.
Prints a JSON object a line. Ends with its standard input, or when nobody has answered on it for LEASE seconds.
"""

# ruff: noqa: F821
# mypy: ignore-errors
import json
import os
import select
import sys
import time
from pathlib import Path

LEASE = 30
CGROUPS = Path("/sys/fs/cgroup")
pids = {}
read = {}


def number(path, key=""):
    """Return a file's number, or that of the line which begins with `key`."""
    text = path.read_text()
    return int(text) if not key else next(int(line.split()[1]) for line in text.splitlines() if line.split()[0] == key)


def client(container):
    """Return what a client's container uses now: CPU (s since its start), memory (bytes), its limits, if it trains."""
    key = container["Id"]
    if not Path(f"/proc/{pids.get(key, 'none')}/cgroup").exists():
        pids[key] = inspect(key)["State"]["Pid"]
    pid = pids[key]
    paths = {
        controller: path.lstrip("/")
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        for _number, controllers, path in [line.split(":", 2)]
        for controller in controllers.split(",")
    }
    if "cpuacct" in paths:
        group = CGROUPS / "cpuacct" / paths["cpuacct"]
        seconds = number(group / "cpuacct.usage") / 1e9
        memory = CGROUPS / "memory" / paths.get("memory", "off")
        used, cache = "memory.usage_in_bytes", "total_inactive_file"
    else:
        group = memory = CGROUPS / paths[""]
        seconds = number(group / "cpu.stat", "usage_usec") / 1e6
        used, cache = "memory.current", "inactive_file"
    is_counted = (memory / used).exists()  # not where the kernel's memory controller is off
    cpus, limit = cgroup_limits(pid)
    return {
        "cpu_seconds": seconds,
        "at": time.monotonic(),
        "memory": number(memory / used) - number(memory / "memory.stat", cache) if is_counted else None,
        "cpus": cpus,
        "memory_limit": limit,
        "trains": any(map(trains, (group / "cgroup.procs").read_text().split())),
    }


def trains(pid):
    try:
        return b"flwr-clientapp" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def clients(project):
    """Return what each client's container uses, by client; None for one that does not run."""
    found = {}
    for container in containers(project):
        service = container["Labels"].get("com.docker.compose.service", "")
        if service.startswith("client-"):
            try:
                found[service[7:]] = client(container) if container["State"] == "running" else None
            except (OSError, ValueError, StopIteration, TypeError):  # it ended meanwhile
                found[service[7:]] = None
    return found


def news(file):
    """Return the rows that a .jsonl file got since the last look."""
    path = str(file)
    if not file.exists():
        return []
    with file.open() as lines:
        lines.seek(read.get(path, 0))
        text = lines.read()
    whole = text[: text.rfind("\n") + 1]
    read[path] = read.get(path, 0) + len(whole.encode())
    return [json.loads(line) for line in whole.splitlines()]


def latest_run(runs):
    """Return the run that changed last, its record, and its new rows; None where there is none."""
    folders = [entry for entry in os.scandir(runs) if entry.is_dir()] if Path(runs).is_dir() else []
    if not folders:
        return None
    folder = Path(max(folders, key=lambda entry: entry.stat().st_mtime).path)
    record = {"status": "starting", "reason": None, "round": 0, "rounds": None}
    if (folder / "run.json").exists():
        record = json.loads((folder / "run.json").read_text())
    rows = {name: news(folder / f"{name}.jsonl") for name in ("rounds", "clients")}
    rows["conditions"] = news(Path(runs).parent / "submitted" / f"{folder.name}.conditions")
    return {"name": folder.name, "record": record} | rows


def main():
    project, runs, interval = sys.argv[1], sys.argv[2], float(sys.argv[3])
    heard = time.monotonic()
    while time.monotonic() < heard + LEASE:
        seen = {"run": latest_run(runs)} if runs else {}
        try:
            seen["clients"] = clients(project)
        except (EngineUnreachable, ValueError):
            seen["clients"] = None
        print(json.dumps(seen), flush=True)
        until = time.monotonic() + interval
        while (left := until - time.monotonic()) > 0:
            if select.select([0], [], [], left)[0]:
                if not os.read(0, 4096):
                    return
                heard = time.monotonic()


if __name__ == "__main__":
    main()
