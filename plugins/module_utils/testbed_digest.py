"""The SHA-256 of files of any size: hashlib's own function for that came with Python 3.11."""

from __future__ import annotations

import hashlib

CHUNK = 2**20


def sha256(path):
    """Return a file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
