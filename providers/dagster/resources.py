"""What a deployment gives its loops: the store, MLflow, the pools, who acts, and on which track."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

import dagster as dg
from pydantic import Field
from treadle.environment import variables
from treadle.loop import Loop

if TYPE_CHECKING:  # what only runs need is not loaded with the location
    from treadle.session import Session

TRACK_TAG = "treadle/track"


class TreadleResource(dg.ConfigurableResource[None]):
    """Where loops keep their records and how they reach the outside; each field may be a `dg.EnvVar`.

    What is left out is as for `treadle run`: `TREADLE_STORE`, else `.treadle` beside the loop, and so on.

    Example:
        >>> TreadleResource(store="s3://models/treadle", tracking_uri="http://mlflow:5000").track
        'production'
    """

    store: str | None = Field(default=None, description="A folder or a URI, such as s3://bucket/treadle.")
    tracking_uri: str | None = Field(default=None, description="MLflow, for loops that name none.")
    tracking_url: str | None = Field(
        default=None, description="MLflow as a browser reaches it, for links; default: tracking_uri."
    )
    endpoint_url: str | None = Field(
        default=None, description="The endpoint as a browser reaches it, for links; {loop} is filled in."
    )
    pools: str | None = Field(default=None, description="The file of hardware pools.")
    track: str = Field(default="production", description="Whose release log; a run's tag treadle/track wins.")
    user: str | None = Field(
        default=None, description="Who acts, for the release log; default: TREADLE_USER, or the login."
    )

    def session(
        self,
        loop: Loop,
        *,
        as_of: datetime | None = None,
        track: str | None = None,
        say: Callable[[str], None] | None = None,
        act: bool = False,
        user: str | None = None,
    ) -> "Session":
        """A session of a loop on this deployment; an `act` that names no time takes that of the log.

        Raises:
            UserError: See `treadle.session.open_session`.
        """
        from treadle.acts import act_time
        from treadle.session import open_session

        return open_session(
            loop,
            as_of=as_of,
            store=self.store,
            track=track or self.track,
            who=user or self.user,
            say=say,
            as_of_default=(lambda log: act_time(loop, log, say or (lambda line: None))) if act else None,
        )

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Within it, the core and what it starts find MLflow and the pools by the variables that it knows."""
        wanted = {"MLFLOW_TRACKING_URI": self.tracking_uri, "TREADLE_POOLS": self.pools}
        with variables({name: value for name, value in wanted.items() if value}):
            yield
