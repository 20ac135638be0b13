"""Records given by their ids: what another process made for this very run is taken as it is, and not sought again."""

from __future__ import annotations

from collections.abc import Mapping

from treadle.commit import all_records, find_record, lost_blobs
from treadle.errors import StoreError, UserError
from treadle.records import RECORD_OF, Candidate, FeatureSet, Record, Snapshot
from treadle.redaction import redacted
from treadle.session import Session


def given_records(session: Session, inputs: Mapping[str, str]) -> dict[str, Record]:
    """The record of each stage that an id names.

    Raises:
        UserError: No such stage; no such record of this loop and of that stage; one of another as_of.
        StoreError: A file of the record is lost.
    """
    found = {}
    for stage, id_ in inputs.items():
        if stage not in RECORD_OF:
            raise UserError(f"inputs: {stage!r} is no stage; the stages are: {', '.join(RECORD_OF)}")
        found[stage] = _given(session, stage, id_)
    return found


def _given(session: Session, stage: str, id_: str) -> Record:
    kind, loop = RECORD_OF[stage], session.loop.name
    record = find_record(session.store, kind, loop, id_) if id_.replace(".", "").isalnum() else None
    if record is None:
        raise UserError(
            f"inputs: {stage} of {loop} made no record {id_[:12]} in the store {redacted(session.store.uri)}."
            f" Give the id of a {kind.kind} of this loop."
        )
    if not _is_of_this_time(session, record):
        raise UserError(
            f"inputs: {record} of {stage} was made as of {record.as_of.date()}; this run is as of"
            f" {session.as_of.date()}. Give what {stage} made for this as_of."
        )
    if lost := lost_blobs(session.store, record):
        raise StoreError(
            f"inputs: {record} of {stage} lacks blob {lost[0][:12]}: run {stage} again, which makes it."
        )
    return record


def _is_of_this_time(session: Session, record: Record) -> bool:
    """Whether a run at this as_of would have used the record.

    Features and models of another as_of are the same where nothing that they are made of differs.
    """
    if record.as_of == session.as_of:
        return True
    if isinstance(record, FeatureSet):
        snapshots = all_records(session.store, Snapshot, session.loop.name)
        return any(s.as_of == session.as_of and s.digest == record.key["snapshot"] for s in snapshots)
    if isinstance(record, Candidate):
        data = session.loop.data
        return record.trained_through == session.as_of - data.label_delay - data.holdout
    return record.kind == "deployment"
