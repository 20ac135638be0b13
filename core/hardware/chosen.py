"""The machine that a backend chooses where a pool names none: what a job costs is told by it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from treadle.errors import TreadleError
from treadle.hardware.backends import get_backend
from treadle.hardware.pools import Pool


@runtime_checkable
class ChoosesMachines(Protocol):
    """A backend that chooses an instance type by cores, memory and accelerators."""

    def machine(self, pool: Pool, stage: str) -> str:
        """The instance type that a job of a stage gets: that of its plan.

        Raises:
            UserError: There is none that would do.
        """
        ...


def with_machine(pool: Pool, stage: str) -> Pool:
    """The pool with the instance type that its backend chooses for a stage; as it is where it names one or a price.

    Where the backend chooses none, or can't be asked here, the pool stays without: then it has no price either.
    """
    if pool.instance_type is not None or pool.price is not None:
        return pool
    try:
        backend = get_backend(pool.backend)
        if not isinstance(backend, ChoosesMachines):
            return pool
        return pool.model_copy(update={"instance_type": backend.machine(pool, stage)})
    except TreadleError:
        return pool
