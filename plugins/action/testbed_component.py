"""Renders a component role's templates on the controller into the state that its host is to have."""

from __future__ import annotations

DOCUMENTATION = r"""
name: testbed_component
short_description: Add the calling role's services and files to the host's state
description:
  - Renders C(templates/component.yml.j2) and every file below C(templates/tree/) of the calling role, and merges them
    into the
    fact C(testbed_tree) of the host. Nothing is sent to the host; the role C(host) delivers and converges the sum.
  - A template's path below C(templates/tree/), without C(.j2), is the file's path below the testbed's folder on the
    host.
  - "C(component.yml.j2) has C(services) and C(networks) as Compose knows them, and three more keys, each by path on
    the host:
    C(directories) (C(mode), C(uid)), C(files) and C(secrets) (C(from), a file on the controller; C(uid); of a file
    C(mode) too)."
  - A service's C(x-config) names files and secrets that it reads. Their hash becomes the label C(fltestbed.config),
    so that
    Compose recreates the service when, and only when, one of them changes.
options: {}
author: fltestbed authors
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.template import trust_as_template

_PARTS = ("services", "networks")


class ActionModule(ActionBase):
    """Controller-only: no connection to the host is opened."""

    TRANSFERS_FILES = False
    _requires_connection = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        self.validate_argument_spec(argument_spec={})
        if self._task._role is None:
            raise AnsibleActionFail("testbed_component is called by a component role, not by a play")
        templates = Path(self._task._role._role_path) / "templates"
        component = yaml.safe_load(self._render(templates / "component.yml.j2"))

        files = {name: _read(entry) for name, entry in (component.get("files") or {}).items()}
        for template in sorted((templates / "tree").rglob("*.j2")):
            files[template.relative_to(templates / "tree").with_suffix("").as_posix()] = {
                "content": self._render(template)
            }
        secrets = {name: _read(entry) for name, entry in (component.get("secrets") or {}).items()}
        for service in (component.get("services") or {}).values():
            names = service.pop("x-config", [])
            if names:
                read = json.dumps([[name, (files | secrets)[name]] for name in names])
                service.setdefault("labels", {})["fltestbed.config"] = hashlib.sha256(read.encode()).hexdigest()[:16]

        tree = (task_vars or {}).get("ansible_facts", {}).get("testbed_tree", {})
        added = {part: component.get(part) or {} for part in (*_PARTS, "directories")}
        added |= {
            "files": files | {name: {"uid": entry["uid"]} for name, entry in secrets.items()},
            "secrets": {name: entry["content"] for name, entry in secrets.items()},
        }
        result["ansible_facts"] = {"testbed_tree": {part: tree.get(part, {}) | new for part, new in added.items()}}
        result["_ansible_no_log"] = True
        return result

    def _render(self, template: Path) -> str:
        overrides = {"trim_blocks": True, "lstrip_blocks": True}
        return str(self._templar.template(trust_as_template(template.read_text()), overrides=overrides))


def _read(entry: dict[str, Any]) -> dict[str, Any]:
    mode = {"mode": entry["mode"]} if "mode" in entry else {}
    return {"content": Path(entry["from"]).read_text(), "uid": entry.get("uid", 0), **mode}
