"""This process's memory in bytes, its pages of mapped files included, and what the machine has."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MACHINE, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def forget_peak() -> bool:
    """Let `peak` begin again from what is in use now; False where the system cannot."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak() -> int | None:
    """The most that was resident at once since the start or since `forget_peak`."""
    return _status("VmHWM") or _usage()


def anonymous() -> int | None:
    """What is resident now and belongs to no file."""
    return _status("RssAnon")


def available() -> int | None:
    """What a new process may have: the machine's free memory, or what is left of this container's."""
    known = [size for size in (_field(MACHINE, "MemAvailable"), _left_of_group()) if size is not None]
    return min(known, default=None)


def installed() -> int | None:
    """Of the whole machine."""
    return _field(MACHINE, "MemTotal")


def _left_of_group() -> int | None:
    """Files that are cached count as used there and would be given up, so they count as free here."""
    try:
        most, used = ((GROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        held = dict(line.split() for line in (GROUP / "memory.stat").read_text().splitlines())
        return None if most == "max" else int(most) - int(used) + int(held.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def _status(field: str) -> int | None:
    return _field(STATUS, field)


def _field(path: Path, name: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def _usage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
