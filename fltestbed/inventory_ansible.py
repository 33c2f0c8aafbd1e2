"""`python -m fltestbed.inventory_ansible FOLDER` prints, as JSON, what Ansible makes of an inventory folder.

It runs apart from the program, with the environment that the playbooks get, so that both see the same variables. Only
the variables of the connection are templated: all others are data here, and a lookup in them does not run.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from fltestbed.paths import content_dir

SSH_ARGUMENTS = ("ansible_ssh_args", "ansible_ssh_common_args", "ansible_ssh_extra_args")
"""Arguments of ssh, in the order in which Ansible gives them."""
CONNECTION = (
    "ansible_connection",
    "ansible_host",
    "ansible_port",
    "ansible_user",
    "ansible_ssh_private_key_file",
    "ansible_host_key_checking",
    "ansible_ssh_host_key_checking",
    *SSH_ARGUMENTS,
    "ansible_become",
)
_ANSIBLES_OWN = (
    *("ansible_config_file", "ansible_facts", "ansible_local", "ansible_playbook_python", "ansible_version"),
    *("group_names", "groups", "inventory_dir", "inventory_file", "inventory_hostname", "inventory_hostname_short"),
    *("omit", "playbook_dir"),
)


def view(folder: str) -> dict[str, Any]:
    """Return Ansible's view of a folder.

    `groups`: the hosts of each, in order. `hosts`: of each its `variables`, `origins` (file:line of every value, by its
    dotted path) and `failed` (why a variable of the connection cannot be templated). `error`: why there is no view.
    """
    from ansible._internal._datatag._tags import Origin
    from ansible.errors import AnsibleError
    from ansible.inventory.manager import InventoryManager
    from ansible.parsing.dataloader import DataLoader
    from ansible.parsing.vault import get_file_vault_secret
    from ansible.template import Templar
    from ansible.vars.manager import VariableManager

    def origin(value: Any) -> str:
        tag = Origin.get_tag(value)
        return f"{tag.path}:{tag.line_num}" if tag and tag.line_num else ""

    def origins(value: Any, at: str, known: str) -> Iterator[tuple[str, str]]:
        yield at, known
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield from origins(item, f"{at}.{key}", origin(key) or origin(item) or known)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from origins(item, f"{at}.{index}", origin(item) or known)

    loader = DataLoader()
    file = content_dir() / "roles/testbed/defaults/main.yml"
    defaults: dict[str, Any] = loader.load_from_file(str(file), trusted_as_template=True)
    answer: dict[str, Any] = {"groups": {}, "hosts": {}}
    try:
        if vault := os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE"):
            secret = get_file_vault_secret(vault, loader=loader)
            secret.load()
            loader.set_vault_secrets([("default", secret)])
        inventory = InventoryManager(loader=loader, sources=[folder])
        manager = VariableManager(loader=loader, inventory=inventory)
        for name, group in inventory.groups.items():
            answer["groups"][name] = [host.name for host in group.get_hosts()]
        for host in inventory.get_hosts():
            known = manager.get_vars(host=host)
            templar = Templar(loader=loader, variables=defaults | known)
            entry: dict[str, Any] = {"variables": {}, "origins": {}, "failed": {}}
            for name, value in known.items():
                if name in _ANSIBLES_OWN:
                    continue
                entry["origins"] |= origins(value, name, origin(name) or origin(value))
                try:
                    entry["variables"][name] = templar.template(value) if name in CONNECTION else value
                except AnsibleError as error:
                    entry["failed"][name] = str(error).splitlines()[0]
            answer["hosts"][host.name] = entry
    except AnsibleError as error:
        return {"error": str(error)}
    return answer


def dump(folder: str) -> str:
    """Return the view as JSON on one line, without what JSON has no word for, as a date or an encrypted text."""
    return json.dumps(_with_text_keys(view(folder)), default=lambda value: "<not a text>")


def _with_text_keys(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_text_keys(item) for key, item in value.items()}
    return [_with_text_keys(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    print(dump(sys.argv[1]))
