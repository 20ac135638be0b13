"""`dg scaffold defs treadle_dagster.LoopComponent NAME`: a loop that runs, and the component that loads it."""

from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel, Field


class LoopParams(BaseModel):
    """What the command line may say; without a file, the loop learns from made-up data."""

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
        written = init_loop(name, root / said.loops, asked=asked)
        for left in written.left:
            print(f"left to decide: {left}")
        attributes: dict[str, Any] = {"loop": written.loop.relative_to(root).as_posix()}
        dg.scaffold_component(request, attributes)
