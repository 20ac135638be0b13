from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from train_loops import AS_OF, SAMPLED, flight_rows, make_context, make_loop, put_features, trained
from treadle.errors import AsOfError, DataRefused, UserError
from treadle.models import load_candidate
from treadle.models.checkpoints import StoreCheckpoints, clear
from treadle.models.rows import MIN_ROWS
from treadle.monitoring.profile import Reference
from treadle.records import record_id
from treadle.stages.train import key, recipe_of
from treadle.store import LocalStore


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def test_a_candidate_carries_what_judging_serving_and_watching_need(store, tmp_path):
    loop = make_loop(tmp_path / "loop", **SAMPLED)
    outcome, candidate = trained(loop, store, tmp_path)
    assert candidate.trained_from is None
    assert candidate.trained_through == AS_OF - timedelta(days=14)
    assert candidate.classes == ("0", "1")
    assert candidate.rounds == outcome.notes["rounds_trained"] == 24
    assert {
        "model/model.ubj",
        "model/predictor.json",
        "loop/spec.json",
        "loop/files/flights.sql",
        "reference.npz",
        "rounds.json",
    } == set(candidate.blobs)
    assert candidate.metrics["train_roc_auc"] > 0.7
    assert len(json.loads(outcome.files["rounds.json"])["train_log_loss"]) == 24
    predictor = load_candidate(store, candidate)
    assert predictor.schema.names == ("wind", "weekend", "origin")
    assert predictor.schema.features[2].categories == ("EWR", "JFK", "LGA")
    assert predictor.trained_through == candidate.trained_through
    reference = Reference.load(outcome.files["reference.npz"])
    assert reference.rows.sum() == candidate.rows
    assert len(reference.attribution) > 1


def test_the_same_work_gives_the_same_outcome_to_the_bit(store, tmp_path):
    loop = make_loop(tmp_path / "loop", **SAMPLED)
    first, one = trained(loop, store, tmp_path)
    clear(store, one.id)
    other, two = trained(loop, LocalStore(tmp_path / "other"), tmp_path)
    assert (one.id, one.digest, one.blobs) == (two.id, two.digest, two.blobs)
    assert first.results == other.results


@pytest.mark.parametrize("threads", [1, 4])
def test_thread_counts_and_addresses_enter_neither_id_nor_digest_nor_recipe(store, tmp_path, threads):
    table = flight_rows()
    plain = make_loop(tmp_path / "loop", **SAMPLED)
    moved = make_loop(
        tmp_path / "loop",
        data={"sources": {"flights": "s3://elsewhere/flights.csv"}, "threads": 3},
        **SAMPLED,
        threads=threads,
    )
    _, one = trained(plain, store, tmp_path, table)
    _, two = trained(moved, LocalStore(tmp_path / "other"), tmp_path, table)
    assert (one.id, one.digest, one.recipe, one.blobs) == (two.id, two.digest, two.recipe, two.blobs)


def test_rows_after_trained_through_change_nothing(store, tmp_path):
    loop = make_loop(tmp_path / "loop", **SAMPLED, early_stopping={"rounds": 5, "newest": "7d"})
    table = flight_rows()
    outcome, _ = trained(loop, store, tmp_path, table)
    times = table["event_time"].to_numpy()
    late = times >= np.datetime64("2013-03-18")
    label = np.where(late, 1 - np.nan_to_num(table["label"].to_numpy()), table["label"].to_numpy())
    origin = np.where(late, "XXX", table["origin"].to_numpy(zero_copy_only=False))
    planted = table.set_column(3, "label", pa.array(label)).set_column(7, "origin", pa.array(origin.tolist()))
    other, _ = trained(loop, LocalStore(tmp_path / "other"), tmp_path, planted)
    assert other.digest == outcome.digest
    assert other.files["reference.npz"] == outcome.files["reference.npz"]


def test_the_window_counts_back_from_trained_through_and_unlabelled_rows_are_left_out(store, tmp_path):
    loop = make_loop(
        tmp_path / "loop", data={"window": "30d", "holdout": "10d", "label_delay": "2d"}, **SAMPLED
    )
    table = flight_rows()
    label = table["label"].to_pylist()
    label[2000] = None
    _, candidate = trained(loop, store, tmp_path, table.set_column(3, "label", pa.array(label)))
    assert candidate.trained_through == AS_OF - timedelta(days=12)
    assert candidate.trained_from == AS_OF - timedelta(days=42)
    inside = [
        time
        for time, known in zip(table["event_time"].to_pylist(), label, strict=True)
        if known is not None and candidate.trained_from <= time < candidate.trained_through
    ]
    assert candidate.rows == len(inside)
    assert 2000 * 43 / 1440 > 48  # the row without a label lies in the window


def test_levels_are_learned_on_the_rows_of_the_fit_alone(store, tmp_path):
    loop = make_loop(tmp_path / "loop", **SAMPLED, early_stopping={"rounds": 5, "newest": "7d"})
    table = flight_rows()
    newest = table["event_time"].to_numpy() >= np.datetime64("2013-03-12")
    origin = np.where(newest, "NEW", table["origin"].to_numpy(zero_copy_only=False))
    _, candidate = trained(loop, store, tmp_path, table.set_column(7, "origin", pa.array(origin.tolist())))
    assert load_candidate(store, candidate).schema.features[2].categories == ("EWR", "JFK", "LGA")
    assert "valid_log_loss" in candidate.metrics
    assert "valid_roc_auc" in candidate.metrics


KILLED = """\
import os, sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from train_loops import flight_rows, make_context, make_loop, put_features
from treadle.models.checkpoints import StoreCheckpoints
from treadle.stages.train import train
from treadle.store import LocalStore

save = StoreCheckpoints.save
def slow_save(self, rounds, data):
    save(self, rounds, data)
    print(rounds, flush=True)
    time.sleep(0.3)
StoreCheckpoints.save = slow_save
root = Path({root!r})
store = LocalStore(root / "store")
loop = make_loop(root / "loop", **{train!r})
train(make_context(loop, store, root / "killed"), put_features(store, flight_rows()))
"""


@pytest.mark.parametrize(
    "settings",
    [SAMPLED, {**SAMPLED, "rounds": 60, "early_stopping": {"rounds": 9, "newest": "7d"}}],
    ids=["all rounds", "early stopping"],
)
def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path, settings):
    loop = make_loop(tmp_path / "loop", **settings)
    whole, _ = trained(loop, LocalStore(tmp_path / "untouched"), tmp_path)
    script = KILLED.format(tests=str(Path(__file__).parent), root=str(tmp_path), train=settings)
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    with child:
        seen = [child.stdout.readline().strip() for _ in range(2)]
        child.send_signal(signal.SIGKILL)
    assert seen == ["6", "12"]
    assert child.returncode == -signal.SIGKILL
    lines: list[str] = []
    again, candidate = trained(loop, LocalStore(tmp_path / "store"), tmp_path, say=lines.append)
    assert again.notes["resumed_from"] >= 12
    assert again.notes["rounds_trained"] == whole.notes["rounds_trained"] - again.notes["resumed_from"]
    assert any("checkpoint" in line for line in lines)
    assert candidate.digest == whole.digest
    assert (
        Path(again.files["model/model.ubj"]).read_bytes() == Path(whole.files["model/model.ubj"]).read_bytes()
    )
    assert again.files["rounds.json"] == whole.files["rounds.json"]


def test_checkpoints_are_found_by_record_and_cleared(store, tmp_path):
    loop = make_loop(tmp_path / "loop", **SAMPLED)
    _, candidate = trained(loop, store, tmp_path)
    assert candidate.id == record_id("candidate", "flights", candidate.key)
    assert StoreCheckpoints(store, candidate.id).latest()[0] == 24
    clear(store, candidate.id)
    assert store.list(f"checkpoints/{candidate.id}") == []


def relabelled(value):
    table = flight_rows()
    return table.set_column(3, "label", pa.array([value] * table.num_rows, type=pa.float64()))


@pytest.mark.parametrize(
    ("table", "as_of", "error", "words"),
    [
        (relabelled(1.0), AS_OF, DataRefused, "one value only"),
        (relabelled(2.0), AS_OF, DataRefused, "must be 0 or 1"),
        (relabelled(None), AS_OF, AsOfError, "no labelled rows.*No label is known at all"),
        (flight_rows(), datetime.fromisoformat("2013-01-10T00:00Z"), AsOfError, "holdout 14d"),
        (flight_rows(), datetime.fromisoformat("2013-01-15T12:00Z"), UserError, "only 17 labelled rows"),
    ],
    ids=["one class", "no class", "no labels", "before the data", "too few"],
)
def test_labels_that_teach_nothing_are_refused_in_words(store, tmp_path, table, as_of, error, words):
    with pytest.raises(error, match=words):
        trained(make_loop(tmp_path / "loop", **SAMPLED), store, tmp_path, table, as_of=as_of)


def test_early_stopping_without_newest_rows_is_refused(store, tmp_path):
    loop = make_loop(
        tmp_path / "loop",
        **SAMPLED,
        early_stopping={"newest": "2d"},
    )
    table = flight_rows().slice(0, 2000)
    with pytest.raises(UserError, match="early stopping needs rows from 2013-03-16"):
        trained(loop, store, tmp_path, table)


def test_infinite_features_are_refused_by_column_and_row(store, tmp_path):
    table = flight_rows()
    wind = table["wind"].to_pylist()
    wind[5] = float("inf")
    with pytest.raises(DataRefused, match="infinite numbers") as error:
        trained(
            make_loop(tmp_path / "loop", **SAMPLED),
            store,
            tmp_path,
            table.set_column(5, "wind", pa.array(wind)),
        )
    assert error.value.findings == ("wind: inf in f5 at 2013-01-01 03:35",)


def refusal(store, tmp_path, as_of, data=None, **settings):
    loop = make_loop(tmp_path / "loop", data=data, **{**SAMPLED, **settings})
    known = flight_rows()
    at = pa.scalar(as_of, pa.timestamp("us", tz="UTC"))
    # As prepare would have it: rows and labels at or after as_of do not exist.
    label = pc.if_else(pc.less(known["label_known_at"], at), known["label"], None)
    table = known.set_column(3, "label", label).filter(pc.less(known["event_time"], at))
    with pytest.raises((AsOfError, UserError)) as error:
        trained(loop, store, tmp_path, table, as_of=as_of)
    return loop, str(error.value)


@pytest.mark.parametrize("settings", [{}, {"early_stopping": {"rounds": 5, "newest": "3d"}}], ids=str)
@pytest.mark.parametrize("as_of", ["2013-01-10", "2013-01-15"])
def test_too_early_an_as_of_is_told_the_first_that_would_do(store, tmp_path, as_of, settings):
    loop, words = refusal(store, tmp_path, datetime.fromisoformat(f"{as_of}T00:00Z"), **settings)
    assert "are of rows from 2013-01-01 00:00 to 2013-01-" in words
    first = re.search(r"a later as_of has enough, (\S+) or after", words)[1]
    for day, enough in ((-1, False), (0, True)):
        moment = datetime.fromisoformat(f"{first}T00:00Z") + timedelta(days=day)
        if enough:
            assert trained(loop, store, tmp_path, as_of=moment)[1].rows >= MIN_ROWS
        else:
            with pytest.raises((AsOfError, UserError)):
                trained(loop, store, tmp_path, as_of=moment)


def test_too_late_an_as_of_is_told_the_last_that_would_do(store, tmp_path):
    data = {"window": "10d"}
    loop, words = refusal(store, tmp_path, datetime.fromisoformat("2013-06-01T00:00Z"), data)
    last = datetime.fromisoformat(re.search(r"(\S+) was the last as_of with enough", words)[1] + "T00:00Z")
    assert trained(loop, store, tmp_path, as_of=last)[1].rows >= MIN_ROWS
    with pytest.raises((AsOfError, UserError)):
        trained(loop, store, tmp_path, as_of=last + timedelta(days=1))


def test_a_window_that_never_holds_enough_is_told_so(store, tmp_path):
    _, words = refusal(store, tmp_path, AS_OF, {"window": "2h"})
    assert "with these settings no as_of has 30 of them" in words


def test_the_recipe_is_spec_and_files_and_nothing_else(tmp_path):
    plain = recipe_of(make_loop(tmp_path / "a", **SAMPLED))
    assert recipe_of(make_loop(tmp_path / "b", **SAMPLED)) == plain
    assert recipe_of(make_loop(tmp_path / "b", **{**SAMPLED, "rounds": 25})) != plain
    loop = make_loop(tmp_path / "b", **SAMPLED)
    (tmp_path / "b" / "flights.sql").write_text("select * from flights where not cancelled\n")
    assert recipe_of(loop) != plain


def test_a_key_is_plain_json_and_follows_features_time_and_recipe(store, tmp_path):
    loop = make_loop(tmp_path / "loop", **SAMPLED)
    features = put_features(store, flight_rows())
    context = make_context(loop, store, tmp_path / "scratch")
    base = key(context, features)
    assert json.loads(json.dumps(base)) == base
    assert key(context, features.model_copy(update={"id": "1" * 64})) == base
    assert key(context, features.model_copy(update={"digest": "1" * 64})) != base
    assert key(replace(context, as_of=AS_OF + timedelta(days=1)), features) != base


def test_a_key_imports_no_learning_library(store, tmp_path):
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from types import SimpleNamespace
from datetime import datetime, UTC
import treadle.loop
loop = treadle.loop.Loop.load({str(tmp_path / "loop.yaml")!r})
from treadle.stages.train import key
from treadle.stages import Context
context = Context(loop, datetime(2013, 4, 1, tzinfo=UTC), None, None, Path(), print)
print(key(context, SimpleNamespace(digest="x"))["library"])
heavy = {{"numpy", "pandas", "pyarrow", "xgboost", "sklearn", "skops", "scipy"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    (tmp_path / "flights.sql").write_text("select 1")
    (tmp_path / "hooks.py").write_text("from sklearn.linear_model import LogisticRegression as model\n")
    for train_section in ("{}", "{flavour: estimator, hook: 'hooks:model'}"):
        (tmp_path / "loop.yaml").write_text(
            "name: flights\ndata:\n  sources: {flights: f.csv}\n  tables:\n    flights: {sql: flights.sql, "
            f"entity: e, event_time: t, label: y, label_known_at: k}}\ntrain: {train_section}\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
