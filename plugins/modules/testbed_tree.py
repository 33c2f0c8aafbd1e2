#!/usr/bin/python
"""Delivers a host's whole folder of config files in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: testbed_tree
short_description: Make a folder hold exactly these files
description:
  - Writes what differs, removes what an earlier call wrote and this one does not name, and leaves the rest of the
    folder alone.
  - A file lands whole (written beside its place, then renamed); the list of files that are ours lands last.
options:
  root:
    description: The folder.
    type: path
    required: true
  files:
    description: Files by path below I(root), each with C(content), and C(mode) and C(uid) where the defaults 0644 and
      0 do not fit.
    type: dict
    required: true
  secrets:
    description: Content of further files by path; they are named in I(files) too, without C(content). Never shown,
      mode 0600.
    type: dict
    default: {}
  directories:
    description: Folders by path below I(root), each with C(mode) (0755) and C(uid) (0). They are made, never removed.
    type: dict
    default: {}
  owner:
    description: Whose folder it is, C(id) and C(name). One that another id has is refused, with that one's name, and so
      is one with other people's files; empty for a folder that is nobody's.
    type: dict
    default: {}
author: fltestbed authors
"""

RETURN = r"""
written:
  description: Paths written, or that would be in check mode.
  returned: always
  type: list
  elements: str
removed:
  description: Paths removed, or that would be in check mode.
  returned: always
  type: list
  elements: str
"""

import json
import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testbed_root import FILES, OWNER, objection

HIDDEN = "(secret)\n"


def state_of(path):
    """Return (content, mode, uid) of a file or folder; a folder's content is None. All are None where there is none."""
    if path.is_symlink() or not path.exists():
        return None, None, None
    status = path.stat()
    return (path.read_text() if path.is_file() else None), status.st_mode & 0o7777, status.st_uid


def write(path, content, mode, uid):
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "w") as out:
            out.write(content)
        Path(partial).chmod(mode)
        os.chown(partial, uid, uid)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink()
        raise


def inside(root, name):
    """Return the path of a name below root. Raises ValueError for a name that leads out of it."""
    path = Path(os.path.normpath(root / name))
    if root not in path.parents:
        raise ValueError(f"{name!r} does not lie below {root}")
    return path


def main():
    os.umask(0o022)  # what runs in containers as another user reads the folders too
    module = AnsibleModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "files": {"type": "dict", "required": True},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "directories": {"type": "dict", "default": {}},
            "owner": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    root = Path(module.params["root"])
    secrets = module.params["secrets"]
    owner = module.params["owner"]
    written, removed, diff = [], [], []

    def wanted(entry, mode):
        return int(entry.get("mode", mode), 8), entry.get("uid", 0)

    try:
        if owner and (wrong := objection(root, owner["id"])):
            module.fail_json(msg=f"{wrong[0]}. To mend it: {wrong[1]}")
        if owner and not (root / OWNER).exists() and not module.check_mode:
            write(root / OWNER, json.dumps(owner), 0o644, 0)
        for name, entry in sorted(module.params["directories"].items()):
            path = inside(root, name)
            mode, uid = wanted(entry, "0755")
            if state_of(path) != (None, mode, uid):
                written.append(name + "/")
                if not module.check_mode:
                    path.mkdir(parents=True, exist_ok=True)
                    path.chmod(mode)
                    os.chown(path, uid, uid)
        for name, entry in sorted(module.params["files"].items()):
            path = inside(root, name)
            secret = name in secrets
            content = secrets[name] if secret else entry["content"]
            mode, uid = wanted(entry, "0600" if secret else "0644")
            before = state_of(path)
            if before == (content, mode, uid):
                continue
            written.append(name)
            old = before[0] or ""
            diff.append(
                {
                    "before_header": name,
                    "after_header": f"{name} (mode {mode:04o}, uid {uid})",
                    "before": (HIDDEN if old else "") if secret else old,
                    "after": HIDDEN if secret else content,
                }
            )
            if not module.check_mode:
                write(path, content, mode, uid)
        record = root / FILES
        names = sorted(module.params["files"])
        ours = json.loads(record.read_text()) if record.exists() else []
        for name in sorted(set(ours) - set(names)):
            path = inside(root, name)
            if path.exists():
                removed.append(name)
                diff.append({"before_header": name, "after_header": "(removed)", "before": "", "after": ""})
                if not module.check_mode:
                    path.unlink()
        if names != ours and not module.check_mode:
            write(record, json.dumps(names), 0o644, 0)
    except (OSError, ValueError) as error:
        module.fail_json(
            msg=f"could not write the testbed's files below {root}: {error}", written=written, removed=removed
        )
    module.exit_json(changed=bool(written or removed), written=written, removed=removed, diff=diff)


if __name__ == "__main__":
    main()
