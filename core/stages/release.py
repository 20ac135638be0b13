"""release: every verdict enters the log; a challenger that nobody needs to ask about is promoted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from treadle.clock import format_instant
from treadle.errors import StaleChampion
from treadle.records import Candidate, Json, Verdict
from treadle.registry.log import (
    PRODUCTION,
    Entry,
    ReleaseLog,
    champion_in,
    held_by_person,
    pending_in,
    verdict_entry,
)
from treadle.stages import Context, Outcome
from treadle.words import moment, short

VERSION = 1


def key(context: Context, verdict: Verdict) -> Json:
    """What makes a release: the verdict, and who has to be asked."""
    return {
        "stage": "release",
        "version": VERSION,
        "spec": context.loop.part("approval"),
        "verdict": verdict.digest,
        "as_of": format_instant(context.as_of),
    }


def is_intact(log: ReleaseLog, verdict: Verdict, as_of: datetime) -> bool:
    """Whether the log holds this verdict and everything that had to follow it, whatever came after."""
    entries = log.entries()
    entry = verdict_entry(entries, verdict.challenger, as_of)
    if entry is None or entry.evidence != verdict.id:
        return False
    waiting = pending_in(entries)
    if waiting is None or waiting.sequence != entry.sequence:
        return True
    return any(later.kind == "hold" and later.subject == entry.subject for later in entries[entry.sequence :])


def release(context: Context, verdict: Verdict, candidate: Candidate, *, who: str) -> Outcome:
    """Writes the verdict to the log, and promotes where the gate said yes and no person has to be asked.

    Raises:
        StaleChampion: The champion changed since the verdict's `as_of`; nothing was written.
    """
    if verdict.decision in ("keep", "no_change"):
        _append_verdict(context, "reject", verdict, candidate, who, {"by": "gate"})
        return _outcome(verdict, candidate, proposed=False)
    waits_for = _whom_to_ask(context, verdict, candidate)
    proposal = _append_verdict(
        context,
        "propose",
        verdict,
        candidate,
        who,
        {"waits_for": waits_for, "trained_by": candidate.notes.get("by", who)},
        due=champion_is(verdict.champion, context.as_of),
    )
    waits_for = proposal.details.get("waits_for")
    if waits_for is None:
        promote(context.log, proposal, who=who, as_of=context.as_of)
    else:
        context.log.append(
            "hold",
            subject=verdict.id,
            candidate=candidate.digest,
            champion=verdict.champion,
            evidence=verdict.id,
            why=waits_for,
            who=who,
            as_of=context.as_of,
            details=_details(verdict, candidate),
        )
    return _outcome(verdict, candidate, proposed=True)


def _whom_to_ask(context: Context, verdict: Verdict, candidate: Candidate) -> str | None:
    """Why a person has to decide, or None."""
    if verdict.decision == "hold":
        return verdict.why
    told = held_by_person(context.log.entries(), candidate.digest, candidate.recipe)
    if told is not None:
        was = "rolled back" if told.kind == "rollback" else "rejected"
        return f"{told.who} {was} this model or its recipe as of {told.as_of.date()}: {told.why}"
    if context.loop.overrides and context.log.track == PRODUCTION:
        return f"the run changed the loop by --set {' '.join(context.loop.overrides)}"
    return "the loop's approval is manual" if context.loop.approval == "manual" else None


def champion_is(expected: str | None, as_of: datetime) -> Callable[[Sequence[Entry]], None]:
    """A check, for the log to ask, that the champion now is the one that a verdict of `as_of` named.

    The check raises:
        StaleChampion: It is another. The text says who serves, and from when on a run can be judged against it.
    """

    def check(entries: Sequence[Entry]) -> None:
        head = champion_in(entries)
        if (head.candidate if head else None) == expected:
            return
        again = "Run the loop again, to be judged against it."
        if head and head.effective_at > as_of:
            since = moment(head.effective_at)
            again = (
                f"The log's time never goes back: run the loop with --as-of {since} or later, to be judged against it."
                " A replay of earlier times needs a track of its own, --track NAME."
            )
        raise StaleChampion(
            f"the verdict of {moment(as_of)} compares with {model_or_none(expected)}, but {serves_in_words(head)}."
            f" Nothing was released. {again}"
        )

    return check


def serves_in_words(champion: Entry | None) -> str:
    """Who serves by an entry of the log, since when, and by whose hand."""
    if champion is None:
        return "none serves"
    how = "rolled back to it" if champion.kind == "rollback" else "promoted it"
    at = f"{champion.recorded_at:%Y-%m-%d %H:%M} UTC"
    since = moment(champion.effective_at)
    return f"model {short(champion.candidate)} serves since {since} ({champion.who} {how}, recorded {at})"


def model_or_none(digest: str | None) -> str:
    """A model by its name, or `no champion`."""
    return f"model {short(digest)}" if digest else "no champion"


def promote(
    log: ReleaseLog, proposal: Entry, *, who: str, as_of: datetime, approved_by: str | None = None
) -> Entry:
    """The promotion of a proposal's candidate: made now, or found.

    Raises:
        StaleChampion: Another champion serves than the one that the candidate beat.
    """
    carried = ("candidate_id", "mode", "superior", "recipe", "holdout")
    details: dict[str, Any] = {name: proposal.details.get(name) for name in carried}
    if approved_by:
        details["approved_by"] = approved_by

    def due(entries: Sequence[Entry]) -> None:
        champion_is(proposal.champion, proposal.as_of)(entries)
        waiting = pending_in(entries)
        if waiting is None or waiting.sequence != proposal.sequence:
            raise StaleChampion(
                "this proposal was overtaken by a later one, or was answered; nothing was released."
            )

    entry, _ = log.append(
        "promote",
        subject=proposal.subject,
        candidate=proposal.candidate,
        champion=proposal.champion,
        evidence=proposal.evidence,
        why=proposal.why,
        who=who,
        as_of=as_of,
        details=details,
        due=due,
    )
    return entry


def _append_verdict(
    context: Context,
    kind: Any,
    verdict: Verdict,
    candidate: Candidate,
    who: str,
    more: Json,
    due: Callable[[Sequence[Entry]], None] = lambda entries: None,
) -> Entry:
    entry, _ = context.log.append(
        kind,
        subject=verdict.id,
        candidate=candidate.digest,
        champion=verdict.champion,
        evidence=verdict.id,
        why=verdict.why,
        who=who,
        as_of=context.as_of,
        details={**_details(verdict, candidate), **more},
        due=due,
    )
    return entry


def _details(verdict: Verdict, candidate: Candidate) -> Json:
    held, seen = verdict.holdout, verdict.comparison
    return {
        "candidate_id": candidate.id,
        "decision": verdict.decision,
        "mode": verdict.mode,
        "superior": bool(seen and seen.champion is not None and seen.high is not None and seen.high < 0),
        "recipe": candidate.recipe,
        "trained_through": format_instant(candidate.trained_through),
        "holdout": {
            "start": format_instant(held.start),
            "end": format_instant(held.end),
            "digest": held.digest,
        }
        if held
        else None,
    }


def _outcome(verdict: Verdict, candidate: Candidate, *, proposed: bool) -> Outcome:
    return Outcome(
        {
            "verdict": verdict.id,
            "candidate": candidate.digest,
            "candidate_id": candidate.id,
            "champion": verdict.champion,
            "proposed": proposed,
            "why": verdict.why,
        }
    )
