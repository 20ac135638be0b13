"""How much memory a process here may have: by the machine, and by the container that it runs in."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_GIB = 2**30
# A machine shows less than it is sold with: its kernel keeps some.
_SHOWN = 0.9
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def container_limit_gib() -> float | None:
    """The container's limit, where this process sees one below what the machine has."""
    for name in _LIMITS:
        with suppress(OSError, ValueError):
            limit = int(Path(name).read_text())
            if limit < _machine_bytes():
                return limit / _GIB
    return None


def memory_gib() -> float | None:
    """What there is for all processes of this machine or container; None where the system does not tell."""
    limit = container_limit_gib()
    if limit is None:
        with suppress(ValueError, OSError):
            limit = _machine_bytes() / _GIB
    return limit


def is_short(has_gib: float | None, promised_gib: float) -> bool:
    """Whether what a machine shows can't be what was promised of it."""
    return has_gib is not None and has_gib < promised_gib * _SHOWN


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
