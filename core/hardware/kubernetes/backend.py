"""The Kubernetes backend: a job is a Job in a namespace, or with several workers a RayJob for KubeRay.

    submit ─► Job ─► pod ─► status, logs       the name is the lock: who creates second finds the first
    cancel ─► what it is to mean is written on the Job, then its pod is ended; the Job stays, and tells it, for ttl_s

Nothing is kept here. `kubernetes_manifest` makes the object, `kubernetes_status` reads it, `kubernetes_client` talks.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import UserError
from treadle.hardware.backend import Capabilities, Handle, JobSpec, Json, Status
from treadle.hardware.kubernetes.client import Cluster, Exists, NotFound, Refused, path_of
from treadle.hardware.kubernetes.manifest import CONTAINER, ENDED, MANAGED_BY, manifest_of
from treadle.hardware.kubernetes.options import options_of
from treadle.hardware.kubernetes.status import (
    container_of,
    hopeless,
    job_end,
    status_of_job,
    status_of_ray_job,
    written_end,
)
from treadle.hardware.pools import Pool

if TYPE_CHECKING:
    from treadle.hardware.backend import Backend

_SUBMITTER = "ray-job-submitter"
_LINE = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ?")
_COUNT = 1 << 32
_log = logging.getLogger(__name__)


class KubernetesBackend:
    """See Backend. `config_file`: a kubeconfig instead of `KUBECONFIG`, `~/.kube/config` or the pod's own account."""

    name = "kubernetes"

    def __init__(self, config_file: Path | None = None) -> None:
        self.config_file = str(config_file) if config_file else None

    def capabilities(self) -> Capabilities:
        """See Backend. The grace is shorter than the two minutes that a spot machine is given."""
        return Capabilities(
            spot=True,
            multi_node=True,
            images=True,
            queues=False,
            own_disks=True,
            volumes=True,
            grace_s=90,
            poll_s=5,
        )

    def plan(self, job: JobSpec, pool: Pool) -> Json:
        """See Backend. The object, as `kubectl create -f` takes it."""
        return manifest_of(job, pool)

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        """See Backend."""
        planned = self.plan(job, pool)
        options = options_of(pool)
        cluster = self._cluster(options.context)
        try:
            made = cluster.create(path_of(planned["kind"], options.namespace), planned)
        except NotFound as error:
            raise UserError(
                f"{error}. Is there a namespace {options.namespace!r}, and for a RayJob KubeRay's operator?"
            ) from error
        except Exists:
            found = self.find(job.name, pool)
            if found is None:
                raise Refused(409, f"{job.name} exists and is being deleted; try again.") from None
            return found
        return _handle(made, planned["kind"], pool)

    def status(self, handle: Handle) -> Status:
        """See Backend. A job that can't start for `pending_s`, or whose node went silent, is ended here."""
        cluster, path = self._place(handle)
        try:
            job = cluster.get(path)
        except NotFound:
            job = {"metadata": {"uid": ""}}
        if job["metadata"]["uid"] != handle.data["uid"]:
            return Status(
                state="stopped",
                reason=f"{handle.data['kind']} {handle.name} is no longer in the cluster: it was cancelled before it"
                " started, deleted by someone, or ended more than ttl_s ago",
            )
        if handle.data["kind"] == "RayJob":
            return status_of_ray_job(job)
        pod = self._pod(cluster, handle)
        now = time.time()
        given_up = hopeless(job, pod, now)
        if given_up is None:
            return status_of_job(job, pod, now)
        self._end(cluster, path, given_up)
        return given_up

    def logs(self, handle: Handle, since: int) -> tuple[list[str], int]:
        """See Backend. `since` is no count of lines: see `_new_lines`.

        A cluster keeps only the newest part of a long log, about 10 MiB, and none of a pod that is gone.
        """
        cluster, _ = self._place(handle)
        pod = self._pod(cluster, handle)
        if pod is None:
            return [], since
        over = pod["status"].get("phase") in ("Succeeded", "Failed") or "terminated" in container_of(pod)
        query = {"container": CONTAINER if handle.data["kind"] == "Job" else _SUBMITTER, "timestamps": "true"}
        if since:
            query["sinceTime"] = datetime.fromtimestamp(since // _COUNT, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        path = path_of("Pod", handle.data["namespace"], pod["metadata"]["name"], "log")
        try:
            text = cluster.read(path, **query)
        except (NotFound, UserError):
            # No container, or none yet; what else would be refused was refused to the request for the pod.
            return [], since
        except Refused as error:
            # The cluster is there and the pod's node is not: no later call would have the rest.
            if not over and "deletionTimestamp" not in pod["metadata"]:
                raise
            _log.warning("%s: the rest of its log is lost with its node: %s", handle.name, error)
            return [], since
        return _new_lines(text.decode(errors="replace"), since, over=over)

    def cancel(self, handle: Handle, grace: float) -> None:
        """See Backend. The log stays where the pod is given its whole grace; the cluster can't shorten it otherwise."""
        cluster, path = self._place(handle)
        try:
            job = cluster.get(path)
        except NotFound:
            return
        if job["metadata"]["uid"] != handle.data["uid"] or written_end(job) is not None:
            return
        if handle.data["kind"] == "RayJob":
            if not status_of_ray_job(job).is_over:
                cluster.delete(path, propagationPolicy="Foreground")
            return
        pod = self._pod(cluster, handle)
        if job_end(job) is not None or "terminated" in container_of(pod):
            return
        if pod is None and job["spec"].get("suspend"):
            # A queue could let it in at any time; without a Job it can't.
            cluster.delete(path, propagationPolicy="Foreground")
            return
        stopped = Status(state="stopped", reason="cancelled", ended=time.time())
        if "running" not in container_of(pod) or pod is None:
            self._end(cluster, path, stopped)
            return
        cluster.patch(path, {"metadata": {"annotations": {ENDED: stopped.model_dump_json()}}})
        place = path_of("Pod", handle.data["namespace"], pod["metadata"]["name"])
        with suppress(NotFound):
            if grace >= pod["spec"].get("terminationGracePeriodSeconds", 30):
                cluster.patch(place, {"spec": {"activeDeadlineSeconds": 1}})
            else:
                cluster.delete(place, gracePeriodSeconds=max(int(grace), 1))

    def find(self, name: str, pool: Pool) -> Handle | None:
        """See Backend.

        Raises:
            UserError: Another's object has the name.
        """
        options = options_of(pool)
        cluster = self._cluster(options.context)
        taken = False
        # A RayJob has a Job of the same name of its own, which submits its command.
        for kind in ("Job", "RayJob"):
            with suppress(NotFound):
                found = cluster.get(path_of(kind, options.namespace, name))
                if _is_ours(found):
                    return _handle(found, kind, pool)
                taken = True
        if taken:
            raise UserError(f"the namespace {options.namespace} has a Job {name} that treadle did not make")
        return None

    def _end(self, cluster: Cluster, path: str, how: Status) -> None:
        """Writes down how a job ended, and has the cluster remove what it may still hold."""
        annotations = {ENDED: how.model_dump_json()}
        change: Json = {"metadata": {"annotations": annotations}, "spec": {"activeDeadlineSeconds": 1}}
        with suppress(NotFound):
            cluster.patch(path, change)

    def _pod(self, cluster: Cluster, handle: Handle) -> Json | None:
        """The newest pod of a job: a queue that takes a job back and lets it in again makes another."""
        label = f"batch.kubernetes.io/job-name={handle.name}"
        found = cluster.get(path_of("Pod", handle.data["namespace"]), labelSelector=label)["items"]
        return max(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    def _place(self, handle: Handle) -> tuple[Cluster, str]:
        data = handle.data
        return self._cluster(data["context"]), path_of(data["kind"], data["namespace"], handle.name)

    def _cluster(self, context: str | None) -> Cluster:
        return Cluster(context, self.config_file)


def _is_ours(found: Json) -> bool:
    owners = {owner["kind"] for owner in found["metadata"].get("ownerReferences", ())}
    label = found["metadata"].get("labels", {}).get(MANAGED_BY[0])
    return label == MANAGED_BY[1] and "RayJob" not in owners


def _handle(made: Json, kind: str, pool: Pool) -> Handle:
    metadata, options = made["metadata"], options_of(pool)
    data = {
        "kind": kind,
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
        "context": options.context,
    }
    return Handle(backend=KubernetesBackend.name, name=metadata["name"], pool=pool.name, data=data)


def _new_lines(text: str, since: int, *, over: bool) -> tuple[list[str], int]:
    """The lines after `since`, each without its time; one that is not finished comes when it is.

    A log can be asked for from a whole second on, and has no numbers: so `since` is a second, and how many of the lines
    from it on are known. One second is looked at twice, as the times of two streams may cross.
    """
    *window, rest = text.split("\n")
    if rest and over:
        window.append(rest)
    second, known = divmod(since, _COUNT)
    if len(window) <= known:
        return [], since
    seconds: list[int] = []
    for line in window:
        found = _LINE.match(line)
        seconds.append(_second(found) if found else seconds[-1] if seconds else second)
    following = max(second, seconds[-1] - 1)
    count = sum(at >= following for at in seconds)
    # A progress bar overwrites its line; the last state is the line.
    shown = [_LINE.sub("", line, count=1).rstrip("\r").rpartition("\r")[2] for line in window[known:]]
    return shown, following * _COUNT + count


def _second(found: re.Match[str]) -> int:
    return int(datetime.fromisoformat(found[1] + found[2].replace("Z", "+00:00")).timestamp())


if TYPE_CHECKING:
    _kubernetes: Backend = KubernetesBackend()
