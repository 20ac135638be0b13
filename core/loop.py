"""The loop: the one object that says how a model is kept alive, from YAML or from Python.

>>> loop = Loop.load("loops/flights.yaml")        # doctest: +SKIP
>>> loop = Loop(name="flights", data={...})       # doctest: +SKIP
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import ModelWrapValidatorHandler, PrivateAttr, ValidationError, ValidationInfo, model_validator
from treadle import spec
from treadle.errors import Fault, SpecError, UserError
from treadle.loop_file import LoopFile, apply_overrides, faults_of, read_loop_file, replaced_by

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class Loop(spec.Section):
    """One model's life, as its team wants it. See docs/loop.md for every field."""

    name: spec.Name
    description: str = ""
    owner: str = ""
    tags: dict[str, str] = {}
    history: spec.History = spec.History()
    data: spec.Data
    features: spec.Features = spec.Features()
    train: spec.Train = spec.Train()
    gate: spec.Gate = spec.Gate()
    approval: Literal["auto", "manual"] = "auto"
    deploy: spec.Deploy = spec.Deploy()
    monitor: spec.Monitor | None = None
    retrain: spec.Retrain | None = None
    pools: dict[str, str | dict[str, Any]] = {}
    budget: spec.Budget | None = None
    retry: spec.Retry = spec.Retry()
    tracking: spec.Tracking = spec.Tracking()
    ignore: dict[str, str] = {}

    _file: LoopFile | None = PrivateAttr(default=None)
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _source_folder: Path | None = PrivateAttr(default=None)
    _overrides: tuple[str, ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _faults_with_lines(
        cls, content: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        try:
            return handler(content)
        except ValidationError as error:
            raise SpecError(faults_of(error, cls, (info.context or {}).get("file"))) from None

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, overrides: Sequence[str] = ()) -> Self:
        """The loop that a YAML file describes.

        Args:
            path: The file; hooks, SQL and Feast files are looked for in its folder.
            overrides: `section.field=value` each, the value in YAML; they enter the ids as if written in the file.

        Raises:
            SpecError: The file is missing, is no YAML, or says something that no loop can mean; names every fault.
        """
        return cls.of_file(read_loop_file(Path(path)), overrides=overrides)

    @classmethod
    def of_file(cls, file: LoopFile, *, overrides: Sequence[str] = ()) -> Self:
        """The loop that a parsed file describes. See `load`."""
        content = apply_overrides(file, overrides)
        file = replace(file, replaced=(*file.replaced, *replaced_by(overrides)))
        loop = cls.model_validate(content, context={"file": file})
        loop._file, loop._folder, loop._overrides = file, file.path.parent, tuple(overrides)
        return loop

    @classmethod
    def restore(cls, sections: Mapping[str, Any], folder: Path, *, sources_of: Loop) -> Self:
        """The loop that an earlier candidate was trained by, its files in `folder`, with today's addresses.

        A candidate carries no source's URI, no online store and no thread count: these are today's.

        Raises:
            SpecError: The candidate was written by a version of treadle whose spec this one can't read.
        """
        content = {"name": sources_of.name, **sections}
        data = dict(content["data"])
        current = sources_of.data.sources
        data["sources"] = {
            name: {**dict(kept), "uri": current[name].uri}
            if name in current
            else {**dict(kept), "uri": f"gone:{name}"}
            for name, kept in data["sources"].items()
        }
        content["data"] = {**data, "threads": sources_of.data.threads}
        if sources_of.features.online is not None:
            content["features"] = {**content.get("features", {}), "online": sources_of.features.online}
        loop = cls.model_validate(content)
        loop._folder, loop._source_folder = folder, sources_of.source_folder
        return loop

    def placed(self, folder: Path, *, source_folder: Path) -> Self:
        """The same loop with its own files in another folder; relative sources start from `source_folder`."""
        loop = self.model_copy()
        loop._folder, loop._source_folder = folder, source_folder
        return loop

    @property
    def folder(self) -> Path:
        """Where the loop's own files are."""
        return self._folder

    @property
    def source_folder(self) -> Path:
        """What relative source paths start from: the folder, but for a restored loop that of today's loop."""
        return self._source_folder or self._folder

    @property
    def file(self) -> LoopFile | None:
        """The YAML file with its line numbers; None for a loop written in Python."""
        return self._file

    @property
    def overrides(self) -> tuple[str, ...]:
        """What `--set` changed; a run with any waits for a person on the production track."""
        return self._overrides

    def fault(self, field: str, problem: str, fix: str = "") -> Fault:
        """A fault at one of this loop's fields, with the file and the line where it stands."""
        if self._file is None:
            return Fault(f"loop {self.name!r}", 0, field, problem, fix)
        return Fault(*self._file.place_of(field), field, problem, fix)

    @property
    def pool_names(self) -> dict[str, str]:
        """The name of each stage's pool; one that is described here has its stage's name, unless it says another."""
        return {
            stage: pool if isinstance(pool, str) else str(pool.get("name", stage))
            for stage, pool in self.pools.items()
        }

    def pool_fault(self, stage: str, pool: str, problem: str, fix: str = "") -> Fault:
        """A fault of a stage's pool: at the loop's line, or at `--pool` where that named another than the loop does."""
        if self.pool_names.get(stage) == pool:
            return self.fault(f"pools.{stage}", problem, fix)
        return Fault(f"--pool {stage}={pool}", 0, "", problem, fix)

    def expand(self, text: str, field: str) -> str:
        """`text` with each `${VAR}` or `${VAR:-default}` replaced from the environment.

        Raises:
            SpecError: A variable is not set and has no default.
        """

        def value_of(match: re.Match[str]) -> str:
            value = os.environ.get(match[1]) or match[2]
            if value is None:
                fix = f"Set it: export {match[1]}=..., or write ${{{match[1]}:-default}}."
                raise SpecError([self.fault(field, f"the variable {match[1]} is not set.", fix)])
            return value

        return _VARIABLE.sub(value_of, text)

    def source_uri(self, name: str) -> str:
        """Where a source is: an absolute path, or a URI as fsspec knows it. Never enters an id.

        Raises:
            SpecError: An unset variable, or a `package://` whose distribution is not installed.
        """
        field = f"data.sources.{name}"
        uri = self.expand(self.data.sources[name].uri, field)
        if uri.startswith("gone:"):
            raise UserError(
                f"the source {name!r} that an earlier model was trained on is no longer in the loop"
            )
        if uri.startswith("package://"):
            return str(self._inside_package(uri, field))
        if "://" in uri:
            return uri
        return str((self.source_folder / uri).resolve())

    def _inside_package(self, uri: str, field: str) -> Path:
        from importlib.metadata import PackageNotFoundError, distribution

        name, _, inside = uri.removeprefix("package://").partition("/")
        try:
            return Path(str(distribution(name).locate_file(inside)))
        except PackageNotFoundError:
            fault = self.fault(field, f"the package {name!r} is not installed.", f"pip install {name}")
            raise SpecError([fault]) from None

    def part(self, *sections: str) -> dict[str, Any]:
        """Sections as plain JSON, without defaults, variables unexpanded: what enters a key."""
        return self.model_dump(mode="json", include=set(sections), exclude_defaults=True, by_alias=True)

    def __repr__(self) -> str:
        labelled = self.data.tables[self.data.labelled]
        return f"Loop({self.name!r}, label={labelled.label!r}, flavour={self.train.flavour!r})"
