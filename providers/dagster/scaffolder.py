"""`dg scaffold defs treadle_dagster.LoopComponent NAME`: a loop that runs, and the component that loads it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import click
import dagster as dg
from pydantic import BaseModel, ConfigDict, Field, model_validator
from treadle.errors import TreadleError, UserError


class LoopParams(BaseModel):
    """What the command line may say; without a file, the loop learns from made-up data.

    Raises:
        click.UsageError: What is said does not go together. Dagster has made no folder yet.
    """

    model_config = ConfigDict(extra="forbid")

    loops: str = Field(
        default="loops", description="The folder for the loop's files, from the project's root."
    )
    data: str | None = Field(default=None, description="A CSV or Parquet file to learn from.")
    label: str | None = Field(default=None, description="Its column that is to be predicted.")
    time: str | None = Field(default=None, description="Its column that says when the question is asked.")
    entity: str | None = Field(default=None, description="Its column that says whom or what a row is about.")
    label_known_at: str | None = Field(
        default=None, description="Its column that says when the label was known."
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        from treadle.scaffold import asked_of

        with _usage_errors():
            asked_of(self.data, self.label, self.time, self.entity, self.label_known_at, None)
        return self


class LoopScaffolder(dg.Scaffolder[LoopParams]):
    """Writes the loop as `treadle init` does, then the component's `defs.yaml`."""

    @classmethod
    def get_scaffold_params(cls) -> type[LoopParams]:
        return LoopParams

    def scaffold(self, request: dg.ScaffoldRequest[LoopParams]) -> None:
        from treadle.scaffold import asked_of, init_loop

        said = request.params
        root = Path(request.project_root or Path.cwd())
        asked = asked_of(said.data, said.label, said.time, said.entity, said.label_known_at, None)
        name = request.target_path.name.replace("-", "_")
        with _leaves_nothing(request.target_path), _usage_errors():
            if not (root / said.loops).is_relative_to(root):
                raise UserError(f"--loops {said.loops}: the loop's files lie in the project, {root}.")
            written = init_loop(name, root / said.loops, asked=asked)
        for left in written.left:
            print(f"left to decide: {left}")
        attributes = {"loop": written.loop.relative_to(root).as_posix(), "in_process": True}
        dg.scaffold_component(request, attributes)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """The core's words as those of the command line, whose parameter for the file is `--data`."""
    try:
        yield
    except TreadleError as error:
        words = str(error).replace("--from", "--data")
        kind = click.UsageError if isinstance(error, UserError) else click.ClickException
        raise kind(words) from None


@contextmanager
def _leaves_nothing(folder: Path) -> Iterator[None]:
    """Removes the folder that Dagster made for the component, where nothing came of it."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it holds something: it is not ours
            folder.rmdir()
        raise
