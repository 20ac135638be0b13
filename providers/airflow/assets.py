"""The assets of a loop: what other DAGs can be scheduled on, and what starts the loop's own.

    treadle://<loop>/champion     a new champion serves; extra: as_of, track, candidate, version
    treadle://<loop>/candidate    a challenger waits for a person; extra: as_of, track, candidate, verdict, why
    treadle://<loop>/retrain      the policy asks for a run; extra: as_of, track, subject, trigger, why, report

An event of the champion is of the production track. Tasks name an alias as their outlet and add the event only where
there is one: a plain outlet would tell of a new champion each time that the task succeeds.
"""

from __future__ import annotations

from airflow.sdk import Asset, AssetAlias


def champion(loop: str) -> Asset:
    """Has an event whenever another model begins to serve in production."""
    return Asset(name=f"{loop}.champion", uri=f"treadle://{loop}/champion", group="treadle")


def candidate(loop: str) -> Asset:
    """Has an event whenever a challenger waits for a person, on any track."""
    return Asset(name=f"{loop}.candidate", uri=f"treadle://{loop}/candidate", group="treadle")


def retrain(loop: str) -> Asset:
    """Has an event whenever the policy asks for a run, once for each entry in the release log."""
    return Asset(name=f"{loop}.retrain", uri=f"treadle://{loop}/retrain", group="treadle")


def alias_of(asset: Asset) -> AssetAlias:
    """The outlet through which a task may or may not add an event of an asset."""
    return AssetAlias(name=f"{asset.name}.events", group="treadle")
