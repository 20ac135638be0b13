"""The family of errors.

TreadleError            every error that treadle raises on purpose; `exit_code` 3, a failure
├── UserError           2: what was asked for can't be done as asked
│   ├── SpecError       a loop file is wrong; carries every fault with file, line and field
│   ├── HookError       a user's hook or SQL failed; carries its own traceback
│   ├── AsOfError       an `as_of` outside of what exists
│   └── MissingPackage  an optional package is not installed
├── Refusal             1: a check or the gate says no; production keeps what it had
│   ├── DataRefused     quality or leakage checks failed; carries the findings
│   ├── HoldoutTooSmall too few blocks or positives to judge
│   ├── StaleChampion   the champion changed since the verdict
│   └── NeedsPerson     someone must decide first
├── StoreError          3: the store is altered, full, read-only
│   ├── BlobLost        a blob is missing or altered
│   ├── BlobDeleted     a blob was deleted for good
│   └── LogBroken       the release log's chain of hashes does not hold
├── JobFailed           3: a job on a pool ended without a result
└── Transient           3: a retry can help (`retryable` is true)
    └── NotSent         nobody could be asked: the request surely did not arrive
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from treadle.redaction import redacted


class TreadleError(Exception):
    """A failure that treadle explains. `retryable` says whether trying again can help.

    Subclasses put their text together in `words`; `str()` takes credentials out of it.
    """

    exit_code: int = 3
    retryable: bool = False

    def words(self) -> str:
        """The text, as it was put together."""
        return super().__str__()

    def __str__(self) -> str:
        return redacted(self.words())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


class UserError(TreadleError):
    """What was asked for can't be done as asked; a retry can't help."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong in a loop file.

    `line` counts from 1; 0 means that the place is not known (a loop written in Python).
    """

    file: str
    line: int
    field: str
    problem: str
    fix: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        field = f" {self.field}:" if self.field else ""
        fix = f" {self.fix}" if self.fix else ""
        return f"{place}:{field} {self.problem}{fix}"


class SpecError(UserError):
    """A loop file can't be used; `faults` lists everything wrong with it, not only the first."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__(tuple(faults))
        self.faults = tuple(faults)

    def words(self) -> str:
        """One line a fault."""
        return "\n".join(str(fault) for fault in self.faults)


class HookError(UserError):
    """A hook or a SQL file of the loop failed. The text ends in the hook's own traceback or the engine's words."""

    def __init__(self, what: str, where: str, details: str) -> None:
        super().__init__(what, where, details)
        self.what, self.where, self.details = what, where, details

    def words(self) -> str:
        """What failed, and its own traceback."""
        return f"{self.where}: {self.what} failed:\n{self.details}"


class AsOfError(UserError):
    """An `as_of` after now, before the data, or outside of the loop's `history`."""


class MissingPackage(UserError):
    """An optional package is needed and absent."""

    def __init__(self, package: str, purpose: str, extra: str) -> None:
        super().__init__(package, purpose, extra)
        self.package, self.purpose, self.extra = package, purpose, extra

    def words(self) -> str:
        """What to install."""
        return f'{self.package} is needed to {self.purpose}: pip install "treadle[{self.extra}]"'


class Refusal(TreadleError):
    """A check, the gate or a rule of the log says no. Production keeps what it had; a retry can't help."""

    exit_code = 1


class DataRefused(Refusal):
    """The data failed checks that block.

    `findings` holds one line of evidence each; `results` all checks that were made, as JSON, also those that passed.
    """

    def __init__(
        self, summary: str, findings: Sequence[str], results: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        super().__init__(summary, tuple(findings), tuple(results))
        self.summary, self.findings, self.results = summary, tuple(findings), tuple(results)

    def words(self) -> str:
        """The summary, then the findings."""
        return "\n  - ".join([self.summary, *self.findings])


class HoldoutTooSmall(Refusal):
    """The holdout can't carry a judgement. A longer holdout can help; a retry can't."""


class StaleChampion(Refusal):
    """The champion changed since this verdict or act was made. Run again to judge against the new one."""


class NeedsPerson(Refusal):
    """Someone must decide first: `treadle approve` or `treadle reject`."""


class StoreError(TreadleError):
    """The store can't be trusted or written."""


class BlobLost(StoreError):
    """A blob is missing from the store, or its content is not what its name says."""

    def __init__(self, sha256: str, problem: str) -> None:
        super().__init__(sha256, problem)
        self.sha256, self.problem = sha256, problem

    def words(self) -> str:
        """Which blob, and who makes it again."""
        return f"blob {self.sha256} is {self.problem}; the stage that made it will make it again when run"


class BlobDeleted(StoreError):
    """A blob was deleted for good: a tombstone names it. It is never made again; what needs it can't run."""

    def __init__(self, sha256: str) -> None:
        super().__init__(sha256)
        self.sha256 = sha256

    def words(self) -> str:
        """Which blob, and where the reason stands."""
        return (
            f"blob {self.sha256} was deleted for good: tombstones/{self.sha256}.json says why."
            " What needs it can't run; take data without it."
        )


class LogBroken(StoreError):
    """The release log was altered: an entry's hash or its link to the one before does not hold."""


class Transient(TreadleError):
    """Something outside failed in a way that may pass: the network, a busy tracker, another process."""

    retryable = True


class NotSent(Transient):
    """No connection came about, so that the request surely did not arrive: nothing was started by it."""


class JobFailed(TreadleError):
    """A job on a pool ended without a result.

    Attributes:
        job: Which, in words.
        state: How its backend says that it ended: `failed`, `stopped`, `timed_out`, `preempted`, `lost`, `succeeded`.
        reason: The backend's words.
        attempts: How often it was tried.
        tail: The last lines that it printed.
        id: By which `treadle jobs follow` finds it; empty where that is not known.
    """

    def __init__(
        self, job: str, state: str, reason: str, attempts: int, tail: Sequence[str] = (), id: str = ""
    ) -> None:
        super().__init__(job, state, reason, attempts, tuple(tail), id)
        self.job, self.state, self.reason, self.attempts = job, state, reason, attempts
        self.tail, self.id = tuple(tail), id

    @property
    def retryable(self) -> bool:  # type: ignore[override]
        """Where the place failed and not the work."""
        return self.state in ("preempted", "lost")

    def words(self) -> str:
        """What became of it, why, what to do, and its last lines."""
        reason = f": {self.reason}" if self.reason else ""
        often = f", {self.attempts} times" if self.attempts > 1 else ""
        text = f"{self.job} {_ENDED.get(self.state, self.state)}{often}{reason}. {self._remedy()}"
        return "\n  | ".join([text, *self.tail])

    def _remedy(self) -> str:
        if any("No module named treadle" in line for line in self.tail):
            return 'There is no treadle for that interpreter: pip install "treadle[stages]" into it, or into the image.'
        if remedy := _REMEDIES.get(self.state):
            return remedy
        if not self.tail:
            return "Run again when that is put right."
        where = f"treadle jobs follow {self.id}" if self.id else "its log"
        return f"All that it printed: {where}. Run again when that is put right."


_ENDED = {
    "failed": "failed",
    "stopped": "was cancelled",
    "timed_out": "ran out of time",
    "preempted": "was preempted",
    "lost": "was lost",
    "succeeded": "ended without a result",
}
_REMEDIES = {
    "stopped": "What was stored stays, and the next run goes on from it.",
    "timed_out": "A training goes on from its last checkpoint when run again; max_seconds of the pool sets the limit.",
    "preempted": "Run again: it goes on from what was stored. retry.attempts of the loop says how often that is tried.",
    "lost": "Run again: it goes on from what was stored. retry.attempts of the loop says how often that is tried.",
}
