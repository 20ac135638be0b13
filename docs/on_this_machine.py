"""What the scripts that start an orchestrator on this machine share."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import FrameType

ENDINGS = ("SIGINT", "SIGTERM", "SIGHUP")


class Stopped(Exception):
    """What was started ended, or never came up."""


def say(line: str = "") -> None:
    """A line for the person at the terminal."""
    print(line, flush=True)


def relative(path: Path) -> str:
    """A path as a person would type it, from here."""
    return os.path.relpath(path)


def interrupt_on_endings() -> None:
    """From now on any of `ENDINGS` raises KeyboardInterrupt, also where this was started in the background."""
    for name in ENDINGS:
        signal.signal(getattr(signal, name), _interrupt)


def ignore_endings() -> None:
    """From now on none of `ENDINGS` does anything: what was started is being stopped."""
    for name in ENDINGS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def free_port(variable: str, usual: int, *, who: str) -> int:
    """The port that a variable names, or the usual one, if nothing listens on it; for 0 any free one.

    Raises:
        SystemExit: It is taken.
    """
    wanted = int(os.environ.get(variable, str(usual)))
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", wanted))
        except OSError:
            raise SystemExit(
                f"port {wanted} is taken, perhaps by {who} that still runs: end it, or choose another port with"
                f" {variable}={usual + 1}"
            ) from None
        return int(tried.getsockname()[1])


def kill_sessions(leaders: Collection[int]) -> None:
    """Kills whatever is left of some sessions, where the system tells its processes in /proc."""
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError, PermissionError):
            if os.getsid(int(entry.name)) in leaders:
                os.kill(int(entry.name), signal.SIGKILL)
