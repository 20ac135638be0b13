"""Pools and jobs at the command line: what there is, what is free, what runs; follow it, cancel it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from treadle.cli.base import AsJson, StoreUri, Track, command, load_loop, print_json, say
from treadle.errors import UserError

if TYPE_CHECKING:
    from treadle.hardware.pools import Pool
    from treadle.jobs.listing import JobView
    from treadle.jobs.probe import Checked
    from treadle.loop import Loop
    from treadle.store import Store

_POOLS = "[LOOP] | check NAME [LOOP] | render LOOP STAGE"
_JOBS = "[LOOP] | follow [LOOP] ID | cancel [LOOP] ID"
_SHOWN = 20


@command("pools")
def pools(
    words: Annotated[list[str] | None, typer.Argument(metavar=_POOLS, show_default=False)] = None,
    folder: Annotated[
        Path, typer.Option("--folder", metavar="DIR", help="Whose pools.yaml; with a LOOP: the loop's own.")
    ] = Path(),
    pool: Annotated[
        str | None, typer.Option("--pool", metavar="NAME", help="render: another pool than the loop's.")
    ] = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="check: prove the device by a training, too.")
    ] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="S", help="check: seconds until it is given up.")
    ] = 900,
    store: StoreUri = None,
    track: Track = "production",
    as_json: AsJson = False,
) -> int:
    """List pools, check one, or print a stage's request.

    The list says what is free, what an hour costs, what can be reached, and how far such a pool was verified.
    `check` runs a one-line job on a pool and compares what it sees with what the pool promises; it ends with 1
    where something is missing. `render` submits nothing.

    Example: treadle pools loops/flights.yaml

    Example: treadle pools check gpu-spot --selftest

    Example: treadle pools render loops/flights.yaml train --pool gpu-spot
    """
    match list(words or ()):
        case ["check", name]:
            return _check(name, _existing(folder), selftest, wait, as_json)
        case ["check", name, loop]:
            return _check(name, _loop_with_pools(Path(loop)), selftest, wait, as_json)
        case ["check", *_]:
            raise UserError(
                "write: treadle pools check NAME, and the loop's file where that describes the pool"
            )
        case ["render", loop, stage]:
            return _render(load_loop(Path(loop)), stage, pool, store, track, as_json)
        case ["render", *_]:
            raise UserError("write: treadle pools render LOOP STAGE, such as loops/flights.yaml train")
        case [] | [_] as given:
            asked = _loop_with_pools(Path(given[0])) if given else None
            return _list_pools(asked, _existing(folder), store, as_json)
        case _:
            raise UserError(f"write: treadle pools {_POOLS}")


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"--folder {folder}: there is no such folder")
    return folder.absolute()


def _loop_with_pools(path: Path) -> Loop:
    from treadle.hardware.pools import FILE

    if path.is_dir() or path.name == FILE:
        folder = path if path.is_dir() else path.parent
        raise UserError(
            f"{path} is no loop's file: for the pools of a folder write: treadle pools --folder {folder}"
        )
    return load_loop(path)


def _list_pools(loop: Loop | None, folder: Path, store: str | None, as_json: bool) -> int:
    from treadle.hardware.look import look_at
    from treadle.hardware.pools import FILE, find_pools_file, known_pools

    place = loop.folder if loop else folder
    file, known = find_pools_file(place), known_pools(loop or place)
    views = look_at(list(known.values()), loads=_loads(place, store, known))
    asked = loop.pool_names if loop else {}
    stages = {name: [stage for stage, wanted in asked.items() if wanted == name] for name in known}
    if as_json:
        print_json([{**view.to_json(), "stages": stages[view.name]} for view in views])
        return 0
    from treadle.cli.hardware_tables import print_pools

    print_pools(str(file or "pools"), views, stages)
    if file is None:
        print(
            f"There is no {FILE} in {place} or above it, so there is only the pool local: docs/pools.md shows one."
        )
    return 0


def _loads(place: Path, store: str | None, known: Mapping[str, Pool]) -> dict[str, tuple[int, int]]:
    """By pool, the jobs that run and wait, by the stores here: for backends that can't tell it themselves."""
    from treadle.errors import TreadleError
    from treadle.jobs.listing import loads_in, stores_at
    from treadle.redaction import redacted
    from treadle.store import open_store

    if all(pool.backend == "local" for pool in known.values()):
        return {}
    found: dict[str, tuple[int, int]] = {}
    for address in [store] if store else stores_at(place):
        try:
            loads = loads_in(open_store(address), known)
        except TreadleError as error:
            say(f"what runs by the store {redacted(str(address))} is not known: {error}")
            return {}
        found = {
            name: (running + loads[name][0], waiting + loads[name][1])
            for name, (running, waiting) in (found or dict.fromkeys(known, (0, 0))).items()
        }
    return found


def _pool_named(name: str, of: Loop | Path) -> Pool:
    from treadle.hardware.pools import known_pools, unknown_pool

    known = known_pools(of)
    if name not in known:
        problem, hint = unknown_pool(name, of)
        if isinstance(of, Path):
            hint += (
                f" For a pool that a loop describes, add the loop's file: treadle pools check {name} LOOP."
            )
        raise UserError(f"{problem} {hint}")
    return known[name]


def _check(name: str, of: Loop | Path, selftest: bool, wait: float, as_json: bool) -> int:
    from treadle.jobs.probe import check_pool

    pool = _pool_named(name, of)
    folder = of if isinstance(of, Path) else of.folder
    try:
        checked = check_pool(pool, selftest=selftest, patience_s=wait, folder=folder, say=say)
    except KeyboardInterrupt:
        say(f"the check of {name} was interrupted, and its job there is being cancelled")
        return 3
    if as_json:
        print_json(checked.to_json())
    else:
        _tell(checked)
    return 1 if checked.problems else 0


def _tell(checked: Checked) -> None:
    from treadle.cli.tables import print_fields
    from treadle.words import counted

    rows: list[tuple[str, str]] = []
    if (here := checked.here) is not None:
        devices = ", ".join((*here.gpu, *here.neuron)) or "none"
        memory = f", {here.memory_gib:g} GiB" if here.memory_gib is not None else ""
        rows += [
            ("machine", f"{here.node} ({here.machine}): {counted(here.cores, 'core')}{memory}"),
            ("accelerators", f"{devices}{f' ({chr(44).join(here.models)})' if here.models else ''}"),
            ("treadle", f"{here.treadle} on Python {here.python}"),
        ]
    if checked.selftest is not None:
        rows += [(f"selftest {step['name']}", step["told"]) for step in checked.selftest["steps"]]
    rows += [("took", f"{checked.seconds:.1f} s"), ("verified", checked.level)]
    print(f"{checked.pool}: {'as promised' if not checked.problems else 'not as promised'}")
    print_fields([*rows, *(("problem", words) for words in checked.problems)])
    for line in checked.tail:
        print(f"  | {line}")


def _render(loop: Loop, stage: str, name: str | None, store: str | None, track: str, as_json: bool) -> int:
    import yaml
    from treadle.jobs.client import pool_of
    from treadle.jobs.command import render
    from treadle.redaction import redacted
    from treadle.stages import STAGES

    if stage not in STAGES:
        raise UserError(f"there is no stage {stage!r}; the stages are: {', '.join(STAGES)}")
    pool = pool_of(loop, stage, name)
    if pool is None:
        raise UserError(f"{stage} of {loop.name} has no pool: name one with --pool NAME")
    address = store or os.environ.get("TREADLE_STORE") or loop.folder / ".treadle"
    request = render(loop, stage, pool, track=track, store=redacted(str(address)))
    if as_json:
        print_json(request)
    else:
        print(yaml.safe_dump(request, sort_keys=False, allow_unicode=True), end="")
    return 0


@command("jobs")
def jobs(
    words: Annotated[list[str] | None, typer.Argument(metavar=_JOBS, show_default=False)] = None,
    everything: Annotated[
        bool, typer.Option("--all", help=f"All jobs; else the newest {_SHOWN} and all that run.")
    ] = False,
    grace: Annotated[
        float, typer.Option("--grace", metavar="S", help="cancel: seconds before it is killed.")
    ] = 30,
    store: StoreUri = None,
    as_json: AsJson = False,
) -> int:
    """List the jobs of a store; follow one, or cancel it.

    From any process that reaches the store and the backend, also when whoever submitted the job is gone. ID is what
    the list shows; its first characters do. LOOP is a loop's file, whose jobs and store are meant. Without it the
    store is that of --store, or .treadle here or in loops.
    `follow` prints the job's lines and ends with 1 where it did not succeed; Ctrl-C leaves the job running.

    Example: treadle jobs loops/flights.yaml

    Example: treadle jobs follow 3f9a1c

    Example: treadle jobs cancel 3f9a1c
    """
    match list(words or ()):
        case ["follow", *loop, which] if len(loop) < 2:
            job = _find(which, loop, store)
            try:
                return _follow(job, as_json)
            except KeyboardInterrupt:
                say(_goes_on(job, loop, store, "no longer followed, and goes on"))
                return 3
        case ["cancel", *loop, which] if len(loop) < 2:
            job = _find(which, loop, store)
            try:
                return _cancel(job, grace, as_json)
            except KeyboardInterrupt:
                say(_goes_on(job, loop, store, f"asked to end, and is killed {grace:g} s after that"))
                return 3
        case ["follow" | "cancel" as act, *_]:
            raise UserError(
                f"write: treadle jobs {act} ID, or with the loop's file: treadle jobs {act} LOOP ID"
            )
        case [] | [_] as given:
            return _list_jobs(load_loop(Path(given[0])) if given else None, store, everything, as_json)
        case _:
            raise UserError(f"write: treadle jobs {_JOBS}")


def _list_jobs(loop: Loop | None, store: str | None, everything: bool, as_json: bool) -> int:
    from treadle.hardware.pools import known_pools
    from treadle.jobs.listing import jobs_in
    from treadle.session import open_loop_store

    opened = open_loop_store(loop, store) if loop else _store(store)
    pools = known_pools(loop or Path.cwd())
    last = None if everything else _SHOWN
    found = jobs_in(opened, loop.name if loop else None, pools=pools, last=last)
    if as_json:
        print_json([job.to_json() for job in found])
    else:
        from treadle.cli.hardware_tables import print_jobs

        print_jobs(found)
    return 0


def _store(store: str | None) -> Store:
    """The store of --store, or the one that lies here."""
    from treadle.store import open_store

    if store:
        return open_store(store)
    for place in (Path(".treadle"), Path("loops/.treadle")):
        if place.is_dir():
            return open_store(place.absolute())
    raise UserError("which store? Name a loop, give --store URI or TREADLE_STORE, or go where .treadle lies")


def _find(which: str, path: Sequence[str], store: str | None) -> JobView:
    """The job of an id: of a loop, where its file is named, else of the store here."""
    from treadle.hardware.pools import known_pools
    from treadle.jobs.listing import find_job
    from treadle.session import open_loop_store

    if not path:
        return find_job(_store(store), which, pools=known_pools(Path.cwd()))
    loop = load_loop(Path(path[0]))
    return find_job(open_loop_store(loop, store), which, loop.name, pools=known_pools(loop))


def _follow(job: JobView, as_json: bool) -> int:
    """Prints the job's lines until it ends; with JSON to standard error."""
    from treadle.errors import Transient
    from treadle.hardware.backends import get_backend
    from treadle.jobs.client import logs, poll

    out = sys.stderr if as_json else sys.stdout
    since, pause = 0, 0.1
    state, reason = job.state, job.reason
    while job.ref is not None:
        try:
            status = poll(job.ref)
            lines, since = logs(job.ref, since)
        except Transient as error:
            say(f"{error} The job goes on; asking again.")
            time.sleep(pause)
            continue
        for line in lines:
            print(line, file=out, flush=True)
        if status.is_over and not lines:
            state = job.state if job.is_over else status.state
            reason = job.reason or status.reason
            break
        if not lines:
            time.sleep(pause)
            pause = min(pause * 1.3, get_backend(job.ref.backend).capabilities().poll_s)
    if as_json:
        print_json({**job.to_json(), "state": state, "reason": reason})
    else:
        say(f"{job.file.stage} on the pool {job.file.pool.name}: {state}{f', {reason}' if reason else ''}")
    return 0 if state == "succeeded" else 1


def _goes_on(job: JobView, loop: Sequence[str], store: str | None, how: str) -> str:
    """What becomes of a job when only the command that looked at it ends."""
    from treadle.redaction import redacted

    where, which = f" --store {redacted(store)}" if store else "", " ".join([*loop, job.id])
    return (
        f"{job.file.stage} on the pool {job.file.pool.name} is {how}. See it again: treadle jobs follow"
        f" {which}{where}; end it: treadle jobs cancel {which}{where}"
    )


def _cancel(job: JobView, grace: float, as_json: bool) -> int:
    """Cancels a job and waits for its end."""
    from treadle.jobs.client import cancel, poll

    state = job.state
    if job.ref is not None and not job.is_over:
        cancel(job.ref, grace)
        say(f"cancelling {job.ref} ...")
        status = poll(job.ref)
        while not status.is_over:
            time.sleep(0.2)
            status = poll(job.ref)
        state = status.state
    elif job.state == "unknown":
        raise UserError(f"{job.file.name} can't be cancelled now: {job.reason}")
    if as_json:
        print_json({**job.to_json(), "state": state})
    else:
        ended = "cancelled" if state == "stopped" and not job.is_over else f"it is over: {state}"
        print(f"{job.file.stage} on the pool {job.file.pool.name}: {ended}")
    return 0
