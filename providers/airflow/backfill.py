"""Backfills: in order, as champions chain, and never with a person to wait for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowRescheduleException
from treadle.errors import UserError

if TYPE_CHECKING:
    from airflow.sdk import Context
    from treadle.session import Session
    from treadle_airflow.asking import Asked

_PAUSE = timedelta(seconds=15)
_STUCK = timedelta(minutes=5)


def check_backfill(context: Context, session: Session, asked: Asked) -> None:
    """Refuses a backfill whose challengers would wait for people.

    Raises:
        UserError: It is one.
    """
    if asked.run_type == "backfill" and session.loop.approval == "manual":
        raise UserError(
            f"a backfill of {session.loop.name} would wait for a person at every date, since its approval is manual."
            " Fill a track that approves by itself: airflow backfill create ..."
            ' --dag-run-conf \'{"track": "replay", "set": ["approval=auto"]}\''
        )


def wait_for_earlier_runs(context: Context, asked: Asked, log: Any) -> None:
    """Lets a run of a backfill go on when no run of an earlier date is under way.

    Raises:
        AirflowRescheduleException: One is; the task asks again soon, and holds no slot meanwhile.
        UserError: The backfill runs backwards, so that this one would wait for ever.
    """
    if asked.run_type != "backfill":
        return
    ti, now = context["ti"], datetime.now(UTC)
    running = ti.get_previous_dagrun(state="running")
    earlier = running or ti.get_previous_dagrun(state="queued")
    if earlier is None or earlier.run_type.value != "backfill":
        return
    since = ti.get_first_reschedule_date(context) or now
    if running is None and now - since > _STUCK:
        raise UserError(
            f"this backfill runs backwards: {earlier.run_id} is earlier and has not begun. Each champion is judged"
            " against the one before: create the backfill without --run-backwards."
        )
    log.info("waits for the run before it: %s", earlier.run_id)
    raise AirflowRescheduleException(now + _PAUSE)  # type: ignore[no-untyped-call]
