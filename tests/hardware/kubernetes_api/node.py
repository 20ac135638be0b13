"""A container as a process of this machine: killed with all that it started, as a real one is."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from treadle.hardware.supervise import COOKIE, sweep

_PAGE = os.sysconf("SC_PAGE_SIZE")


def expanded(text: str, env: dict[str, str]) -> str:
    """As a kubelet does it: `$(NAME)` where NAME is known, `$$` is one dollar, the rest stays."""

    def put_in(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return env.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", put_in, text)


class Container:
    """A running command and its log: lines with the nanosecond at which each was read."""

    def __init__(self, command: list[str], env: dict[str, str], mark: str) -> None:
        self.lines: list[tuple[int, bytes]] = []
        self.started, self.ended = time.time(), 0.0
        self.mark, self.killed_at = mark, float("inf")
        self.out_of_memory = False
        own = {name: expanded(value, env) for name, value in env.items()}
        self.process = subprocess.Popen(
            [expanded(word, own) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own, COOKIE: mark},
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as said:
            for line in said:
                self.lines.append((time.time_ns(), line))

    def ask_to_end(self, grace_s: float) -> None:
        """SIGTERM, once, and SIGKILL after the grace; a shorter grace later counts."""
        if self.killed_at == float("inf"):
            # A container's first process gets the signal; what it started hears of it from there.
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGTERM)
        self.killed_at = min(self.killed_at, time.time() + grace_s)

    def kill(self) -> None:
        """All of it, now."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        sweep(Path(self.mark))

    def look(self, memory_bytes: int | None) -> int | None:
        """The exit code once it is over; ends it where its time or memory is."""
        if time.time() >= self.killed_at:
            self.kill()
        if memory_bytes and self.process.poll() is None and self._used() > memory_bytes:
            self.out_of_memory = True
            self.kill()
        code = self.process.poll()
        if code is None:
            return None
        self.kill()
        self.reader.join(5)
        self.ended = self.ended or time.time()
        return 128 - code if code < 0 else code

    def _used(self) -> int:
        used = 0
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):
                fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
                if int(fields[3]) == self.process.pid:
                    used += int(fields[21]) * _PAGE
        return used
