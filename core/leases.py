"""Leases: who is at work on what, expiring and renewed, made of nothing but create-only files.

    leases/<name>/7.json   {"token": ..., "host": ..., "pid": ..., "started": ..., "expires_at": ..., ...}

The highest generation counts. Whoever creates the next one first has it: to take a free or lapsed lease, to
renew one's own, to give it back. Work under a lease still commits create-only, so a holder that was paused
until its lease lapsed harms nobody; the lease only keeps two processes from doing the same long work.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from treadle.errors import StoreError, TreadleError
from treadle.store import Store

log = logging.getLogger(__name__)

# Generations are deleted only this far behind the newest: whoever read 5, paused, and creates a deleted 6
# while others are at 14 must still find one of theirs in the folder and so see that it has won nothing.
_KEPT = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 0.5


@dataclass(frozen=True, slots=True)
class Holder:
    """A generation of a lease. `expires_at` is wall time, seconds since 1970; clocks may differ by ttl/2."""

    token: str
    host: str
    pid: int
    started: str
    expires_at: float
    released: bool = False

    def is_over(self) -> bool:
        """Whether the lease is free: given back, expired, or its process on this machine is gone."""
        if self.released or time.time() >= self.expires_at:
            return True
        return self.host == this_host() and process_start(self.pid) != self.started


class Lease:
    """What `lease` yields: true while this process holds the lease.

    Attributes:
        held: Whether the lease was won; False when another's result is to be adopted.
    """

    def __init__(self, store: Store, name: str, ttl_s: float, *, held: bool = True) -> None:
        self.held, self.name = held, name
        self._store, self._ttl_s = store, ttl_s
        self._generation = 0
        self._holder = Holder(
            uuid.uuid4().hex, this_host(), os.getpid(), process_start(os.getpid()) or "", time.time() + ttl_s
        )
        self._lost, self._stop = threading.Event(), threading.Event()
        self._renewal: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether the lease could not be renewed: another process may be at the same work now."""
        return self._lost.is_set()

    def __bool__(self) -> bool:
        return self.held and not self.lost

    def _try_to_take(self) -> Holder | None:
        """None when the lease is now ours, else who has it."""
        generation, holder = _newest(self._store, self.name)
        if holder is not None and not holder.is_over():
            return holder
        self._generation = generation
        if not self._advance(expires_at=time.time() + self._ttl_s):
            return _newest(self._store, self.name)[1] or self._holder
        self._renewal = threading.Thread(target=self._renew, name=f"lease {self.name}", daemon=True)
        self._renewal.start()
        return None

    def _advance(self, *, expires_at: float, released: bool = False) -> bool:
        """Whether the next generation is ours."""
        following = self._generation + 1
        holder = Holder(**{**asdict(self._holder), "expires_at": expires_at, "released": released})
        created = self._store.create(_path(self.name, following), json.dumps(asdict(holder)).encode())
        newest, found = _newest(self._store, self.name)
        if newest != following or found is None or found.token != holder.token:
            if created:  # a number that had been used and deleted: others are further
                self._store.delete(_path(self.name, following))
            return False
        self._generation, self._holder = following, holder
        if following > _KEPT:
            for number in _generations(self._store, self.name):
                if number <= following - _KEPT:
                    self._store.delete(_path(self.name, number))
        return True

    def _renew(self) -> None:
        """Renews at a third of the time to live; tries again after failures until the lease expires."""
        pause = self._ttl_s / 3
        while not self._stop.wait(pause):
            try:
                if not self._advance(expires_at=time.time() + self._ttl_s):
                    log.warning("another process took the lease %s over", self.name)
                    self._lost.set()
                    return
                pause = self._ttl_s / 3
            except (TreadleError, OSError) as error:
                log.warning("the lease %s could not be renewed yet: %s", self.name, error)
                pause = self._ttl_s / 10
                if time.time() >= self._holder.expires_at:
                    self._lost.set()
                    return

    def _give_back(self) -> None:
        if os.getpid() != self._holder.pid:
            return  # a forked child leaves the block: the lease is its parent's
        self._stop.set()
        if self._renewal is not None:
            self._renewal.join()
        if self.lost:
            return
        try:
            self._advance(expires_at=time.time(), released=True)
        except (TreadleError, OSError) as error:
            # The work itself is done or has failed with an error of its own; the lease lapses without us.
            log.warning("the lease %s could not be given back, it lapses by itself: %s", self.name, error)


@contextmanager
def lease(
    store: Store,
    name: str,
    *,
    ttl_s: float = 30,
    wait: bool = True,
    done: Callable[[], bool] = lambda: False,
    words: str = "",
    say: Callable[[str], None] = log.info,
) -> Iterator[Lease]:
    """Holds a lease during long work, renewed in the background; other processes wait and adopt the result.

    After a kill the lease lapses: at once for waiters on the same machine, else after `ttl_s`.

    Args:
        store: Where the lease is.
        name: What is worked on, such as a record's kind and id.
        ttl_s: Seconds until a lease that nobody renews is free.
        wait: Wait while another process has it; else yield at once a lease that is not held.
        done: Whether the result is there by now: asked while waiting and once more after it.
        words: What the other process is doing; left out: the name, and that it is at it.
        say: Takes one line when the wait begins.

    Yields:
        A `Lease`: true when the work is ours to do; false when `done()` says that another process did it, or
        when another has it and `wait` is false. Its `lost` tells a long worker that others may be at it too.

    Raises:
        StoreError: The store can't be written. Transient: it can't be reached.

    Example:
        >>> with lease(store, "candidate-8f2c", done=exists) as held:   # doctest: +SKIP
        ...     if held:
        ...         train()
    """
    taken = Lease(store, name, ttl_s)
    if not _take(taken, wait=wait, done=done, words=words, say=say):
        yield Lease(store, name, ttl_s, held=False)
        return
    try:
        yield taken
    finally:
        taken._give_back()


def _take(
    wanted: Lease, *, wait: bool, done: Callable[[], bool], words: str, say: Callable[[str], None]
) -> bool:
    """Whether the lease was taken, in the end; False when there is nothing left to do."""
    pause, waited = _FIRST_PAUSE_S, False
    while True:
        holder = wanted._try_to_take()
        if holder is None:
            if waited and done():
                wanted._give_back()
                return False
            return True
        if not wait or done():
            return False
        if not waited:
            who = f"process {holder.pid} on {holder.host.split('/')[0]}"
            say(f"{words} ({who}); waiting" if words else f"{wanted.name[:60]}: {who} is at it; waiting")
            waited = True
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)


def _path(name: str, generation: int) -> str:
    return f"leases/{name}/{generation}.json"


def _generations(store: Store, name: str) -> list[int]:
    stems = (file.removesuffix(".json") for file in store.list(f"leases/{name}"))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def _newest(store: Store, name: str) -> tuple[int, Holder | None]:
    """The highest generation and its holder; (0, None) when there is none. An altered file holds nothing."""
    for _ in range(100):
        generations = _generations(store, name)
        if not generations:
            return 0, None
        try:
            return generations[-1], Holder(**json.loads(store.read(_path(name, generations[-1]))))
        except FileNotFoundError:
            continue  # overtaken and deleted between the listing and the reading
        except (ValueError, TypeError):
            return generations[-1], None
    raise StoreError(
        f"the store {store.uri} lists a lease {name} that it can't read. Check its folder leases/."
    )


@functools.cache
def this_host() -> str:
    """A name for the set of processes whose ids can be compared: machine, boot, and container."""
    parts = [platform.node()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return "/".join(parts)


def process_start(pid: int) -> str | None:
    """When a process of this machine started, as a text to compare; None when it is gone or a zombie."""
    try:
        # The name, in parentheses, may hold anything; after it come the state and, 20th, the start time.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return _start_by_ps(pid) if not Path("/proc/self/stat").exists() else None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def _start_by_ps(pid: int) -> str | None:
    """As `process_start`, where there is no /proc (macOS)."""
    found = subprocess.run(
        ["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
