"""What a module documents is what it takes, and Ansible's own programs can read it."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_modules import PLUGINS, load

ROOT = PLUGINS.parent
MODULES = sorted(path.stem for path in (PLUGINS / "modules").glob("*.py"))


# What runs on the hosts, with their Python; the module testbed_experiment is the controller's, as it uses fltestbed.
ON_HOSTS = [
    ROOT / "fltestbed/look.py",
    ROOT / "scripts/monitoring_cost.py",
    *sorted((PLUGINS / "module_utils").glob("*.py")),
    *(PLUGINS / "modules" / f"{name}.py" for name in MODULES if name != "testbed_experiment"),
]


@pytest.mark.parametrize("path", ON_HOSTS, ids=lambda path: path.stem)
def test_what_runs_on_hosts_is_written_in_the_oldest_python_that_check_accepts(path: Path) -> None:
    oldest = load("modules", "testbed_check").LEAST_PYTHON
    ast.parse(path.read_text(encoding="utf-8"), feature_version=oldest)


def test_what_runs_on_hosts_uses_no_newer_python() -> None:
    vermin = Path(sys.executable).parent / "vermin"
    if not vermin.exists():
        pytest.skip("vermin is missing: make venv installs it")
    oldest = ".".join(map(str, load("modules", "testbed_check").LEAST_PYTHON))
    done = subprocess.run(
        [vermin, f"--target={oldest}-", "--violations", "--no-tips", *ON_HOSTS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def texts(path: Path) -> dict[str, str]:
    """Return a file's documentation by the name that Ansible wants for it."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            found |= {target.id: node.value.value for target in node.targets if isinstance(target, ast.Name)}
    return found


class Taken(Exception):
    """What a module gave to AnsibleModule."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments


def plain(options: dict[str, Any] | None, inner: str) -> dict[str, Any]:
    """Return options as both sides can say them; `inner` is what a side calls the options of a dict."""
    return {
        name: {
            "type": option.get("type", "str"),
            "elements": option.get("elements"),
            "required": option.get("required", False),
            "default": option.get("default"),
            "choices": option.get("choices"),
            "options": plain(option.get(inner) or {}, inner),
        }
        for name, option in (options or {}).items()
    }


@pytest.mark.parametrize("name", MODULES)
def test_a_module_takes_what_it_documents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("modules", name)

    def take(**arguments: Any) -> None:
        raise Taken(**arguments)

    monkeypatch.setattr(module, "AnsibleModule", take)
    with pytest.raises(Taken) as taken:
        module.main()
    documented = yaml.safe_load(module.DOCUMENTATION)
    assert documented["module"] == name
    assert plain(documented.get("options"), "suboptions") == plain(taken.value.arguments["argument_spec"], "options")


def test_ansible_doc_reads_every_module() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-doc"), "--json", *MODULES],
        cwd=ROOT,
        env=os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    documented = json.loads(done.stdout)
    assert sorted(documented) == MODULES
    for name, page in documented.items():
        assert page["doc"]["short_description"], name
        for key, value in page["return"].items():
            assert value["description"] and value["type"], f"{name}: {key}"


@pytest.mark.parametrize("path", sorted((PLUGINS / "action").glob("*.py")), ids=lambda path: path.stem)
def test_an_action_plugin_documents_itself(path: Path) -> None:
    documented = yaml.safe_load(texts(path)["DOCUMENTATION"])
    assert documented["name"] == path.stem
    assert documented["description"]
