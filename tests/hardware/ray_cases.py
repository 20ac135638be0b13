"""What the tests of Ray share: a pool of it, looking at the processes of this machine, and ending its cluster."""

from __future__ import annotations

import os
import time
from pathlib import Path

from job_cases import pool_from
from treadle.hardware.backend import Handle
from treadle.hardware.pools import Pool
from treadle.hardware.ray.local import LocalCluster
from wheel import Wheel


def on_ray(wheel: Wheel) -> Pool:
    """The pool `cluster`, which a loop now has."""
    text = "cluster: {backend: ray, memory_gib: 3, options: {idle_s: 120, grace_s: 60}}\n"
    return pool_from(wheel, text, "cluster")


def processes(word: str) -> dict[int, int]:
    """Parent by process id, of the processes with a word among their arguments."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (process / "cmdline").read_bytes():
                stat = (process / "stat").read_bytes().rpartition(b")")[2].split()
                found[int(process.name)] = int(stat[1])
        except OSError:
            continue
    return found


def watcher_of(handle: Handle) -> tuple[int, int]:
    """What sees to a job's command on its node, and its parent, which is Ray's; its guard looks the same."""
    pids = processes(f'"name": "{handle.name}"')
    ((watcher, parent),) = ((pid, parent) for pid, parent in pids.items() if parent not in pids)
    return watcher, parent


def supervisor_of(handle: Handle) -> int:
    """What holds the limits of a job's command."""
    for pid in processes("supervise.py"):
        if os.getsid(pid) != pid:  # whoever started it, and ends now
            continue
        folder = Path(Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2])
        if f'"name": "{handle.name}"' in (folder / "job.json").read_text():
            return pid
    raise AssertionError(f"{handle.name} has no supervisor")


def end(root: Path) -> None:
    """Ends the clusters of a folder, as their keepers are asked to when the machine shuts down."""
    cluster = LocalCluster(root)
    for folder in (cluster.root / "cluster").glob("cluster-*"):
        handle = cluster.keepers.find(folder.name, Pool(name="cluster"))
        if handle is not None:
            cluster.keepers.cancel(handle, 20)
            while not cluster.keepers.status(handle).is_over:
                time.sleep(0.1)
