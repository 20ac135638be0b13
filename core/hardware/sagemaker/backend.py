"""The SageMaker backend: a training or a processing job in an image of one's own, whose command is the entrypoint.

    plan ─► create_training_job | create_processing_job ─► describe_… ─► stop_…
                                       └─ lines: CloudWatch Logs, /aws/sagemaker/TrainingJobs | ProcessingJobs

Names are unique for ever in an account and region, so SageMaker itself refuses a second job of a name: that is the
first. Managed spot jobs that are interrupted start again under their name, without anybody asking.
Credentials, region and endpoint come from where all AWS clients find them; a handle holds none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treadle.errors import UserError
from treadle.hardware.backend import Capabilities, Handle, JobSpec, Json, Status
from treadle.hardware.pools import Pool
from treadle.hardware.sagemaker.client import client_for, code_of, explained
from treadle.hardware.sagemaker.machines import Api, Kind, instance_type
from treadle.hardware.sagemaker.options import api_of, api_of_stage, options_of
from treadle.hardware.sagemaker.plan import plan_job
from treadle.hardware.sagemaker.status import status_of

if TYPE_CHECKING:
    from treadle.hardware.backend import Backend
    from treadle.hardware.chosen import ChoosesMachines

_TITLES = {"training": "Training", "processing": "Processing", "transform": "Transform"}
_UNKNOWN = ("ResourceNotFound", "ResourceNotFoundException")
_PAGES = 50
_EVENTS = 1_000_000


class SageMakerBackend:
    """See Backend."""

    name = "sagemaker"

    def capabilities(self) -> Capabilities:
        """See Backend. SageMaker gives every job 120 seconds to end, whatever is asked for."""
        return Capabilities(
            spot=True,
            checkpoint_sync=True,
            warm=True,
            multi_node=True,
            images=True,
            queues=False,
            own_disks=True,
            grace_s=120,
            poll_s=15,
        )

    def plan(self, job: JobSpec, pool: Pool) -> Json:
        """See Backend. `call` is boto3's name of the request, `request` its parameters."""
        return plan_job(job, pool)

    def machine(self, pool: Pool, stage: str) -> str:
        """See ChoosesMachines."""
        return instance_type(pool, pool.resources(), api_of_stage(stage, options_of(pool)))

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        """See Backend."""
        plan = self.plan(job, pool)
        api = api_of(job, options_of(pool))
        sagemaker = client_for("sagemaker", pool.region)
        try:
            getattr(sagemaker, plan["call"])(**plan["request"])
        except Exception as error:
            if code_of(error) != "ResourceInUse":
                raise explained(error, f"can't start {job.name} for the pool {pool.name}") from error
        return self._handle(job.name, pool, api, sagemaker)

    def status(self, handle: Handle) -> Status:
        """See Backend."""
        told = _describe(client_for("sagemaker", handle.data["region"]), _api(handle), handle.name)
        if told is None:
            return Status(
                state="lost", reason=f"SageMaker in {handle.data['region']} knows no job of this name"
            )
        return status_of(_api(handle), told)

    def logs(self, handle: Handle, since: int) -> tuple[list[str], int]:
        """See Backend. `since` holds a time in milliseconds, and how many of its lines were read.

        The lines of several machines, and of a job's machine after an interruption, come by their times; a machine
        whose lines reach CloudWatch later than another's newer ones is seen whole only from 0 on.
        """
        at, read = divmod(since, _EVENTS)
        try:
            events = _events(client_for("logs", handle.data["region"]), handle, at)
        except Exception as error:
            if code_of(error) in _UNKNOWN:
                return [], since  # nothing was printed yet
            raise explained(error, f"can't read the log of {handle.name}") from error
        events.sort(key=lambda event: (event["timestamp"], event.get("ingestionTime", 0)))
        new = events[read:] if events and events[0]["timestamp"] == at else events
        if not new:
            return [], since
        last = events[-1]["timestamp"]
        following = last * _EVENTS + sum(event["timestamp"] == last for event in events)
        # A progress bar overwrites its line; the last state is the line.
        return [event["message"].rstrip("\r\n").rpartition("\r")[2] for event in new], following

    def cancel(self, handle: Handle, grace: float) -> None:
        """See Backend. The grace is SageMaker's own."""
        sagemaker, api = client_for("sagemaker", handle.data["region"]), _api(handle)
        try:
            getattr(sagemaker, f"stop_{api}_job")(**{f"{_TITLES[api]}JobName": handle.name})
        except Exception as error:
            # What is over can't be stopped, and says so in no other way.
            if code_of(error) in (*_UNKNOWN, "ValidationException"):
                return
            raise explained(error, f"can't stop {handle.name}") from error

    def find(self, name: str, pool: Pool) -> Handle | None:
        """See Backend."""
        sagemaker = client_for("sagemaker", pool.region)
        fixed = options_of(pool).job
        apis: tuple[Api, ...] = (fixed,) if fixed else ("training", "processing")
        for api in apis:
            if _describe(sagemaker, api, name) is not None:
                return self._handle(name, pool, api, sagemaker)
        return None

    def _handle(self, name: str, pool: Pool, api: Api, sagemaker: Any) -> Handle:
        data = {"job": api, "region": sagemaker.meta.region_name}
        return Handle(backend=self.name, name=name, pool=pool.name, data=data)


def _api(handle: Handle) -> Kind:
    api: Kind = handle.data["job"]
    if api not in _TITLES:
        raise UserError(
            f"the handle of {handle.name} names a kind of job that SageMaker does not have: {api!r}"
        )
    return api


def _describe(sagemaker: Any, api: Kind, name: str) -> Json | None:
    try:
        told: Json = getattr(sagemaker, f"describe_{api}_job")(**{f"{_TITLES[api]}JobName": name})
    except Exception as error:
        words = str(error).lower()
        is_unknown = code_of(error) == "ValidationException" and (
            "not found" in words or "could not find" in words
        )
        if is_unknown or code_of(error) in _UNKNOWN:
            return None
        raise explained(error, f"can't ask for {name}") from error
    return told


def _events(logs: Any, handle: Handle, at: int) -> list[Json]:
    """The events of all of a job's streams from a time on, as far as a bounded number of pages goes."""
    prefix = f"{handle.name}/"
    group = f"/aws/sagemaker/{_TITLES[_api(handle)]}Jobs"
    asked = {"logGroupName": group, "logStreamNamePrefix": prefix, "startTime": at}
    found: list[Json] = []
    token: dict[str, str] = {}
    for _ in range(_PAGES):
        page = logs.filter_log_events(**asked, **token)
        # Emulations of CloudWatch pass the prefix over.
        found += [event for event in page["events"] if event["logStreamName"].startswith(prefix)]
        if "nextToken" not in page:
            break
        token = {"nextToken": page["nextToken"]}
    return found


if TYPE_CHECKING:
    _sagemaker: Backend = SageMakerBackend()
    _chooses: ChoosesMachines = SageMakerBackend()
