"""A Ray cluster of this machine, for pools that name no other: started on demand, shared, and gone when idle.

    <root>/.ray/cluster/cluster-<n>/   the keeper of the n-th cluster, a job of the local backend: it starts Ray, writes
                                       down what became of each job, and ends the cluster when none ran for a while
                       cluster.json    where its dashboard is, while it takes jobs
                       token           who has it may submit
                       in_use          locked, shared, while someone submits; locked alone by a keeper that ends
           jobs/<name>/claim.json      on which cluster a job was submitted
                       ended.json      what became of it

As the keeper is a local job, two clients start it once, it outlives them, and what it started dies with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from treadle.errors import MissingPackage, Transient, TreadleError
from treadle.hardware import supervise
from treadle.hardware.backend import Handle, JobSpec, Json
from treadle.hardware.local import LocalBackend
from treadle.hardware.pools import Pool
from treadle.hardware.ray.http import RayJobs
from treadle.hardware.ray.words import Told, is_over

IDLE_S = 30.0
_START_S = 300.0
_KEPT_S = 14 * 86_400
_POOL = Pool(name="cluster")
_WITHDRAWN = "-withdrawn"


class LocalCluster:
    """The cluster of this machine, and the jobs that its predecessors ran. `root`: see LocalBackend."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = LocalBackend(root).root / ".ray"
        self.keepers = LocalBackend(self.root)

    @contextmanager
    def taking_jobs(self, idle_s: float) -> Iterator[tuple[RayJobs, str]]:
        """The cluster, started if need be, and its name; within it the cluster does not end.

        Raises:
            MissingPackage: Ray is not installed here. TreadleError: It does not start.
        """
        if find_spec("ray") is None:
            raise MissingPackage("ray", "start a Ray cluster on this machine", "ray")
        end = time.monotonic() + _START_S
        handle = self._running()
        while time.monotonic() < end:
            if handle is None or self._is_over_well(handle):
                handle = self._running() or self._start(idle_s)
            folder = Path(handle.data["folder"])
            lock = supervise.try_lock(folder / "in_use", shared=True)
            if lock is not None:
                try:
                    jobs = _jobs_of(folder)
                    if jobs is not None:
                        yield jobs, handle.name
                        return
                finally:
                    os.close(lock)
            time.sleep(0.1)
        raise TreadleError(
            f"no Ray cluster started on this machine within {_START_S:g} s: see {folder}/output.log"
        )

    def claim(self, name: str, cluster: str) -> bool:
        """Whether a job may be submitted to a cluster: not, if it was on another before."""
        folder = self._job(name)
        if not folder.exists():
            self._forget_old()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        supervise.write_once(folder / "claim.json", {"cluster": cluster})
        return self.cluster_of(name) == cluster

    def cluster_of(self, name: str) -> str | None:
        """On which cluster a job was submitted; None when on none."""
        return (supervise.read_json(self._job(name) / "claim.json") or {}).get("cluster")

    def ask(self, name: str) -> Told | None:
        """What is known of a job; None when nothing: it never came to the cluster, or was lost with it.

        Raises:
            Transient: The cluster is just ending.
        """
        cluster = self.cluster_of(name)
        if (ended := self._ended(name)) is not None or cluster is None:
            return ended
        jobs = _jobs_of(self.root / "cluster" / cluster)
        if jobs is not None:
            with suppress(Transient):
                return told_by(jobs, name)
        if (ended := self._ended(name)) is None and not self.is_over(cluster):
            raise Transient("the Ray cluster of this machine is just ending, or does not answer.")
        return ended or self._ended(name)

    def is_over(self, cluster: str) -> bool:
        """Whether a cluster has ended; what was left of one that was killed is ended here."""
        handle = self.keepers.find(cluster, _POOL)
        return handle is None or self.keepers.status(handle).is_over

    def jobs_of(self, name: str) -> RayJobs | None:
        """The cluster on which a job was submitted, if it still takes jobs."""
        cluster = self.cluster_of(name)
        return _jobs_of(self.root / "cluster" / cluster) if cluster else None

    def _running(self) -> Handle | None:
        handle = self.keepers.find(f"cluster-{self._newest()}", _POOL)
        return handle if handle and not self.keepers.status(handle).is_over else None

    def _newest(self) -> int:
        numbers = [int(path.name.rpartition("-")[2]) for path in (self.root / "cluster").glob("cluster-*")]
        return max(numbers, default=0)

    def _start(self, idle_s: float) -> Handle:
        name = f"cluster-{self._newest() + 1}"
        command = (sys.executable, "-P", "-m", "treadle.hardware.ray.local")
        words = (str(self.root / "cluster" / name), str(self.root / "jobs"), str(idle_s))
        return self.keepers.submit(JobSpec(name, (*command, *words), grace_s=20), _POOL)

    def _is_over_well(self, handle: Handle) -> bool:
        """Whether a cluster has ended, and another may be started.

        Raises:
            TreadleError: It failed: so would the next.
        """
        status = self.keepers.status(handle)
        if status.state == "failed":
            lines = [line for line in self.keepers.logs(handle, 0)[0] if line.strip()]
            raise TreadleError(
                f"the Ray cluster of this machine did not start ({status.reason}): {' '.join(lines[-3:])[-600:]}"
            )
        return status.is_over

    def _job(self, name: str) -> Path:
        return self.root / "jobs" / name

    def _ended(self, name: str) -> Told | None:
        content = supervise.read_json(self._job(name) / "ended.json")
        return Told(**content) if content else None

    def _forget_old(self) -> None:
        for claim in (self.root / "jobs").glob("*/claim.json"):
            with suppress(OSError):
                if time.time() - claim.stat().st_mtime > _KEPT_S:
                    shutil.rmtree(claim.parent)


def told_by(jobs: RayJobs, name: str) -> Told | None:
    """What a cluster tells of a job; None when it knows none of that name."""
    info = jobs.get(name)
    if info is None:
        return None
    withdrawal = jobs.get(name + _WITHDRAWN) if info["status"] == "FAILED" else None
    log = jobs.log(name) if info["status"] != "PENDING" else ""
    return Told(info, log, withdrawal["metadata"] if withdrawal else None)


def withdraw(jobs: RayJobs, name: str, python: str, state: str, reason: str) -> None:
    """Takes back a job that waits for resources: Ray's own stop only reaches what runs."""
    request = {
        "entrypoint": f"exec {python} -P -m treadle.hardware.ray.node --withdraw {name}",
        "submission_id": name + _WITHDRAWN,
        "metadata": {"state": state, "reason": reason},
    }
    submit_once(jobs, request)


def submit_once(jobs: RayJobs, submission: Json) -> None:
    """Submits a job, unless there is one of its name."""
    if jobs.get(submission["submission_id"]) is None:
        jobs.submit(submission)


def _jobs_of(folder: Path) -> RayJobs | None:
    told = supervise.read_json(folder / "cluster.json")
    return RayJobs(told["address"], (folder / "token").read_text()) if told else None


class _Keeper:
    """Starts Ray, keeps it while it is of use, and leaves nothing behind."""

    def __init__(self, folder: Path, archive: Path, idle_s: float) -> None:
        self.folder, self.archive, self.idle_s = folder, archive, idle_s
        self.is_asked_to_end = False

    def run(self) -> None:
        """Returns when the cluster has ended."""
        signal.signal(signal.SIGTERM, self._ask)
        token = self.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        os.environ |= {
            # A loaded machine takes longer than Ray's own patience of a minute.
            "RAY_worker_register_timeout_seconds": str(int(_START_S)),
            # Jobs may wait as long as their pools say, not only Ray's quarter of an hour.
            "RAY_JOB_START_TIMEOUT_SECONDS": str(7 * 86_400),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        for inherited in ("RAY_ADDRESS", "RAY_AUTH_TOKEN"):
            os.environ.pop(inherited, None)
        # Not in the folder: the sockets' paths must be short.
        files = tempfile.mkdtemp(prefix="treadle-ray-")
        process, address = None, ""
        try:
            process, address = _started(files)
            supervise.write_once(self.folder / "cluster.json", {"address": address, "node": platform.node()})
            self._keep(RayJobs(address, token.read_text()), process)
        finally:
            (self.folder / "cluster.json").unlink(missing_ok=True)
            if process is not None:
                _end(process)
            shutil.rmtree(files, ignore_errors=True)

    def _ask(self, number: int, frame: Any) -> None:
        self.is_asked_to_end = True

    def _keep(self, jobs: RayJobs, process: subprocess.Popen[bytes]) -> None:
        last = time.monotonic()
        while not self.is_asked_to_end:
            time.sleep(0.5)
            if process.poll() is not None:
                raise SystemExit("Ray ended by itself")
            if self._is_busy(jobs):
                last = time.monotonic()
            elif time.monotonic() - last >= self.idle_s and self._ends_now(jobs):
                return

    def _ends_now(self, jobs: RayJobs) -> bool:
        """Whether nobody submits; the lock, which is never given back, keeps others from it."""
        lock = supervise.try_lock(self.folder / "in_use")
        if lock is None:
            return False
        if self._is_busy(jobs):
            os.close(lock)
            return False
        return True

    def _is_busy(self, jobs: RayJobs) -> bool:
        """Whether a job waits or runs; writes down those that have ended."""
        try:
            infos = jobs.jobs()
            for info in infos:
                if is_over(info):
                    self._write_down(jobs, info)
        except Transient:
            return True
        return not all(is_over(info) for info in infos)

    def _write_down(self, jobs: RayJobs, info: Json) -> None:
        folder = self.archive / info["submission_id"]
        if not folder.is_dir() or (folder / "ended.json").exists():
            return
        told = told_by(jobs, info["submission_id"])
        if told is not None:
            content = {"info": _plain(told.info), "log": told.log, "withdrawn": told.withdrawn}
            supervise.write_once(folder / "ended.json", content)


def _started(files: str) -> tuple[subprocess.Popen[bytes], str]:
    """Ray's process and its dashboard's address, once jobs can be submitted there.

    Raises:
        SystemExit: It does not start.
    """
    end = time.monotonic() + _START_S
    # Again, if its first process was slow: Ray's patience of half a minute is fixed.
    while time.monotonic() < end:
        dashboard, agent = _free_ports()
        words = {
            "port": 0,
            "node-ip-address": "127.0.0.1",
            "dashboard-host": "127.0.0.1",
            "dashboard-port": dashboard,
            # Each cluster's default is the same one, and with another cluster's agent nothing works.
            "dashboard-agent-listen-port": agent,
            "temp-dir": files,
        }
        arguments = [f"--{name}={value}" for name, value in words.items()]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", *arguments],
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,
        )
        while process.poll() is None and time.monotonic() < end:
            if _answers(f"http://127.0.0.1:{dashboard}/api/version") and _answers(
                f"http://127.0.0.1:{agent}/api/local_raylet_healthz"
            ):
                return process, f"http://127.0.0.1:{dashboard}"
            time.sleep(0.2)
        _end(process)
    raise SystemExit("Ray did not start")


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]


def _answers(address: str) -> bool:
    """Whether there is an answer, even if it is that one must show a token."""
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5).close()
    except urllib.error.HTTPError as error:
        with error:
            return error.code in (401, 403)
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with_parent() -> None:
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _plain(info: Json) -> Json:
    """Without the environment, of which nothing is asked any more."""
    plain: Json = json.loads(json.dumps({key: value for key, value in info.items() if key != "runtime_env"}))
    return plain


if __name__ == "__main__":
    _Keeper(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])).run()
