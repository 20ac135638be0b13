"""Buttons of a task in Airflow's UI: the MLflow run, the endpoint, the HTML report.

A task notes its links when it ends. Airflow stores them; its API server runs no code of ours to show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey
    from treadle.records import Record
    from treadle.session import Session
    from treadle_airflow.hooks.treadle import Settings

PAGE = "/treadle"  # where the plugin serves its pages, below Airflow's own address


class _Noted(BaseOperatorLink):
    """A link that the operator noted under this name."""

    name = ""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:
        """The address, or nothing where the task has none."""
        noted: dict[str, str] = getattr(operator, "links", {})
        return noted.get(self.name, "")


class MlflowLink(_Noted):
    """The candidate's run in MLflow."""

    name = "MLflow run"


class EndpointLink(_Noted):
    """The serving endpoint, as the connection names it."""

    name = "Endpoint"


class ReportLink(_Noted):
    """The HTML page of a record: drift."""

    name = "Report"


def links_of(session: Session, record: Record, settings: Settings) -> dict[str, str]:
    """The links that a record has, by their names."""
    links = {}
    run = _mlflow_run(session, record, settings)
    if run:
        links[MlflowLink.name] = run
    if record.kind in ("release", "deployment") and settings.endpoint:
        links[EndpointLink.name] = settings.endpoint
    page = next((name for name in record.blobs if name.endswith(".html")), None)
    if page:
        links[ReportLink.name] = f"{PAGE}/report/{record.loop}/{record.kind}/{record.id}"
    return links


def _mlflow_run(session: Session, record: Record, settings: Settings) -> str | None:
    """The page of the MLflow run of the candidate that a record is, or is about."""
    from treadle.projections import read_receipt
    from treadle.registry.mlflow import tracking_uri

    about: dict[str, Any] = dict(record)
    candidate_id = {
        "candidate": record.id,
        "verdict": about.get("challenger_id"),
    }.get(record.kind, about.get("candidate_id"))
    receipt = read_receipt(session, f"candidate-{candidate_id}") if candidate_id else None
    if not receipt or not receipt.get("run_id"):
        return None
    address = urlsplit(settings.mlflow_ui or tracking_uri(session.loop, session.store))
    if address.scheme not in ("http", "https"):
        return None
    return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path.rstrip('/')}/#/runs/{receipt['run_id']}"
