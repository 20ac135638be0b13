"""A network as challenger to the xgboost champion, on the showcase's real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import treadle
from treadle.models import load_candidate

LOOP = Path(__file__).resolve().parents[2] / "loops" / "flights.yaml"
NET = (
    "train.flavour=torch",
    "train.rounds=3",
    "train.checkpoint_every=1",
    "train.params={hidden: [32], embedding: 4}",
)


@pytest.mark.slow
@pytest.mark.flights
@pytest.mark.timeout(1200)
def test_a_network_is_judged_against_the_xgboost_champion_in_the_same_gate(tmp_path):
    as_of, where = "2013-03-01", {"store": tmp_path / "store", "track": "torch"}
    champion = treadle.run(treadle.Loop.load(LOOP), as_of=as_of, to="release", **where)
    challenger = treadle.run(
        treadle.Loop.load(LOOP, overrides=NET), as_of=as_of, start="train", to="release", **where
    )
    first, verdict = champion["evaluate"], challenger["evaluate"]
    assert challenger["train"].flavour == "torch"
    assert verdict.champion == champion["train"].digest
    assert verdict.mode == "superiority"
    assert verdict.holdout.digest == first.holdout.digest
    losses = verdict.comparison
    assert losses.challenger < 0.55  # a constant's loss is above
    assert abs(losses.difference) < 0.03
    assert (verdict.decision == "promote") <= (losses.high < 0)
    predictor = load_candidate(treadle.store.open_store(str(where["store"])), challenger["train"])
    rows = np.full((2, len(predictor.schema.features)), np.nan)
    assert ((predictor.predict(rows) > 0) & (predictor.predict(rows) < 1)).all()
