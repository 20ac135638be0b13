"""The Ray backend: Ray Jobs on any cluster, or on one of this machine's own that comes and goes.

    options.address, else RAY_ADDRESS ─► that cluster's dashboard          none of both ─► `ray_local`

It speaks HTTP, so that whoever submits needs no Ray. Ray has no limits of time and memory, knows no grace but its
own and sweeps up after no one; `ray_node` does so on the job's node, and says in the job's log how the command ended.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import Transient, UserError
from treadle.hardware.backend import Capabilities, Handle, JobSpec, Json, Status
from treadle.hardware.options import seconds_of
from treadle.hardware.pools import Pool
from treadle.hardware.ray.http import RayJobs, remote
from treadle.hardware.ray.local import IDLE_S, LocalCluster, submit_once, told_by, withdraw
from treadle.hardware.ray.words import Told, lines_of, status_of

if TYPE_CHECKING:
    from treadle.hardware.backend import Backend

# What Ray sets aside for each of several workers, in its names: for the process that starts them.
WORKER_RESOURCES = "TREADLE_RAY_WORKER"
_OPTIONS = {"address", "cores_per_device", "grace_s", "idle_s", "labels", "pending_s", "resources"}
_PENDING_S, _NEW_S = 900.0, 120.0
# Above the supervisor's own grace, after which it kills: Ray's kill would leave nobody to sweep up.
_RAYS_GRACE_S = 15


class RayBackend:
    """See Backend. `root` is where the cluster of this machine has its state: see LocalBackend."""

    name = "ray"

    def __init__(self, root: Path | None = None) -> None:
        self.local = LocalCluster(root)

    def capabilities(self) -> Capabilities:
        """See Backend. Ray queues by resources; it has no such thing as at most n jobs of a pool."""
        return Capabilities(multi_node=True, queues=False, poll_s=2)

    def plan(self, job: JobSpec, pool: Pool) -> Json:
        """See Backend. `submission` is the body of `POST /api/jobs/`; `address` is None for this machine's cluster."""
        _refuse_what_is_not_here(pool)
        address = _address(pool)
        python = pool.python or (sys.executable if address is None else "python")
        command = list(job.command)
        if command[0] == sys.executable:
            command[0] = python
        env = {**pool.env, **job.env}
        spread = job.workers > 1
        if spread:
            env[WORKER_RESOURCES] = json.dumps(_worker_resources(job, pool), sort_keys=True)
        request = {
            "name": job.name,
            "command": command,
            # Workers on other nodes need the variables too; those are Ray's to hand on.
            "env": {} if spread else env,
            "needs": env if spread else {},
            "without": [],
            # Without accelerators of its own it must not take what others count on; with some, Ray binds them.
            "devices": {"CUDA_VISIBLE_DEVICES": [""]} if pool.kind == "cpu" else {},
            "slots": 0,
            "cpu": None,
            "memory_gib": job.resources.memory_gib,
            "max_seconds": job.max_seconds,
            "grace_s": job.grace_s,
        }
        entrypoint = shlex.join([python, "-P", "-m", "treadle.hardware.ray.node", json.dumps(request)])
        asks = _entrypoint_resources(job, pool)
        stop = {"RAY_JOB_STOP_WAIT_TIME_S": str(int(job.grace_s + _RAYS_GRACE_S))}
        return {
            "address": address,
            "submission": {
                "submission_id": job.name,
                "entrypoint": f"exec {entrypoint}",
                "runtime_env": {"env_vars": {**(env if spread else {}), **stop}},
                "metadata": {
                    **job.labels,
                    "treadle_pending_s": f"{_pending_s(pool):g}",
                    "treadle_python": python,
                    # Ray does not tell it of a job that waits.
                    "treadle_asks": ", ".join(f"{key} {value}" for key, value in asks.items()) or "a process",
                },
                **asks,
            },
        }

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        """See Backend. The first job on this machine's own cluster starts it, which takes some 15 seconds."""
        request = self.plan(job, pool)
        handle = _handle(job.name, pool, request["address"], self.local)
        if request["address"] is not None:
            submit_once(remote(request["address"]), request["submission"])
        elif self.local.cluster_of(job.name) is None or self._waits_for_its_submit(job.name):
            with self.local.taking_jobs(seconds_of(pool, "idle_s", IDLE_S)) as (jobs, cluster):
                if self.local.claim(job.name, cluster):
                    _submit_patiently(jobs, request["submission"])
        return handle

    def status(self, handle: Handle) -> Status:
        """See Backend. A job that waits longer than its pool allows is taken back here."""
        told = self._told(handle)
        if told is None:
            return Status(
                state="lost", reason="its Ray cluster knows of no such job: it was restarted, or killed"
            )
        if told.info["status"] == "PENDING":
            self._mind_the_wait(handle, told)
        return status_of(handle.name, told)

    def logs(self, handle: Handle, since: int) -> tuple[list[str], int]:
        """See Backend. `since` counts lines."""
        told = self._told(handle)
        lines = lines_of(handle.name, told)[since:] if told else []
        return lines, since + len(lines)

    def cancel(self, handle: Handle, grace: float) -> None:
        """See Backend. Ray takes no grace with its stop: the job has the one that it was submitted with."""
        told = self._told(handle)
        if told is None or status_of(handle.name, told).is_over:
            return
        jobs = self._jobs(handle)
        if jobs is None:
            raise Transient("the Ray cluster of this machine is just ending.")
        if told.info["status"] == "PENDING":
            python = told.info["metadata"]["treadle_python"]
            withdraw(jobs, handle.name, python, "stopped", "cancelled while it waited")
        jobs.stop(handle.name)

    def find(self, name: str, pool: Pool) -> Handle | None:
        """See Backend."""
        address = _address(pool)
        if address is not None:
            there = remote(address).get(name) is not None
        else:
            there = self.local.cluster_of(name) is not None and not self._waits_for_its_submit(name)
        return _handle(name, pool, address, self.local) if there else None

    def _waits_for_its_submit(self, name: str) -> bool:
        """Whether whoever claimed a job died before it came to the cluster, which still lives."""
        cluster = self.local.cluster_of(name)
        return cluster is not None and self.local.ask(name) is None and not self.local.is_over(cluster)

    def _told(self, handle: Handle) -> Told | None:
        if handle.data["address"] is not None:
            return told_by(remote(handle.data["address"]), handle.name)
        if handle.data["node"] != platform.node():
            raise UserError(f"{handle.name} runs on {handle.data['node']}'s own Ray cluster: ask there.")
        return self._cluster(handle).ask(handle.name)

    def _jobs(self, handle: Handle) -> RayJobs | None:
        address = handle.data["address"]
        return remote(address) if address is not None else self._cluster(handle).jobs_of(handle.name)

    def _cluster(self, handle: Handle) -> LocalCluster:
        root = Path(handle.data["root"])
        return self.local if root == self.local.root.parent else LocalCluster(root)

    def _mind_the_wait(self, handle: Handle, told: Told) -> None:
        metadata = told.info.get("metadata") or {}
        limit_s = float(metadata.get("treadle_pending_s", _PENDING_S))
        if time.time() - told.info["start_time"] / 1000 <= limit_s:
            return
        reason = (
            f"it waited longer than pending_s, {limit_s:g} s, for what it asks of the cluster"
            f" ({metadata.get('treadle_asks', '')}): ask for less, add nodes that have it, or raise pending_s"
        )
        jobs = self._jobs(handle)
        if jobs is not None:
            withdraw(jobs, handle.name, metadata.get("treadle_python", "python"), "failed", reason)


def _submit_patiently(jobs: RayJobs, submission: Json) -> None:
    """Submits to a cluster that has just started: it may take jobs only some seconds after it answers."""
    end = time.monotonic() + _NEW_S
    while True:
        try:
            return submit_once(jobs, submission)
        except Transient as error:
            if time.monotonic() > end:
                # Not NotSent: a try before may have arrived.
                raise Transient(error.words()) from error
        time.sleep(1)


def _address(pool: Pool) -> str | None:
    """Of the cluster's dashboard; None for this machine's own cluster."""
    return pool.options.get("address") or os.environ.get("RAY_ADDRESS") or None


def _pending_s(pool: Pool) -> float:
    return seconds_of(pool, "pending_s", _PENDING_S)


def _handle(name: str, pool: Pool, address: str | None, local: LocalCluster) -> Handle:
    here = {"root": str(local.root.parent), "node": platform.node()} if address is None else {}
    return Handle(backend="ray", name=name, pool=pool.name, data={"address": address, **here})


def _entrypoint_resources(job: JobSpec, pool: Pool) -> Json:
    """What Ray sets aside for the job's own process; with several workers they have it, and this only watches them."""
    if job.workers > 1:
        return {}
    share = _worker_resources(job, pool)
    memory = job.resources.memory_gib
    labels = pool.options.get("labels")
    return {
        **({"entrypoint_num_cpus": job.resources.cpu} if job.resources.cpu else {}),
        **({"entrypoint_num_gpus": share.pop("GPU")} if "GPU" in share else {}),
        **({"entrypoint_memory": int(memory * 2**30)} if memory else {}),
        **({"entrypoint_resources": rest} if (rest := _custom(share)) else {}),
        **({"entrypoint_label_selector": dict(labels)} if labels else {}),
    }


def _custom(share: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in share.items() if name not in ("CPU", "GPU", "memory")}


def _worker_resources(job: JobSpec, pool: Pool) -> dict[str, float]:
    """What Ray sets aside for one worker, in Ray's names."""
    resources = job.resources
    share: dict[str, float] = {"CPU": resources.cpu or 1}
    if resources.memory_gib:
        share["memory"] = resources.memory_gib * 2**30
    if pool.kind == "gpu":
        share["GPU"] = resources.count
        model = pool.accelerator.partition("-")[2]
        if model:
            share[f"accelerator_type:{model.rpartition('-')[2].upper()}"] = 0.001
    elif pool.kind != "cpu":
        cores = pool.options.get("cores_per_device")
        if not isinstance(cores, int) or cores < 1:
            raise UserError(
                f"the pool {pool.name}: say how many NeuronCores a device shows, options: {{cores_per_device: 2}} on"
                " trn1 and inf2; on trn2 it depends on NEURON_LOGICAL_NC_CONFIG."
            )
        share["neuron_cores"] = resources.count * cores
    return share | {str(key): float(value) for key, value in pool.options.get("resources", {}).items()}


def _refuse_what_is_not_here(pool: Pool) -> None:
    """Nothing that a pool asks for is passed over in silence."""
    if pool.image:
        raise UserError(
            f"the pool {pool.name} names an image; Ray's nodes run what they have. Start them from it."
        )
    if pool.spot or pool.roles:
        raise UserError(
            f"the pool {pool.name} asks for spot machines or roles: on Ray the cluster has them, or not. Take it out,"
            " and choose among nodes by options: {labels: {...}}."
        )
    if pool.max_jobs:
        raise UserError(
            f"the pool {pool.name}: Ray queues by resources and has no max_jobs. Give each job its cpu; or start the"
            " nodes with a resource of your own and have each job take one, options: {resources: {slot: 1}}."
        )
    for option in sorted(set(pool.options) - _OPTIONS):
        known = ", ".join(sorted(_OPTIONS))
        raise UserError(f"the pool {pool.name}: the ray backend has no option {option!r}; known: {known}")
    for option, default in (("grace_s", _RAYS_GRACE_S), ("idle_s", IDLE_S), ("pending_s", _PENDING_S)):
        seconds_of(pool, option, default)
    address, resources, labels = (pool.options.get(each) for each in ("address", "resources", "labels"))
    if address is not None and not isinstance(address, str):
        raise UserError(
            f"the pool {pool.name}: options.address is {address!r}; write http://HEAD:8265, that of Ray's dashboard."
        )
    if resources is not None and not (
        isinstance(resources, dict)
        and all(
            not isinstance(amount, bool) and isinstance(amount, int | float) for amount in resources.values()
        )
        and all(0 <= amount < math.inf for amount in resources.values())
    ):
        raise UserError(
            f"the pool {pool.name}: options.resources is {resources!r}; write how much of each resource of the nodes a"
            " job takes, such as {slot: 1}."
        )
    if labels is not None and not isinstance(labels, dict):
        raise UserError(
            f"the pool {pool.name}: options.labels is {labels!r}; write each label with its value, such as"
            " {zone: west}."
        )


if TYPE_CHECKING:
    _ray: Backend = RayBackend()
