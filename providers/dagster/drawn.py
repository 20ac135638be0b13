"""What each stage of a loop is in Dagster: the asset's name, what it comes from, and how it is labelled.

snapshot ─► features ─► candidate ─► verdict ─► release ─► champion ─► drift_report ─► retrain_decision
"""

from __future__ import annotations

from dataclasses import dataclass

from treadle.loop import Loop

CHAIN = ("prepare", "featurize", "train", "evaluate", "release", "deploy")
WATCH = ("monitor", "retrain")
RECORD = "treadle/record"
ENTRY = "treadle/entry"
"""The keys of the metadata that steps and sensors read back."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A stage as an asset.

    Attributes:
        stage: The core's verb.
        asset: The noun that stands in the asset's key.
        after: The stage that it comes from, or "".
        sections: The parts of the loop that the stage reads; they make the asset's code version.
        kinds: Tools, which the UI draws as logos.
        says: The description.
    """

    stage: str
    asset: str
    after: str
    sections: tuple[str, ...]
    kinds: tuple[str, ...]
    says: str


_ALL = (
    Drawn(
        "prepare",
        "snapshot",
        "",
        ("data", "history"),
        ("duckdb",),
        "The tables as they were known at as_of, cut there, checked, and kept by partition.",
    ),
    Drawn(
        "featurize",
        "features",
        "prepare",
        ("features", "data"),
        ("feast",),
        "The labelled rows with their features, joined as of each row's own time.",
    ),
    Drawn(
        "train",
        "candidate",
        "featurize",
        ("train", "data", "features"),
        ("mlflow",),
        "A model trained on everything before the holdout, with its recipe and the profile of its data.",
    ),
    Drawn(
        "evaluate",
        "verdict",
        "train",
        ("gate",),
        ("python",),
        "Challenger and champion on the identical holdout, which neither has learned from, and the decision.",
    ),
    Drawn(
        "release",
        "release",
        "evaluate",
        ("approval",),
        ("mlflow",),
        "What became of the verdict in the release log: promoted, kept out, or waiting for a person.",
    ),
    Drawn(
        "deploy",
        "champion",
        "release",
        ("deploy",),
        ("mlflow",),
        "The model that serves by the release log's last word, with every projection of it in agreement.",
    ),
    Drawn(
        "monitor",
        "drift_report",
        "deploy",
        ("monitor",),
        ("evidently",),
        "The newest window beside the champion's training data: drift of its inputs, and its quality.",
    ),
    Drawn(
        "retrain",
        "retrain_decision",
        "monitor",
        ("retrain",),
        ("python",),
        "Whether the loop's policy asks for a new challenger; what is due enters the release log.",
    ),
)
DRAWN = {drawn.stage: drawn for drawn in _ALL}


def stages_of(loop: Loop) -> list[Drawn]:
    """The stages that a loop has, in order: without a `monitor` or `retrain` section there is no such asset."""
    absent = {"monitor": loop.monitor is None, "retrain": loop.retrain is None}
    return [drawn for drawn in _ALL if not absent.get(drawn.stage)]
