"""A stage on a hardware pool: its lines stream into the Dagster run, and it is cancelled when the run is.

`treadle job` writes Dagster Pipes messages among the lines that it prints. They are taken from the backend's log, so
this works on every backend that shows logs, also for a job that an earlier run submitted and this one goes on with.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
from treadle.errors import Transient
from treadle.hardware.pools import Pool
from treadle.jobs import JobRef, cancel, logs, poll, settle, submit
from treadle.records import Record
from treadle.session import Session

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S, _GRACE_S = 0.05, 5.0, 30.0


class JobLogReader(dg.PipesMessageReader):
    """Tells messages from the other lines of a job's log."""

    def __init__(self) -> None:
        self._handler: dg.PipesMessageHandler | None = None

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        """See dg.PipesMessageReader: the job writes on its standard error, which the backend's log holds."""
        self._handler = handler
        try:
            yield {"stdio": "stderr"}
        finally:
            self._handler = None

    @property
    def expected_writer_count(self) -> int:
        """See dg.PipesMessageReader."""
        return 1

    def take(self, line: str) -> bool:
        """Whether a line was a message, which the run now has."""
        if self._handler is None or '"__dagster_pipes_version"' not in line:
            return False
        try:
            message = json.loads(line)
        except ValueError:
            return False
        self._handler.handle_message(message)
        return True

    def no_messages_debug_text(self) -> str:
        """See dg.PipesMessageReader."""
        return (
            "Looked for messages in the job's log. dagster-pipes may not be installed where the job ran:"
            " its lines are shown all the same."
        )


class TreadlePipesClient(dg.PipesClient):
    """Runs a stage on a pool of the core, submitted once and gone on with when the run was killed.

    Example:
        >>> invocation = TreadlePipesClient().run(context=context, session=session, stage="train", pool=pool,
        ...                                       inputs={"featurize": "..."})    # doctest: +SKIP
        >>> invocation.record.digest    # doctest: +SKIP
    """

    def run(  # type: ignore[override]
        self,
        *,
        context: dg.AssetExecutionContext | dg.OpExecutionContext,
        session: Session,
        stage: str,
        pool: Pool,
        inputs: Mapping[str, str],
        extras: dict[str, Any] | None = None,
    ) -> JobInvocation:
        """The stage's record with what its job reported.

        Raises:
            TreadleError: What the stage raised, of the same class and with the same words; JobFailed: it ended
                without a result.
        """
        reader = JobLogReader()
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=reader,
            extras={"treadle/stage": stage, "treadle/pool": pool.name, **(extras or {})},
        ) as pipes:
            variables = {**pool.env, **pipes.get_bootstrap_env_vars()}
            ref = submit(session, stage, pool.model_copy(update={"env": variables}), inputs)
            context.log.info(f"{stage} is on the pool {pool.name}: {ref.handle.name}")
            record = _followed(context, session, ref, reader)
        return JobInvocation(pipes, record)


class JobInvocation(dg.PipesClientCompletedInvocation):
    """What a job came to."""

    def __init__(self, session: dg.PipesSession, record: Record) -> None:
        super().__init__(session)
        self.record = record

    def ran(self) -> dict[str, dg.MetadataValue]:
        """Where the job ran and what it took, as it told itself; nothing where it could not tell."""
        told = next(
            (m for m in reversed(self.get_custom_messages()) if isinstance(m, dict) and "device" in m), {}
        )
        shown: dict[str, dg.MetadataValue] = {}
        for name in ("seconds", "peak_rss_mib"):
            if isinstance(told.get(name), (int, float)):
                shown[f"job_{name}"] = dg.MetadataValue.float(float(told[name]))
        for name in ("device", "node"):
            if told.get(name):
                shown[f"job_{name}"] = dg.MetadataValue.text(str(told[name]))
        return shown


def _followed(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    session: Session,
    ref: JobRef,
    reader: JobLogReader,
) -> Record:
    """Shows a job's lines until it is over, and its next attempts; a run that ends early takes the job with it."""
    while True:
        try:
            _watch(context, ref, reader)
        except Exception:
            raise
        except BaseException:  # the run was terminated
            context.log.info(f"cancelling {ref.handle.name}, as this run ends")
            cancel(ref, _GRACE_S)
            _wait_for_end(ref)
            raise
        settled = settle(session, ref)
        if not isinstance(settled, JobRef):
            return settled
        ref = settled


def _watch(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, ref: JobRef, reader: JobLogReader
) -> None:
    since, pause = 0, _SHORTEST_PAUSE_S
    while True:
        try:
            over = poll(ref).is_over
            lines, since = logs(ref, since)
        except Transient as error:
            context.log.warning(f"{error} The job goes on; asking again.")
            over, lines = False, []
        for line in lines:
            if not reader.take(line):
                context.log.info(line)
        if over and not lines:
            return
        if not over:
            time.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_PAUSE_S)


def _wait_for_end(ref: JobRef) -> None:
    until = time.monotonic() + _GRACE_S + 5
    while time.monotonic() < until and not poll(ref).is_over:
        time.sleep(0.2)
