"""Hashes of values and of files: the only place that makes ids and digests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no blanks, times as they are given, floats by `repr`.

    Raises:
        TypeError: The value holds something that JSON can't, or a float that is not finite.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value!r} has no place in a record: write None and say why beside it")
        return value + 0.0  # -0.0 and 0.0 are one value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def digest_of(value: Any) -> str:
    """sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256_of(data: bytes) -> str:
    """sha256, in hex, of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """sha256, in hex, of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
