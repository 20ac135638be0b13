"""The walk from stage to stage: each takes the records of those before it, given, found or made, here or on a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from treadle.errors import UserError
from treadle.hardware.pools import Pool
from treadle.jobs import pool_of, run_on_pool
from treadle.jobs.given import given_records
from treadle.records import STAGE_OF, Record
from treadle.session import Session
from treadle.stages import STAGES

R = TypeVar("R", bound=Record)
Records = Mapping[str, Record]
Maker = Callable[[Session, Records], Record]

# What a stage is made of. Monitor and retrain go by the log, not by this run.
NEEDS: dict[str, tuple[str, ...]] = {
    "featurize": ("prepare",),
    "train": ("featurize",),
    "evaluate": ("train", "featurize"),
    "release": ("evaluate", "train"),
    "deploy": ("release",),
}


class Walk:
    """One walk of a session. `makers` run a stage in this process; `records` holds what was come by so far."""

    def __init__(
        self,
        session: Session,
        makers: Mapping[str, Maker],
        *,
        inputs: Mapping[str, str] | None = None,
        pools: Mapping[str, str] | None = None,
    ) -> None:
        self.session, self.makers = session, makers
        self.pools = pools_of(session, pools or {})
        self.records = given_records(session, inputs or {})

    def record(self, stage: str) -> Record:
        """The record of a stage, with those that it needs."""
        if stage not in self.records:
            needed = {name: self.record(name) for name in NEEDS.get(stage, ())}
            pool = self.pools.get(stage)
            if pool is None:
                self.records[stage] = self.makers[stage](self.session, needed)
            else:
                ids = {name: record.id for name, record in needed.items()}
                self.records[stage] = run_on_pool(self.session, stage, pool, ids)
        return self.records[stage]


def pools_of(session: Session, overrides: Mapping[str, str]) -> dict[str, Pool]:
    """The pool of each stage that has one: as the loop says, or as `overrides` say instead.

    Raises:
        UserError: An override for no stage. SpecError: No such pool.
    """
    for stage in overrides:
        if stage not in STAGES:
            raise UserError(f"--pool {stage}: there is no such stage; the stages are: {', '.join(STAGES)}")
    found = {stage: pool_of(session.loop, stage, overrides.get(stage)) for stage in STAGES}
    return {stage: pool for stage, pool in found.items() if pool is not None}


def the(kind: type[R], records: Records) -> R:
    """The record of a kind among those that a stage takes."""
    record = records[STAGE_OF[kind.kind]]
    assert isinstance(record, kind)
    return record
