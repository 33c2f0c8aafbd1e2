"""The testbed's Prometheus, and what the dashboards ask it."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from .lab import REPOSITORY, Lab

# What virtual devices do not have, by a metric of the query.
NO_DATA = {
    "node_cpu_scaling_frequency_hertz": "no frequency is shown in a container",
    "device:temperature:celsius": "no sensor",
    "rpi_firmware_flag": "no Raspberry Pi",
    "node_rapl_package_joules_total": "no counter of energy",
    "node_hwmon_power_average_watt": "no sensor",
    "node_pressure_": "some kernels are built without pressure stall information",
    "container_oom_events_total": "Debian's cAdvisor does not count kills",
}

ASK = """
import json, sys, urllib.request
for line in sys.stdin:
    try:
        with urllib.request.urlopen("http://127.0.0.1:9090" + line.strip(), timeout=30) as answer:
            print(json.dumps(json.load(answer)["data"]))
    except OSError as error:
        print(json.dumps({"error": str(error)}))
"""


class Prometheus:
    """The testbed's Prometheus, asked on its own host."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def get(self, *paths: str) -> list[Any]:
        """Return the data of each answer; one start of Python for all of them."""
        lines = "\n".join(paths)
        said = self._lab.on("server", "bash", "-c", f"python3 -c '{ASK}' <<'END'\n{lines}\nEND")
        return [json.loads(line) for line in said.splitlines()]

    def query(self, *expressions: str) -> list[list[dict[str, Any]]]:
        answers = self.get(*(f"/api/v1/query?{urlencode({'query': expression})}" for expression in expressions))
        return [answer.get("result", []) for answer in answers]

    def firing(self) -> set[tuple[str, str]]:
        """Return the alerts that fire, each with its device."""
        (series,) = self.query('ALERTS{alertstate="firing"}')
        return {(each["metric"]["alertname"], each["metric"].get("device", "")) for each in series}


def panel_queries() -> Iterator[tuple[str, str]]:
    """Yield every query of every panel, with where it stands, the dashboards' variables filled in."""
    for path in sorted((REPOSITORY / "roles/grafana/files/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                expression = re.sub(r"\$(device|client)\b", ".*", target["expr"])
                yield f"{path.stem}: {panel['title']}: {expression}", expression


def queries_with_data() -> dict[str, str]:
    """Return what virtual devices have to have data for while they train, by where it stands."""
    return {where: query for where, query in panel_queries() if not any(name in query for name in NO_DATA)}
