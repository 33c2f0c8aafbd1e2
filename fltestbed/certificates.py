"""A testbed's certificates and keys on the controller: how long they are valid, and whose were revoked."""

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from fltestbed.errors import DiskError, InventoryError

RENEW_DAYS = 30
"""`up` renews a certificate that ends within this many days, unless `certificates_renew_days` says otherwise."""

_FILES = {"authority": ["ca.crt"], "server": ["server.crt"], "monitoring": ["prometheus.crt", "exporters/*.crt"]}


class Certificate(NamedTuple):
    """Whose certificate it is, and when it ends. `days_left` is negative once it has."""

    name: str
    ends: datetime
    days_left: int

    def row(self) -> dict[str, str | int]:
        """Return it as `fltestbed status` shows it."""
        return {"certificate": self.name, "ends": f"{self.ends:%F}", "days_left": self.days_left}


def certificates(pki: Path) -> list[Certificate]:
    """Return the certificates that are there: the authority's, the server's, and of monitoring's that which ends first.

    Raises DiskError for a file that is no certificate.
    """
    found = []
    for name, patterns in _FILES.items():
        files = [file for pattern in patterns for file in pki.glob(pattern)]
        if files:
            ends = min(_end(file) for file in files)
            found.append(Certificate(name, ends, (ends - datetime.now(UTC)).days))
    return found


def _end(file: Path) -> datetime:
    from cryptography import x509  # slow, and most commands do without

    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    except ValueError:
        raise DiskError(
            f"this machine's files: {file} is damaged, it holds no certificate",
            "bring it back from a backup; or remove it, and the next fltestbed up makes it anew with its key",
        ) from None


def due(pki: Path, renew_days: int = RENEW_DAYS) -> bool:
    """Return whether `up` has a certificate to make or to renew. Looks at this machine alone.

    What can't be read counts as due: the module testbed_pki says what is wrong with it.
    """
    try:
        found = certificates(pki)
    except DiskError:
        return True
    missing = {"authority", "server"} - {each.name for each in found}
    return bool(missing) or any(each.days_left < renew_days for each in found)


def revoked(pki: Path) -> set[str]:
    """Return the clients whose key was revoked."""
    file = pki / "revoked"
    return set(file.read_text(encoding="utf-8").split()) if file.exists() else set()


def revoke(pki: Path, clients: Iterable[str]) -> None:
    """Mark clients as revoked, then remove their keys."""
    _write_revoked(pki, revoked(pki) | set(clients))
    for client in clients:
        for name in (client, f"{client}.pub"):
            (pki / "nodes" / name).unlink(missing_ok=True)


def readmit(pki: Path, clients: Iterable[str]) -> None:
    """Take the mark off; the next `up` makes new keys."""
    _write_revoked(pki, revoked(pki) - set(clients))


def require_admitted(pki: Path, clients: Iterable[str]) -> None:
    """Raise InventoryError when a client's key was revoked, so that nothing lets it in again unasked."""
    if refused := sorted(revoked(pki) & set(clients)):
        raise InventoryError(
            f"the inventory has {', '.join(refused)}, and that key was revoked",
            f"take it out of the inventory; or let it in with a new key: fltestbed revoke --undo {refused[0]}",
        )


def _write_revoked(pki: Path, names: Iterable[str]) -> None:
    pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = pki / "revoked.new"
    partial.write_text("".join(f"{name}\n" for name in sorted(names)), encoding="utf-8")
    partial.replace(pki / "revoked")
