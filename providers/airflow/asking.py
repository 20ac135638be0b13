"""What a run asks for: time, track, overrides and asker, from its form, the events that started it, its dates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from treadle.errors import UserError
from treadle.loop import Loop
from treadle_airflow.clock import RunTime, run_as_of


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person or an event asked of a run; every task of the run reads the same.

    Attributes:
        as_of: As asked, if it was.
        track: None where nobody named one.
        overrides: `section.field=value` each.
        pools: Stage to the pool that is asked for.
        who: The user who triggered the run, or `airflow`.
        events: The extras of the asset events that started the run, newest first.
    """

    as_of: str | None
    track: str | None
    overrides: tuple[str, ...]
    pools: Mapping[str, str]
    who: str
    events: tuple[Mapping[str, Any], ...]
    logical_date: datetime | None
    run_after: datetime | None
    run_type: str

    def time(self, loop: Loop) -> RunTime:
        """The run's `as_of`; see `treadle_airflow.clock`."""
        return run_as_of(
            loop,
            asked=self.as_of,
            events=self.events,
            logical_date=self.logical_date,
            run_after=self.run_after,
            is_tick=self.run_type in ("scheduled", "backfill"),
        )


def asked_of(context: Mapping[str, Any]) -> Asked:
    """What the run of a task's context asks for.

    Raises:
        UserError: `conf.set` or `conf.pools` is no list of texts of the form name=value.
    """
    run = context.get("dag_run")
    conf = getattr(run, "conf", None) or {}
    form = dict(context.get("params") or {})
    events = _events(context)
    # A field of the form has a default, which must not win against the loop's own event that started the run.
    own: Mapping[str, Any] = next(
        (event.extra for event in events if event.asset.uri.startswith("treadle://")), {}
    )
    params = {**form, **{name: own[name] for name in ("track", "set") if name in own}, **conf}
    pools = [text.partition("=") for text in _texts(params, "pools", "train=gpu")]
    return Asked(
        as_of=params.get("as_of") or None,
        track=params.get("track") or None,
        overrides=_texts(params, "set", "train.rounds=50"),
        pools={stage.strip(): pool.strip() for stage, _, pool in pools},
        who=getattr(run, "triggering_user_name", None) or "airflow",
        events=tuple(event.extra for event in events),
        logical_date=getattr(run, "logical_date", None),
        run_after=getattr(run, "run_after", None),
        run_type=str(getattr(getattr(run, "run_type", None), "value", "manual")),
    )


def _texts(params: Mapping[str, Any], name: str, example: str) -> tuple[str, ...]:
    told = params.get(name) or ()
    told = [told] if isinstance(told, str) else told
    if not isinstance(told, Sequence) or not all(isinstance(text, str) and "=" in text for text in told):
        raise UserError(f'conf.{name} is a list of name=value, such as ["{example}"]; it was {told!r}')
    return tuple(told)


def _events(context: Mapping[str, Any]) -> list[Any]:
    """The events that started the run, newest first; one that came by an alias is there once."""
    told = context.get("triggering_asset_events") or {}
    events = {(event.asset.uri, event.timestamp): event for asset in told for event in told[asset]}
    return sorted(events.values(), key=lambda event: event.timestamp, reverse=True)
