"""What a backend must do: run a command somewhere, with resources. It knows no ML and no stages.

    plan ─► submit ─► Handle (JSON) ─► status, logs, cancel        find(name) ─► the same Handle

A backend keeps nothing in memory: a handle is enough for any process to go on from. It never retries by itself.
`treadle.testing.backend.BackendSuite` tests all of this, failures included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from treadle.spec import Section

if TYPE_CHECKING:
    from treadle.hardware.pools import Pool

Json = dict[str, Any]
State = Literal["queued", "running", "succeeded", "failed", "preempted", "stopped", "timed_out", "lost"]

# How a command says how it ended; every other code but 0 is a failure.
PREEMPTED_EXIT, USER_ERROR_EXIT, REFUSED_EXIT, FAILED_EXIT = 75, 64, 65, 70


@dataclass(frozen=True, slots=True)
class Resources:
    """What one job gets.

    Attributes:
        cpu: Cores; None: whatever is there.
        memory_gib: The limit; a job beyond it is ended. None: no limit.
        accelerator: `cpu`, `gpu`, `trainium`, `inferentia`, or a model such as `nvidia-l4`.
        count: How many accelerators.
    """

    cpu: float | None = None
    memory_gib: float | None = None
    accelerator: str = "cpu"
    count: int = 0


@dataclass(frozen=True, slots=True)
class JobSpec:
    """A command to run once.

    Attributes:
        name: Unique for ever, and fit for a DNS label: a second submit of it is the same job.
        command: The program and its arguments; no shell stands between.
        env: Variables beside those of the place. `${NAME}` is filled in at the place, so that no secret travels.
        image: The container image, for backends that run images.
        max_seconds: The time limit, counted from the start of the command.
        grace_s: Seconds between SIGTERM and SIGKILL when the job must end.
        workers: How many machines, or shares of one, each with `resources`; a backend with one machine refuses more.
        spot: Whether a cheaper machine that may be taken away will do.
        role: Whom the job acts as at its place: a cloud's role or a service account.
        labels: For whoever looks at the backend.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    image: str | None = None
    resources: Resources = Resources()
    max_seconds: float | None = None
    grace_s: float = 30
    workers: int = 1
    spot: bool = False
    role: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do.

    Attributes:
        spot: Cheaper machines that may be taken away.
        checkpoint_sync: It copies a folder of checkpoints by itself.
        warm: It can keep a machine for the next job.
        multi_node: A job may span machines.
        images: Jobs run in container images.
        logs: `logs` shows what the command prints while it runs.
        queues: A job beyond the pool's `max_jobs` waits.
        own_disks: Its machines have disks of their own: a folder of this machine is not there, see `reach`.
        volumes: The option `volumes` of a pool mounts folders on its machines, each under the path that it has here.
        grace_s: Seconds that a job has between being asked to end and its end.
        poll_s: How often its status may be asked for.
    """

    spot: bool = False
    checkpoint_sync: bool = False
    warm: bool = False
    multi_node: bool = False
    images: bool = False
    logs: bool = True
    queues: bool = True
    own_disks: bool = False
    volumes: bool = False
    grace_s: float = 30
    poll_s: float = 5


class Handle(Section):
    """Where a job is: JSON, without secrets, good in any process that can reach the backend.

    Attributes:
        name: The job's.
        data: What the backend itself needs to find it again.
    """

    backend: str
    name: str
    pool: str
    data: Json = {}

    def to_json(self) -> str:
        """One line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The handle that `to_json` wrote."""
        return cls.model_validate_json(text)


class Status(Section):
    """How a job stands.

    Attributes:
        state: `preempted`: the place took the machine back, or the command said so (exit code 75). `lost`: the machine
            or whoever watched the command there is gone. `stopped`: cancelled. `timed_out`: beyond `max_seconds`.
        exit_code: The command's, where it ended by itself.
        reason: In words, where the state does not say it all.
        started: Seconds since 1970; None while it waits.
        ended: Seconds since 1970; None before the end.
        node: The machine.
        billed_seconds: What the place says it bills, where it does; with spot it may be less than the time.
    """

    state: State
    exit_code: int | None = None
    reason: str = ""
    started: float | None = None
    ended: float | None = None
    node: str = ""
    billed_seconds: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, however."""
        return self.state not in ("queued", "running")

    @property
    def is_worth_another_attempt(self) -> bool:
        """Whether the place failed, and not the work."""
        return self.state in ("preempted", "lost")


class Backend(Protocol):
    """A place where commands run. Every call is quick; none waits for the command."""

    name: str

    def capabilities(self) -> Capabilities:
        """What this backend can do."""
        ...

    def plan(self, job: JobSpec, pool: Pool) -> Json:
        """The exact request that `submit` would make: pure, without network and without secrets.

        Raises:
            UserError: The pool asks for something that this backend does not have.
        """
        ...

    def submit(self, job: JobSpec, pool: Pool) -> Handle:
        """The job, now queued or running. A second submit of the name, from wherever, finds the first.

        Raises:
            UserError: See `plan`; or the place refuses it, or there are no credentials: nothing was started.
            NotSent: No connection to the place came about, in any try: the job surely did not arrive. Transient: The
            place can't be reached, and nobody knows whether the job arrived.
        """
        ...

    def status(self, handle: Handle) -> Status:
        """How the job stands. A state that is over stays as it is.

        Raises:
            Transient: The place can't be reached: that says nothing about the job.
        """
        ...

    def logs(self, handle: Handle, since: int) -> tuple[list[str], int]:
        """The lines that the command wrote from `since` (0: all) on, and what to give as `since` next time."""
        ...

    def cancel(self, handle: Handle, grace: float) -> None:
        """Asks the job to end: SIGTERM, and SIGKILL after `grace` seconds. Nothing happens when it is over."""
        ...

    def find(self, name: str, pool: Pool) -> Handle | None:
        """The handle of a job that was submitted, ended or not; None when there was none."""
        ...
