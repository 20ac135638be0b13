"""A verdict as a person reads it before they answer: Markdown, for the page on which Airflow asks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from treadle.words import counted, moment, short

if TYPE_CHECKING:
    from treadle.records import Candidate, Json, Verdict
    from treadle.review import Review

_STATUS = {"passed": "passed", "failed": "**FAILED**", "held": "**HELD**", "info": "not judged"}


def markdown_of(found: Review, proposal: Json, *, needs_two: bool) -> str:
    """The decision, who was judged on what, every criterion, slices, and the ids of what stands behind it.

    Args:
        found: The verdict and what it speaks of.
        proposal: `waits_for`, `trained_by` and `track`, as the release log has them.
        needs_two: Whether the trainer can't be who approves.
    """
    verdict = found.verdict
    name, track = verdict.loop, proposal["track"]
    lines = [f"**{verdict.decision}**: {_cell(verdict.why)}", ""]
    if proposal.get("waits_for") and proposal["waits_for"] != verdict.why:
        lines += [f"It waits for you because {_cell(proposal['waits_for'])}.", ""]
    if needs_two and proposal.get("trained_by"):
        lines += [f"**{_cell(proposal['trained_by'])}** trained it; someone else approves.", ""]
    lines += _table(("", ""), list(_about(found)))
    lines += [*_criteria(verdict), *_groups(verdict)]
    lines += [f"- {_cell(warning)}" for warning in found.warnings]
    ids = [f"verdict `{verdict.id}`", f"candidate `{verdict.challenger_id}`"]
    lines += ["", f"Loop {name}, track {track}: {', '.join(ids)}.", ""]
    lines += [
        "**Approve** has it serve from then on. **Reject** holds this model and its recipe until someone approves.",
        "Your name, answer and reason enter the release log.",
    ]
    return "\n".join(lines)


def subject_of(verdict: Verdict, track: str) -> str:
    """The headline."""
    where = "" if track == "production" else f" on track {track}"
    return (
        f"Release model {short(verdict.challenger)} of {verdict.loop}, as of {moment(verdict.as_of)}{where}?"
    )


def _about(found: Review) -> Iterator[tuple[str, str]]:
    verdict, held, seen = found.verdict, found.verdict.holdout, found.verdict.comparison
    yield "challenger", _model(verdict.challenger, found.challenger)
    yield "champion", _model(verdict.champion, found.champion) if verdict.champion else "none: a first model"
    if held is not None:
        where = f"{moment(held.start)} to {moment(held.end)}"
        yield "holdout", f"{where}: {counted(held.rows, 'row')} in {counted(held.blocks, 'block')} of time"
        yield "looks", f"{counted(verdict.looks, 'earlier verdict')} used some of these rows"
    if seen is not None and seen.detectable is not None:
        yield "power", f"a true gain of {seen.detectable:.4g} shows on such rows in 80 % of trials"


def _model(digest: str | None, candidate: Candidate | None) -> str:
    if candidate is None:
        return f"`{short(digest)}`"
    learned = (
        f"{candidate.flavour} on {counted(candidate.rows, 'row')} before {moment(candidate.trained_through)}"
    )
    return f"`{short(digest)}`: {learned}"


def _criteria(verdict: Verdict) -> list[str]:
    from treadle.review import CRITERIA, criteria_rows

    rows = [(*row[:-1], _STATUS[row[-1]]) for row in criteria_rows(verdict)]
    return _table(CRITERIA, rows, "Criteria")


def _groups(verdict: Verdict) -> list[str]:
    from treadle.review import is_group

    rows = [
        (
            criterion.name.partition(":")[2],
            "" if criterion.observed is None else f"{criterion.observed:+.3g}",
            "" if criterion.allowed is None else f"up to {criterion.allowed:+.3g}",
            _STATUS[criterion.status],
            criterion.words,
        )
        for criterion in verdict.criteria
        if is_group(criterion)
    ]
    return _table(("group", "difference", "asked", "status", "in words"), rows, "Slices and groups")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> list[str]:
    if not rows:
        return []
    lines = [f"#### {title}", ""] if title else []
    lines += [_line(columns), _line(["---"] * len(columns))]
    lines += [_line([_cell(cell) for cell in row]) for row in rows]
    return [*lines, ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    """Text that neither ends a cell nor is taken for HTML."""
    flat = " ".join(str(text).split())
    return flat.replace("|", "\\|").replace("<", "&lt;")
