"""What every operator shares: the loop, the run's time and track, a session, and errors in Airflow's terms."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowRescheduleException
from treadle.clock import format_instant
from treadle.errors import Transient, TreadleError
from treadle.loop import Loop
from treadle_airflow import assets
from treadle_airflow.asking import Asked, asked_of
from treadle_airflow.hooks.treadle import DEFAULT_CONN_ID, TreadleHook, read_loop

if TYPE_CHECKING:
    from airflow.sdk import Asset, Context
    from treadle.records import Json
    from treadle.session import Session

PRODUCTION = "production"
_PAUSE = timedelta(minutes=1)


class TreadleOperator(BaseOperator):
    """Opens a session of a loop at the run's time, on its track.

    The loop's file is read when the task runs, not when the DAG is parsed.

    :param loop: The path of a loop file, or a Loop.
    :param track: Whose release log is read and written; the run's conf or its asset event comes first. (templated)
    :param overrides: `section.field=value` each, as `--set`; the run's conf comes after and so wins. (templated)
    :param treadle_conn_id: The connection with store, MLflow address and credentials.
    :param spec_digest: What the loop says, in one hash: so that a changed loop is a new version of the DAG. (templated)
    :param patience: How long a task that waits for MLflow goes on asking, before it fails.
    """

    template_fields: Sequence[str] = ("track", "overrides", "spec_digest")
    ui_color = "#e8f0ec"

    def __init__(
        self,
        *,
        loop: Loop | str | os.PathLike[str],
        track: str = PRODUCTION,
        overrides: Sequence[str] = (),
        treadle_conn_id: str = DEFAULT_CONN_ID,
        spec_digest: str = "",
        patience: timedelta = timedelta(days=1),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.loop = loop
        self.track = track
        self.overrides = list(overrides)
        self.treadle_conn_id = treadle_conn_id
        self.spec_digest = spec_digest
        self.patience = patience
        self.links: dict[str, str] = {}
        self.tried: TreadleError | None = None

    @cached_property
    def hook(self) -> TreadleHook:
        """The hook of `treadle_conn_id`."""
        return TreadleHook(self.treadle_conn_id)

    @contextmanager
    def opened(self, context: Context) -> Iterator[Session]:
        """A session at the run's time; what the core refuses becomes an error in Airflow's terms.

        Raises:
            AirflowFailException: A retry can't help, or the core has retried already: the error is noted as `tried`.
            AirflowException: The store, or the place of a job, is away for now: Airflow tries the task again.
            AirflowRescheduleException: Where `waits` says so, the task asks again later and holds no slot meanwhile.
        """
        try:
            quiet_libraries()
            asked = asked_of(context)
            overrides = [*self.overrides, *asked.overrides]
            with self.hook.environment():
                loop = read_loop(self.loop, overrides)
                time = asked.time(loop)
                track = asked.track or self.track
                with self.hook.session(
                    loop,
                    as_of=time.as_of,
                    track=track,
                    who=asked.who,
                    say=self.said,
                ) as session:
                    self.log.info(
                        "%s as of %s (%s) on track %s%s",
                        loop.name,
                        format_instant(session.as_of),
                        time.words,
                        track,
                        f", set {' '.join(overrides)}" if overrides else "",
                    )
                    self.check(context, session, asked)
                    yield session
        except TreadleError as error:
            raise self._told(error, context) from None

    def tell(self, context: Context, asset: Asset, extra: Json) -> None:
        """Adds an event of an asset, if the asset's alias is an outlet of the task."""
        alias = assets.alias_of(asset)
        if alias in (self.outlets or []):
            context["outlet_events"][alias].add(asset, extra=extra)
            self.log.info("event of %s: %s", asset.uri, extra)

    def tell_champion(self, context: Context, session: Session) -> None:
        """An event of who serves now, on the production track."""
        entry = session.log.champion()
        if entry is not None and session.track == PRODUCTION:
            told = {"candidate": entry.candidate, "version": entry.sequence, "why": entry.why}
            extra = {"as_of": format_instant(session.as_of), "track": session.track, **told}
            self.tell(context, assets.champion(session.loop.name), extra)

    def said(self, line: str) -> None:
        """Logs a line of the core's progress."""
        self.log.info("%s", line)

    def check(self, context: Context, session: Session, asked: Asked) -> None:
        """What has to hold before the work; for subclasses."""

    def waits(self, error: TreadleError) -> bool:
        """Whether the task asks again later, instead of failing; for subclasses."""
        return False

    def _told(self, error: TreadleError, context: Context) -> Exception:
        words = f"{type(error).__name__}: {error}"
        if not self.waits(error):
            may_pass = isinstance(error, Transient) and error is not self.tried
            return AirflowException(words) if may_pass else AirflowFailException(words)
        now = datetime.now(UTC)
        first = context["ti"].get_first_reschedule_date(context) or now
        if now - first > self.patience:
            return AirflowFailException(
                f"{words} Waited since {format_instant(first)}; clear the task to try again."
            )
        self.log.warning("Waits, and asks again at %s. %s", format_instant(now + _PAUSE), words)
        return AirflowRescheduleException(now + _PAUSE)  # type: ignore[no-untyped-call]


def quiet_libraries() -> None:
    """Keeps what libraries say of their own progress out of the task's log; their warnings stay."""
    for name in ("alembic", "feast", "great_expectations", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
