"""Whose the testbed's folder on a host is."""

from __future__ import annotations

import json
import os
from pathlib import Path

OWNER = ".fltestbed-owner.json"
FILES = ".fltestbed-files.json"  # the list of the files that were delivered there


def other_owner(root, owner):
    """Return who deployed a testbed into a folder with other keys than `owner`, their id; empty where nobody did."""
    mark = Path(root) / OWNER
    held = json.loads(mark.read_text()) if mark.exists() else None
    return held["name"] if held and held["id"] != owner else ""


def is_foreign(root):
    """Return whether something is in the folder's place that no testbed has brought there.

    Empty folders are nobody's: the engine makes them where containers are to have files that are gone.
    """
    root = Path(root)
    if any((root / name).exists() for name in (OWNER, FILES)):
        return False
    return any(names for _folder, _folders, names in os.walk(root)) if root.is_dir() else root.exists()


def objection(root, owner):
    """Return what speaks against deploying into a folder, and what to do; nothing where nothing does."""
    if other := other_owner(root, owner):
        return (
            f"{root} belongs to a testbed of the same name that {other} deployed with other keys",
            "give yours another name, which is its inventory folder's; or, if that one is yours and its keys are lost, "
            "remove it with fltestbed down --force",
        )
    if is_foreign(root):
        return (
            f"{root} holds what is not fltestbed's, and fltestbed down would remove it",
            f"name a folder in it that is not there yet, as in testbed_root: {root}/fltestbed",
        )
    return ()
