"""A candidate's recipe: the part of the spec and the files of the loop that it carries, laid out again."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path

from treadle.loop import Loop
from treadle.records import Candidate
from treadle.store import Store, fetch_blob

_laid_out: dict[str, Path] = {}
_FILES = "loop/files/"


def restore_loop(store: Store, candidate: Candidate, today: Loop) -> Loop:
    """The loop that trained a candidate, its own files in a folder of their own, reading today's sources.

    Raises:
        BlobLost: A file of the recipe is gone. SpecError: This version can't read the candidate's spec.
    """
    sections = json.loads(fetch_blob(store, candidate.blobs["loop/spec.json"]).read_bytes())
    files = {name: sha for name, sha in candidate.blobs.items() if name.startswith(_FILES)}
    folder = _laid_out.get(candidate.recipe)
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="treadle-recipe-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for name, sha256 in files.items():
            path = folder / name.removeprefix(_FILES)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fetch_blob(store, sha256), path)
        _laid_out[candidate.recipe] = folder
    return Loop.restore(sections, folder, sources_of=today)
