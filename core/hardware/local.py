"""The local backend: a process of its own on this machine, seen to by a detached supervisor.

    <root>/<pool>/<job's name>/     one folder a job, see `supervise`
                  .slots/<n>        locked by a running job: at most `max_jobs` of them, whatever process submitted them
                  .queue/<ticket>   locked by a waiting job: who came first is first

Liveness is a lock that the kernel drops when the supervisor dies, so no process id is ever trusted.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import SpecError, TreadleError, UserError
from treadle.hardware import supervise
from treadle.hardware.backend import Capabilities, Handle, JobSpec, Json, Status
from treadle.hardware.options import seconds_of
from treadle.hardware.pools import Pool
from treadle.words import counted

if TYPE_CHECKING:
    from treadle.hardware.backend import Backend

_KEPT_S = 14 * 86_400
_OPTIONS = {"devices", "cores_per_device", "grace_s"}
_PIECE = 1 << 20
_OTHER_PYTHON = "Correct `python` of the pool."


class LocalBackend:
    """See Backend. `root` is where the state lies: `TREADLE_JOBS`, else `~/.local/state/treadle/jobs`."""

    name = "local"

    def __init__(self, root: Path | None = None) -> None:
        found = root or os.environ.get("TREADLE_JOBS") or "~/.local/state/treadle/jobs"
        self.root = Path(found).expanduser().absolute()

    def capabilities(self) -> Capabilities:
        """See Backend."""
        return Capabilities(poll_s=0.5)

    def plan(self, job: JobSpec, pool: Pool) -> Json:
        """See Backend. `devices` gives the value of each variable by slot."""
        _refuse_what_is_not_here(pool, job)
        devices = _devices(pool, job)
        slots = pool.max_jobs or (0 if pool.kind == "cpu" else 1)
        return {
            "name": job.name,
            "command": [os.path.expanduser(job.command[0]), *job.command[1:]],
            "cwd": _working_folder(),
            "env": {**pool.env, **job.env},
            # Another interpreter has libraries of its own; those of the caller would hide them.
            "without": ["PYTHONPATH", "PYTHONHOME"] if pool.python else [],
            "devices": {
                name: [values[slot % len(values)] for slot in range(slots or 1)]
                for name, values in devices.items()
            },
            "slots": slots,
            "cpu": int(job.resources.cpu) if job.resources.cpu else None,
            "memory_gib": job.resources.memory_gib,
            "max_seconds": job.max_seconds,
            "grace_s": job.grace_s,
            "labels": dict(job.labels),
        }

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        """See Backend. Returns when the supervisor has the job in hand."""
        request = self.plan(job, pool)
        if problem := _no_program(request["command"][0]):
            raise UserError(f"the pool {pool.name}: {problem} {_OTHER_PYTHON}")
        folder = self.root / pool.name / job.name
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._forget_old(folder.parent)
            supervise.write_once(folder / "job.json", request)
            started = subprocess.run(
                [sys.executable, "-I", supervise.__file__, str(folder)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise TreadleError(
                f"the local pool {pool.name} can't write its folder {folder}: {error.strerror or error}."
                " Make room, or name another with TREADLE_JOBS."
            ) from error
        if started.returncode:
            raise TreadleError(f"the supervisor of {job.name} did not start: {started.stderr.strip()}")
        return self._handle(job.name, pool.name)

    def status(self, handle: Handle) -> Status:
        """See Backend. A job whose supervisor is gone is ended here, with all that it left."""
        folder = _folder(handle)
        if not (folder / "job.json").exists():
            if handle.data.get("node", platform.node()) != platform.node():
                raise UserError(
                    f"{handle.name} runs on {handle.data['node']}: its local pool can be asked there only."
                )
            return Status(state="lost", reason=f"{folder} is gone")
        if (ended := _ended(folder)) is not None:
            return ended
        lives = supervise.try_lock(folder / "alive", shared=True)
        if lives is None:
            running = supervise.read_json(folder / "running.json")
            if running is None:
                return Status(state="queued", reason="it waits for its turn", node=platform.node())
            return Status(state="running", started=running["started"], node=running["node"])
        os.close(lives)
        if _ended(folder) is None:
            supervise.sweep(folder)
            told = supervise.read_json(folder / "running.json") or {}
            reason = "its supervisor was killed, or the machine was restarted"
            ended_now = {"state": "lost", "exit_code": None, "reason": reason, "started": told.get("started")}
            content = {**ended_now, "ended": time.time(), "node": platform.node()}
            supervise.write_once(folder / "exit.json", content)
        found = _ended(folder)
        assert found is not None
        return found

    def logs(self, handle: Handle, since: int) -> tuple[list[str], int]:
        """See Backend. `since` counts bytes; a line that is not finished yet comes when it is."""
        over = _ended(_folder(handle)) is not None
        try:
            with open(_folder(handle) / "output.log", "rb") as file:
                file.seek(since)
                found = file.read(_PIECE)
        except FileNotFoundError:
            return [], since
        end = found.rfind(b"\n") + 1
        whole = found if (over and len(found) < _PIECE) or (not end and len(found) == _PIECE) else found[:end]
        # A progress bar overwrites its line; the last state is the line.
        lines = [line.rstrip("\r").rpartition("\r")[2] for line in whole.decode(errors="replace").split("\n")]
        return lines[:-1] if lines[-1] == "" else lines, since + len(whole)

    def cancel(self, handle: Handle, grace: float) -> None:
        """See Backend. The supervisor looks every fifth of a second."""
        folder = _folder(handle)
        if folder.is_dir() and not self.status(handle).is_over:
            supervise.write_once(folder / "cancel.json", {"grace": grace, "at": time.time()})

    def find(self, name: str, pool: Pool) -> Handle | None:
        """See Backend. A folder whose supervisor never began is none."""
        return self._handle(name, pool.name) if (self.root / pool.name / name / "began").exists() else None

    def load(self, pool: Pool) -> tuple[int, int]:
        """How many jobs of a pool run and how many wait, whoever submitted them; ends those that were lost."""
        began = [path.parent for path in (self.root / pool.name).glob("*/began")]
        open_ = [folder.name for folder in began if not (folder / "exit.json").exists()]
        states = [self.status(self._handle(name, pool.name)).state for name in open_]
        return states.count("running"), states.count("queued")

    def _handle(self, name: str, pool: str) -> Handle:
        data = {"folder": str(self.root / pool / name), "node": platform.node()}
        return Handle(backend=self.name, name=name, pool=pool, data=data)

    def _forget_old(self, pool: Path) -> None:
        """Removes the folders of jobs that ended long ago."""
        for ended in pool.glob("*/exit.json"):
            with suppress(OSError):
                if time.time() - ended.stat().st_mtime > _KEPT_S:
                    shutil.rmtree(ended.parent)


def _working_folder() -> str:
    """That of the caller, from which relative addresses in variables start; the root where it was removed."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _folder(handle: Handle) -> Path:
    return Path(handle.data["folder"])


def _ended(folder: Path) -> Status | None:
    told = supervise.read_json(folder / "exit.json")
    if told is None:
        return None
    return Status.model_validate({name: value for name, value in told.items() if name in Status.model_fields})


def _refuse_what_is_not_here(pool: Pool, job: JobSpec) -> None:
    """Nothing that a pool asks for is passed over in silence."""
    if pool.image or job.image:
        raise UserError(f"the pool {pool.name} names an image; the local backend runs none. Name python.")
    if pool.spot:
        raise UserError(f"the pool {pool.name} asks for spot machines; the local backend has only this one.")
    if pool.region or pool.roles:
        raise UserError(f"the pool {pool.name} names a region or roles; the local backend has neither.")
    for option in sorted(set(pool.options) - _OPTIONS):
        known = ", ".join(sorted(_OPTIONS))
        raise UserError(f"the pool {pool.name}: the local backend has no option {option!r}; known: {known}")
    _refuse_wrong_options(pool)
    cpu, cores = job.resources.cpu, os.cpu_count() or 1
    if cpu is not None and (cpu != int(cpu) or cpu > cores):
        raise UserError(
            f"the pool {pool.name} asks for {cpu:g} cores a job; this machine has {cores}, in whole ones."
        )
    if job.resources.memory_gib is not None and not Path("/proc/self/smaps_rollup").exists():
        raise UserError(
            f"the pool {pool.name}: memory_gib needs Linux's /proc, which is not here. Take it out."
        )


def missing_program(pool: Pool) -> str:
    """Why no job of a pool of this machine can start: its interpreter is not there, or no program; else empty."""
    problem = _no_program(pool.python) if pool.backend == "local" and pool.python is not None else ""
    return f"the pool {pool.name}: {problem} {_OTHER_PYTHON}" if problem else ""


def refuse_missing_program(pool: Pool) -> None:
    """Nothing, where the interpreter that a pool of this machine names is there; pools elsewhere pass.

    To be asked where the job would be submitted, before anything is claimed for it.

    Raises:
        SpecError: At the pool's line.
    """
    problem = _no_program(pool.python) if pool.backend == "local" and pool.python is not None else ""
    if problem:
        raise SpecError([pool.fault("python", f"the pool {pool.name}: {problem}", _OTHER_PYTHON)])


def _no_program(program: str) -> str:
    found = shutil.which(os.path.expanduser(program))
    return "" if found else f"{program} is no program on this machine."


def _refuse_wrong_options(pool: Pool) -> None:
    """Nothing, where the values of the options are such that they can mean something.

    Raises:
        UserError: What they are, and what to write.
    """
    seconds_of(pool, "grace_s", Capabilities().grace_s)
    devices = pool.options.get("devices", [])
    are_fit = isinstance(devices, list | tuple) and all(
        not isinstance(device, bool)
        and (
            (isinstance(device, int) and device >= 0)
            or (
                isinstance(device, str)
                and (device.isdigit() or (pool.kind in ("cpu", "gpu") and device != ""))
            )
        )
        for device in devices
    )
    if not are_fit:
        raise UserError(
            f"the pool {pool.name}: options.devices is {devices!r}; write a list of the devices' numbers, counted from"
            " 0, such as [0, 1]."
        )


def _devices(pool: Pool, job: JobSpec) -> dict[str, list[str]]:
    """By variable, what each slot sees. A job without accelerators sees no GPU: it can't take what others count on."""
    count, kind = job.resources.count, pool.kind
    if kind == "cpu":
        return {"CUDA_VISIBLE_DEVICES": [""]}
    slots = pool.max_jobs or 1
    ids = list(pool.options.get("devices", range(count * slots)))
    if len(ids) < count * slots:
        raise UserError(
            f"the pool {pool.name} has {counted(len(ids), 'device')}; {counted(slots, 'job')} with {count} each"
            f" {'needs' if slots == 1 else 'need'} {count * slots}. Lower count or max_jobs."
        )
    each = [ids[slot * count : (slot + 1) * count] for slot in range(slots)]
    if kind == "gpu":
        return {"CUDA_VISIBLE_DEVICES": [",".join(map(str, mine)) for mine in each]}
    cores = pool.options.get("cores_per_device")
    if not isinstance(cores, int) or cores < 1:
        raise UserError(
            f"the pool {pool.name}: say how many NeuronCores a device shows, options: {{cores_per_device: 2}} on trn1"
            " and inf2; on trn2 it depends on NEURON_LOGICAL_NC_CONFIG."
        )
    spread = [[int(device) * cores + core for device in mine for core in range(cores)] for mine in each]
    return {"NEURON_RT_VISIBLE_CORES": [",".join(map(str, mine)) for mine in spread]}


if TYPE_CHECKING:
    _local: Backend = LocalBackend()
