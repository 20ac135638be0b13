"""A session: one loop, at one `as_of`, on one track, in one store."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from treadle.clock import format_instant, parse_instant, today
from treadle.errors import AsOfError, UserError
from treadle.loop import Loop
from treadle.records import Record
from treadle.registry.log import PRODUCTION, ReleaseLog, whoami
from treadle.store import Store, open_store

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """One run of a loop at one `as_of` on one track.

    Attributes:
        notes: What the records that this session makes say of where they were made.
        measured: Gives the notes of a record that is about to be committed, from the stage's outcome, where they hold
            more than `notes`: what the work took.
    """

    loop: Loop
    as_of: datetime
    store: Store
    log: ReleaseLog
    who: str
    say: Callable[[str], None]
    reused: dict[str, bool] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    first_stage: str = "prepare"
    notes: dict[str, Any] = field(default_factory=dict)
    measured: Callable[[Any], dict[str, Any]] | None = None
    device: str = "cpu"
    over_budget: bool = False

    def warn(self, words: str) -> None:
        """Something to be said at the end of a run, too."""
        self.warnings.append(words)
        self.say(f"note: {words}")

    @property
    def track(self) -> str:
        """The track's name."""
        return self.log.track


def open_session(
    loop: Loop,
    *,
    as_of: datetime | str | None = None,
    store: Store | str | Path | None = None,
    track: str = PRODUCTION,
    who: str | None = None,
    say: Callable[[str], None] | None = None,
    as_of_default: Callable[[ReleaseLog], datetime] | None = None,
) -> Session:
    """A session; see `treadle.run` for the arguments.

    Raises:
        AsOfError: After now, or outside of the loop's history. StoreError: The store can't be used.
    """
    opened = open_loop_store(loop, store)
    release_log = ReleaseLog(opened, loop.name, check_track(track))
    default = as_of_default(release_log) if as_of_default and as_of is None else None
    moment = default or resolve_as_of(loop, as_of)
    return Session(loop, moment, opened, release_log, who or whoami(), say or log.info)


def open_loop_store(loop: Loop, store: Store | str | Path | None = None) -> Store:
    """The store given, else that of `TREADLE_STORE`, else `.treadle` beside the loop."""
    if store is not None and not isinstance(store, (str, Path)):
        return store
    return open_store(store or os.environ.get("TREADLE_STORE") or loop.folder / ".treadle")


def check_track(track: str) -> str:
    """The track's name, if it can name folders, MLflow models and Feast projects.

    Raises:
        AsOfError: It can't.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,40}", track):
        raise UserError(
            f"{track!r} can't name a track: use lower-case letters, digits, - and _, such as replay-2013"
        )
    return track


def resolve_as_of(loop: Loop, as_of: datetime | str | None) -> datetime:
    """The clock of a run: as given, else the end of the loop's history, else today in UTC.

    Raises:
        AsOfError: It lies after now, before the history's start or after its end, or is no time at all.
    """
    history = loop.history
    if as_of is None:
        return history.to or today()
    try:
        moment = parse_instant(as_of)
    except ValueError as error:
        raise AsOfError(f"as_of: {error}") from None
    now = datetime.now(UTC)
    if moment > now:
        raise AsOfError(
            f"as_of {format_instant(moment)} lies after now, {format_instant(now)[:16]}: the future has no data"
        )
    if history.from_ and moment <= history.from_:
        raise AsOfError(
            f"as_of {format_instant(moment)} lies before the data, which begin {format_instant(history.from_)}"
        )
    if history.to and moment > history.to:
        raise AsOfError(
            f"as_of {format_instant(moment)} lies after the end of the loop's history, {format_instant(history.to)}"
        )
    return moment


def clip_as_of(loop: Loop, moment: datetime) -> datetime:
    """The clock of a run that someone began at a moment: its day in UTC, no later than the loop's history.

    Its hour where the loop's schedule is a cron that ticks more than once a day. A schedule's own tick and the end
    of a partition are clocks as they are. `resolve_as_of` still refuses what lies before the data.
    """
    schedule = (loop.retrain.schedule if loop.retrain else None) or ""
    cut = moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    fields = schedule.split()
    if len(fields) != 5 or fields[1].isdigit():
        cut = cut.replace(hour=0)
    return min(cut, loop.history.to) if loop.history.to else cut


@dataclass(frozen=True, slots=True)
class Run(Mapping[str, Record]):
    """What a run came to: stage name to record, also as attributes (`run.evaluate`, `run.verdict`)."""

    loop: str
    track: str
    as_of: datetime
    records: dict[str, Record]
    reused: dict[str, bool]
    warnings: tuple[str, ...] = ()

    def __getitem__(self, stage: str) -> Record:
        return self.records[stage]

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getattr__(self, name: str) -> Record:
        for stage, record in self.records.items():
            if name in (stage, record.kind):
                return record
        raise AttributeError(f"this run has no {name!r}; it has {', '.join(self.records)}")

    def __repr__(self) -> str:
        lines = [f"Run of {self.loop} as of {self.as_of.date()} on {self.track}"]
        lines += [f"  {stage:<10} {record!r}" for stage, record in self.records.items()]
        lines += [f"  note: {warning}" for warning in self.warnings]
        return "\n".join(lines)
