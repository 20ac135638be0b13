"""The hook: a connection's store, MLflow address and credentials, for the time that a task needs them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException
from treadle.environment import variables
from treadle.errors import UserError
from treadle.loop import Loop
from treadle.redaction import redacted

if TYPE_CHECKING:
    from treadle.session import Session

DEFAULT_CONN_ID = "treadle_default"


@dataclass(frozen=True, slots=True)
class Settings:
    """What a connection carries.

    Attributes:
        store: The store's URI; None means `TREADLE_STORE`, else `.treadle` beside the loop.
        endpoint: The address of the serving endpoint, for links.
        mlflow_ui: The address of MLflow's pages, where it isn't that of its API.
        environment: Variables that the task's process has while the core works: credentials, MLflow's address.
    """

    store: str | None = None
    endpoint: str | None = None
    mlflow_ui: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


class TreadleHook(BaseHook):
    """Opens sessions of loops with the store, the MLflow address and the credentials of a connection.

    :param treadle_conn_id: The connection's id. If `treadle_default` isn't defined, the environment of the worker
        counts instead (`TREADLE_STORE`, `MLFLOW_TRACKING_URI`); any other id has to be defined.
    """

    conn_name_attr = "treadle_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "treadle"
    hook_name = "treadle"

    def __init__(self, treadle_conn_id: str = DEFAULT_CONN_ID, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.treadle_conn_id = treadle_conn_id

    @cached_property
    def settings(self) -> Settings:
        """What the connection says.

        Raises:
            UserError: There is no such connection, or its `environment` is no JSON object of texts.
        """
        try:
            connection = self.get_connection(self.treadle_conn_id)
        except AirflowNotFoundException:
            if self.treadle_conn_id == DEFAULT_CONN_ID:
                return Settings()
            raise UserError(
                f"there is no connection {self.treadle_conn_id!r}. Add it under Admin > Connections with the type"
                f" treadle, or: airflow connections add {self.treadle_conn_id} --conn-type treadle"
                ' --conn-extra \'{"store": "s3://bucket/treadle"}\''
            ) from None
        extra = connection.extra_dejson
        environment = self._environment_of(extra.get("environment"))
        for variable, value in (
            ("MLFLOW_TRACKING_URI", extra.get("mlflow")),
            ("MLFLOW_TRACKING_USERNAME", connection.login),
            ("MLFLOW_TRACKING_PASSWORD", connection.password),
        ):
            if value:
                environment[variable] = value
        return Settings(
            store=extra.get("store") or None,
            endpoint=extra.get("endpoint") or None,
            mlflow_ui=extra.get("mlflow_ui") or None,
            environment=environment,
        )

    def _environment_of(self, told: object) -> dict[str, str]:
        if isinstance(told, str) and told.strip():
            try:
                told = json.loads(told)
            except json.JSONDecodeError:
                told = [told]
        if not told:
            return {}
        if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
            raise UserError(
                f"the connection {self.treadle_conn_id!r}: `environment` is a JSON object of texts,"
                ' such as {"AWS_ACCESS_KEY_ID": "..."}'
            )
        return {str(name): value for name, value in told.items()}

    @contextmanager
    def environment(self) -> Iterator[None]:
        """The connection's variables in this process, for a while; what stood there before comes back."""
        settings = self.settings
        wanted = dict(settings.environment)
        if settings.store:
            wanted["TREADLE_STORE"] = settings.store
        if settings.environment:
            _mask(settings.environment)
        with variables(wanted):
            yield

    @contextmanager
    def session(
        self,
        loop: Loop | str | os.PathLike[str],
        *,
        as_of: datetime | str | None = None,
        track: str = "production",
        who: str | None = None,
        overrides: Sequence[str] = (),
        say: Callable[[str], None] | None = None,
    ) -> Iterator[Session]:
        """A session of the core, with the connection's environment around it.

        :param loop: A loop, or the path of its file.
        :param as_of: The clock; left out, as at a shell.
        :param track: The track.
        :param who: Who acts, for the release log.
        :param overrides: `section.field=value` each; for a loop given by its file.
        :param say: Takes lines of progress; the hook's log by default.
        """
        from treadle.session import open_session

        with self.environment():
            opened = open_session(
                read_loop(loop, overrides),
                as_of=as_of,
                store=self.settings.store,
                track=track,
                who=who,
                say=say or self.log.info,
            )
            yield opened

    def test_connection(self) -> tuple[bool, str]:
        """Whether the store can be opened and read: what the connection form's Test button says."""
        from treadle.store import open_store

        if not self.settings.store:
            return True, "No store is named: TREADLE_STORE counts, else .treadle beside the loop."
        try:
            with self.environment():
                open_store(self.settings.store).list("logs")
        except Exception as error:  # the form shows whatever went wrong
            return False, redacted(f"{type(error).__name__}: {error}")
        return True, f"The store {redacted(self.settings.store)} answers."

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """How the form shows the fields that every connection has."""
        return {
            "hidden_fields": ["host", "schema", "port"],
            "relabeling": {"login": "MLflow user", "password": "MLflow password"},
            "placeholders": {},
        }


def read_loop(loop: Loop | str | os.PathLike[str], overrides: Sequence[str] = ()) -> Loop:
    """The loop of a file, or the one given, with `--set` applied.

    Raises:
        SpecError: The file is gone or wrong. UserError: Overrides of a loop written in Python.
    """
    if not isinstance(loop, Loop):
        return Loop.load(loop, overrides=overrides)
    if not overrides:
        return loop
    if loop.file is None:
        raise UserError(f"the loop {loop.name!r} is written in Python: `set` needs a loop file")
    return Loop.load(loop.file.path, overrides=[*loop.overrides, *overrides])


def _mask(environment: Mapping[str, str]) -> None:
    """Airflow hides these values in logs; names that say so, and what is long enough not to be a word."""
    from airflow.sdk.log import mask_secret

    for name, value in environment.items():
        if len(value) >= 5 and any(word in name.upper() for word in ("KEY", "SECRET", "TOKEN", "PASSWORD")):
            mask_secret(value)
