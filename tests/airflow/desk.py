"""Whoever answers what Airflow asks: by its API, as a user, while a run waits in this process."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from home import Home, Ran

os.environ.setdefault("AIRFLOW__API_AUTH__JWT_SECRET", secrets.token_hex(64))
Question = dict[str, Any]
Answer = Callable[[Question], None]


def client(user: str = "", role: str = "ADMIN") -> Any:
    """A client of Airflow's web server in this process, logged in if a user is named."""
    from airflow.api_fastapi.app import cached_app
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from fastapi.testclient import TestClient

    app = cached_app()
    made = TestClient(app, raise_server_exceptions=False)
    if user:
        token = app.state.auth_manager.generate_jwt(SimpleAuthManagerUser(username=user, role=role))
        made.headers["Authorization"] = f"Bearer {token}"
    return made


@dataclass
class Desk:
    """Answers questions in their order; a run that is still waiting after `patience` seconds is failed."""

    home: Home
    answers: list[Answer]
    patience: float = 200.0
    asked: list[Question] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    problems: list[BaseException] = field(default_factory=list)

    def run(self, dag: Any, **conf: Any) -> Ran:
        """A run of a DAG, its questions answered."""
        thread = threading.Thread(target=self._sit, args=(dag.dag_id,), daemon=True)
        thread.start()
        try:
            ran = self.home.run(dag, **conf)
        finally:
            self.over.set()
            thread.join(30)
        assert not self.problems, self.problems
        assert not self.answers, "not everything was asked"
        return ran

    def says(self, user: str, option: str, reason: str = "looked at EWR") -> Answer:
        """An answer by the API under a user's name."""

        def answer(question: Question) -> None:
            run = f"/api/v2/dags/{question['dag_id']}/dagRuns/{question['run_id']}"
            path = f"{run}/taskInstances/{question['task_id']}/-1"
            body = {"chosen_options": [option], "params_input": {"reason": reason} if reason else {}}
            self.codes.append(client(user).patch(f"{path}/hitlDetails", json=body).status_code)

        return answer

    def _sit(self, dag_id: str) -> None:
        end = time.monotonic() + self.patience
        try:
            while not self.over.wait(0.1):
                question = _question(dag_id)
                if question is not None and time.monotonic() > end:
                    _fail(question)
                elif question is not None and self.answers:
                    self.asked.append(question)
                    self.answers.pop(0)(question)
        except BaseException as error:
            self.problems.append(error)
            question = _question(dag_id)
            if question is not None:
                _fail(question)


def _question(dag_id: str) -> Question | None:
    """The question that waits for an answer."""
    from airflow.models.hitl import HITLDetail
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        query = (
            select(TaskInstance, HITLDetail)
            .join(HITLDetail, HITLDetail.ti_id == TaskInstance.id)
            .where(TaskInstance.dag_id == dag_id, TaskInstance.state == "awaiting_input")
            .where(HITLDetail.responded_at.is_(None))
        )
        found = session.execute(query).first()
        if found is None:
            return None
        ti, detail = found
        keys = {"dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id}
        return {**keys, "subject": detail.subject, "body": detail.body, "options": detail.options}


def time_runs_out(question: Question) -> None:
    """Has the scheduler find that nobody answered in time."""
    from airflow.jobs.job import Job
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        past = _instance(question)
        from airflow.sdk.timezone import utcnow

        session.execute(update(TaskInstance).where(*past).values(trigger_timeout=utcnow()))
    time.sleep(0.05)
    SchedulerJobRunner(job=Job()).check_awaiting_input_timeouts()


def _fail(question: Question) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import update

    with create_session() as session:
        session.execute(update(TaskInstance).where(*_instance(question)).values(state="failed"))


def _instance(question: Question) -> list[Any]:
    from airflow.models.taskinstance import TaskInstance

    return [
        TaskInstance.dag_id == question["dag_id"],
        TaskInstance.run_id == question["run_id"],
        TaskInstance.task_id == question["task_id"],
    ]


def stored(home: Home) -> None:
    """Has Airflow know the DAGs of the folder, as its DAG processor does."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import sync_bag_to_db

    DagBundlesManager().sync_bundles_to_db()
    sync_bag_to_db(home.bag(), "test", None)
