"""What a round takes beyond training: through fltestbed, and with the same model and data started by hand.

By hand is a Flower app (benchmarks/by_hand) with Flower's own FedAvg, and SuperLink and SuperNodes with Flower's
defaults, without TLS, in containers of the same image, on the same devices and with the same limits.

    python benchmarks/rounds.py [--rounds 5]

The devices are virtual ones on this machine's Docker engine, and are removed at the end.
"""

import argparse
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from deploy import NAME, REPOSITORY, SUBNET, Bench

CLIENT = "{cpus: 0.8, memory: 768m, batch_size: 32, learning_rate: 0.02}"
DEVICES = ("device-1", "device-2")
PORT = 9292
CONFIG = '[superlink.testbed]\naddress = "127.0.0.1:8000"\ninsecure = true\n'


def on(device: str, *command: str, text: str | None = None) -> str:
    """Run a command as root on a device, with this text as its input; return what it prints."""
    done = subprocess.run(
        ["docker", "exec", "--interactive", f"{NAME}-{device}", *command],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def through_fltestbed(bench: Bench, rounds: int) -> list[tuple[float, float]]:
    """Return each round's seconds, and its slowest client's seconds of training."""
    bench.fltestbed("run", "fashion-mnist-cnn", "--set", "partitioner={name: iid}", "--set", f"rounds={rounds}")
    run = max((bench.folder / "runs").iterdir())
    rows = [[json.loads(line) for line in (run / name).open()] for name in ("rounds.jsonl", "clients.jsonl")]
    slowest: dict[int, float] = {}
    for row in rows[1]:
        slowest[row["round"]] = max(slowest.get(row["round"], 0.0), row["train_seconds"])
    return [(row["seconds"], slowest[row["round"]]) for row in rows[0]]


def by_hand(rounds: int) -> list[tuple[float, float]]:
    """Do the same with Flower's own commands."""
    project = f"fltestbed-{NAME}"
    image = on("server", "docker", "inspect", "-f", "{{.Config.Image}}", f"{project}-superlink-1").strip()
    for device in ("server", *DEVICES):
        on(device, "sh", "-c", f"docker ps -q --filter label=com.docker.compose.project={project} | xargs docker stop")
    root = f"/opt/fltestbed/{NAME}"
    start = ["docker", "run", "--detach", "--name", "by-hand", "--env", "FLWR_HOME=/tmp/flwr"]
    start += ["--env", "PYTHONPATH=/python", f"--volume={root}/python:/python:ro"]  # for fltestbed's models
    superlink = ["flower-superlink", "--insecure", "--host=0.0.0.0", "--port=8000"]
    on("server", *start, f"--publish={PORT}:8000", f"--volume={root}/test:/data:ro", image, *superlink)
    for device in DEVICES:
        data = f"{root}/data/{device}:/data:ro"
        supernode = ["flower-supernode", "--insecure", f"--superlink={SUBNET}10:{PORT}"]
        on(device, *start, "--cpus=0.8", "--memory=1g", f"--volume={data}", image, *supernode)
    into = ["docker", "exec", "--interactive", "by-hand"]
    on("server", *into, "sh", "-c", "mkdir -p /tmp/flwr && cat >/tmp/flwr/config.toml", text=CONFIG)
    files: dict[str, Path] = {}
    for folder in (REPOSITORY / "fl_app", REPOSITORY / "benchmarks" / "by_hand"):
        files |= {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.suffix in (".py", ".toml")}
    for name, file in files.items():
        path = shlex.quote(f"/tmp/app/{name}")  # noqa: S108 in a container
        on("server", *into, "sh", "-c", f"mkdir -p $(dirname {path}) && cat >{path}", text=file.read_text())
    time.sleep(10)  # the SuperNodes come
    flwr = [*into, "flwr"]
    settings = f"num-server-rounds={rounds}"
    said = on("server", *flwr, "run", "/tmp/app", "testbed", "--run-config", settings, "--format", "json")  # noqa: S108
    number = str(json.loads(said)["run-id"])
    ask = [*flwr, "ls", "testbed", "--run-id", number, "--format", "json"]
    while not (state := json.loads(on("server", *ask))["runs"][0]["status"]).startswith("finished"):
        time.sleep(5)
    log = on("server", *flwr, "log", number, "testbed", "--show")
    found = [json.loads(row) for row in re.findall(r"ROUND (\{.*?\})", log)]
    if len(found) != rounds:
        raise SystemExit(f"the run by hand did not finish:\n{state}\n{log}")
    return [(row["seconds"], row["training"]) for row in found]


def row(what: str, rounds: Sequence[tuple[float, float]]) -> str:
    """Return a line of the table: medians of all rounds but the first, in which caches fill."""
    seconds, training = zip(*rounds[1:], strict=True)
    beyond = [whole - part for whole, part in rounds[1:]]
    return f"| {what} | {' | '.join(f'{statistics.median(values):.1f}' for values in (seconds, training, beyond))} |"


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how many rounds each way")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), len(DEVICES))
        hosts = bench.inventory / "hosts.yml"
        hosts.write_text(re.sub(r"testbed_clients: \[\{.*?\}\]", f"testbed_clients: [{CLIENT}]", hosts.read_text()))
        try:
            bench.fltestbed("lab", "up")
            bench.fltestbed("up")
            print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}; medians of {rounds - 1} rounds")
            print("| started | round s | training s | beyond it s |\n|---|---|---|---|")
            print(row("through fltestbed", through_fltestbed(bench, rounds)), flush=True)
            print(row("by hand, Flower's defaults", by_hand(rounds)), flush=True)
        finally:
            bench.fltestbed("lab", "down")


if __name__ == "__main__":
    main()
