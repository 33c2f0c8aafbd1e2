"""Runs a command on a host of the inventory, through ssh or right here, with its output passed on as it comes."""

import contextlib
import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from fltestbed.errors import HostsUnreachable
from fltestbed.inventory import Host
from fltestbed.inventory_ansible import SSH_ARGUMENTS

_KEEP_ALIVE = {"BatchMode": "yes", "ConnectTimeout": "10", "ServerAliveInterval": "5", "ServerAliveCountMax": "2"}
_OFF = ("false", "no", "off", "n", "f", "0")  # as Ansible reads them
COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""What Flower and Compose put between the words of a log."""
SSH_FAILED = 255
"""What `stream` returns when ssh itself failed."""


def stream(host: Host, argv: Sequence[str], *, follow: bool = False) -> int:
    """Run `argv` on a host and return its exit code, or 0 when `follow` was ended by Ctrl-C.

    Nothing is left running, here or there: with `follow` the command gets a terminal, whose end ends it.
    What is not shown in a terminal has no colours.
    """
    output = None if sys.stdout.isatty() else subprocess.PIPE
    begin = command(host, argv, follow=follow)
    with subprocess.Popen(begin, stdin=subprocess.DEVNULL, stdout=output, text=True, errors="replace") as process:
        try:
            for line in process.stdout or ():
                print(COLOURS.sub("", line), end="", flush=True)
            return process.wait()
        except BrokenPipeError:  # who reads has seen enough, as head does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            _end(process)
            return 0
        except KeyboardInterrupt:
            _end(process)
            if not follow:
                raise
            return 0


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(PermissionError):  # sudo here has had its Ctrl-C from the terminal
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(2)
        process.kill()


def command(host: Host, argv: Sequence[str], *, follow: bool = False, as_root: bool = True) -> list[str]:
    """Return the command to start here so that `argv` runs on a host, as root unless ansible_become is off.

    Address, user and the like are those of the inventory's connection variables. Raises HostsUnreachable where this
    machine has no ssh.
    """
    connection = host.connection
    is_local = connection.get("ansible_connection") == "local"
    user = me() if is_local else connection.get("ansible_user", me())
    becomes = as_root and not _is_off(connection.get("ansible_become")) and user != "root"
    wanted = [*["sudo", "-n"] * becomes, *argv]
    if is_local:
        return wanted
    ssh = _ssh(host)
    remote = shlex.join(wanted)
    if follow:
        ssh.append("-tt")
        remote = f"stty -opost && exec {remote}"
    return [*ssh, "--", str(connection.get("ansible_host", host.name)), remote]


def tunnel(host: Host, local_port: int, port: int) -> list[str] | None:
    """Return the command that brings a port of the host's loopback address here; None where here is the host.

    Raises HostsUnreachable where this machine has no ssh.
    """
    if host.connection.get("ansible_connection") == "local":
        return None
    forward = f"127.0.0.1:{local_port}:127.0.0.1:{port}"
    address = str(host.connection.get("ansible_host", host.name))
    return [*_ssh(host), "-o", "ExitOnForwardFailure=yes", "-N", "-L", forward, "--", address]


def me() -> str:
    """Return who runs this: the user's name, or the number where there is no name for it, as in some containers."""
    with contextlib.suppress(KeyError, OSError):
        return getpass.getuser()
    return f"uid {os.getuid()}"


def _ssh(host: Host) -> list[str]:
    """Return ssh with the options of the inventory's connection variables.

    Of an option's values ssh takes the first; so what turns the check of host keys off stands where Ansible puts it.
    """
    if not shutil.which("ssh"):
        what = f"{host.name} cannot be reached: this machine has no program ssh"
        raise HostsUnreachable(what, {}, "install it here: apt-get install openssh-client")
    connection = host.connection
    own, *more = (shlex.split(str(connection.get(variable) or "")) for variable in SSH_ARGUMENTS)
    ssh = ["ssh", *own]
    if _is_off(connection.get("ansible_ssh_host_key_checking", connection.get("ansible_host_key_checking"))):
        ssh += ["-o", "StrictHostKeyChecking=no"]
    ssh += [argument for arguments in more for argument in arguments]
    for option, value in _KEEP_ALIVE.items():
        ssh += ["-o", f"{option}={value}"]
    for flag, variable in (("-p", "ansible_port"), ("-l", "ansible_user"), ("-i", "ansible_ssh_private_key_file")):
        if variable in connection:
            ssh += [flag, str(connection[variable])]
    return ssh


def _is_off(value: Any) -> bool:
    return str(value).lower() in _OFF
