"""The plugin. Every process of Airflow loads it, so it imports nothing: the page is made at its first request."""

from __future__ import annotations

from typing import Any

from airflow.sdk.plugins_manager import AirflowPlugin

PREFIX = "/treadle"


class LazyApp:
    """An ASGI app that is built when it is first called."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes the request on."""
        if self._app is None:
            from treadle_airflow.page.app import build_app

            self._app = build_app()
        await self._app(scope, receive, send)


class TreadlePlugin(AirflowPlugin):
    """Adds the page, and its entry in the menu."""

    name = "treadle"
    fastapi_apps: list[Any] = [{"app": LazyApp(), "url_prefix": PREFIX, "name": "Treadle"}]
    external_views: list[Any] = [
        {
            "name": "Treadle loops",
            "href": f"{PREFIX}/",
            "url_route": "treadle",
            "destination": "nav",
            "category": "browse",
        }
    ]
