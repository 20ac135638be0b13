"""deploy: states what production should be; the log's last entry decides, projections follow."""

from __future__ import annotations

from treadle.records import Candidate, FeatureSet, Json
from treadle.registry.log import Entry
from treadle.stages import Context, Outcome

VERSION = 1


def key(context: Context, champion: Entry | None) -> Json:
    """What makes a deployment: who serves, and how."""
    return {
        "stage": "deploy",
        "version": VERSION,
        "spec": context.loop.part("deploy"),
        "candidate": champion.candidate if champion else None,
    }


def deploy(context: Context, candidate: Candidate | None, features: FeatureSet | None) -> Outcome:
    """The desired state: the champion's digest and the online views that it reads. Starts nothing by itself."""
    return Outcome(
        {
            "candidate": candidate.digest if candidate else None,
            "candidate_id": candidate.id if candidate else None,
            "mode": context.loop.deploy.mode,
            "views": dict(features.views) if features else {},
        }
    )
