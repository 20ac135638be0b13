"""A Ray session for work that a stage or a command spreads over workers: the cluster it runs on, or one of its own.

A cluster of its own takes the process's cores, asks for a token of its own, and ends with the session, or with the
process if that is killed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from treadle.errors import MissingPackage, Transient, UserError

# Set by the ray backend: what Ray sets aside for each worker of the job, in Ray's names.
_SHARE = "TREADLE_RAY_WORKER"
_ATTEMPTS = 3
_token: dict[str, str] = {}
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Workers:
    """How many workers there are, and what Ray sets aside for each; `cpus` is how many threads one may use."""

    count: int
    cpus: int
    others: Mapping[str, float]


@contextmanager
def ray_workers(count: int, threads: int, purpose: str, *, device: str = "cpu") -> Iterator[Workers]:
    """A session in which `count` workers can run.

    Args:
        count: How many workers.
        threads: How many threads each would like.
        purpose: What for, in words that follow `needed to`.
        device: What kind of accelerator each needs one of, where the job's pool does not say how many.

    Raises:
        MissingPackage: Ray is not installed. Transient: The cluster can't be reached, or has no core to give.
        UserError: The cluster has no such accelerators.
    """
    if find_spec("ray") is None:
        raise MissingPackage("ray", purpose, "ray")
    address = _cluster_address()
    with _own_folder() as folder, _settings(folder, own=not address):
        import ray

        if ray.is_initialized():
            yield _share(ray, count, threads, device)
            return
        try:
            _connect(ray, address, folder, count)
            yield _share(ray, count, threads, device)
        finally:
            ray.shutdown()
            _sweep(folder)


def on_cluster() -> bool:
    """Whether this process has a Ray cluster at hand: its job runs on one, RAY_ADDRESS names one, it is connected."""
    if os.environ.get(_SHARE) or _cluster_address():
        return True
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _cluster_address() -> str | None:
    """The cluster that RAY_ADDRESS names; not a dashboard's `http://`, which takes jobs and no workers."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address.startswith(("http://", "https://")) else address or None


def _connect(ray: Any, address: str | None, folder: str, count: int) -> None:
    """Connects to a cluster, or starts one; on a busy machine the start takes longer than Ray waits."""
    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": False,
    }
    own = {
        "address": "local",
        "num_cpus": max(count, _cores()),
        "include_dashboard": False,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": folder,
    }
    where = f"the Ray cluster at {address}" if address else "a Ray cluster of this machine"
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            ray.init(**({"address": address} if address else own), **quiet)
            return
        except Exception as error:  # Ray raises no class of its own here
            ray.shutdown()
            _sweep(folder)
            if address or attempt == _ATTEMPTS:
                reason = str(error).strip().partition("\n")[0]
                raise Transient(f"{where} can't be reached or started: {reason}") from error
            _logger.warning("%s did not start, trying again: %s", where, error)


def _sweep(folder: str) -> None:
    """Ends what is left of a cluster that did not start, or of workers that did not end with it."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if int(entry.parent.name) != os.getpid() and folder.encode() in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)


def _share(ray: Any, count: int, threads: int, device: str) -> Workers:
    """What each worker gets of the cluster."""
    asked: dict[str, float] = json.loads(os.environ.get(_SHARE, "{}"))
    if not asked and device != "cpu":
        asked = {"GPU": 1.0} if device == "gpu" else {"neuron_cores": 1.0}
    free = ray.available_resources()
    cpus = int(asked.pop("CPU", 0)) or max(1, min(threads, int(free.get("CPU", 0)) // count))
    has = ray.cluster_resources()
    for name, amount in {"CPU": float(cpus), **asked}.items():
        if has.get(name, 0) < amount:
            who = f"each of {count} workers" if count > 1 else "the worker"
            raise UserError(
                f"{who} needs {amount:g} {name}, and the Ray cluster has {has.get(name, 0):g}:"
                " take another pool, or other resources of it."
            )
    return Workers(count, cpus, asked)


@contextmanager
def _settings(folder: str, *, own: bool) -> Iterator[None]:
    """Variables that Ray and its workers read when they start; those of before are back afterwards."""
    wanted: dict[str, str | None] = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    if own:
        wanted["TMPDIR"] = folder  # what a killed worker leaves there is removed with the rest
        wanted["RAY_ADDRESS"] = None
    # Ray takes in how it checks who asks when it is imported, and keeps it.
    if own and ("ray" not in sys.modules or _token):
        _token.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        wanted |= {"RAY_AUTH_MODE": "token", **_token}
    before = {name: os.environ.get(name) for name in wanted}
    _set(wanted)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    """Sets variables of this process, and takes out those without a value."""
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _own_folder() -> Iterator[str]:
    """Ray's files; in the temporary folder itself, as its sockets' paths must be short."""
    folder = tempfile.mkdtemp(prefix="treadle-workers-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
