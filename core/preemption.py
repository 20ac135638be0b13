"""Ending early when asked: a signal asks, and work ends where it loses least.

A place that takes its machine back sends SIGTERM some seconds before. Training ends right after its next checkpoint if
one comes in time; everything else ends at once. What was stored stays, and the next attempt goes on from it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_state = {"asked": False}


class Preempted(BaseException):
    """The process was asked to end. No Exception, so that no hook takes it for a failure of its own."""


def stop_if_asked() -> None:
    """Ends the work if the process was asked to: called where all that was done is safely stored.

    Raises:
        Preempted: It was.
    """
    if _state["asked"]:
        raise Preempted


@contextmanager
def ends_when_asked(patience_s: float = 0) -> Iterator[None]:
    """Within it SIGTERM raises Preempted: at the next `stop_if_asked`, after `patience_s` seconds at the latest.

    Only the main thread can do so.
    """

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Preempted

    def asked(number: int, frame: FrameType | None) -> None:
        _state["asked"] = True
        # Again each second: an exception within a library's callback into Python may be swallowed there.
        signal.setitimer(signal.ITIMER_REAL, max(patience_s, 0.001), 1)

    before = signal.signal(signal.SIGTERM, asked), signal.signal(signal.SIGALRM, give_up)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGALRM, before[1])
        _state["asked"] = False
