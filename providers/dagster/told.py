"""What a record says of the checks that a loop declares.

Every declared check gets a result: what the record does not speak of was not asked, and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
from treadle.loop import Loop
from treadle.records import (
    Candidate,
    CheckResult,
    Criterion,
    DriftReport,
    FeatureSet,
    Record,
    Release,
    Snapshot,
    Verdict,
)
from treadle.registry.log import pending_in
from treadle.session import Session
from treadle_dagster.checks import Declared, declared, plain_name
from treadle_dagster.metadata import table_of

ERROR, WARN = dg.AssetCheckSeverity.ERROR, dg.AssetCheckSeverity.WARN


@dataclass(frozen=True, slots=True)
class Told:
    """What a record says of a declared check."""

    passed: bool
    words: str
    severity: dg.AssetCheckSeverity = WARN
    metadata: dict[str, dg.MetadataValue] | None = None


def results(
    loop: Loop, key: dg.AssetKey, stage: str, record: Record, session: Session
) -> list[dg.AssetCheckResult]:
    """A result for every declared check of a stage.

    Args:
        loop: Declares the checks.
        key: The asset.
        stage: The stage.
        record: What the stage made.
        session: Knows the log, and what MLflow was given.
    """
    checks = declared(loop, stage)
    told = _told(checks, record, session)
    return [_result(key, check, told.get(check.name)) for check in checks]


def refused(
    loop: Loop, key: dg.AssetKey, stage: str, found: Sequence[CheckResult]
) -> list[dg.AssetCheckResult]:
    """The results of checks that refused the data, so that there is no record."""
    checks = declared(loop, stage)
    told = _data_checks(checks, found)
    return [_result(key, check, told.get(check.name)) for check in checks]


def unasked(loop: Loop, key: dg.AssetKey, stage: str, words: str) -> list[dg.AssetCheckResult]:
    """The results of checks of which nothing can be said, and why."""
    return [_result(key, check, Told(True, words)) for check in declared(loop, stage)]


def _result(key: dg.AssetKey, check: Declared, told: Told | None) -> dg.AssetCheckResult:
    told = told or Told(True, check.silent)
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=check.name,
        passed=told.passed,
        severity=told.severity,
        description=told.words,
        metadata=told.metadata or {},
    )


def _told(checks: Sequence[Declared], record: Record, session: Session) -> dict[str, Told]:
    if isinstance(record, (Snapshot, FeatureSet)):
        return _data_checks(checks, record.checks)
    if isinstance(record, Candidate):
        return {"tracked": _tracked(record, session)}
    if isinstance(record, Verdict):
        return _verdict(record)
    if isinstance(record, Release):
        return {"answered": _answered(record, session)}
    if isinstance(record, DriftReport):
        return _drift(record)
    return {}


def _tracked(candidate: Candidate, session: Session) -> Told:
    from treadle.projections import read_receipt

    receipt = read_receipt(session, f"candidate-{candidate.id}")
    if receipt is None:
        return Told(False, "MLflow was not reached: training went on, and the release waits until it answers")
    return Told(True, f"version {receipt['version']} in MLflow")


def _answered(release: Release, session: Session) -> Told:
    waiting = pending_in(session.log.entries())
    if waiting is None or waiting.subject != release.verdict:
        return Told(True, "nobody has to be asked")
    why = waiting.details.get("waits_for") or "it was never finished: materialize it again"
    name = session.loop.name
    return Told(
        False,
        f"waits for a person: {why}. Answer by the job {name}_decide or by `treadle approve`, `treadle reject`.",
    )


def _data_checks(checks: Sequence[Declared], found: Sequence[CheckResult]) -> dict[str, Told]:
    """Rules are told in the order of `data.checks`; whatever else was found belongs to leakage."""
    rules = [check for check in checks if check.rule is not None]
    leaks = [result for result in found if result.name.startswith("leakage.")]
    asked = [result for result in found if not result.name.startswith("leakage.")]
    told = {check.name: _one(result) for check, result in zip(rules, asked, strict=False)}
    if leaks:
        told["leakage"] = _several(leaks)
    return told


def _one(result: CheckResult) -> Told:
    metadata: dict[str, dg.MetadataValue] = {
        "observed": dg.MetadataValue.text(result.observed),
        "status": dg.MetadataValue.text(result.status),
    }
    if result.evidence:
        metadata["limits"] = dg.MetadataValue.text(result.evidence)
    if result.sample:
        metadata["failing_rows"] = table_of(["row"], [[row] for row in result.sample])
    severity = ERROR if result.blocking else WARN
    return Told(result.status == "passed", result.observed or result.status, severity, metadata)


def _several(found: Sequence[CheckResult]) -> Told:
    bad = [result for result in found if result.status != "passed"]
    stops = any(result.blocking and result.status in ("failed", "could_not_run") for result in bad)
    rows = [
        [r.name, r.table, r.column or "", r.status, r.observed, r.evidence, ", ".join(r.sample[:5])]
        for r in found
    ]
    names = ["check", "table", "column", "status", "observed", "evidence", "rows"]
    words = (
        "; ".join(f"{r.column or r.table}: {r.observed}" for r in bad)
        or f"{len(found)} looked at, none found"
    )
    return Told(not bad, words, ERROR if stops else WARN, {"findings": table_of(names, rows)})


_COMPARISONS = ("baseline", "non_inferiority", "superiority", "champion")


def _verdict(verdict: Verdict) -> dict[str, Told]:
    won = verdict.decision in ("promote", "no_change")
    told = {"challenger_won": Told(won, verdict.why)}
    groups: dict[str, list[Criterion]] = {}
    for criterion in verdict.criteria:
        groups.setdefault(_check_of(criterion), []).append(criterion)
    for name, criteria in groups.items():
        bad = [criterion for criterion in criteria if criterion.status in ("failed", "held")]
        said = "; ".join(criterion.words for criterion in (bad or criteria[:1]))
        told[name] = Told(not bad, said, WARN, {"criteria": criteria_table(criteria)})
    return told


def _check_of(criterion: Criterion) -> str:
    """The declared check that a criterion of the gate belongs to."""
    family, _, rest = criterion.name.partition(":")
    if family in _COMPARISONS:
        return "comparison"
    if family in ("guard", "floor"):
        return plain_name(f"{family}_{rest}")
    if family in ("slice", "slices", "fairness"):
        return plain_name(f"{'fairness' if family == 'fairness' else 'slices'}_{rest.partition('=')[0]}")
    return plain_name(family)


_WORST_FIRST = {"failed": 0, "held": 1, "passed": 2, "info": 3}


def criteria_table(criteria: Sequence[Criterion]) -> dg.MetadataValue:
    """Criteria of the gate as a table with their words, the worst first."""
    rows = [
        [c.name, c.status, c.observed, c.allowed, c.words]
        for c in sorted(criteria, key=lambda criterion: _WORST_FIRST[criterion.status])
    ]
    return table_of(["criterion", "status", "observed", "allowed", "words"], rows)


def criteria_tables(criteria: Sequence[Criterion]) -> dict[str, dg.MetadataValue]:
    """All criteria at a glance, and the slices apart, as there may be many; their words are in the checks."""
    parts: dict[str, list[Criterion]] = {"criteria": [], "slices": []}
    for criterion in sorted(criteria, key=lambda criterion: _WORST_FIRST[criterion.status]):
        parts["slices" if criterion.name.startswith(("slice:", "fairness:")) else "criteria"].append(
            criterion
        )
    return {
        name: table_of(
            [name, "status", "observed", "allowed"], [[c.name, c.status, c.observed, c.allowed] for c in part]
        )
        for name, part in parts.items()
        if part
    }


def _drift(report: DriftReport) -> dict[str, Told]:
    quality = report.quality
    told = {"drift": Told(not report.drifted, report.words)}
    if quality is not None:
        told["quality"] = Told(not quality.decayed, quality.words or "not judged")
    return told
