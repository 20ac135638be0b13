"""A loop on its way to another process, with the files of its own that are needed there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treadle.errors import TreadleError, UserError
from treadle.loop import Loop
from treadle.loop_code import code_of, hooks_of
from treadle.models.own_code import own_code
from treadle.wire import error_from_json, error_to_json

if TYPE_CHECKING:
    from treadle.models.predictor import FitTask


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

    @contextmanager
    def at_work(self) -> Iterator[Loop]:
        """The loop laid out to train by, as `own_code`; what fails names the files of the folder that it came from."""
        with self.laid_out() as loop:
            try:
                with own_code(loop):
                    yield loop
            except TreadleError as error:
                if str(loop.folder) not in str(error):
                    raise
                places = {str(loop.folder): str(self.loop.folder)}
                raise error_from_json(error_to_json(error, places)) from error.__cause__


def pack_loop(loop: Loop, *stages: str) -> LoopParcel:
    """A loop with the files that the hooks of some stages need.

    Raises:
        SpecError: A file is missing.
    """
    hooks = hooks_of(loop)
    files = code_of(loop, [name for stage in stages for name in hooks[stage]])
    return LoopParcel(loop, {path: (loop.folder / path).read_bytes() for path in files})


def parcel_of(task: FitTask) -> LoopParcel | None:
    """What the hook of a fit needs in another process; None without one.

    Raises:
        UserError: The fit was given a hook, and not the loop that it is from.
    """
    if task.hook is None:
        return None
    if task.code is None:
        raise UserError(
            f"train.workers: {task.train.workers} workers need the files of the hook {task.train.hook}, and this fit"
            ' has none of them. Give FitTask `code=pack_loop(loop, "train")`, or leave workers out.'
        )
    return task.code
