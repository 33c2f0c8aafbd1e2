"""Loads all filters and tests once, before Ansible forks a process for each task and host, which would do it anew."""

from __future__ import annotations

DOCUMENTATION = r"""
name: testbed_preload
type: aggregate
short_description: Load filters and tests before the first task
description:
  - Every task of every host runs in a process of its own, forked from the one that plays the playbook. What that one
    has loaded, its forks have. Without this each of them imports every filter and test plugin anew, which took half of
    the controller's time.
author: fltestbed authors
"""

from ansible.plugins.callback import CallbackBase
from ansible.plugins.loader import filter_loader, test_loader


class CallbackModule(CallbackBase):
    """Says nothing."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "testbed_preload"

    def v2_playbook_on_start(self, playbook: object) -> None:
        for loader in (filter_loader, test_loader):
            loader.get_with_context("none")  # whatever is asked for, all are loaded
