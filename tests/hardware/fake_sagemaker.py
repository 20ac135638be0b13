"""A small SageMaker on the loopback: speaks the JSON protocol, keeps states, and runs entrypoints as processes here.

What it does beyond answering: requests are checked against botocore's model, limits and patterns included; a job goes
through Starting, Downloading, Training, Uploading; a spot job that is interrupted starts again under its name; stopping
is SIGTERM to the first process and SIGKILL later; when that process ends, the container's others end too; lines go to
CloudWatch's groups, one stream a machine and start. AWS's words are from its documentation and public reports.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import botocore.session

Json = dict[str, Any]
COOKIE = "FAKE_SAGEMAKER_JOB"
_TICK_S = 0.02
_PAGE = os.sysconf("SC_PAGE_SIZE")


class AwsError(Exception):
    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(code, message)
        self.code, self.message, self.status = code, message, status


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


class FakeSageMaker:
    """The server. Its public fields steer it; `address` is where clients find it.

    Attributes:
        tick_s: How long each step before and after Training takes.
        grace_s: Seconds between SIGTERM and SIGKILL; 120 at AWS.
        notice_s: The same for a spot machine that is taken back.
        machine_gib: The memory of every machine.
        images: The images that exist; None: all.
        env: What each container has besides PATH and HOME.
        faults: Answers, as status and code, for the next requests, whatever they are.
        page: How many events a page of the log holds.
    """

    def __init__(self) -> None:
        self.reset()
        self.calls: list[tuple[str, Json]] = []
        self.jobs: dict[tuple[str, str], Job] = {}
        self.models: dict[str, Json] = {}
        self.events: dict[str, list[Json]] = {}
        self.lock = threading.RLock()
        self.folder = Path(tempfile.mkdtemp(prefix="fake-sagemaker-"))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def reset(self) -> None:
        """As it was at first, but for the jobs that it knows."""
        self.tick_s, self.grace_s, self.notice_s, self.machine_gib = 0.02, 1.0, 1.0, 0.25
        self.images: set[str] | None = None
        self.has_capacity = True
        self.quota: int | None = None
        self.env: dict[str, str] = {}
        self.faults: list[tuple[int, str]] = []
        self.page = 1000

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for job in self.jobs.values():
            job.told = job.told or "lose"
        for job in self.jobs.values():
            if job.thread is not None:
                job.thread.join(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """What leads AWS's clients here."""
        return {
            "AWS_ENDPOINT_URL_SAGEMAKER": self.address,
            "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": self.address,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

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

    # The calls.

    def answer(self, target: str, asked: Json) -> Json:
        with self.lock:
            self.calls.append((target.partition(".")[2], asked))
            if self.faults:
                status, code = self.faults.pop(0)
                raise AwsError(code, f"{code} was asked for", status)
        service, _, operation = target.partition(".")
        found: Callable[[Json], Json] | None = getattr(self, f"_{operation}", None)
        if found is None:
            raise AwsError("UnknownOperationException", f"{target} is not known here")
        _check("sagemaker" if service == "SageMaker" else "logs", operation, asked)
        with self.lock:
            return found(asked)

    def _CreateTrainingJob(self, asked: Json) -> Json:
        if asked.get("EnableManagedSpotTraining"):
            stopping = asked["StoppingCondition"]
            if stopping.get("MaxWaitTimeInSeconds", 0) < stopping["MaxRuntimeInSeconds"]:
                raise AwsError(
                    "ValidationException", "MaxWaitTimeInSeconds must be equal or greater than MaxRuntime"
                )
        return self._create("Training", asked)

    def _CreateProcessingJob(self, asked: Json) -> Json:
        return self._create("Processing", asked)

    def _create(self, api: str, asked: Json) -> Json:
        name = asked[f"{api}JobName"]
        if (api, name) in self.jobs:
            raise AwsError(
                "ResourceInUse",
                f"{api} job names must be unique within an AWS account and region, and a {api.lower()} job with this"
                f" name already exists ({name})",
            )
        job = Job(api, name, asked)
        running = sum(one.status == "InProgress" for one in self.jobs.values())
        if self.quota is not None and running + job.machines["InstanceCount"] > self.quota:
            raise AwsError(
                "ResourceLimitExceeded",
                f"The account-level service limit '{job.machines['InstanceType']} for {api.lower()} job usage' is"
                f" {self.quota} Instances, with current utilization of {running} Instances and a request delta of"
                f" {job.machines['InstanceCount']} Instances.",
            )
        job.enters("Starting", "Starting the training job")
        self.jobs[(api, name)] = job
        job.thread = threading.Thread(target=self._live, args=(job,), daemon=True)
        job.thread.start()
        return {f"{api}JobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:{api.lower()}-job/{name}"}

    def _DescribeTrainingJob(self, asked: Json) -> Json:
        job = self._job("Training", asked["TrainingJobName"])
        told = {
            **{name: value for name, value in job.request.items() if name != "Tags"},
            "TrainingJobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:training-job/{job.name}",
            "TrainingJobStatus": job.status,
            "SecondaryStatus": job.step,
            "SecondaryStatusTransitions": job.steps,
            "ModelArtifacts": {"S3ModelArtifacts": "s3://none"},
            "CreationTime": job.created,
            "LastModifiedTime": job.ended or time.time(),
            "TrainingStartTime": job.started,
            "TrainingEndTime": job.ended,
            "FailureReason": job.reason or None,
        }
        if job.ended and job.started:
            told["TrainingTimeInSeconds"] = int(job.ended - job.started)
            told["BillableTimeInSeconds"] = math.ceil(job.worked)
        return {name: value for name, value in told.items() if value is not None}

    def _DescribeProcessingJob(self, asked: Json) -> Json:
        job = self._job("Processing", asked["ProcessingJobName"])
        told = {
            **{name: value for name, value in job.request.items() if name != "Tags"},
            "ProcessingJobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:processing-job/{job.name}",
            "ProcessingJobStatus": job.status,
            "CreationTime": job.created,
            "LastModifiedTime": job.ended or time.time(),
            "ProcessingStartTime": job.started,
            "ProcessingEndTime": job.ended,
            "FailureReason": job.reason or None,
        }
        return {name: value for name, value in told.items() if value is not None}

    def _job(self, api: str, name: str) -> Job:
        if (api, name) not in self.jobs:
            words = (
                "Requested resource not found."
                if api == "Training"
                else f"Could not find job with name {name}"
            )
            raise AwsError("ValidationException", words)
        return self.jobs[(api, name)]

    def _StopTrainingJob(self, asked: Json) -> Json:
        return self._stop(self._job("Training", asked["TrainingJobName"]))

    def _StopProcessingJob(self, asked: Json) -> Json:
        return self._stop(self._job("Processing", asked["ProcessingJobName"]))

    def _stop(self, job: Job) -> Json:
        if job.status not in ("InProgress", "Stopping"):
            raise AwsError(
                "ValidationException", f"The request was rejected because the job is in status {job.status}."
            )
        job.status, job.told = "Stopping", "stop"
        return {}

    def _CreateModel(self, asked: Json) -> Json:
        if asked["ModelName"] in self.models:
            raise AwsError(
                "ValidationException", f"Cannot create already existing model {asked['ModelName']!r}."
            )
        self.models[asked["ModelName"]] = asked
        return {"ModelArn": f"arn:aws:sagemaker:eu-central-1:123456789012:model/{asked['ModelName']}"}

    def _CreateTransformJob(self, asked: Json) -> Json:
        """Transforms run nothing here: they go on until they are stopped."""
        name = asked["TransformJobName"]
        if asked["ModelName"] not in self.models:
            raise AwsError("ValidationException", f"Could not find model {asked['ModelName']!r}.")
        if ("Transform", name) in self.jobs:
            raise AwsError("ResourceInUse", f"Job name must be unique, and {name} already exists.")
        self.jobs[("Transform", name)] = job = Job("Transform", name, asked)
        job.enters("InProgress")
        job.started = time.time()
        return {"TransformJobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:transform-job/{name}"}

    def _DescribeTransformJob(self, asked: Json) -> Json:
        job = self._job("Transform", asked["TransformJobName"])
        told = {
            **{name: value for name, value in job.request.items() if name != "Tags"},
            "TransformJobArn": f"arn:aws:sagemaker:eu-central-1:123456789012:transform-job/{job.name}",
            "TransformJobStatus": job.status,
            "CreationTime": job.created,
            "TransformStartTime": job.started,
        }
        return {**told, **({"TransformEndTime": job.ended} if job.ended else {})}

    def _StopTransformJob(self, asked: Json) -> Json:
        job = self._job("Transform", asked["TransformJobName"])
        self._stop(job)
        self._ends(job, "Stopped")
        return {}

    def _FilterLogEvents(self, asked: Json) -> Json:
        if asked["logGroupName"] not in self.events:
            raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
        found = [
            event
            for event in self.events[asked["logGroupName"]]
            if event["logStreamName"].startswith(asked.get("logStreamNamePrefix", ""))
            and event["timestamp"] >= asked.get("startTime", 0)
        ]
        start = int(asked.get("nextToken", 0))
        following = {"nextToken": str(start + self.page)} if len(found) > start + self.page else {}
        return {"events": found[start : start + self.page], "searchedLogStreams": [], **following}

    # The life of a job.

    def _live(self, job: Job) -> None:
        try:
            self._run(job)
        except Exception as error:  # a fault of the fake itself must be seen, not waited for
            self._ends(job, "Failed", f"ClientError: the fake broke: {error!r}")
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
            self._ends(job, "Completed")
        elif end == "stop":
            self._ends(job, "Stopped")
        elif end == "MaxRuntimeExceeded":
            self._ends(job, "Stopped", step=end)
        elif end == "lose":
            self._ends(
                job, "Failed", "InternalServerError: We encountered an internal error. Please try again."
            )
        else:
            self._ends(job, "Failed", end)

    def _is_prepared(self, job: Job) -> bool:
        """Goes through what comes before Training; whether it got there."""
        wait = job.request["StoppingCondition"].get("MaxWaitTimeInSeconds")
        while not self.has_capacity and not job.told:
            if job.step != "Pending":
                job.enters("Pending", "Waiting for capacity")
            if not job.request.get("EnableManagedSpotTraining"):
                self._ends(
                    job,
                    "Failed",
                    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different"
                    " ML instance type.",
                )
                return False
            if time.time() - job.created >= wait:
                self._ends(job, "Stopped", step="MaxWaitTimeExceeded")
                return False
            time.sleep(_TICK_S)
        self._pause(job)
        job.enters("Downloading", "Downloading the training image")
        self._pause(job)
        if job.told in ("stop", "lose"):
            reason = "" if job.told == "stop" else "InternalServerError: We encountered an internal error."
            self._ends(job, "Stopped" if job.told == "stop" else "Failed", reason)
            return False
        image = job.spec.get("TrainingImage") or job.spec.get("ImageUri")
        if self.images is not None and image not in self.images:
            self._ends(
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

    def _ends(self, job: Job, status: str, reason: str = "", step: str = "") -> None:
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


def _handler(fake: FakeSageMaker) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
            try:
                if "Authorization" not in self.headers:
                    raise AwsError("MissingAuthenticationTokenException", "Missing Authentication Token", 403)
                status, told = 200, fake.answer(self.headers["X-Amz-Target"], asked)
            except AwsError as error:
                status, told = error.status, {"__type": error.code, "message": error.message}
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


_MODELS: dict[str, Any] = {}


def _check(service: str, operation: str, asked: Json) -> None:
    """Refuses what AWS's own model refuses: unknown and missing fields, types, lengths, patterns and enumerations."""
    if service not in _MODELS:
        _MODELS[service] = botocore.session.get_session().get_service_model(service)
    check_shape(_MODELS[service].operation_model(operation).input_shape, asked, operation)


def check_shape(shape: Any, value: Any, where: str) -> None:
    kind, limits = shape.type_name, shape.metadata
    if kind == "structure":
        if unknown := set(value) - set(shape.members):
            raise AwsError("ValidationException", f"{where} has no {sorted(unknown)}")
        if missing := set(shape.required_members) - set(value):
            raise AwsError("ValidationException", f"{where} needs {sorted(missing)}")
        for name, inner in value.items():
            check_shape(shape.members[name], inner, f"{where}.{name}")
        return
    size: float = 0
    if kind == "list":
        for number, inner in enumerate(value):
            check_shape(shape.member, inner, f"{where}[{number}]")
        size = len(value)
    elif kind == "map":
        for name, inner in value.items():
            check_shape(shape.key, name, f"{where} key")
            check_shape(shape.value, inner, f"{where}[{name}]")
        size = len(value)
    elif kind == "string":
        _check_text(shape, value, where)
        size = len(value)
    elif kind in ("integer", "long"):
        if isinstance(value, bool) or not isinstance(value, int):
            raise AwsError("ValidationException", f"{where} is no whole number: {value!r}")
        size = value
    elif kind == "boolean" and not isinstance(value, bool):
        raise AwsError("ValidationException", f"{where} is neither true nor false: {value!r}")
    if not limits.get("min", size) <= size <= limits.get("max", size):
        raise AwsError("ValidationException", f"{where} is out of bounds: {value!r}")


def _check_text(shape: Any, value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise AwsError("ValidationException", f"{where} is no text: {value!r}")
    if shape.enum and value not in shape.enum:
        raise AwsError("ValidationException", f"{where}: {value!r} is none of the enumeration")
    # Java's classes of characters, as Python says them.
    pattern = (
        shape.metadata.get("pattern", "")
        .replace(r"\p{L}\p{Z}\p{N}", r"\w\s")
        .replace(r"\p{Alnum}", "a-zA-Z0-9")
    )
    if pattern and not re.fullmatch(pattern, value):
        raise AwsError("ValidationException", f"{where}: {value!r} does not match {pattern}")
