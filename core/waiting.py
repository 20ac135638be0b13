"""Saying that a computation waits for its next rows, so that a job can tell how much of its time went there.

A flavour with a loader of its own writes `with waiting_for_data(): batch = next(batches)`. It costs two additions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_state = {"waiting": 0}


@contextmanager
def waiting_for_data() -> Iterator[None]:
    """Within it the process counts as waiting for data."""
    _state["waiting"] += 1
    try:
        yield
    finally:
        _state["waiting"] -= 1


def is_waiting() -> bool:
    """Whether anything in this process waits for data now."""
    return _state["waiting"] > 0
