"""Why a stage ran again: which part of its key changed since the record before."""

from __future__ import annotations

from typing import Any

from treadle.commit import all_records
from treadle.records import RECORD_OF, Json, Record
from treadle.session import Session


def explain_cache(session: Session) -> list[Json]:
    """For each stage, its newest record beside the one made before it, and what differs between their keys.

    Returns:
        One mapping a stage: `stage`, `id`, `before` (the id of the record before, or None), `name` and
        `name_before` (as people call the two), and `changed`, a list of {`part`, `before`, `now`}.
    """
    explained = []
    for stage, kind in RECORD_OF.items():
        made = sorted(
            all_records(session.store, kind, session.loop.name),
            key=lambda record: (record.notes.get("made_at", ""), record.id),
        )
        if made:
            before = made[-2] if len(made) > 1 else None
            explained.append(_compare(stage, made[-1], before))
    return explained


def _compare(stage: str, now: Record, before: Record | None) -> Json:
    changed = differences(before.key, now.key) if before else []
    return {
        "stage": stage,
        "id": now.id,
        "as_of": now.as_of.isoformat(),
        "before": before.id if before else None,
        "name": str(now),
        "name_before": str(before) if before else None,
        "changed": changed,
        "same_result": bool(before and before.digest == now.digest),
    }


def differences(before: Any, now: Any, part: str = "") -> list[Json]:
    """The leaves that differ between two plain JSON values, by dotted path."""
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for name in sorted(before.keys() | now.keys()):
            found += differences(before.get(name), now.get(name), f"{part}.{name}" if part else name)
        return found
    return [] if before == now else [{"part": part, "before": before, "now": now}]
