"""Hashes what a host's state is made from, and asks the host whether it still is in that state."""

from __future__ import annotations

DOCUMENTATION = r"""
name: testbed_settled
short_description: Ask a host whether it still is as the last deployment left it
description:
  - Hashes on the controller what a deployment is made from (roles, plugins, variables, keys, and whether a certificate
    is due), and gives the hash to the module of this name. C(pki) is the folder of the keys. C(inputs), which a
    comparison returned, is given when the state is recorded.
  - A host on which anything differs joins the group C(testbed_unsettled).
  - Adds C(clock), how far the host's clock is ahead of the controller's at C(least) and at C(most), in seconds.
options: {}
author: fltestbed authors
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from fltestbed.certificates import RENEW_DAYS, due

_CODE = Path(__file__).parents[2]
_ENVIRONMENT = ("HOME", "PWD", "XDG_CACHE_HOME")
# Of the variables that Ansible adds, one matters to what is deployed: the address.
_NOT_OURS = ("environment", "groups", "hostvars", "play_hosts", "playbook_dir", "role_names", "vars")
_OF_A_DEVICE_ALONE = ("testbed_client", "testbed_clients", "testbed_network")


class ActionModule(ActionBase):
    """Takes the keys' folder as `pki` besides the module's arguments."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        inputs = arguments.pop("inputs", None) or _hash(self._describe(task_vars or {}))
        pki = Path(arguments.pop("pki"))
        renew_days = self._templar.template((task_vars or {}).get("certificates_renew_days", RENEW_DAYS))
        arguments["inputs"] = _hash([inputs, _contents([pki]), due(pki, renew_days)])
        before = time.time()
        result |= self._execute_module(
            module_name="testbed_settled", module_args=arguments, task_vars=task_vars, wrap_async=False
        )
        if now := result.pop("now", None):
            result["clock"] = {"least": now - time.time(), "most": now - before}
        result["inputs"] = inputs
        if result.get("settled") is False:
            result |= {"add_group": "testbed_unsettled", "parent_groups": ["all"]}
        return result

    def _describe(self, variables: Mapping[str, Any]) -> list[Any]:
        """Return all that a host's state is made from, except keys: this program, the inventory, the command line.

        A device's state depends on its own variables, the server's, and how many clients each device has; the state of
        a host that serves the others on the variables of all, without those of what a client or a device may use.
        """
        name, groups = variables["inventory_hostname"], variables["groups"]
        server = groups["superlink"][0]
        every = {host: self._variables(variables, host) for host in groups["testbed"]}
        if name in (server, *groups.get("monitoring", [])):
            seen: dict[str, Any] = {
                host: {key: value for key, value in own.items() if host == name or key not in _OF_A_DEVICE_ALONE}
                for host, own in every.items()
            }
        else:
            seen = {host: every[host] for host in (name, server)}
        layout = [[host, _clients(every[host].get("testbed_clients"))] for host in groups["supernodes"]]
        code = _contents([_CODE / "roles", _CODE / "plugins", _CODE / "playbooks" / "up.yml"])
        monitored = groups.get("monitoring", [])
        return [code, seen, layout, monitored, [os.environ.get(key) for key in _ENVIRONMENT]]

    def _variables(self, variables: Mapping[str, Any], host: str) -> dict[str, Any]:
        """Return what inventory and command line set on a host; of this host the values, of others the expressions."""
        here = host == variables["inventory_hostname"]
        return {
            key: self._value(value) if here else value
            for key, value in variables["hostvars"].raw_get(host).items()
            if key not in _NOT_OURS and (key == "ansible_host" or not key.startswith("ansible_"))
        }

    def _value(self, expression: Any) -> Any:
        try:
            return self._templar.template(expression)
        except AnsibleError:
            return expression  # of facts, which are not gathered yet


def _clients(entries: Any) -> Any:
    return len(entries) if isinstance(entries, list) else entries


def _contents(tops: Iterable[Path]) -> dict[str, str]:
    """Return a hash of each file below some folders."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for top in tops
        for path in ([top] if top.is_file() else sorted(top.rglob("*")))
        if path.is_file() and "__pycache__" not in path.parts
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
