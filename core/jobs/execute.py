"""`treadle job URI`: one attempt at a stage, at the place where it runs.

Exit codes: 0 done; 75 ended early, goes on from what is stored; 64 the user's error; 65 the data or a rule said no;
70 a failure. The result is written last and tells more; a code without a result is only the place's word.
"""

from __future__ import annotations

import platform
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from treadle.errors import Refusal, TreadleError, UserError
from treadle.hardware.backend import FAILED_EXIT, PREEMPTED_EXIT, REFUSED_EXIT, USER_ERROR_EXIT
from treadle.hardware.backends import get_backend
from treadle.hardware.devices import devices_seen, missing_devices
from treadle.hardware.image import image_notes
from treadle.hardware.pools import IN_PROCESS
from treadle.jobs.advice import words_of
from treadle.jobs.cost import cost_notes
from treadle.jobs.file import (
    Attempt,
    JobFile,
    Result,
    begin,
    laid_out,
    open_job,
    read_result,
    treadle_version,
    write_result,
)
from treadle.jobs.measure import Meter, Use
from treadle.jobs.trained import earlier_uses, history_of, work_of
from treadle.loop import Loop
from treadle.preemption import Preempted, ends_when_asked
from treadle.records import Json
from treadle.redaction import redacted
from treadle.runner import run_session
from treadle.session import open_session
from treadle.stages import Outcome
from treadle.store import Store
from treadle.wire import error_to_json

_LIBRARIES = ("numpy", "pandas", "pyarrow", "duckdb", "xgboost", "scikit-learn", "torch", "mlflow")


def execute(
    uri: str, say: Callable[[str], None], report: Callable[[Json], None] = lambda result: None
) -> int:
    """Runs a job and writes its result; see the module for the exit codes returned.

    Args:
        uri: The job.
        say: Takes a line of progress.
        report: Takes the result, once it is written.

    Raises:
        UserError: There is no such job. StoreError, Transient: The store can't be used: then there is no result either.
    """
    store, file = open_job(uri)
    done = read_result(store, file.loop, file.key, file.attempt)
    if done is not None:
        say(f"{file.stage}: this attempt has its result already")
        return _code(done.error)
    attempt = _Work(store, file, say)
    try:
        with ends_when_asked(file.patience_s if file.stage == "train" else 0):
            attempt.run()
    except Preempted:
        say(f"{file.stage}: asked to end; what was stored stays, and the next attempt goes on from it")
        return PREEMPTED_EXIT
    # The work is done: a signal now would only lose the word of it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    result = attempt.result()
    write_result(store, file, result)
    report(result.model_dump(mode="json"))
    return _code(attempt.error)


def _code(error: Json | None) -> int:
    return 0 if error is None else int(error["job_exit_code"])


@dataclass(slots=True)
class _Work:
    """An attempt while it runs, and what it came to."""

    store: Store
    file: JobFile
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    record: dict[str, str] | None = None
    error: Json | None = None
    reused: bool = False
    warnings: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    use: Use | None = None
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(self.file.pool.kind, self.file.pool.memory_gib)

    def run(self) -> None:
        """Runs the stage; an error becomes part of the result."""
        folders: dict[str, str] = {}
        try:
            _refuse_another_version(self.file)
            with laid_out(self.store, self.file) as (loop, folders), self.meter:
                self._run(loop)
        except TreadleError as error:
            print(f"treadle: {type(error).__name__}: {error}", file=sys.stderr)
            self.error = error_to_json(error, folders) | {"job_exit_code": _exit_code(error)}
        except Exception as error:
            shown = redacted(traceback.format_exc())
            print(shown, file=sys.stderr)
            told = TreadleError(
                f"{self.file.stage} failed unexpectedly: {type(error).__name__}: {error}\n{shown}"
            )
            self.error = error_to_json(told, folders) | {"job_exit_code": FAILED_EXIT}

    def _run(self, loop: Loop) -> None:
        file = self.file
        _refuse_missing_devices(file)
        session = open_session(
            loop, as_of=file.as_of, store=self.store, track=file.track, who=file.who, say=self.say
        )
        session.first_stage = file.first_stage
        begun = begin(self.store, file, platform.node())
        session.notes, session.device = _notes(file, begun), file.pool.kind
        session.measured = lambda outcome: self._measured(session.notes, outcome)
        here = {file.stage: IN_PROCESS}
        run = run_session(session, start=file.stage, to=file.stage, inputs=file.inputs, pools=here)
        record = run[file.stage]
        self.record = {"kind": record.kind, "id": record.id, "digest": record.digest}
        self.reused, self.warnings = session.reused.get(file.stage, False), run.warnings

    def _measured(self, notes: Json, outcome: Outcome) -> Json:
        """The notes of a record with what making it took, and what that says."""
        stage, file = self.file.stage, self.file
        trains = stage == "train"
        use = self.meter.use(workers=file.plan.workers, work=work_of(outcome) if trains else None)
        compared = trains and use.workers > 1
        earlier = earlier_uses(self.store, file, outcome.results["flavour"]) if compared else ()
        history = history_of(outcome)
        found = words_of(use, file.pool, trains=trains, history=history, earlier=earlier)
        self.use, self.words = use, tuple(found)
        for words in self.words:
            self.say(f"{stage}: {words}")
        told = {"use": use.model_dump(mode="json"), "words": list(self.words)}
        return {**notes, "job": {**notes["job"], **told}}

    def result(self) -> Result:
        """What the attempt came to."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Result(
            record=self.record,
            error=self.error,
            reused=self.reused,
            warnings=self.warnings,
            seconds=round(time.monotonic() - self.started, 3),
            device=", ".join(devices_seen(self.file.pool.kind)) if self.file.pool.kind != "cpu" else "cpu",
            versions=_versions(),
            peak_rss_mib=round(peak * (1 if sys.platform == "darwin" else 1024) / 2**20, 1),
            node=platform.node(),
            ended_at=datetime.now(UTC),
            use=self.use or self.meter.use(workers=self.file.plan.workers),
            words=self.words,
        )


def _exit_code(error: TreadleError) -> int:
    if isinstance(error, UserError):
        return USER_ERROR_EXIT
    return REFUSED_EXIT if isinstance(error, Refusal) else FAILED_EXIT


def _refuse_missing_devices(file: JobFile) -> None:
    # Where a job spans machines, this process only leads: its workers look for their devices themselves.
    leads = file.plan.workers > 1 and get_backend(file.pool.backend).capabilities().multi_node
    if not leads and (missing := missing_devices(file.pool)):
        raise UserError(missing)


def _refuse_another_version(file: JobFile) -> None:
    here = treadle_version()
    if here != file.treadle:
        raise UserError(
            f"the job was submitted by treadle {file.treadle}, and {sys.executable} on {platform.node()} has {here}:"
            " records would differ. Install the same version in both places."
        )


def _notes(file: JobFile, begun: tuple[Attempt, ...]) -> Json:
    """Where a record was made, and what was lost before: in no id."""
    job = {"pool": file.pool.name, "backend": file.pool.backend, "name": file.name, "node": platform.node()}
    earlier = [attempt.model_dump() for attempt in (*file.earlier, *begun)]
    return {
        "job": {**job, "attempt": file.attempt, **image_notes(file.pool.image), **cost_notes(file)},
        **({"attempts": earlier} if earlier else {}),
    }


def _versions() -> dict[str, str]:
    """Of what this process loaded, and of Python."""
    found = {"treadle": treadle_version(), "python": platform.python_version()}
    for name in _LIBRARIES:
        if name.replace("scikit-learn", "sklearn") in sys.modules:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
    return found
