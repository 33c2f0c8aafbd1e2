"""What stops a deployment, from what every host answered to testbed_check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fltestbed.checks import host_findings


def check_errors(hosts: list[str], hostvars: Mapping[str, Any], server: str) -> dict[str, list[str]]:
    """Return, by host, the errors among the findings and how to mend them, in words."""
    answers = {host: hostvars[host]["__check"] for host in hosts if "findings" in hostvars[host].get("__check", {})}
    errors: dict[str, list[str]] = {}
    server_clock = hostvars[server].get("__testbed_settled", {}).get("clock")
    for finding in host_findings(answers, server, server_clock):
        if finding.severity == "error":
            errors.setdefault(finding.host, []).append(f"{finding.where}: {finding.what}. To mend it: {finding.fix}.")
    return errors


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        return {"check_errors": check_errors}
