"""What a check found: one thing that is wrong, where it is, and how to mend it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. An error stops a deployment, a warning does not.

    `host` is empty for the inventory itself; `where` is `file:line`, a file or a folder there, or what was looked at on
    the host; `what` says what is wrong, `fix` what to do.
    """

    severity: Literal["error", "warning"]
    host: str
    where: str
    what: str
    fix: str
