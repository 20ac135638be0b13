"""`train.init_from`: the weights to start from, which enter ids by their hash alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from treadle.errors import BlobDeleted, BlobLost, SpecError, UserError
from treadle.identity import sha256_of_file
from treadle.loop import Loop
from treadle.store import fetch_blob

if TYPE_CHECKING:
    from pathlib import Path

    from treadle.store import Store

_BLOB = re.compile(r"blob:[0-9a-f]{64}")
_FIELD = "train.init_from"


class BadWeights(UserError):
    """The weights to start from do not fit; the text is about the field `train.init_from`."""


def weights_of(loop: Loop) -> str | None:
    """The weights to start from as `blob:` and their hash, wherever they are; None without.

    Raises:
        SpecError: There is no such file, or no such hash.
    """
    where = loop.train.init_from
    if where is None or _BLOB.fullmatch(where):
        return where
    if where.startswith("blob:"):
        problem = f"{where!r} is no hash: after blob: come 64 digits of sha256, small letters."
        raise SpecError([loop.fault(_FIELD, problem)])
    path = loop.folder / where
    if not path.is_file():
        fix = "Write a path from the loop's folder, or blob: and the sha256 of a file in the store."
        raise SpecError([loop.fault(_FIELD, f"there is no file {where!r} in {loop.folder}.", fix)])
    return f"blob:{sha256_of_file(path)}"


def fetch_weights(loop: Loop, store: Store) -> Path | None:
    """The file with the weights to start from; None without.

    Raises:
        SpecError: It is not there.
    """
    where = weights_of(loop)
    if where is None or loop.train.init_from != where:
        return loop.folder / loop.train.init_from if loop.train.init_from else None
    try:
        return fetch_blob(store, where.removeprefix("blob:"))
    except (BlobLost, BlobDeleted) as error:
        fix = "`treadle show` names the blobs of a candidate; its weights are model/model.safetensors."
        raise SpecError([loop.fault(_FIELD, f"{error}.", fix)]) from None


@contextmanager
def naming_weights(loop: Loop) -> Iterator[None]:
    """Within it BadWeights becomes a SpecError at the field that named the weights."""
    try:
        yield
    except BadWeights as error:
        raise SpecError([loop.fault(_FIELD, f"{error}.")]) from error
