from __future__ import annotations

import pytest
from treadle.models.checkpoints import StoreCheckpoints, clear
from treadle.store import LocalStore, blob_path, put_blob


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path)


def test_the_newest_counts_and_the_last_two_are_kept(store):
    checkpoints = StoreCheckpoints(store, "abc")
    assert checkpoints.latest() is None
    for rounds in (25, 50, 75, 100):
        checkpoints.save(rounds, b"booster %d" % rounds)
    assert StoreCheckpoints(store, "abc").latest() == (100, b"booster 100")
    assert store.list("checkpoints/abc") == ["00000075.json", "00000100.json"]
    assert StoreCheckpoints(store, "other").latest() is None


def test_a_damaged_one_is_passed_over_and_can_be_written_again(store, tmp_path):
    checkpoints = StoreCheckpoints(store, "abc")
    checkpoints.save(25, b"first")
    checkpoints.save(50, b"second")
    (tmp_path / blob_path(put_blob(store, b"second"))).write_bytes(b"torn")
    assert checkpoints.latest() == (25, b"first")
    checkpoints.save(50, b"second")
    assert checkpoints.latest() == (50, b"second")
    (tmp_path / "checkpoints/abc/00000050.json").write_text("{")
    assert checkpoints.latest() == (25, b"first")
    checkpoints.save(50, b"second")
    assert checkpoints.latest() == (50, b"second")


def test_clearing_leaves_neither_pointer_nor_blob(store, tmp_path):
    kept = put_blob(store, b"a model")
    StoreCheckpoints(store, "abc").save(25, b"booster")
    clear(store, "abc")
    assert store.list("checkpoints/abc") == []
    assert [path.name for path in tmp_path.glob("blobs/*/*")] == [kept]
