"""One writer at a time, where the system can."""

from __future__ import annotations


def hold(file: int) -> bool:
    """Whether this process has the open file to itself until it closes it; True where the system has no locks."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # Windows
        return True
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except OSError:
        return False
    return True
