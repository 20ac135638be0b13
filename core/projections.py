"""Projections of records and of the log: MLflow's versions and alias, Feast's online views.

Each is made after its record or entry, idempotently, and can be made again from it. A receipt in the store says that
one was made, so that a run with nothing to do need not ask MLflow.
"""

from __future__ import annotations

import json
from typing import Any

from treadle.errors import TreadleError
from treadle.records import Candidate
from treadle.registry.log import Entry, predecessor_in
from treadle.session import Session


def _receipt(session: Session, name: str) -> str:
    return f"projections/{session.loop.name}/{session.track}/{name}.json"


def read_receipt(session: Session, name: str) -> dict[str, Any] | None:
    """What was noted when a projection was made, or None."""
    try:
        found = json.loads(session.store.read(_receipt(session, name)))
    except FileNotFoundError:
        return None
    return found if isinstance(found, dict) else None


def _write_receipt(session: Session, name: str, content: dict[str, Any]) -> None:
    session.store.create(_receipt(session, name), json.dumps(content, sort_keys=True).encode())


def project_candidate(session: Session, candidate: Candidate) -> str | None:
    """The candidate's version in MLflow, now there; None when MLflow can't be reached, which stops nothing."""
    receipt = read_receipt(session, f"candidate-{candidate.id}")
    if receipt is not None and session.first_stage != "deploy":
        return str(receipt["version"])
    try:
        return require_version(session, candidate)
    except TreadleError as error:
        session.warn(f"tracking failed, training goes on: {error}")
        return None


def require_version(session: Session, candidate: Candidate) -> str:
    """The candidate's version in MLflow, made when there is none.

    Raises:
        Transient: MLflow can't be reached; nothing is released until it can.
    """
    from treadle.registry.mlflow import project_candidate as write_version

    receipt = read_receipt(session, f"candidate-{candidate.id}")
    if receipt is not None and session.first_stage != "deploy":
        return str(receipt["version"])
    projection = write_version(session.loop, session.store, session.track, candidate)
    _write_receipt(
        session, f"candidate-{candidate.id}", {"run_id": projection.run_id, "version": projection.version}
    )
    return str(projection.version)


def project(session: Session, entry: Entry | None, candidate: Candidate | None) -> None:
    """Brings MLflow's alias and the online views into agreement with the log's last word.

    Raises:
        Transient: MLflow or the online store can't be reached. The log stands; a later run catches up.
    """
    if entry is None or candidate is None:
        return
    name = f"champion-{entry.sequence}"
    if read_receipt(session, name) is not None and session.first_stage != "deploy":
        return
    from treadle.registry.mlflow import set_champion_alias

    version = require_version(session, candidate)
    set_champion_alias(session.loop, session.store, session.track, version)
    written = materialize(session)
    _write_receipt(session, name, {"version": version, "online": written})


def materialize(session: Session) -> dict[str, int]:
    """Feeds the online views of the champion and of its predecessor with what was known before `as_of`.

    Returns:
        Rows written, by online view. Older values never overwrite newer ones.
    """
    from treadle.commit import get_record
    from treadle.data.online import materialize as write_newest
    from treadle.recipe import restore_loop
    from treadle.steps import features_by_own_files, snapshot_of

    entries = session.log.entries()
    written: dict[str, int] = {}
    for entry in (session.log.champion(), predecessor_in(entries)):
        if entry is None:
            continue
        candidate = get_record(session.store, Candidate, session.loop.name, entry.details["candidate_id"])
        loop = restore_loop(session.store, candidate, session.loop)
        if not loop.features.use:
            continue
        snapshot = snapshot_of(session, loop, session.as_of)
        features = features_by_own_files(session, candidate, session.as_of)
        session.say(f"deploy: online views of {candidate}")
        written |= write_newest(loop, session.store, session.track, snapshot, features.views, session.as_of)
    return written
