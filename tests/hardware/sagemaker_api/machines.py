"""The life of a job: machines that run its entrypoint as processes here, and are taken away when a test says so.

A spot job that is interrupted starts again under its name. Stopping is SIGTERM to the first process and SIGKILL later;
when that process ends, the container's others end too. Lines go to CloudWatch's groups, one stream a machine and start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Json = dict[str, Any]
COOKIE = "FAKE_SAGEMAKER_JOB"
_TICK_S = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Job:
    """One job, training or processing: what was asked for, and how it stands."""

    api: str
    name: str
    request: Json
    created: float = field(default_factory=time.time)
    status: str = "InProgress"
    steps: list[Json] = field(default_factory=list)
    started: float | None = None
    ended: float | None = None
    worked: float = 0.0
    reason: str = ""
    told: str = ""  # "", stop, interrupt, lose: what happens to it from outside
    starts: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    thread: threading.Thread | None = None

    @property
    def step(self) -> str:
        return str(self.steps[-1]["Status"])

    def enters(self, step: str, message: str = "") -> None:
        now = time.time()
        if self.steps:
            self.steps[-1]["EndTime"] = now
        self.steps.append({"Status": step, "StartTime": now, "StatusMessage": message or step})

    @property
    def spec(self) -> Json:
        found: Json = self.request["AlgorithmSpecification" if self.api == "Training" else "AppSpecification"]
        return found

    @property
    def machines(self) -> Json:
        if self.api == "Training":
            found: Json = self.request["ResourceConfig"]
            return found
        cluster: Json = self.request["ProcessingResources"]["ClusterConfig"]
        return cluster


class Machines:
    """Whatever number of machines is asked for. Public fields steer them.

    Attributes:
        tick_s: How long each step before and after Training takes.
        grace_s: Seconds between SIGTERM and SIGKILL; 120 at AWS.
        notice_s: The same for a spot machine that is taken back.
        machine_gib: The memory of every machine.
        images: The images that exist; None: all.
        has_capacity: Whether there is a machine for a job that has none yet.
        env: What each container has besides PATH and HOME.
        events: What CloudWatch holds, by group.
    """

    def __init__(self) -> None:
        self.reset()
        self.jobs: dict[tuple[str, str], Job] = {}
        self.events: dict[str, list[Json]] = {}
        self.lock = threading.RLock()
        self.folder = Path(tempfile.mkdtemp(prefix="fake-sagemaker-"))

    def reset(self) -> None:
        """As it was at first, but for the jobs that it knows."""
        self.tick_s, self.grace_s, self.notice_s, self.machine_gib = 0.02, 1.0, 1.0, 0.25
        self.images: set[str] | None = None
        self.has_capacity = True
        self.env: dict[str, str] = {}

    def close(self) -> None:
        """Ends every job."""
        for job in self.jobs.values():
            job.told = job.told or "lose"
        for job in self.jobs.values():
            if job.thread is not None:
                job.thread.join(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    # What happens to jobs from outside.

    def interrupt(self, name: str) -> None:
        """Takes a spot job's machine back, with notice. It starts again under its name."""
        job = self.jobs[("Training", name)]
        assert job.request["EnableManagedSpotTraining"]
        job.told = "interrupt"

    def lose(self, name: str) -> None:
        """The machine dies."""
        job = next(job for (_, known), job in self.jobs.items() if known == name)
        job.told = "lose"

    # The life of a job.

    def take_in(self, job: Job) -> None:
        """Lets a new job live."""
        job.enters("Starting", "Starting the training job")
        self.jobs[(job.api, job.name)] = job
        job.thread = threading.Thread(target=self._live, args=(job,), daemon=True)
        job.thread.start()

    def _live(self, job: Job) -> None:
        try:
            self._run(job)
        except Exception as error:  # a fault of the fake itself must be seen, not waited for
            self.ends(job, "Failed", f"ClientError: the fake broke: {error!r}")
        finally:
            _sweep(job.name)

    def _run(self, job: Job) -> None:
        while True:
            if not self._is_prepared(job):
                return
            end = self._works(job)
            _sweep(job.name)
            if end != "interrupt":
                break
            job.told = ""
            job.enters("Interrupted", "Spot instance was reclaimed")
            self._pause(job)
            job.enters("Starting", "Preparing the instances for training")
        if end == "done":
            job.enters("Uploading")
            self._pause(job)
            self.ends(job, "Completed")
        elif end == "stop":
            self.ends(job, "Stopped")
        elif end == "MaxRuntimeExceeded":
            self.ends(job, "Stopped", step=end)
        elif end == "lose":
            self.ends(
                job, "Failed", "InternalServerError: We encountered an internal error. Please try again."
            )
        else:
            self.ends(job, "Failed", end)

    def _is_prepared(self, job: Job) -> bool:
        """Goes through what comes before Training; whether it got there."""
        wait = job.request["StoppingCondition"].get("MaxWaitTimeInSeconds")
        while not self.has_capacity and not job.told:
            if job.step != "Pending":
                job.enters("Pending", "Waiting for capacity")
            if not job.request.get("EnableManagedSpotTraining"):
                self.ends(
                    job,
                    "Failed",
                    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different"
                    " ML instance type.",
                )
                return False
            if time.time() - job.created >= wait:
                self.ends(job, "Stopped", step="MaxWaitTimeExceeded")
                return False
            time.sleep(_TICK_S)
        self._pause(job)
        job.enters("Downloading", "Downloading the training image")
        self._pause(job)
        if job.told in ("stop", "lose"):
            reason = "" if job.told == "stop" else "InternalServerError: We encountered an internal error."
            self.ends(job, "Stopped" if job.told == "stop" else "Failed", reason)
            return False
        image = job.spec.get("TrainingImage") or job.spec.get("ImageUri")
        if self.images is not None and image not in self.images:
            self.ends(
                job,
                "Failed",
                f"ClientError: Cannot find the requested image: {image}. Please check that the image exists and that"
                " the role can pull it.",
            )
            return False
        return True

    def _works(self, job: Job) -> str:
        """Runs the entrypoint on each machine; how that ended."""
        began = time.time()
        job.starts += 1
        job.enters("Training", "Training image download completed. Training in progress.")
        job.started = job.started or began
        try:
            pumps = self._start(job)
        except FileNotFoundError:
            program = job.spec["ContainerEntrypoint"][0]
            return f'ClientError: exec: "{program}": executable file not found in $PATH, exit code: 127'
        try:
            return self._attends(job, began)
        finally:
            job.worked += time.time() - began
            _sweep(job.name)
            for pump in pumps:
                pump.join(10)
            for process in job.processes:
                process.wait(10)

    def _start(self, job: Job) -> list[threading.Thread]:
        spec, count = job.spec, job.machines["InstanceCount"]
        command = [*spec.get("ContainerEntrypoint", []), *spec.get("ContainerArguments", [])]
        # AWS calls them algo-1 and so on, which mean nothing on this machine.
        hosts = [f"127.0.0.{number + 1}" for number in range(count)]
        job.processes, pumps = [], []
        for host in hosts:
            home = self.folder / job.name / str(job.starts) / host
            home.mkdir(parents=True, exist_ok=True)
            config = home / "resourceconfig.json"
            config.write_text(
                json.dumps({"current_host": host, "hosts": hosts, "network_interface_name": "lo"})
            )
            env = {
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "TMPDIR": str(home),
                "AWS_REGION": "eu-central-1",
            }
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=home,
                env={
                    **env,
                    **self.env,
                    **job.request.get("Environment", {}),
                    COOKIE: job.name,
                    "TREADLE_SAGEMAKER_CONFIG": str(config),
                },
                start_new_session=True,
            )
            job.processes.append(process)
            stream = f"{job.name}/algo-{host[-1]}-{int(time.time() * 1000)}-{job.starts}"
            pump = threading.Thread(target=self._pump, args=(job, process, stream), daemon=True)
            pump.start()
            pumps.append(pump)
        return pumps

    def _pump(self, job: Job, process: subprocess.Popen[bytes], stream: str) -> None:
        group = f"/aws/sagemaker/{job.api}Jobs"
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                now = int(time.time() * 1000)
                message = line.decode(errors="replace").removesuffix("\n")
                event = {
                    "logStreamName": stream,
                    "timestamp": now,
                    "ingestionTime": now,
                    "message": message,
                    "eventId": "0",
                }
                with self.lock:
                    self.events.setdefault(group, []).append(event)

    def _attends(self, job: Job, began: float) -> str:
        limit = job.request["StoppingCondition"]["MaxRuntimeInSeconds"]
        end, kill_at = "", float("inf")
        while any(process.poll() is None for process in job.processes):
            if any(process.poll() for process in job.processes):
                break  # one machine failed: so did the job
            now = time.time()
            if not end and (job.told or now - began > limit):
                end = job.told or "MaxRuntimeExceeded"
                for process in job.processes:
                    with suppress(ProcessLookupError):
                        process.send_signal(signal.SIGKILL if end == "lose" else signal.SIGTERM)
                kill_at = now + (self.notice_s if end == "interrupt" else self.grace_s)
            if now >= kill_at:
                _sweep(job.name)
            if _used_gib(job.name) > self.machine_gib:
                _sweep(job.name)
                for process in job.processes:
                    process.wait()
                if not end:
                    return "AlgorithmError: Please use an instance type with more memory, exit code: 137"
            time.sleep(_TICK_S)
        codes = [process.poll() for process in job.processes]
        if end:
            return end
        bad = next((code for code in codes if code), 0)
        if not bad:
            return "done"
        return f"AlgorithmError: , exit code: {bad if bad > 0 else 128 - bad}"

    def _pause(self, job: Job) -> None:
        end = time.time() + self.tick_s
        while time.time() < end and not job.told:
            time.sleep(_TICK_S / 2)

    def ends(self, job: Job, status: str, reason: str = "", step: str = "") -> None:
        with self.lock:
            job.enters(step or status)
            job.reason, job.ended, job.status = reason, time.time(), status


def _processes_of(name: str) -> list[int]:
    mark, found = f"{COOKIE}={name}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
    return found


def _sweep(name: str) -> None:
    """Ends all that runs in a job's containers."""
    for pid in _processes_of(name):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _used_gib(name: str) -> float:
    pages = 0
    for pid in _processes_of(name):
        with suppress(OSError, IndexError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * _PAGE / 2**30
