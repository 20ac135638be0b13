"""Checkpoints of a training in the store, found again by the id of the record that it is to make.

checkpoints/<record id>/<rounds>.json names a blob that is there before it. The last two are kept.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

from treadle.errors import BlobLost
from treadle.preemption import stop_if_asked
from treadle.store import Store, blob_path, fetch_blob, put_blob

if TYPE_CHECKING:
    from treadle.models.predictor import Checkpoints

_KEPT = 2
_logger = logging.getLogger(__name__)


class StoreCheckpoints:
    """See Checkpoints. `name` is the record's id."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.folder = store, _folder(name)

    def latest(self) -> tuple[int, bytes] | None:
        """See Checkpoints. One that is damaged is passed over for the one before."""
        for file in reversed(self.store.list(self.folder)):
            sha256 = self._sha256(file)
            if sha256 is None:
                continue
            try:
                data = fetch_blob(self.store, sha256).read_bytes()
            except BlobLost as error:
                _logger.warning("passing over checkpoint %s/%s: %s", self.folder, file, error)
                continue
            return int(file.removesuffix(".json")), data
        return None

    def save(self, rounds: int, data: bytes) -> None:
        """See Checkpoints."""
        sha256 = put_blob(self.store, data)
        file = f"{rounds:08d}.json"
        content = json.dumps({"rounds": rounds, "sha256": sha256}).encode()
        if not self.store.create(f"{self.folder}/{file}", content) and self._sha256(file) != sha256:
            self.store.delete(f"{self.folder}/{file}")
            self.store.create(f"{self.folder}/{file}", content)
        for old in [name for name in self.store.list(self.folder) if name <= file][:-_KEPT]:
            self.remove(old)
        stop_if_asked()

    def remove(self, file: str) -> None:
        """Removes a checkpoint and its blob, which no record names."""
        sha256 = self._sha256(file)
        self.store.delete(f"{self.folder}/{file}")
        if sha256 is not None:
            self.store.delete(blob_path(sha256))

    def _sha256(self, file: str) -> str | None:
        try:
            found = json.loads(self.store.read(f"{self.folder}/{file}"))["sha256"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return found if isinstance(found, str) else None


def clear(store: Store, name: str) -> None:
    """Removes the checkpoints of a record that is committed."""
    checkpoints = StoreCheckpoints(store, name)
    for file in store.list(_folder(name)):
        checkpoints.remove(file)


def _folder(name: str) -> str:
    return f"checkpoints/{name}"


if TYPE_CHECKING:

    def _conforms(store: Store) -> Checkpoints:
        return StoreCheckpoints(store, "")
