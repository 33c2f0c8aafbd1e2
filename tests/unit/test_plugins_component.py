"""testbed_component, called by two roles of a real playbook."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible_modules import PLUGINS

SECRET = "canary-9d2e"  # noqa: S105 nothing is behind it

SERVER = """
services:
  superlink:
    image: app
    command: [serve, "{{ name }}"]
    x-config: [superlink/ca.crt, superlink/server.key, superlink/settings.toml]
    labels: {kind: server}
  proxy:
    image: proxy
    x-config: [proxy/nginx.conf]
  plain: {image: app}
networks:
  control: {internal: true}
directories:
  state: {mode: "0700", uid: 10001}
files:
  superlink/ca.crt: {from: "{{ playbook_dir }}/ca.crt"}
secrets:
  superlink/server.key: {from: "{{ playbook_dir }}/server.key", uid: 10001}
"""
DEVICE = """
services:
{% for client in clients %}
  client-{{ client }}: {image: app}
{% endfor %}
directories:
{% for client in clients %}
  data/{{ client }}: {}
{% endfor %}
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for role, component in (("server", SERVER), ("device", DEVICE)):
        write(tmp_path / f"roles/{role}/tasks/main.yml", "- {name: Render, testbed_component: }\n")
        write(tmp_path / f"roles/{role}/templates/component.yml.j2", component)
    tree = tmp_path / "roles/server/templates/tree"
    write(tree / "superlink/settings.toml.j2", "speed = {{ speed }}\n")
    write(tree / "proxy/nginx.conf.j2", "{% if tls %}\nlisten ssl;\n{% endif %}\nend;\n")
    write(tmp_path / "ca.crt", "certificate")
    write(tmp_path / "server.key", SECRET)
    return tmp_path


def play(folder: Path, *roles: str, **variables: Any) -> tuple[dict[str, Any], str]:
    """Return the host's state after these roles, and what Ansible printed."""
    tasks: list[dict[str, Any]] = [{"include_role": {"name": role}} for role in roles]
    tasks.append({"debug": {"msg": "STATE={{ ansible_facts.testbed_tree | to_json | b64encode }}="}})
    values = {"name": "lab", "speed": 1, "tls": True, "clients": ["pi-1", "pi-2"]} | variables
    write(
        folder / "play.yml", json.dumps([{"hosts": "localhost", "gather_facts": False, "vars": values, "tasks": tasks}])
    )
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i",
            "localhost,",
            "-c",
            "local",
            "-vvv",
            "--diff",
            "play.yml",
        ],
        cwd=folder,
        env=os.environ | {"ANSIBLE_CONFIG": str(PLUGINS.parent / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    state = said.partition("STATE=")[2].partition('="')[0]
    return json.loads(base64.b64decode(state)), said


def label(state: dict[str, Any], service: str) -> str:
    return str(state["services"][service]["labels"]["fltestbed.config"])


def test_two_roles_make_one_state(folder: Path) -> None:
    state, said = play(folder, "server", "device")
    assert sorted(state["services"]) == ["client-pi-1", "client-pi-2", "plain", "proxy", "superlink"]
    assert state["services"]["superlink"]["command"] == ["serve", "lab"]
    assert state["services"]["superlink"]["labels"]["kind"] == "server"
    assert state["services"]["plain"] == {"image": "app"}
    assert state["networks"] == {"control": {"internal": True}}
    assert state["directories"] == {"state": {"mode": "0700", "uid": 10001}, "data/pi-1": {}, "data/pi-2": {}}
    assert state["files"] == {
        "superlink/ca.crt": {"content": "certificate", "uid": 0},
        "superlink/settings.toml": {"content": "speed = 1\n"},
        "proxy/nginx.conf": {"content": "listen ssl;\nend;\n"},
        "superlink/server.key": {"uid": 10001},
    }
    assert state["secrets"] == {"superlink/server.key": SECRET}
    assert "x-config" not in json.dumps(state)
    assert SECRET not in said, "with -vvv and --diff"


def test_a_label_changes_when_and_only_when_a_file_of_the_service_does(folder: Path) -> None:
    before, _ = play(folder, "server")
    template, _ = play(folder, "device", "server", speed=2)
    assert label(template, "superlink") != label(before, "superlink")
    assert label(template, "proxy") == label(before, "proxy")

    write(folder / "server.key", "another key")
    secret, _ = play(folder, "server")
    assert label(secret, "superlink") != label(before, "superlink")
    assert label(secret, "proxy") == label(before, "proxy")

    write(folder / "server.key", SECRET)
    same, _ = play(folder, "server", name="other")
    assert label(same, "superlink") == label(before, "superlink")


def test_the_roles_of_this_project_name_only_files_that_they_bring() -> None:
    """A typo in x-config would be an error at deployment; here it is one at once."""
    for template in sorted((PLUGINS.parent / "roles").glob("*/templates/component.yml.j2")):
        text = template.read_text()
        tree = {
            path.relative_to(template.parent / "tree").with_suffix("").as_posix()
            for path in (template.parent / "tree").rglob("*.j2")
        }
        for line in text.splitlines():
            if "x-config:" not in line:
                continue
            for name in line.partition("[")[2].rpartition("]")[0].split(", "):
                assert name in tree or f"  {name}: {{from:" in text, f"{template}: {name}"
