"""What `fltestbed check` makes of the hosts' answers: the findings of each, and those that only show between hosts.

docs/reference-checks.md lists every check.
"""

import platform
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fltestbed.errors import HostError
from fltestbed.findings import Finding

Answers = Mapping[str, Mapping[str, Any]]
"""What the module testbed_check returned, by host."""

BETWEEN_HOSTS = ("clock", "identity", "build")
"""Checks that compare hosts; the rest is the module's."""

_AHEAD, _BEHIND = 5.0, 305.0  # seconds; Flower refuses a device that is further off the server
_DRIFT = 2.0  # seconds from which on times in the results of two hosts mislead
_CERTIFICATE = 3600.0  # seconds before its making from which on a certificate is valid

_SSH = (
    (
        r"waiting for privilege escalation prompt",
        "sudo",
        "sudo on {address} does not come to its end: the host is too busy, or sudo waits for a name service",
        "try there by hand: sudo true; a hostname that is missing in /etc/hosts makes sudo wait",
    ),
    (
        r"Could not resolve hostname",
        "SSH",
        "its name {address} cannot be resolved",
        "correct ansible_host in the inventory, or give the address instead of a name",
    ),
    (
        r"Connection refused",
        "SSH",
        "{address} refuses SSH connections",
        "switch the SSH server on there (Raspberry Pi OS: raspi-config, or an empty file ssh in the boot "
        "partition), or correct "
        "ansible_port",
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "SSH host key",
        "{address} shows another SSH host key than before: it was installed anew, or is another machine",
        "if you know why, remove the old key: ssh-keygen -R {address}; then log in once by hand with ssh",
    ),
    (
        r"Host key verification failed|No .* host key is known",
        "SSH host key",
        "the SSH host key of {address} is not known here",
        "log in once by hand with ssh and compare the key that it shows with the one on the device",
    ),
    (
        r"Permission denied|Too many authentication failures|no such identity",
        "SSH permission",
        "{address} lets nobody in with this user and key",
        "check ansible_user and ansible_ssh_private_key_file, and bring the public key there: ssh-copy-id",
    ),
    (
        r"timed out|No route to host|Network is unreachable|Timeout",
        "SSH",
        "{address} does not answer",
        "check that it is switched on and in the network, that ansible_host is its address, and that no "
        "firewall is between",
    ),
)
_PRIVILEGE = r"sudo: |[Mm]issing sudo password|not in the sudoers|[Bb]ecome|Incorrect sudo password"
_INTERPRETER = r"interpreter .*not found|python\S*: (not found|No such file)|No python interpreters found"


def host_findings(answers: Answers, server: str, server_clock: Mapping[str, float] | None = None) -> list[Finding]:
    """Return all that is wrong with the hosts that answered, by host. `server` is the server's name.

    `server_clock` is what is known of its clock where it is not among the answers: `least` and `most`, in seconds ahead
    of the controller's.
    """
    found = [
        Finding(row["severity"], host, row["where"], row["what"], row["fix"])
        for host, answer in answers.items()
        for row in answer["findings"]
        if not row["refused"] or server in answers  # else nobody listened
    ]
    found += [*_clocks(answers, server, server_clock), *_identities(answers), *_builds(answers)]
    stand_in = answers.get(server, {})
    if stand_in.get("listener") and stand_in["facts"]["ufw"]:
        found = [_past_ufw(finding) if finding.where == "server" else finding for finding in found]
    order = list(answers)
    return sorted(found, key=lambda finding: (order.index(finding.host), finding.severity))


def safe_fixes(answers: Answers, found: Sequence[Finding]) -> dict[str, list[str]]:
    """Return, by host, the checks whose findings the module can mend."""
    safe: dict[str, list[str]] = defaultdict(list)
    for host, answer in answers.items():
        safe[host] += [row["where"] for row in answer["findings"] if row["safe"]]
    for finding in found:
        if finding.where == "clock" and not answers[finding.host]["facts"]["is_container"]:
            safe[finding.host].append("clock")
    return {host: list(dict.fromkeys(checks)) for host, checks in safe.items() if checks}


def lost_host(host: str, address: str, error: HostError) -> Finding:
    """Return why a host could not be asked, from Ansible's message."""
    for pattern, where, what, fix in _SSH:
        if re.search(pattern, error.message):
            return Finding("error", host, where, what.format(address=address), fix.format(address=address))
    said = error.message.strip()
    if re.search(_INTERPRETER, said):
        return Finding(
            "error",
            host,
            "Python",
            f"there is no Python where Ansible looks for it: {said.splitlines()[0]}",
            "install it (apt-get install python3), or name it in ansible_python_interpreter",
        )
    if re.search(_PRIVILEGE, said):
        return Finding(
            "error",
            host,
            "sudo",
            f"the user cannot become root: {said.splitlines()[0]}",
            "let the user run sudo without a password (a line USER ALL=(ALL) NOPASSWD: ALL in "
            "/etc/sudoers.d/), or give "
            "--ask-become-pass",
        )
    return Finding(
        "error",
        host,
        "SSH",
        f"the host could not be asked: {said}",
        "try by hand: ssh, sudo and python3 must work there",
    )


def _past_ufw(finding: Finding) -> Finding:
    what = f"{finding.what}; the server's ufw is on, which holds this trial up and not the ports that Docker publishes"
    return replace(finding, severity="warning", what=what)


def _clocks(answers: Answers, server: str, server_clock: Mapping[str, float] | None) -> Iterator[Finding]:
    """Yield clocks that are surely off: bounds are compared, so that a slow call is no false alarm.

    A device's is compared with the server's; where nothing is known of that, with the controller's, and that it is off
    is a warning then.
    """
    clocks = {
        host: (answer["clock"]["least"], answer["clock"]["most"])
        for host, answer in answers.items()
        if "clock" in answer
    }
    if server_clock:
        clocks.setdefault(server, (server_clock["least"], server_clock["most"]))
    base_least, base_most = clocks.get(server, (0.0, 0.0))
    other = "server's" if server in clocks else "controller's"
    for host in answers.keys() & clocks.keys():
        least, most = clocks[host]
        fix = (
            "its clock is that of the machine outside: set it there"
            if answers[host]["facts"]["is_container"]
            else "set it by the network (timedatectl set-ntp true), or by hand where no time server is reached"
        )
        if most < -_CERTIFICATE:
            yield Finding(
                "error",
                host,
                "clock",
                f"the clock is {_span(-(least + most) / 2)} behind the controller's: the testbed's "
                "certificates are not valid there yet",
                fix,
            )
            continue
        low, high = (least, most) if host == server else (least - base_most, most - base_least)
        if low < _DRIFT and high > -_DRIFT:
            continue
        off = (low + high) / 2
        base = "controller's" if host == server else other
        said = f"the clock is {_span(off)} {'ahead of' if off > 0 else 'behind'} the {base}"
        if host == server:
            what = said + ": times in logs and results of the two do not fit together"
            yield Finding("warning", host, "clock", what, fix)
        elif server in clocks and (low > _AHEAD or high < -_BEHIND):
            limit = f"{_AHEAD:g} s ahead" if off > 0 else f"{_BEHIND:g} s behind"
            yield Finding("error", host, "clock", said + f", and Flower refuses a device more than {limit}", fix)
        else:
            what = said + ": times in the results mislead, and Flower refuses a device that is far off its server"
            yield Finding("warning", host, "clock", what, fix)


def _span(seconds: float) -> str:
    seconds = abs(seconds)
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )


def _identities(answers: Answers) -> Iterator[Finding]:
    for (machine, _boot), hosts in _groups(answers, "machine_id", "boot_id"):
        if machine and len(hosts) > 1:
            for host in hosts[1:]:
                yield Finding(
                    "error",
                    host,
                    "identity",
                    f"{host} and {hosts[0]} are the same machine: each would overwrite what the other deploys",
                    "correct ansible_host of one of them; several clients on one machine are entries of "
                    "testbed_clients",
                )
    same = {host for (machine, _boot), hosts in _groups(answers, "machine_id", "boot_id") for host in hosts[1:]}
    for (machine,), hosts in _groups(answers, "machine_id"):
        others = [host for host in hosts if host not in same]
        for host in others[1:]:
            if machine:
                yield Finding(
                    "warning",
                    host,
                    "identity",
                    f"{host} has the machine-id of {others[0]}, as copies of one card have: DHCP may give both "
                    "the same address",
                    "there: rm /etc/machine-id; systemd-machine-id-setup; then restart it",
                )
    for (hostname,), hosts in _groups(answers, "hostname"):
        hosts.sort(key=lambda host: host != hostname)
        for host in hosts[1:]:
            if host not in same:
                yield Finding(
                    "warning",
                    host,
                    "identity",
                    f"{host} and {hosts[0]} both call themselves {hostname}: names in the network and prompts mislead",
                    f"there: hostnamectl set-hostname {host}",
                )


def _builds(answers: Answers) -> Iterator[Finding]:
    """Yield what keeps images from being built: on the builder, and on the first host of each other architecture."""
    first: dict[str, str] = {}
    for host, answer in answers.items():
        if answer["facts"].get("build"):
            first.setdefault(answer["facts"]["arch"], host)
    for arch, host in first.items():
        builder = answers[host]["facts"]["build"]["builder"]
        if builder in answers and answers[builder]["facts"]["arch"] == arch:
            host = builder
        elif builder not in answers and (builder != "localhost" or platform.machine() == arch):
            continue  # it is not known, or it is this machine
        facts = answers[host]["facts"]
        free, needed = facts["disk_free_mb"], facts["build"]["mb"]
        if free < needed:
            what = f"{free} MB are free for Docker's images, and to build the testbed's for {arch} takes {needed} MB"
            yield Finding("error", host, "build", what, "free some, or name another machine in images_builder")
        for url, reason in facts["build"]["silent"].items():
            what = f"the testbed's images are to be built here for {arch}, and {url} cannot be reached: {reason}"
            fix = (
                "mend the host's network, DNS or proxy, or name a mirror that it reaches in images_debian_mirror, "
                "or another machine in images_builder"
            )
            yield Finding("error", host, "build", what, fix)


def _groups(answers: Answers, *keys: str) -> Iterable[tuple[tuple[str, ...], list[str]]]:
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for host, answer in answers.items():
        groups[tuple(answer["facts"][key] for key in keys)].append(host)
    return groups.items()
