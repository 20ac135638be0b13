"""Pools and jobs as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from treadle.cli.tables import print_table
from treadle.hardware.look import PoolView
from treadle.jobs.listing import JobView
from treadle.registry.log import PRODUCTION
from treadle.words import counted, rate


def print_pools(title: str, views: Sequence[PoolView], stages: Mapping[str, Sequence[str]]) -> None:
    """A row for each pool, and below it in words what the row has no room for."""
    rows = [
        (
            view.name,
            ", ".join(stages[view.name]),
            view.backend,
            _devices(view),
            _free(view),
            _price(view),
            _reached(view),
            view.level,
        )
        for view in views
    ]
    columns = ("pool", "stages", "backend", "each job gets", "free", "USD/h", "reached", "verified")
    print_table(title, columns, rows)
    for view in views:
        if view.why_not:
            print(f"{view.name}: {view.why_not}")
        if view.hours:
            print(f"{view.name}: takes jobs at {view.hours} UTC")
        if view.usd_per_hour is not None:
            print(f"{view.name}: {view.price}")


def _devices(view: PoolView) -> str:
    parts = [f"{view.count} x {view.accelerator}"] if view.count else []
    parts += [counted(view.cpu, "core")] if view.cpu is not None else [] if view.count else ["all cores"]
    parts += [f"{view.memory_gib:g} GiB"] if view.memory_gib is not None else []
    parts += [view.instance_type] if view.instance_type else []
    parts += ["spot"] if view.spot else []
    return ", ".join(parts)


def _free(view: PoolView) -> str:
    if not view.reachable:
        return "-"
    if view.running is None:
        return "unknown"
    busy = f"{view.running} running" + (f", {view.waiting} waiting" if view.waiting else "")
    if view.free is None:
        return f"no limit; {busy}"
    devices = f" ({view.devices_free} {view.accelerator})" if view.devices_free is not None else ""
    return f"{view.free} of {view.max_jobs}{devices}; {busy}"


def _price(view: PoolView) -> str:
    return "unknown" if view.usd_per_hour is None else rate(view.usd_per_hour)


def _reached(view: PoolView) -> str:
    return "no" if not view.reachable else "yes, but" if view.why_not else "yes"


def print_jobs(found: Sequence[JobView]) -> None:
    """A row for each job, with its track where one is on another than production."""
    if not found:
        print("no jobs")
        return
    tracked = any(job.file.track != PRODUCTION for job in found)
    rows = [
        (
            job.id,
            job.file.loop,
            *((job.file.track,) if tracked else ()),
            job.file.stage,
            job.file.pool.name,
            job.state,
            job.since.strftime("%Y-%m-%d %H:%M:%S"),
            str(job.file.attempt),
            job.node,
        )
        for job in found
    ]
    columns = ("stage", "pool", "state", "since (UTC)", "attempt", "node")
    print_table("jobs", ("id", "loop", *(("track",) if tracked else ()), *columns), rows)
    for job in found:
        for words in (job.reason, *job.words):
            if words:
                print(f"{job.id}: {words}")
