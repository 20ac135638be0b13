"""What a person does: approve, reject, roll back. Each is an entry of the log; projections follow."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime

from treadle.clock import today
from treadle.errors import NeedsPerson, StaleChampion, UserError
from treadle.loop import Loop
from treadle.registry.log import (
    PRODUCTION,
    Entry,
    ReleaseLog,
    champion_in,
    pending_in,
    predecessor_in,
    promotion_of,
)
from treadle.session import Session
from treadle.stages.release import champion_is, promote, serves_in_words
from treadle.words import lasting, moment, short


def act_time(loop: Loop, log: ReleaseLog, say: Callable[[str], None]) -> datetime:
    """The time of an act that names none, said aloud.

    On production that is today. On another track, and where the loop's history has ended, it is that of the log's
    last entry: an act of today would leave a replay of the past behind, as the log's time never goes back.
    """
    head, now = log.head(), today()
    if head is not None and (log.track != PRODUCTION or loop.history.to is not None):
        say(
            f"as of {moment(head.effective_at)}, the time of the log's last entry; --as-of TIME names another"
        )
        return head.effective_at
    if head is not None and head.effective_at < now:
        say(
            f"as of {moment(now)}, today; the log's last entry is of {moment(head.effective_at)},"
            f" {lasting(now - head.effective_at)} before, and no run of a time between can be released after this."
            " --as-of TIME names another"
        )
    return now


def check_approver(session: Session, trainer: str | None) -> None:
    """Whether the session's person may approve a model that `trainer` trained.

    Raises:
        NeedsPerson: `approval: manual`, and they are the same.
    """
    if session.loop.approval == "manual" and session.who == trainer:
        raise NeedsPerson(
            f"{trainer} trained this model; with `approval: manual` someone else approves it. "
            "Say who you are with --by NAME or TREADLE_USER."
        )


def approve(session: Session, reason: str, *, verdict: str | None = None) -> tuple[Entry, Entry]:
    """Approves the proposal that waits, and promotes it: the approval's and the promotion's entries.

    Args:
        session: Where, when and who.
        reason: Why.
        verdict: The id of the verdict that the answer is about; None answers whichever waits.

    Raises:
        UserError: Nothing waits, or no reason was given. NeedsPerson: `approval: manual`, and who asks is who
            trained. StaleChampion: Another champion serves than the one that the candidate beat, or `verdict` waits
            no more.
    """
    proposal = _waiting(session, reason, verdict)
    check_approver(session, proposal.details.get("trained_by"))

    def due(entries: Sequence[Entry]) -> None:
        champion_is(proposal.champion, proposal.as_of)(entries)
        _still_waiting(entries, proposal)

    approval, _ = session.log.append(
        "approve",
        subject=proposal.subject,
        candidate=proposal.candidate,
        champion=proposal.champion,
        evidence=proposal.evidence,
        why=reason,
        who=session.who,
        as_of=session.as_of,
        details={
            "candidate_id": proposal.details.get("candidate_id"),
            "recipe": proposal.details.get("recipe"),
        },
        due=due,
    )
    promotion = promote(session.log, proposal, who=session.who, as_of=session.as_of, approved_by=approval.who)
    return approval, promotion


def reject(session: Session, reason: str, *, verdict: str | None = None) -> Entry:
    """Rejects the proposal that waits; its candidate and recipe are held from now on, until someone approves.

    Arguments are those of `approve`.

    Raises:
        UserError: Nothing waits, or no reason was given. StaleChampion: `verdict` waits no more.
    """
    proposal = _waiting(session, reason, verdict)
    entry, _ = session.log.append(
        "reject",
        subject=proposal.subject,
        candidate=proposal.candidate,
        champion=proposal.champion,
        evidence=proposal.evidence,
        why=reason,
        who=session.who,
        as_of=session.as_of,
        details={
            "by": "person",
            "candidate_id": proposal.details.get("candidate_id"),
            "recipe": proposal.details.get("recipe"),
        },
        due=lambda entries: _still_waiting(entries, proposal),
    )
    return entry


def _waiting(session: Session, reason: str, verdict: str | None) -> Entry:
    if not reason.strip():
        raise UserError("an answer needs a reason: --reason 'what was looked at, and what it showed'")
    entries = session.log.entries()
    proposal = pending_in(entries)
    if verdict is not None and (proposal is None or proposal.subject != verdict):
        raise StaleChampion(
            f"the verdict {short(verdict)} waits no more: {became_of(entries, verdict)}. Nothing was changed."
        )
    if proposal is None:
        raise UserError(
            f"nothing waits for a person on {session.loop.name}'s track {session.track}. {_last_answer(entries)}"
        )
    return proposal


def became_of(entries: Sequence[Entry], verdict: str) -> str:
    """What became of a verdict's proposal that waits no more, in words."""
    ends = [e for e in entries if e.kind in ("promote", "reject") and e.subject == verdict]
    if ends:
        done = "promoted" if ends[-1].kind == "promote" else "rejected"
        return f"{ends[-1].who} {done} its model {short(ends[-1].candidate)} ({ends[-1].why})"
    proposals = [entry for entry in entries if entry.kind == "propose"]
    if all(entry.subject != verdict for entry in proposals):
        return "it was never proposed here"
    return f"the challenger of {moment(proposals[-1].as_of)} took its place"


def _last_answer(entries: Sequence[Entry]) -> str:
    """What became of the newest proposal."""
    proposal = next((entry for entry in reversed(entries) if entry.kind == "propose"), None)
    if proposal is None:
        return "No model was ever proposed on it."
    ends = [e for e in entries if e.kind in ("promote", "reject") and e.subject == proposal.subject]
    answer = "promoted" if ends[-1].kind == "promote" else "rejected"
    return (
        f"The newest proposal, model {short(proposal.candidate)} of {moment(proposal.as_of)}, was {answer} by"
        f" {ends[-1].who}."
    )


def _still_waiting(entries: Sequence[Entry], proposal: Entry) -> None:
    waiting = pending_in(entries)
    if waiting is None or waiting.sequence != proposal.sequence:
        raise StaleChampion(
            "someone else answered, or a later proposal took this one's place; nothing was changed."
        )


def rollback(session: Session, reason: str, *, undo: str | None = None) -> Entry:
    """Returns to the champion that the current one's promotion beat; the entry made, or found if it is done already.

    Args:
        session: Where, when and who.
        reason: Why.
        undo: How the name of the model to roll back begins. If that one was rolled back already, nothing is done.
            None rolls back who serves, unless the same person has just done so at this as_of for the same reason.

    Raises:
        UserError: No champion, nothing before it, or no reason. StaleChampion: Another serves than `undo`, or the
            champion changed meanwhile.
    """
    if not reason.strip():
        raise UserError("a rollback needs a reason: --reason 'what went wrong'")
    if undo is not None and not re.fullmatch(r"[0-9a-f]{4,64}", undo):
        raise UserError(f"--from {undo!r} names no model: give its first characters, such as 0e52243fc6e7")
    entries = session.log.entries()
    current, before = champion_in(entries), predecessor_in(entries)
    if current is None:
        raise UserError(
            f"{session.loop.name} has no champion on track {session.track}: there is nothing to roll back"
        )
    if _is_done(current, session, reason, undo):
        session.say(
            f"done already: {current.who} rolled {short(current.champion)} back to {short(current.candidate)} as of"
            f" {moment(current.as_of)} (entry {current.sequence}: {current.why}). To go back one more, say"
            f" --from {short(current.candidate)}"
        )
        return current
    _serves(current, undo)
    if before is None:
        raise UserError(
            f"the champion {short(current.candidate)} of {session.loop.name} replaced nothing:"
            " there is nothing to go back to."
        )
    promotion = promotion_of(entries, current.candidate or "")
    entry, _ = session.log.append(
        "rollback",
        subject=f"{current.candidate}#{current.sequence}",
        candidate=before.candidate,
        champion=current.candidate,
        evidence=before.evidence,
        why=reason,
        who=session.who,
        as_of=session.as_of,
        details={
            "candidate_id": before.details.get("candidate_id"),
            "recipe": before.details.get("recipe"),
            "rolled_back_recipe": promotion.details.get("recipe") if promotion else None,
        },
        due=lambda now: _serves(champion_in(now), current.candidate),
    )
    return entry


def _is_done(current: Entry, session: Session, reason: str, undo: str | None) -> bool:
    """Whether the champion serves because of this very rollback, made before."""
    if current.kind != "rollback":
        return False
    if undo is not None:
        gone, serves = current.champion or "", current.candidate or ""
        return gone.startswith(undo) and not serves.startswith(undo)
    return (current.who, current.as_of, current.why) == (session.who, session.as_of, reason)


def _serves(champion: Entry | None, undo: str | None) -> None:
    """Raises StaleChampion unless the champion is the one to undo."""
    serving = champion.candidate if champion else None
    if undo is not None and not (serving or "").startswith(undo):
        raise StaleChampion(
            f"model {short(undo)} does not serve: {serves_in_words(champion)}. Nothing was rolled back;"
            " see `treadle history` for what happened since."
        )
