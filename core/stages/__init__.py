"""The stages: one file each, named by its verb. The runner alone calls them.

A stage's file holds `VERSION` (raised by hand when its results can change), `key(...)`, which is light and hashes to
the record's id, and a function of the file's name that does the work and returns an `Outcome`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from treadle.loop import Loop
    from treadle.registry.log import ReleaseLog
    from treadle.store import Store

STAGES = ("prepare", "featurize", "train", "evaluate", "release", "deploy", "monitor", "retrain")


@dataclass(frozen=True, slots=True)
class Context:
    """Where and when a stage runs.

    Attributes:
        as_of: The clock, in UTC: rows, labels and values at or after it do not exist.
        log: The release log of the track, for reading.
        scratch: A folder for temporary files, removed when the stage ends.
        say: Takes one line of progress.
        device: What kind of accelerator the stage has: cpu, gpu, trainium or inferentia.
    """

    loop: Loop
    as_of: datetime
    store: Store
    log: ReleaseLog
    scratch: Path
    say: Callable[[str], None]
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage made, before the runner commits it.

    Attributes:
        results: The record's own fields, as plain JSON.
        files: Blob name to a local file or bytes; stored before the record.
        kept: Blob name to the sha256 of a blob that is in the store already.
        digest: Hash of the results where it isn't that of `results` and the blobs.
        notes: What does not enter the digest: seconds, addresses, run ids.
    """

    results: Mapping[str, Any]
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    digest: str | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
