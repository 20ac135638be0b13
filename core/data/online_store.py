"""Where the online views lie: SQLite beside the store, or what the loop names; opening it, and one writer at a time."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.data.feast_store import Plan, legal_name
from treadle.errors import MissingPackage, Transient, UserError
from treadle.leases import lease
from treadle.loop import Loop
from treadle.store import LocalStore, Store

if TYPE_CHECKING:
    from feast import FeatureStore, RepoConfig

KNOWN_US = "treadle_known_at_us"
# Feast passes these to redis-py, some versions of which would else wait for ever.
_REDIS_WAITS = ("socket_timeout=5", "socket_connect_timeout=5")


def project_name(loop: Loop, track: str) -> str:
    """The Feast project of a loop's track."""
    return legal_name(f"{loop.name}_{track}")


def online_file(loop: Loop, store: Store, track: str) -> Path | None:
    """The SQLite file of the online store; None when the loop names another online store.

    Raises:
        UserError: The store is not on this machine and the loop names no online store.
    """
    if loop.features.online is not None:
        return None
    if not isinstance(store, LocalStore):
        raise UserError(
            f"the store {store.uri} is not a local folder, so the online views need a store of their own:"
            " name one under `features.online`, such as {type: redis, connection_string: host:6379}."
        )
    return store.root / "online" / f"{loop.name}-{legal_name(track)}.db"


def open_feast(loop: Loop, store: Store, track: str, plan: Plan, folder: Path) -> FeatureStore:
    """Feast on the online store, knowing the plan's views under their online names; makes missing tables.

    Raises:
        UserError: `features.online` is not as Feast wants it. MissingPackage: The store's client is not installed.
        Transient: The online store does not answer.
    """
    from feast import FeatureStore
    from treadle.data.feast_join import feast_objects

    config = _config(loop, store, track, folder)
    objects = [
        made
        for view in plan.views
        for made in feast_objects(
            view, view.online, str(folder / "none.parquet"), extra=[(KNOWN_US, "Int64")]
        )
    ]
    with answering("can't be opened"):
        feast = FeatureStore(config=config)
        feast.apply(objects)
    return feast


def _config(loop: Loop, store: Store, track: str, folder: Path) -> RepoConfig:
    from feast import RepoConfig
    from feast.errors import FeastError, FeastExtrasDependencyImportError
    from pydantic import ValidationError

    path = online_file(loop, store, track)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        online: dict[str, Any] = {"type": "sqlite", "path": str(path)}
    else:
        online = _expanded(loop, loop.features.online)
    if online.get("type") == "redis":
        online = _redis(online)
    try:
        return RepoConfig(
            project=project_name(loop, track),
            # The registry is read once; it is rebuilt from the plan at each opening.
            registry={"path": str(folder / "registry.db"), "cache_ttl_seconds": 0},
            provider="local",
            offline_store={"type": "duckdb"},
            online_store=online,
            entity_key_serialization_version=3,
            repo_path=folder,
        )
    except ValidationError as error:  # its text would show values, passwords among them
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"features.online is not as Feast takes it: {wrong}.") from None
    except FeastError as error:
        kind = str(online.get("type"))
        if not isinstance(error.__cause__, FeastExtrasDependencyImportError):
            raise UserError(
                f"features.online names the type {kind!r}, which Feast does not know: {error}"
            ) from error
        if kind == "redis":
            raise MissingPackage("redis", "reach the online store", "redis") from error
        raise UserError(
            f'features.online names the type {kind!r}, whose client is not installed: pip install "feast[{kind}]"'
        ) from error


def _redis(online: dict[str, Any]) -> dict[str, Any]:
    """The section with limits on waiting.

    Feast's own look at what is there is skipped: it would keep a value that was corrected since, as being known
    at the same instant. `materialize` compares, with one writer at a time.

    Raises:
        UserError: The address has no port.
    """
    address = str(online.get("connection_string", "localhost:6379"))
    if any(":" not in part for part in address.split(",") if "=" not in part):
        raise UserError(
            "features.online.connection_string must begin with host:port, such as localhost:6379."
        )
    waits = [wait for wait in _REDIS_WAITS if f"{wait.split('=')[0]}=" not in address]
    return {**online, "connection_string": ",".join([address, *waits]), "skip_dedup": True}


def _expanded(loop: Loop, value: Any) -> Any:
    """The loop's online section with its variables read from the environment."""
    if isinstance(value, str):
        return loop.expand(value, "features.online")
    if isinstance(value, dict):
        return {name: _expanded(loop, item) for name, item in value.items()}
    return [_expanded(loop, item) for item in value] if isinstance(value, list) else value


@contextmanager
def answering(otherwise: str) -> Iterator[None]:
    """Turns what the online store's client raises when it can't be reached into a Transient.

    Raises:
        Transient: With `otherwise` and the client's words. UserError: The store refuses the login.
    """
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        raise Transient(f"the online store {otherwise}: {error}. Try again.") from error
    except Exception as error:
        redis = sys.modules.get("redis")  # loaded by Feast where the loop names it
        if redis is None or not isinstance(error, redis.RedisError):
            raise
        if isinstance(error, (redis.AuthenticationError, redis.exceptions.NoPermissionError)):
            raise UserError(
                f"the online store {otherwise}: Redis refuses: {error}. Correct features.online in the loop."
            ) from error
        raise Transient(f"the online store {otherwise}: {error}. Try again.") from error


@contextmanager
def writing(loop: Loop, store: Store, track: str) -> Iterator[Callable[[], None]]:
    """One writer at a time, so that comparing and writing are one step; other processes wait.

    Yields:
        A check to make right before each write.

    Raises:
        Transient: Another writer did not end within a minute, or took over since; nothing more is written.
    """
    path = online_file(loop, store, track)
    if path is not None:
        with _writing_file(path):
            yield lambda: None
        return
    project = project_name(loop, track)
    with lease(store, f"online-{project}") as held:

        def check() -> None:
            if not held:
                raise Transient(
                    f"the lease online-{project} lapsed while the online views were compared, and another process"
                    " may write them now. Try again."
                )

        yield check


@contextmanager
def _writing_file(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    gate = sqlite3.connect(path.with_suffix(".lock"), timeout=60, isolation_level=None)
    try:
        gate.execute("BEGIN EXCLUSIVE")
        yield
    except sqlite3.OperationalError as error:
        raise Transient(
            f"the online store {path} is being written by another process: {error}. Try again."
        ) from error
    finally:
        gate.close()
