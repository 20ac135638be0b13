"""A loop on its way to another process, with the files of its own that are needed there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from treadle.loop import Loop
from treadle.loop_code import code_of, hooks_of


@dataclass(frozen=True, slots=True)
class LoopParcel:
    """A loop and its own files, by path in its folder; it can be pickled."""

    loop: Loop
    files: dict[str, bytes]

    @contextmanager
    def laid_out(self) -> Iterator[Loop]:
        """The loop, its files in a folder of their own for as long."""
        with tempfile.TemporaryDirectory(prefix="treadle-parcel-") as temporary:
            folder = Path(os.path.realpath(temporary))
            for path, content in self.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            yield self.loop.placed(folder, source_folder=self.loop.source_folder)


def pack_loop(loop: Loop, *stages: str) -> LoopParcel:
    """A loop with the files that the hooks of some stages need.

    Raises:
        SpecError: A file is missing.
    """
    hooks = hooks_of(loop)
    files = code_of(loop, [name for stage in stages for name in hooks[stage]])
    return LoopParcel(loop, {path: (loop.folder / path).read_bytes() for path in files})
