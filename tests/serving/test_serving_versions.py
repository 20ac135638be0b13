"""A model served with other libraries than it was trained with: said at the start, and only where it is so."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from serving_models import promote, small_loop, stored_candidate, trained
from treadle.commit import commit_record
from treadle.records import Candidate
from treadle.registry.log import ReleaseLog
from treadle.serving.server import desired_by, load_desired
from treadle.store import LocalStore, Store

HERE = version("xgboost")


def served_with(store: Store, folder: Path, library: dict[str, str]) -> list[str]:
    """What a server says when it takes up a candidate whose key names these versions."""
    plain = stored_candidate(store, trained(1), folder / "model")
    named = plain.model_copy(update={"id": "a" * 64, "key": {"library": library}})
    candidate = commit_record(store, Candidate.model_validate(named.model_dump()))
    promote(store, candidate, 0)
    lines: list[str] = []
    desired = desired_by(ReleaseLog(store, "flights"))
    assert desired is not None
    assert load_desired(store, small_loop(), desired, say=lines.append).candidate == candidate.digest
    return lines


@pytest.mark.parametrize(
    ("library", "told"),
    [
        ({"xgboost": HERE}, None),
        ({"xgboost": f"{HERE}+cu126"}, None),
        ({"xgboost": "1.0.0"}, f"trained with xgboost 1.0.0 and is served with xgboost {HERE}"),
        ({"estimator": f"scikit-learn 0.1, numpy {version('numpy')}"}, "scikit-learn 0.1"),
        ({"no-such-library": "1.0"}, None),
        ({}, None),
    ],
    ids=["same", "another build", "older", "several", "not needed", "unknown"],
)
def test_versions_that_differ_are_said_when_a_model_is_taken_up(
    tmp_path: Path, library: dict[str, str], told: str | None
) -> None:
    lines = served_with(LocalStore(tmp_path / "store"), tmp_path, library)
    assert len(lines) == (told is not None)
    if told:
        assert told in lines[0]
        assert "image" in lines[0]
