"""What a person does: approve, reject, roll back. Each is an entry of the log; projections follow."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from treadle.clock import today
from treadle.errors import NeedsPerson, StaleChampion, UserError
from treadle.registry.log import (
    Entry,
    ReleaseLog,
    champion_in,
    pending_in,
    predecessor_in,
    promotion_of,
)
from treadle.session import Session
from treadle.stages.release import champion_is, promote


def act_time(history_has_ended: bool, log: ReleaseLog) -> datetime:
    """The default time of an act: today, or where the loop's history has ended, that of the log's last entry."""
    head = log.head()
    return head.effective_at if history_has_ended and head else today()


def approve(session: Session, reason: str) -> tuple[Entry, Entry]:
    """Approves the proposal that waits, and promotes it: the approval's and the promotion's entries.

    Raises:
        UserError: Nothing waits, or no reason was given. NeedsPerson: `approval: manual`, and who asks is who
            trained. StaleChampion: Another champion serves than the one that the candidate beat.
    """
    proposal = _waiting(session, reason)
    trainer = proposal.details.get("trained_by")
    if session.loop.approval == "manual" and session.who == trainer:
        raise NeedsPerson(
            f"{trainer} trained this model; with `approval: manual` someone else approves it. "
            "Say who you are with --by NAME or TREADLE_USER."
        )

    def due(entries: Sequence[Entry]) -> None:
        champion_is(proposal.champion)(entries)
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


def reject(session: Session, reason: str) -> Entry:
    """Rejects the proposal that waits; its candidate and recipe are held from now on, until someone approves.

    Raises:
        UserError: Nothing waits, or no reason was given.
    """
    proposal = _waiting(session, reason)
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


def _waiting(session: Session, reason: str) -> Entry:
    if not reason.strip():
        raise UserError("an answer needs a reason: --reason 'what was looked at, and what it showed'")
    proposal = pending_in(session.log.entries())
    if proposal is None:
        raise UserError(f"nothing waits for a person on {session.loop.name}'s track {session.track}")
    return proposal


def _still_waiting(entries: Sequence[Entry], proposal: Entry) -> None:
    waiting = pending_in(entries)
    if waiting is None or waiting.sequence != proposal.sequence:
        raise StaleChampion(
            "someone else answered, or a later proposal took this one's place; nothing was changed."
        )


def rollback(session: Session, reason: str) -> Entry:
    """Returns to the champion that the current one's promotion beat.

    Raises:
        UserError: No champion, nothing before it, or no reason. StaleChampion: The champion changed meanwhile.
    """
    if not reason.strip():
        raise UserError("a rollback needs a reason: --reason 'what went wrong'")
    entries = session.log.entries()
    current, before = champion_in(entries), predecessor_in(entries)
    if current is None:
        raise UserError(
            f"{session.loop.name} has no champion on track {session.track}: there is nothing to roll back"
        )
    if before is None:
        raise UserError(
            f"the champion {_short(current)} of {session.loop.name} replaced nothing: there is nothing to go back to."
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
        due=champion_is(current.candidate),
    )
    return entry


def _short(entry: Entry) -> str:
    return (entry.candidate or "none")[:12]
