"""The release log: what happened to a loop's models, one entry a file, each created once and chained by hash.

propose ──► promote            the gate said yes, and nobody had to be asked
   │   ╲──► hold ──► approve ──► promote     a person had to be asked
   │             ╲─► reject                  and said no
reject                         the gate said no
rollback                       back to the champion that the current one beat
retrain                        the policy asks for a new challenger
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from treadle.errors import LogBroken, StoreError
from treadle.identity import digest_of
from treadle.records import Part
from treadle.spec import Instant
from treadle.store import ListsFolders, Store

Kind = Literal["propose", "reject", "approve", "hold", "promote", "rollout", "rollback", "retrain", "retire"]
PRODUCTION = "production"


class Entry(Part):
    """One line of the log.

    Attributes:
        sequence: From 1, without gaps.
        subject: What it is about: a candidate's digest, or the key of a retrain trigger.
        candidate: The candidate's digest that it is about or that serves from here on.
        champion: The champion's digest that the candidate was judged against, beat, or replaces.
        evidence: The id of the record that stands behind it.
        effective_at: The later of `as_of` and the entry before's.
        recorded_at: Wall time; in no id.
        previous: The hash of the entry before.
    """

    sequence: int
    kind: Kind
    subject: str
    candidate: str | None = None
    champion: str | None = None
    evidence: str | None = None
    why: str
    who: str
    as_of: Instant
    effective_at: Instant
    recorded_at: Instant
    details: dict[str, Any] = {}
    previous: str | None
    hash: str

    def computed_hash(self) -> str:
        """The hash that the content of this entry gives."""
        return digest_of(self.model_dump(mode="json", exclude={"hash"}))


def whoami() -> str:
    """Who acts: `TREADLE_USER`, else the login name."""
    return os.environ.get("TREADLE_USER") or getpass.getuser()


class ReleaseLog:
    """The log of a loop on a track. Reading checks every hash and link."""

    def __init__(self, store: Store, loop: str, track: str = PRODUCTION) -> None:
        self.store, self.loop, self.track = store, loop, track
        self._folder = f"logs/{loop}/{track}"
        self._known: list[Entry] = []

    def entries(self) -> list[Entry]:
        """All entries, oldest first.

        Raises:
            LogBroken: An entry was altered, taken out, or does not link to the one before.
        """
        if not self._known:
            names = self.store.list(self._folder)
            expected = [self._name(number) for number in range(1, len(names) + 1)]
            if names != expected:
                gone = next((name for name in expected if name not in names), expected[0])
                raise LogBroken(
                    f"{self.store.uri}/{self._folder}/{gone} is missing from the release log. {_REMEDY}"
                )
        while (entry := self._read(len(self._known) + 1)) is not None:
            self._known.append(entry)
        return list(self._known)

    def head(self) -> Entry | None:
        """The last entry."""
        entries = self.entries()
        return entries[-1] if entries else None

    @staticmethod
    def _name(sequence: int) -> str:
        return f"{sequence:08d}.json"

    def _read(self, sequence: int) -> Entry | None:
        path = f"{self._folder}/{self._name(sequence)}"
        try:
            text = self.store.read(path)
        except FileNotFoundError:
            return None
        place = f"{self.store.uri}/{path}"
        try:
            entry = Entry.model_validate_json(text)
        except ValueError:
            raise LogBroken(f"{place} is no entry of a release log. {_REMEDY}") from None
        before = self._known[-1].hash if self._known else None
        if entry.sequence != sequence or entry.previous != before or entry.hash != entry.computed_hash():
            raise LogBroken(f"{place} was altered, or the entry before it: its hash does not hold. {_REMEDY}")
        return entry

    def append(
        self,
        kind: Kind,
        *,
        subject: str,
        why: str,
        as_of: datetime,
        who: str | None = None,
        candidate: str | None = None,
        champion: str | None = None,
        evidence: str | None = None,
        details: dict[str, Any] | None = None,
        due: Callable[[Sequence[Entry]], None] = lambda entries: None,
    ) -> tuple[Entry, bool]:
        """The entry, and whether this call made it: one of a kind per subject and `as_of` exists already or is made.

        Args:
            kind: What happened.
            subject: What it is about; see Entry.
            why: The reason, in words.
            as_of: The clock of whoever acts.
            who: Who acts; defaults to `whoami()`.
            candidate: See Entry.
            champion: See Entry.
            evidence: See Entry.
            details: What the kind adds.
            due: Looks at the log as it is just before the entry would be made, and raises what forbids it. Asked
                again whenever another process was quicker.

        Raises:
            Whatever `due` raises. LogBroken, StoreError.
        """
        for _ in range(1000):
            entries = self.entries()
            same = [e for e in entries if (e.kind, e.subject, e.as_of) == (kind, subject, as_of)]
            if same:
                return same[-1], False
            due(entries)
            head = entries[-1] if entries else None
            draft = Entry(
                sequence=len(entries) + 1,
                kind=kind,
                subject=subject,
                candidate=candidate,
                champion=champion,
                evidence=evidence,
                why=why,
                who=who or whoami(),
                as_of=as_of,
                effective_at=max(as_of, head.effective_at) if head else as_of,
                recorded_at=datetime.now(UTC),
                details=details or {},
                previous=head.hash if head else None,
                hash="",
            )
            entry = draft.model_copy(update={"hash": draft.computed_hash()})
            if self.store.create(
                f"{self._folder}/{self._name(entry.sequence)}", entry.model_dump_json().encode()
            ):
                self._known.append(entry)
                return entry, True
        raise StoreError(f"{self._folder}: other processes were quicker a thousand times. Try again.")

    def champion(self, as_of: datetime | None = None) -> Entry | None:
        """The entry whose candidate serves at `as_of` (the last one effective at or before it), or now."""
        return champion_in(self.entries(), as_of)


_REMEDY = "Nothing is released on a broken log; restore the file from a backup of the store."


def champion_in(entries: Sequence[Entry], as_of: datetime | None = None) -> Entry | None:
    """The last promotion or rollback effective at or before `as_of`; None after a retirement or before the first."""
    for entry in reversed(entries):
        if (as_of is None or entry.effective_at <= as_of) and entry.kind in ("promote", "rollback", "retire"):
            return None if entry.kind == "retire" else entry
    return None


def tracks_with_champion(store: Store, loop: str) -> list[str] | None:
    """The tracks of a loop on which a model serves, for words to people; None where the store can't tell.

    A track whose log is broken is left out: who uses it is told.
    """
    if not isinstance(store, ListsFolders):
        return None
    found = []
    for track in store.folders(f"logs/{loop}"):
        try:
            if champion_in(ReleaseLog(store, loop, track).entries()) is not None:
                found.append(track)
        except LogBroken:
            continue
    return found


def promotion_of(entries: Sequence[Entry], candidate: str) -> Entry | None:
    """The newest promotion of a candidate."""
    return next((e for e in reversed(entries) if e.kind == "promote" and e.candidate == candidate), None)


def predecessor_in(entries: Sequence[Entry], as_of: datetime | None = None) -> Entry | None:
    """The promotion of the champion that the current champion's promotion beat, or None."""
    current = champion_in(entries, as_of)
    promotion = promotion_of(entries, current.candidate) if current and current.candidate else None
    return promotion_of(entries, promotion.champion) if promotion and promotion.champion else None


def anchor_in(entries: Sequence[Entry], as_of: datetime | None = None) -> Entry | None:
    """The last champion that won by superiority, came first, or was put there by a person.

    One that was asked for non-inferiority only, and yet was better with the asked confidence, won by superiority.
    """
    for entry in reversed(entries):
        if as_of is not None and entry.effective_at > as_of:
            continue
        earned = entry.kind == "promote" and (
            entry.details.get("mode") in ("first", "superiority")
            or entry.details.get("superior")
            or entry.details.get("approved_by")
        )
        if earned or entry.kind == "rollback":
            return entry
    return None


def verdict_entry(entries: Sequence[Entry], candidate: str, as_of: datetime) -> Entry | None:
    """The gate's proposal or rejection of a candidate at an `as_of`."""
    for entry in reversed(entries):
        if entry.candidate == candidate and entry.as_of == as_of and is_verdict(entry):
            return entry
    return None


def is_verdict(entry: Entry) -> bool:
    """Whether an entry records what the gate said, rather than a person."""
    return entry.kind == "propose" or (entry.kind == "reject" and entry.details.get("by") == "gate")


def pending_in(entries: Sequence[Entry]) -> Entry | None:
    """The proposal that waits for a person: the newest one, unless it was promoted, rejected or overtaken."""
    for entry in reversed(entries):
        if entry.kind == "propose":
            later = entries[entry.sequence :]
            ended = any(e.kind in ("promote", "reject") and e.subject == entry.subject for e in later)
            return None if ended else entry
    return None


def looks_in(entries: Sequence[Entry], start: datetime, end: datetime) -> int:
    """How many earlier verdicts used some of the holdout's time from `start` to `end`."""
    looks = 0
    for entry in entries:
        held = entry.details.get("holdout")
        if is_verdict(entry) and held:
            looks += _instant(held["start"]) < end and _instant(held["end"]) > start
    return looks


def _instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


def held_by_person(entries: Sequence[Entry], candidate: str, recipe: str) -> Entry | None:
    """The rollback or rejection by a person of this candidate or its recipe that no approval followed, or None."""
    for entry in reversed(entries):
        same = candidate in (entry.candidate, entry.subject) or entry.details.get("recipe") == recipe
        if entry.kind == "approve" and same:
            return None
        rejected = entry.kind == "reject" and entry.details.get("by") == "person" and same
        rolled_back = entry.kind == "rollback" and (
            entry.champion == candidate or entry.details.get("rolled_back_recipe") == recipe
        )
        if rejected or rolled_back:
            return entry
    return None
