"""The files of a store's snapshots, one a key, beside the database that says which there are.

Files, since SQLite writes a large blob twice: `benchmarks/store.py` has the figures. Whoever writes here holds the
database's write lock. Only what is kept for good is synced: what else a crash leaves cut or missing is found by its
digest and computed again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress

from rookery import errors
from rookery.formats.atomic import sync_folder

SUFFIX = "-states"
_NEW = "new"


class Folder:
    """The states beside the database at `path`; the folder is made by the first."""

    def __init__(self, path: str) -> None:
        self.path = path + SUFFIX

    def _of(self, key: str) -> str:
        return os.path.join(self.path, _name(key))

    def has(self, key: str) -> bool:
        return os.path.exists(self._of(key))

    def read(self, key: str) -> bytes | None:
        """None where there is none; raises DamagedFile where it cannot be read."""
        try:
            with open(self._of(key), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise errors.DamagedFile(self._of(key), f"cannot be read ({error.strerror or error})") from None

    def write(self, key: str, data: bytes, durable: bool = False) -> None:
        """`durable`: on the disk when it returns. Raises CannotWrite."""
        new = os.path.join(self.path, _NEW)
        try:
            os.makedirs(self.path, mode=0o700, exist_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(new, self._of(key))
            if durable:
                sync_folder(self.path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(new)
            raise errors.CannotWrite(
                self.path, f"cannot be written ({error.strerror or error}); free some space"
            ) from error

    def drop(self, key: str) -> None:
        with suppress(OSError):
            os.unlink(self._of(key))

    def sweep(self, keys: Iterable[str]) -> None:
        """Drop the files of all keys but these: what a killed program left."""
        known = {_name(key) for key in keys}
        with suppress(OSError):
            for name in os.listdir(self.path):
                if name not in known:
                    os.unlink(os.path.join(self.path, name))


def _name(key: str) -> str:
    """A key may be any text."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
