"""A one-line job that tells what a pool's machine is: its devices, its cores, and its treadle.

check_pool ─► `treadle job --devices` there ─► Here, as JSON among its lines ─► Checked, with what is wrong
"""

from __future__ import annotations

import json
import platform
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from treadle.errors import SpecError, Transient
from treadle.hardware.backend import Backend, Handle, JobSpec, Status
from treadle.hardware.backends import get_backend
from treadle.hardware.devices import devices_seen, remedy_of
from treadle.hardware.gauges import open_gauge
from treadle.hardware.levels import level_of
from treadle.hardware.look import stage_labels
from treadle.hardware.memory import is_short, memory_gib
from treadle.hardware.policy import job_violations, tags_of_pool
from treadle.hardware.pools import Kind, Pool
from treadle.jobs.command import grace_s, role_of, treadle_job
from treadle.jobs.file import treadle_version
from treadle.jobs.measure import own_peak, usable_cores
from treadle.jobs.planning import refuse_closed
from treadle.records import Json, Part
from treadle.redaction import redacted
from treadle.words import counted

_MARK = "treadle-devices "
_LIMIT_S, _TAIL = 900, 10
# What every stage that touches rows loads before it has any.
_LIBRARIES = ("duckdb", "pandas", "pyarrow")


class Here(Part):
    """A machine as a process of it sees it.

    Attributes:
        treadle: The version there.
        gpu: GPUs, by device file.
        neuron: Neuron devices, by device file.
        models: Names of the accelerators, where the machine has something that tells.
        memory_gib: Of the machine, or the container's limit.
        own_gib: What a process of treadle took there, with the libraries of the stages and without any rows.
    """

    treadle: str
    python: str
    node: str
    machine: str
    cores: float
    memory_gib: float | None
    own_gib: float
    gpu: tuple[str, ...]
    neuron: tuple[str, ...]
    models: tuple[str, ...]


def here() -> Here:
    """This machine."""
    memory = memory_gib()
    for library in _LIBRARIES:
        with suppress(ImportError):
            import_module(library)
    return Here(
        treadle=treadle_version(),
        python=platform.python_version(),
        node=platform.node(),
        machine=platform.machine(),
        cores=usable_cores(),
        memory_gib=None if memory is None else round(memory, 1),
        own_gib=round(own_peak() / 2**30, 2),
        gpu=tuple(devices_seen("gpu")),
        neuron=tuple(devices_seen("trainium")),
        models=_models("gpu"),
    )


def _models(kind: Kind) -> tuple[str, ...]:
    gauge = open_gauge(kind)
    if gauge is None:
        return ()
    try:
        return tuple(reading.name for reading in gauge.read())
    finally:
        gauge.close()


def told(found: Here) -> str:
    """The line by which the job tells it."""
    return f"{_MARK}{found.model_dump_json()}"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of a pool came to.

    Attributes:
        problems: What is wrong, in words; empty: the pool gives what it promises.
        level: How far treadle's own tests went with such a pool.
        here: What its machine told; None where the job did not come that far.
        selftest: What the selftest there told, where one was asked for.
        seconds: From the submit to the end.
        tail: The job's last lines.
    """

    pool: str
    problems: tuple[str, ...]
    level: str
    state: str
    seconds: float
    here: Here | None = None
    selftest: Json | None = None
    tail: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """Plain JSON."""
        plain = {**asdict(self), "here": None if self.here is None else self.here.model_dump(mode="json")}
        return {"ok": not self.problems, **plain}


def check_pool(
    pool: Pool,
    *,
    selftest: bool = False,
    patience_s: float = _LIMIT_S,
    folder: Path = Path(),
    say: Callable[[str], None] = lambda line: None,
) -> Checked:
    """Runs a small job on a pool and compares what it sees with what the pool promises.

    Ctrl-C, and `patience_s` seconds without an end, cancel the job. It belongs to no loop: only what holds without one
    is asked before, the pool's hours and the policies, and no budget.

    Args:
        pool: The pool.
        selftest: Whether the machine also proves itself, see `treadle.jobs.selftest`: a minute instead of a second.
        patience_s: How long it may take, waiting included.
        folder: Where the pool is described: the policies that hold there hold for this job.
        say: Takes a line of progress.

    Raises:
        UserError: The backend can't do what the pool asks for. Transient: It can't be reached.
        PoolClosed: Outside of the pool's hours. SpecError: A policy.yaml forbids a job there.
    """
    refuse_closed(pool, datetime.now(UTC))
    labels = {**tags_of_pool(pool), "stage": "check", **stage_labels(pool)}
    if faults := job_violations(folder, pool, labels):
        raise SpecError(faults)
    backend = get_backend(pool.backend)
    arguments = ("--devices", *(("--selftest", "--device", pool.kind, "--json") if selftest else ()))
    spec = JobSpec(
        name=f"treadle-check-{uuid.uuid4().hex[:12]}-1",
        command=treadle_job(pool, *arguments),
        image=pool.image,
        resources=pool.resources(),
        max_seconds=min(pool.max_seconds or _LIMIT_S, _LIMIT_S),
        grace_s=min(grace_s(backend, pool), 10),
        spot=pool.spot,
        role=role_of(pool, "default"),
        labels=labels,
    )
    started = time.monotonic()
    handle = backend.submit(spec, pool)
    say(f"{spec.name} on the pool {pool.name} ...")
    status = _ended(backend, handle, started + patience_s, say)
    lines, _ = backend.logs(handle, 0)
    (found, other), proof = _here_in(lines), _selftest_in(lines)
    if other:
        problems = [_versions(other)]
    else:
        problems = _job_problems(pool, status, found, proof, lines, patience_s)
        problems += _against(pool, found) if found else []
    if proof is not None and not proof.get("ok"):
        problems += [f"selftest: {step['name']}: {step['told']}" for step in proof["steps"] if not step["ok"]]
    return Checked(
        pool=pool.name,
        problems=tuple(problems),
        level=level_of(pool),
        state=status.state if status else "stopped",
        seconds=round(time.monotonic() - started, 2),
        here=found,
        selftest=proof,
        tail=tuple(redacted(line) for line in lines if line and _MARK not in line)[-_TAIL:]
        if problems
        else (),
    )


def _ended(backend: Backend, handle: Handle, until: float, say: Callable[[str], None]) -> Status | None:
    """The job's end; None where it was cancelled because it took too long."""
    pause, queued = 0.1, False
    try:
        while time.monotonic() < until:
            try:
                status = backend.status(handle)
            except Transient as error:
                say(f"{error} Asking again.")
                status = Status(state="queued")
            if status.is_over:
                return status
            if status.state == "queued" and not queued and status.reason:
                say(f"queued: {status.reason}")
                queued = True
            time.sleep(pause)
            pause = min(pause * 1.5, backend.capabilities().poll_s)
    except KeyboardInterrupt:
        backend.cancel(handle, 5)
        raise
    backend.cancel(handle, 5)
    return None


def _here_in(lines: list[str]) -> tuple[Here | None, str]:
    """What the machine told, and its version of treadle where that tells in other words than this one."""
    for line in reversed(lines):
        _, mark, text = line.partition(_MARK)
        if mark:
            with suppress(ValueError):
                return Here.model_validate_json(text), ""
            with suppress(ValueError, KeyError, TypeError):
                return None, str(json.loads(text)["treadle"])
    return None, ""


def _selftest_in(lines: list[str]) -> Json | None:
    for line in reversed(lines):
        if line.startswith("{"):
            with suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and "steps" in found:
                    return found
    return None


def _job_problems(
    pool: Pool,
    status: Status | None,
    found: Here | None,
    proof: Json | None,
    lines: list[str],
    patience_s: float,
) -> list[str]:
    if any("No module named treadle" in line for line in lines):
        what = f"the image {pool.image}" if pool.image else f"the interpreter {pool.python or 'of the pool'}"
        return [f"{what} has no treadle; here is {treadle_version()}: install that version there"]
    if any("No such option" in line for line in lines) and found is None:
        return [f"its treadle does not know --devices: it is older than {treadle_version()}, which is here"]
    if status is None:
        return [f"it did not end within {patience_s:g} s and was cancelled"]
    if status.state != "succeeded" and (proof is None or proof.get("ok")):
        small = (
            ". Treadle itself does not fit there: raise memory_gib" if _lacks_memory(status, found) else ""
        )
        return [f"the job {status.state}{f': {redacted(status.reason)}' if status.reason else ''}{small}"]
    return [] if found else ["the job ended well and told nothing: does its backend give the log?"]


def _lacks_memory(status: Status, found: Here | None) -> bool:
    """Whether the job was ended for its memory before it told anything: it had loaded libraries and no rows."""
    return found is None and "out of memory" in status.reason


def _versions(there: str) -> str:
    return f"treadle {there} is there and {treadle_version()} here: records would differ; install the same version"


def _against(pool: Pool, found: Here) -> list[str]:
    """What the machine lacks of what the pool promises."""
    problems = []
    if found.treadle != treadle_version():
        problems.append(_versions(found.treadle))
    devices = {"cpu": (), "gpu": found.gpu}.get(pool.kind, found.neuron)
    if pool.kind != "cpu" and len(devices) < pool.count:
        shown = ", ".join(devices) or "none"
        problems.append(
            f"the pool promises {pool.count} x {pool.accelerator}; the job on {found.node} sees {shown}."
            f" {remedy_of(pool)}"
        )
    if pool.cpu is not None and found.cores < min(pool.cpu, 1e9) - 0.01:
        problems.append(
            f"the pool promises {counted(pool.cpu, 'core')}; the job on {found.node} may use {found.cores:g}"
        )
    return problems + _memory_problems(pool, found)


def _memory_problems(pool: Pool, found: Here) -> list[str]:
    """What is wrong with `memory_gib`: more than the machine has, or less than treadle itself takes there."""
    promised, has = pool.memory_gib, found.memory_gib
    if promised is None:
        return []
    if is_short(has, promised):
        return [f"the pool promises {promised:g} GiB of memory; {found.node} has {has:g}"]
    if found.own_gib > promised:
        return [
            f"the pool gives a job {promised:g} GiB of memory, and treadle with the libraries of its stages takes"
            f" {found.own_gib:g} GiB before it has any rows: every stage would be ended there. Raise memory_gib"
        ]
    return []
