"""A verdict as a reviewer reads it: the decision, who was judged on what, and every criterion."""

from __future__ import annotations

from treadle.cli.tables import print_fields, print_table, wrapped
from treadle.records import Candidate, Verdict
from treadle.review import CRITERIA, Review, criteria_rows, interval_share, is_group
from treadle.words import counted, moment, short

_ASKED = {
    "first": "a first champion: it must surely beat what the labels alone predict",
    "non_inferiority": "the champion's recipe on newer data: it must surely be no worse than the margin allows",
    "superiority": "superiority: it must surely be better than the champion",
}
_SURELY = {"passed": "passed", "failed": "FAILED", "held": "HELD", "info": "not judged"}


def print_review(track: str, found: Review) -> None:
    """The verdict and what stands behind it."""
    verdict = found.verdict
    about = f"model {short(verdict.challenger)} of {verdict.loop}"
    print(f"verdict on {about} as of {moment(verdict.as_of)}: {verdict.decision}")
    print(wrapped(verdict.why, "  ", 2))
    print()
    print_fields(_fields(track, found))
    rows = [(*row[:-1], _SURELY[row[-1]]) for row in criteria_rows(verdict)]
    if rows:
        columns = [
            f"{100 * interval_share(verdict):.3g} % interval" if name == "interval" else name
            for name in CRITERIA
        ]
        print_table("\ncriteria", columns, rows)
    _print_groups(verdict)
    _print_metrics(verdict)
    told = [c for c in verdict.criteria if c.status == "info" or (c.status != "passed" and not is_group(c))]
    for criterion in told:
        print(wrapped(f"{criterion.name}: {criterion.words}", f"  {_SURELY[criterion.status]}  ", 4))


def _fields(track: str, found: Review) -> list[tuple[str, str]]:
    verdict = found.verdict
    fields = [
        ("challenger", _model(verdict.challenger, found.challenger)),
        (
            "champion",
            _model(verdict.champion, found.champion) if verdict.champion else "none: this is a first model",
        ),
        ("asked for", _ASKED[verdict.mode]),
        ("holdout", _holdout(verdict)),
        ("looks", f"{counted(verdict.looks, 'earlier verdict')} used some of these rows"),
    ]
    seen = verdict.comparison
    if seen is not None and seen.detectable is not None:
        fields.append(("power", f"a true gain of {seen.detectable:.4g} shows on such rows in 80 % of trials"))
    fields.append(("data", "\n".join(found.warnings) or "no check of data or features warned"))
    log = [
        f"{entry.sequence}  {moment(entry.effective_at)} {entry.kind} by {entry.who}"
        for entry in found.entries
    ]
    if found.waits:
        log.append("it waits for a person: treadle approve, or treadle reject")
    fields.append((f"log of {track}", "\n".join(log) or "not in this track's log"))
    ids = [f"verdict {verdict.id}"]
    ids += [
        f"candidate of the {name} {candidate.id}"
        for name, candidate in (("challenger", found.challenger), ("champion", found.champion))
        if candidate is not None
    ]
    return [*fields, ("records", "\n".join(ids))]


def _model(digest: str | None, candidate: Candidate | None) -> str:
    if candidate is None:
        return f"model {short(digest)} (its record is not in this store)"
    by = candidate.notes.get("by")
    return (
        f"model {short(digest)}: {candidate.flavour} on {counted(candidate.rows, 'row')}"
        f" before {moment(candidate.trained_through)}{f', trained by {by}' if by else ''}"
    )


def _holdout(verdict: Verdict) -> str:
    held = verdict.holdout
    if held is None:
        return "none was needed"
    positives = "" if held.positives is None else f", {held.positives:,} of the positive class"
    unlabelled = f"; {held.unlabelled:,} more without a known label" if held.unlabelled else ""
    return (
        f"{moment(held.start)} to {moment(held.end)}: {counted(held.rows, 'row')} in {counted(held.blocks, 'block')}"
        f" of time{positives}{unlabelled}"
    )


def _print_groups(verdict: Verdict) -> None:
    groups = [c for c in verdict.criteria if is_group(c) and c.status != "info"]
    rows = [
        (
            criterion.name.partition(":")[2],
            "" if criterion.observed is None or criterion.allowed is None else f"{criterion.observed:+.3g}",
            "" if criterion.allowed is None else f"up to {criterion.allowed:+.3g}",
            _SURELY[criterion.status],
            criterion.words,
        )
        for criterion in groups
    ]
    if rows:
        print_table("\nslices and groups", ("group", "difference", "asked", "status", "in words"), rows)


def _print_metrics(verdict: Verdict) -> None:
    models = [name for name in ("challenger", "champion", "anchor", "baseline") if name in verdict.metrics]
    names = list(dict.fromkeys(name for model in models for name in verdict.metrics[model]))
    rows = [
        (
            name,
            *(
                f"{verdict.metrics[model][name]:.6g}" if name in verdict.metrics[model] else ""
                for model in models
            ),
        )
        for name in names
    ]
    if rows:
        print_table("\nmetrics on the holdout", ("metric", *models), rows)
