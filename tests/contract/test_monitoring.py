"""Rules and dashboards: promtool lets every alert fire, and what is committed is what the code builds."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "roles/prometheus/files/rules"
DASHBOARDS = ROOT / "roles/grafana/files/dashboards"
CASES = Path(__file__).with_name("rules.yml")


@pytest.fixture(scope="module")
def promtool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return promtool: the machine's, the one of a testbed's image, or the one of Debian's package."""
    if found := shutil.which("promtool"):
        return Path(found)
    target = tmp_path_factory.mktemp("promtool") / "promtool"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "fltestbed/images")
    for manifest in cache.glob(f"prometheus-*-{os.uname().machine}/manifest.json"):
        (image,) = json.loads(manifest.read_text())
        with tarfile.open(cache / image["Layers"][-1]) as layer:
            if "usr/bin/promtool" in layer.getnames():
                return unpacked(layer, "usr/bin/promtool", target)
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        subprocess.run(["apt-get", "-qq", "download", "prometheus"], cwd=target.parent, check=False, timeout=300)
        for package in target.parent.glob("prometheus_*.deb"):
            files = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
            with tarfile.open(fileobj=io.BytesIO(files)) as archive:
                return unpacked(archive, "./usr/bin/promtool", target)
    pytest.skip("no promtool: it is neither installed nor in a testbed's image, and Debian's package cannot be had")


def unpacked(archive: tarfile.TarFile, name: str, target: Path) -> Path:
    content = archive.extractfile(name)
    assert content
    with target.open("wb") as out:
        shutil.copyfileobj(content, out)
    target.chmod(0o755)
    return target


def alerts() -> dict[str, dict[str, Any]]:
    groups = yaml.safe_load((RULES / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def dashboards() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(DASHBOARDS.glob("*.json")):
        yield path.stem, json.loads(path.read_text(encoding="utf-8"))


def test_every_alert_fires_when_it_must(promtool: Path, tmp_path: Path) -> None:
    for path in [*RULES.glob("*.yml"), CASES]:
        shutil.copy(path, tmp_path)
    done = subprocess.run(
        [promtool, "test", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_every_alert_has_a_case_in_which_it_fires_and_an_instruction() -> None:
    cases = [
        case for test in yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"] for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts())
    for name, rule in alerts().items():
        assert {"summary", "action"} == set(rule["annotations"]), name
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), name


def test_the_dashboards_are_what_their_code_builds() -> None:
    pytest.importorskip("grafana_foundation_sdk")
    done = subprocess.run(
        [sys.executable, ROOT / "dashboards/build.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_dashboards_ask_the_one_data_source_for_what_is_recorded() -> None:
    recorded = set(re.findall(r"record: (\S+)", (RULES / "recording.yml").read_text(encoding="utf-8")))
    names = set()
    for name, page in dashboards():
        assert page["uid"] == f"fltestbed-{name}"
        for panel in page["panels"]:
            assert panel["type"] == "row" or panel["targets"], panel["title"]
            for target in panel.get("targets", []):
                assert target["datasource"]["uid"] == "prometheus"
                names |= set(re.findall(r"[a-z_]+:[a-z_]+:[a-z_]+", target["expr"]))
    assert names <= recorded
