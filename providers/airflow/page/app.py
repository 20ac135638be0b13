"""The routes of the page. Airflow leaves a plugin's routes open to all: these ask for a login and for DAGs."""

from __future__ import annotations

import re
from typing import Any

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse
from treadle_airflow.hooks.treadle import TreadleHook
from treadle_airflow.page.plugin import PREFIX
from treadle_airflow.page.rows import report_of, rows_of
from treadle_airflow.page.table import page_of

_TRACK = re.compile("[a-z0-9][a-z0-9_-]{0,40}")
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'self'"
# A report draws with scripts of its own; it gets an origin of its own, without Airflow's cookies and without a network.
_REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval';"
    " style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)


def build_app() -> FastAPI:
    """The page of all loops at `/`, and the HTML page of a drift report."""
    app = FastAPI(
        title="Treadle",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(requires_access_dag(method="GET"))],
    )

    @app.get("/")
    def loops(request: Request, user: GetUserDep, track: str = "production") -> HTMLResponse:
        """All loops that the user may see."""
        if not _TRACK.fullmatch(track):
            raise HTTPException(400, "no such track")
        readable = _readable(user)
        try:
            rows = rows_of(track, TreadleHook().settings)
        except Exception as error:  # a wrong connection, or no process to be had: the page says so
            rows = [{"error": f"{type(error).__name__}: {error}"}]
        # A file that can't be used belongs to no DAG: its name is all that is said of it.
        shown = [row for row in rows if "loop" not in row or row["loop"] in readable]
        page = page_of(shown, track=track, base=_base(request), readable=readable)
        return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY, **_HEADERS})

    @app.get("/report/{loop}/{kind}/{id_}")
    def report(loop: str, kind: str, id_: str, user: GetUserDep) -> HTMLResponse:
        """The page of a drift report, where the user may see its loop."""
        known = kind == "drift_report" and re.fullmatch(r"[0-9a-f]{64}(\.\d+)?", id_)
        found = report_of(loop, id_, TreadleHook().settings) if known and loop in _readable(user) else None
        if found is None:
            raise HTTPException(404, "no such report")
        return HTMLResponse(found, headers={"Content-Security-Policy": _REPORT_POLICY, **_HEADERS})

    return app


_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def _readable(user: Any) -> set[str]:
    """The ids of the DAGs that a user may see."""
    return get_auth_manager().get_authorized_dag_ids(user=user, method="GET")


def _base(request: Request) -> str:
    """Where Airflow's own pages are: the path before this app's."""
    return str(request.scope.get("root_path", "")).removesuffix(PREFIX)
