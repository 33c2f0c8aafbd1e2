"""Runs Ansible's modules in this process, with their real AnsibleModule and real files."""

import importlib.util
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import ansible.module_utils
import pytest
from ansible.module_utils.testing import patch_module_args

PLUGINS = Path(__file__).parents[1] / "plugins"
ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))


def load(kind: str, name: str) -> ModuleType:
    """Return plugins/KIND/NAME.py as a Python module."""
    path = PLUGINS / kind / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"fltestbed_{kind}_{name}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def run(module: ModuleType, *, check: bool = False, **params: Any) -> dict[str, Any]:
    """Return what a module answers, `failed` included, with all that it printed as `printed`."""
    said = io.StringIO()
    arguments = params | {"_ansible_check_mode": check, "_ansible_diff": True}
    with patch_module_args(arguments), redirect_stdout(said), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(said.getvalue())
    return {"changed": False, "failed": False} | answer | {"printed": said.getvalue()}
