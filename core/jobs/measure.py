"""What a job used of its place while it ran: cores, memory, devices, and how much of its time went into waiting.

    a thread of the job ─┬─ ten times a second   where the main thread stands: reading data, fitting, waiting for a disk
                         └─ about once a second  memory of the process and its children, devices

It costs less than a hundredth of a core; what its looks at other processes cost sets the pause between them.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

from treadle.hardware.gauges import Gauge, open_gauge
from treadle.hardware.memory import container_limit_gib
from treadle.hardware.pools import Kind
from treadle.records import Part
from treadle.waiting import is_waiting

_STACK_S, _LOOK_S, _COSTS_AT_MOST = 0.1, 1.0, 1 / 300
_GIB = 2**30
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_MAXRSS = 1 if sys.platform == "darwin" else 1024
# Within a fit, only a loader counts as waiting: writing a checkpoint does not.
_LOADERS = ("torch.utils.data",)
_FIT_FROM = ("treadle.stages", "treadle.models", "treadle.jobs")
_DATA_IN = ("treadle.data", "treadle.store", "treadle.object_store", "treadle.models.rows")


class DeviceUse(Part):
    """An accelerator over a job's time.

    Attributes:
        share: How busy it was on average, 0 to 1; None where it does not tell.
        peak_memory_gib: The most that was in use, where it tells.
        memory_gib: What it has.
    """

    name: str
    share: float | None = None
    peak_memory_gib: float | None = None
    memory_gib: float | None = None


class Use(Part):
    """What a job used. Shares are of the job's time, 0 to 1.

    Attributes:
        seconds: How long it was measured.
        cpu_seconds: Of the process and its children.
        cores: How many it could use.
        cpu_share: `cpu_seconds` of what `cores` could have given.
        peak_memory_gib: The most that the process and its children held at once, what they share counted once.
        memory_gib: The limit: the pool's, or the container's; None without one.
        reading: Reading, joining and encoding data.
        fitting: In the flavour's fit, waiting for rows included.
        waiting: In a fit, but waiting for its next rows.
        blocked: Waiting for a disk, wherever.
        devices: Empty without accelerators, and where the place has nothing that tells.
        overhead_seconds: What measuring cost.
        workers: Over how many the work was spread.
        work: Rows times rounds that were trained; None for other stages.
    """

    seconds: float
    cpu_seconds: float
    cores: float
    cpu_share: float
    peak_memory_gib: float
    memory_gib: float | None = None
    reading: float = 0
    fitting: float = 0
    waiting: float = 0
    blocked: float = 0
    devices: tuple[DeviceUse, ...] = ()
    overhead_seconds: float = 0
    workers: int = 1
    work: float | None = None


class Meter:
    """Measures the calling thread's process from `start` to `stop`; `use` tells what there is so far.

    Args:
        kind: Which accelerators to look at.
        limit_gib: The pool's limit on memory; None: that of the container, if it has one.
    """

    def __init__(self, kind: Kind = "cpu", limit_gib: float | None = None) -> None:
        self.kind, self.limit_gib = kind, limit_gib
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="treadle-meter", daemon=True)
        self._main = threading.get_ident()
        self._state = _state_file(threading.get_native_id())
        self._seconds = dict.fromkeys(("reading", "fitting", "waiting", "blocked", "all"), 0.0)
        self._peak_bytes = 0
        self._overhead = 0.0
        self._devices: dict[int, _Device] = {}
        self._gauge: Gauge | None = None
        self._from, self._cpu_from = time.monotonic(), _own_cpu()
        self._until: float | None = None

    def start(self) -> Self:
        """Begins to measure."""
        self._from, self._cpu_from = time.monotonic(), _own_cpu()
        self._gauge = open_gauge(self.kind)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends; leaves no thread and no process."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        self._until = self._until or time.monotonic()
        if self._state is not None:
            os.close(self._state)
            self._state = None
        if self._gauge is not None:
            self._gauge.close()
            self._gauge = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *about: object) -> None:
        self.stop()

    def use(self, *, workers: int = 1, work: float | None = None) -> Use:
        """What was used until now, or until `stop`."""
        seconds = max((self._until or time.monotonic()) - self._from, 1e-6)
        cpu = max(_own_cpu() + _children()[1] - self._cpu_from, 0)
        cores, peak = usable_cores(), max(self._peak_bytes, own_peak())
        shares = {name: self._share(name) for name in ("reading", "fitting", "waiting", "blocked")}
        limit = self.limit_gib or container_limit_gib()
        return Use(
            seconds=round(seconds, 3),
            cpu_seconds=round(cpu, 2),
            cores=round(cores, 2),
            cpu_share=round(min(cpu / seconds / cores, 1), 3),
            peak_memory_gib=round(peak / _GIB, 3),
            memory_gib=None if limit is None else round(limit, 3),
            **shares,
            devices=tuple(device.use() for _, device in sorted(self._devices.items())),
            overhead_seconds=round(self._overhead, 3),
            workers=workers,
            work=work,
        )

    def _share(self, name: str) -> float:
        whole = self._seconds["all"]
        return round(self._seconds[name] / whole, 3) if whole else 0.0

    def _watch(self) -> None:
        last, next_look = time.monotonic(), 0.0
        while not self._ended.wait(_STACK_S):
            now = time.monotonic()
            self._stand(now - last)
            last = now
            if now >= next_look:
                before = time.thread_time()
                self._look()
                next_look = now + max(_LOOK_S, (time.thread_time() - before) / _COSTS_AT_MOST)
            self._overhead = time.thread_time()

    def _stand(self, seconds: float) -> None:
        """Adds the time since the last look to what the main thread does now."""
        frame = sys._current_frames().get(self._main)
        self._seconds["all"] += seconds
        for name in doing(frame):
            self._seconds[name] += seconds
        if _disk_sleep(self._state):
            self._seconds["blocked"] += seconds

    def _look(self) -> None:
        """Memory and the devices."""
        self._peak_bytes = max(self._peak_bytes, _resident() + _children()[0])
        if self._gauge is not None:
            for number, reading in enumerate(self._gauge.read()):
                device = self._devices.setdefault(number, _Device(reading.name))
                device.add(reading.share, reading.memory_gib, reading.memory_total_gib)


class _Device:
    """A device's readings so far."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.shares, self.count = 0.0, 0
        self.peak: float | None = None
        self.total: float | None = None

    def add(self, share: float | None, memory: float | None, total: float | None) -> None:
        if share is not None:
            self.shares, self.count = self.shares + share, self.count + 1
        if memory is not None:
            self.peak = max(self.peak or 0, memory)
        self.total = total or self.total

    def use(self) -> DeviceUse:
        share = round(self.shares / self.count, 3) if self.count else None
        peak, total = (None if gib is None else round(gib, 3) for gib in (self.peak, self.total))
        return DeviceUse(name=self.name, share=share, peak_memory_gib=peak, memory_gib=total)


def doing(frame: FrameType | None) -> tuple[str, ...]:
    """What a thread that stands at a frame does: `reading`, or `fitting` and perhaps `waiting`, or nothing of these."""
    inner: list[str] = []
    fits = reads = False
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if frame.f_code.co_name == "fit" and frame.f_back is not None:
            caller = str(frame.f_back.f_globals.get("__name__", ""))
            fits = fits or caller.startswith(_FIT_FROM)
        reads = reads or module.startswith(_DATA_IN)
        if not fits:
            inner.append(module)
        frame = frame.f_back
    if not fits:
        return ("reading",) if reads else ()
    waits = is_waiting() or any(module.startswith(_LOADERS) for module in inner)
    return ("fitting", "waiting") if waits else ("fitting",)


def usable_cores() -> float:
    """How many cores this process may use: by affinity, and by the container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, int(quota) / int(period))
    return cores


def _own_cpu() -> float:
    """Processor seconds of this process and of the children that it has waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def own_peak() -> int:
    """The most bytes that this process held at once."""
    # Not ru_maxrss where there is a choice: it begins with what the parent held when it forked.
    with suppress(OSError), open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS


def _resident() -> int:
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    return 0


def _children() -> tuple[int, float]:
    """Bytes that the living children hold for themselves, and their processor seconds; 0 without Linux's /proc."""
    parents: dict[int, tuple[int, float]] = {}
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError, IndexError), open(f"/proc/{name}/stat", "rb") as file:
                    fields: Any = file.read().rpartition(b")")[2].split()
                    parents[int(name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / _TICKS
    family, grown = {os.getpid()}, True
    while grown:
        more = {pid for pid, (parent, _) in parents.items() if parent in family} - family
        family |= more
        grown = bool(more)
    held, cpu = 0, 0.0
    for pid in family - {os.getpid()}:
        cpu += parents[pid][1]
        with suppress(OSError, IndexError):
            _, resident, shared = Path("/proc", str(pid), "statm").read_text().split()[:3]
            held += (int(resident) - int(shared)) * _PAGE
    return held, cpu


def _state_file(thread: int) -> int | None:
    """A descriptor of what Linux tells of a thread; reading it again tells it anew."""
    with suppress(OSError):
        return os.open(f"/proc/self/task/{thread}/stat", os.O_RDONLY | os.O_CLOEXEC)
    return None


def _disk_sleep(descriptor: int | None) -> bool:
    """Whether the thread waits for a disk: it sleeps, and no signal wakes it."""
    if descriptor is None:
        return False
    with suppress(OSError, IndexError):
        return os.pread(descriptor, 256, 0).rpartition(b")")[2].split(None, 1)[0] == b"D"
    return False
