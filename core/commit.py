"""Records in the store: finding them, trusting them, committing them.

Files first, record last: the creation of the record's file is the commit. Who comes second adopts the first's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from treadle.errors import BlobLost, StoreError
from treadle.records import Json, Record, record_id
from treadle.store import Store, fetch_blob

R = TypeVar("R", bound=Record)


def _folder(loop: str, kind: str) -> str:
    return f"records/{loop}/{kind}"


def find_record(store: Store, kind: type[R], loop: str, id_: str) -> R | None:
    """The record of an id; of those that superseded each other, the last. None when there is none.

    Raises:
        StoreError: Its file is no record of this kind.
    """
    base = id_.partition(".")[0]
    found, number = None, 0
    while True:
        name = base if number == 0 else f"{base}.{number}"
        path = f"{_folder(loop, kind.kind)}/{name}.json"
        try:
            text = store.read(path)
        except FileNotFoundError:
            return found
        try:
            found = kind.from_json(text)
        except ValueError as error:
            raise StoreError(
                f"{store.uri}/{path} is no {kind.kind} record that this version can read: {error}. "
                "Restore it from a backup, or remove it to have the stage run again."
            ) from None
        number += 1


def get_record(store: Store, kind: type[R], loop: str, id_: str) -> R:
    """The record of an id.

    Raises:
        StoreError: There is none.
    """
    found = find_record(store, kind, loop, id_)
    if found is None:
        raise StoreError(f"the store {store.uri} has no {kind.kind} record {id_[:12]} of {loop}")
    return found


def all_records(store: Store, kind: type[R], loop: str) -> Iterator[R]:
    """All records of a kind, those that were superseded too, in the order of their ids."""
    for name in store.list(_folder(loop, kind.kind)):
        yield kind.from_json(store.read(f"{_folder(loop, kind.kind)}/{name}"))


def lost_blobs(store: Store, record: Record) -> list[str]:
    """The sha256 of the record's blobs that are missing or altered; those with a tombstone are gone on purpose."""
    lost = []
    for sha256 in sorted(set(record.blobs.values())):
        if store.exists(f"tombstones/{sha256}.json"):
            continue
        try:
            fetch_blob(store, sha256)
        except BlobLost:
            lost.append(sha256)
    return lost


def make_record(
    kind: type[R],
    *,
    loop: str,
    as_of: object,
    key: Json,
    digest: str,
    results: Json,
    blobs: dict[str, str],
    notes: Json,
) -> R:
    """A record, its id made from its key."""
    header = {
        "id": record_id(kind.kind, loop, key),
        "digest": digest,
        "loop": loop,
        "as_of": as_of,
        "key": key,
    }
    return kind.model_validate({**header, **results, "blobs": blobs, "notes": notes})


def commit_record(store: Store, record: R) -> R:
    """The record as it stands in the store: this one, or that of whoever was first and came to the same results.

    A rebuild with other results supersedes: it is created as `<id>.N`, and counts from then on.
    """
    before = find_record(store, type(record), record.loop, record.id)
    while True:
        if before is not None and before.digest == record.digest and before.blobs == record.blobs:
            return before
        if before is not None:
            base, _, number = before.id.partition(".")
            record = record.model_copy(update={"id": f"{base}.{int(number or 0) + 1}"})
        path = f"{_folder(record.loop, record.kind)}/{record.id}.json"
        if store.create(path, record.to_json().encode()):
            return record
        before = get_record(store, type(record), record.loop, record.id)
        if not lost_blobs(store, before):
            return before
