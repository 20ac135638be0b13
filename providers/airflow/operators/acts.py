"""Operators for what a person does, or a downstream DAG: score a file with the champion, and roll back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle_airflow.asking import asked_of
from treadle_airflow.operators.base import TreadleOperator

if TYPE_CHECKING:
    from airflow.sdk import Context
    from treadle.records import Json

_NOTE = "treadle_rollback"


class TreadlePredictOperator(TreadleOperator):
    """Scores a Parquet or CSV file with the model that is champion at the run's time.

    :param loop: The path of a loop file, or a Loop.
    :param source: Rows with all features, or rows that name entity and event time, to be joined. (templated)
    :param target: Where row ids and predictions are written. (templated)
    """

    template_fields: Sequence[str] = (*TreadleOperator.template_fields, "source", "target")

    def __init__(self, *, source: str, target: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.target = target

    def execute(self, context: Context) -> Json:
        """Returns `rows`, `candidate` and `output`."""
        from treadle.scoring import score_file

        with self.opened(context) as session:
            told = score_file(session, Path(self.source), Path(self.target))
            self.log.info("%s rows scored by %s into %s", told["rows"], told["candidate"][:12], self.target)
            return told


class TreadleRollbackOperator(TreadleOperator):
    """Returns to the champion that the current one's promotion beat, then deploys it.

    A task that is tried again rolls back once: the entry is found, not made again.

    :param loop: The path of a loop file, or a Loop.
    :param reason: What went wrong; it enters the log. (templated)
    :param model: How the name of the model begins that is taken back; left out, whichever serves. (templated)
    """

    template_fields: Sequence[str] = (*TreadleOperator.template_fields, "reason", "model")

    def __init__(self, *, reason: str, model: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reason = reason
        self.model = model

    def execute(self, context: Context) -> Json:
        """Returns the log's entry: `sequence`, `candidate` (who serves now), `champion` (who was taken back), `why`."""
        from treadle.acts import act_time, rollback
        from treadle.runner import deploy_champion

        with self.opened(context) as session:
            if asked_of(context).as_of is None:
                # As at a shell: the log's time never goes back, so an act must not push it to the history's end.
                session.as_of = act_time(session.loop, session.log, session.say)
            noted = context["task_state_store"].get(_NOTE)
            serving = session.log.champion()
            undo = self.model or (noted if isinstance(noted, str) else serving.candidate if serving else None)
            if undo is not None:
                context["task_state_store"].set(_NOTE, undo)
            entry = rollback(session, self.reason, undo=undo)
            deploy_champion(session)
            self.log.info("rolled back %s to %s", str(entry.champion)[:12], str(entry.candidate)[:12])
            self.tell_champion(context, session)
            told = {"sequence": entry.sequence, "candidate": entry.candidate, "champion": entry.champion}
            return {**told, "who": entry.who, "why": entry.why}
