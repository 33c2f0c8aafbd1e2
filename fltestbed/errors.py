"""The errors that a user can meet: what is wrong, what to do, and the exit code.

The library raises them and never prints or exits; `fltestbed.cli.main` turns them into text.
docs/reference-exit-codes.md lists them.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple


class HostError(NamedTuple):
    """What stopped one host: the task's name and the first thing to read."""

    task: str
    message: str


class FltestbedError(Exception):
    """Root of every error that is the user's to solve; anything else is a bug and keeps its traceback."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class InventoryError(FltestbedError):
    """The inventory cannot be found or read, or a value in it makes no sense."""

    code = "inventory"
    exit_code = 3


class ExperimentError(FltestbedError):
    """The experiment cannot be found or read, or a value in it makes no sense."""

    code = "experiment"
    exit_code = 3


class AppError(FltestbedError):
    """The Flower app cannot be found or read, or Flower would refuse it."""

    code = "app"
    exit_code = 3


class ConditionError(FltestbedError):
    """A condition that cannot be: of a device that is not there, or with a value that makes no sense."""

    code = "condition"
    exit_code = 3

    def __init__(self, message: str, hint: str, key: str = "") -> None:
        super().__init__(message, hint)
        self.key = key
        """The parameter that is wrong, where it is one."""


class ResultsError(FltestbedError):
    """A run's results cannot be found, or are not what was asked for."""

    code = "results"
    exit_code = 3


class HostsError(FltestbedError):
    """Some hosts did not get through. `hosts` says for each of them where and why."""

    def __init__(self, message: str, hosts: Mapping[str, HostError], hint: str = "") -> None:
        super().__init__(message, hint)
        self.hosts = dict(hosts)


class PreflightError(HostsError):
    """A check refused a host before anything on it was changed."""

    code = "preflight"
    exit_code = 4


class HostsFailed(HostsError):
    """A task failed on a host, or what should run there does not."""

    code = "hosts-failed"
    exit_code = 5


class HostsUnreachable(HostsError):
    """A host could not be reached, or stopped answering."""

    code = "hosts-unreachable"
    exit_code = 6


class RunFailed(FltestbedError):
    """The hosts did their part, but the federated run did not finish."""

    code = "run-failed"
    exit_code = 7


class Locked(FltestbedError):
    """Another fltestbed is changing this testbed."""

    code = "locked"
    exit_code = 8


class AnsibleFailed(FltestbedError):
    """Ansible stopped before it came to a host: no host matched, or a playbook does not load."""

    code = "ansible-failed"
    exit_code = 9


class DiskError(FltestbedError):
    """This machine cannot keep what has to be kept: a disk is full, a file is damaged, or not ours to write or read."""

    code = "disk"
    exit_code = 10


class Cancelled(FltestbedError):
    """Ctrl-C or SIGTERM, or a question answered with no."""

    code = "cancelled"
    exit_code = 130
