"""Writing a file so that at every moment, even after kill -9, its name leads to the old bytes or to all of the new."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import BinaryIO

from rookery import errors

_serial = count()


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A seekable binary file that becomes `path` when the block ends without an exception, else is removed.

    A symbolic link stays and its target is replaced; the permission bits of an old file are kept.
    Raises CannotWrite for every OSError on the way, those of the block included: disk full, read-only, no permission,
    missing folder, a folder.
    """
    temporary = None
    try:
        target = os.path.realpath(path)
        mode = _mode_of_old(path, target)
        folder, name = os.path.split(target)
        # Unique among threads by the serial; what a dead process of the same id left is opened anew.
        temporary = os.path.join(folder, f".{name[:48]}.{os.getpid()}-{next(_serial)}.tmp")
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        with open(temporary, "x+b") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise errors.CannotWrite(path, f"cannot be written ({error.strerror or error})") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
    with suppress(OSError):  # not every system can sync a folder; the file itself is safe
        sync_folder(folder)


def _mode_of_old(path: str | os.PathLike[str], target: str) -> int | None:
    """Permission bits of the file to be replaced, None if there is none. Raises CannotWrite if it must stay."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise errors.CannotWrite(path, "is a folder; give a file name")
    if not stat.S_ISREG(mode):
        raise errors.CannotWrite(path, "is a device, pipe or socket; give a file name")
    os.close(os.open(target, os.O_WRONLY))  # renaming would replace a read-only file too: let the system refuse
    return stat.S_IMODE(mode)


def sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
