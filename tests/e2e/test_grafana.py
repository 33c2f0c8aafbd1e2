"""Grafana's official image with what the role gives it; skipped where it can't be pulled."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from .lab import REPOSITORY

ROLE = REPOSITORY / "roles/grafana"
IMAGES = yaml.safe_load((REPOSITORY / "roles/images/defaults/main.yml").read_text())["images_upstream"]
IMAGE = IMAGES["grafana"]["image"]
NAME = "e2e-grafana"


def docker(*arguments: str, seconds: int = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start Grafana, provisioned by the role's own files, and return its address."""
    if docker("image", "inspect", IMAGE).returncode:
        try:
            pulled = docker("pull", "--quiet", IMAGE, seconds=300)
        except subprocess.TimeoutExpired:
            pytest.skip(f"{IMAGE} cannot be pulled within 300 s")
        if pulled.returncode:
            pytest.skip(f"{IMAGE} cannot be pulled: {pulled.stderr.strip()[-200:]}")
    config = tmp_path_factory.mktemp("grafana")
    shutil.copytree(ROLE / "files/dashboards", config / "dashboards")
    for template in (ROLE / "templates/tree/grafana").rglob("*.j2"):
        target = config / template.relative_to(ROLE / "templates/tree/grafana").with_suffix("")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(template.read_text())
    for path in (config, *config.rglob("*")):
        path.chmod(0o755)
    environment = {
        "GF_SECURITY_ADMIN_USER": "fltestbed",
        "GF_SECURITY_ADMIN_PASSWORD": "testing",
        "GF_PATHS_PROVISIONING": "/etc/fltestbed/provisioning",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_PLUGINS_PREINSTALL_DISABLED": "true",
    }
    mounted = f"{config}:/etc/fltestbed:ro"
    options = [option for name, value in environment.items() for option in ("--env", f"{name}={value}")]
    docker("rm", "--force", "--volumes", NAME)
    started = docker(
        "run", "--detach", "--name", NAME, "--publish=127.0.0.1::3000", "--volume", mounted, *options, IMAGE
    )
    assert started.returncode == 0, started.stderr
    try:
        yield f"http://{docker('port', NAME, '3000').stdout.split()[0]}"
    finally:
        print(docker("logs", NAME).stdout[-4000:])
        docker("rm", "--force", "--volumes", NAME)


def ask(url: str) -> object:
    request = urllib.request.Request(url)  # noqa: S310
    request.add_header("Authorization", f"Basic {base64.b64encode(b'fltestbed:testing').decode()}")
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return json.load(answer)


def test_grafana_shows_every_dashboard(address: str) -> None:
    wanted = {f"fltestbed-{path.stem}" for path in Path(ROLE / "files/dashboards").glob("*.json")}
    deadline, there = time.monotonic() + 180, set[str]()
    while there != wanted and time.monotonic() < deadline:
        time.sleep(1)
        try:
            found = ask(f"{address}/api/search?tag=fltestbed")
        except OSError:
            continue
        assert isinstance(found, list)
        there = {entry["uid"] for entry in found}
    assert there == wanted
    source = ask(f"{address}/api/datasources/uid/prometheus")
    assert isinstance(source, dict) and source["url"] == "http://prometheus:9090"
