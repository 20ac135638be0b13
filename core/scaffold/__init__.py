"""`treadle init`: a first loop with its files, on made-up data or on a file of one's own.

What only a person can know is never guessed: it stands in the files behind the word DECIDE, and `treadle check` finds
what is still missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from treadle.errors import StoreError, UserError
from treadle.scaffold.inspection import Asked

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,62}")


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the loop file, all files with it, and what a person must decide, as `file:line: what`."""

    loop: Path
    files: tuple[Path, ...]
    left: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """The same as JSON."""
        return {"loop": str(self.loop), "files": [str(path) for path in self.files], "left": list(self.left)}


def words_of(written: Written) -> str:
    """What a person should read after `treadle init`."""
    lines = [f"wrote {path}" for path in written.files]
    lines += ["left to decide:", *(f"  {what}" for what in written.left)] if written.left else []
    then = "" if written.left else f" && treadle run {written.loop}"
    return "\n".join([*lines, f"next: treadle check {written.loop}{then}"])


def asked_of(
    source: str | None,
    label: str | None,
    time: str | None,
    entity: str | None,
    label_known_at: str | None,
    known_at: str | None,
) -> Asked | None:
    """What the command line says about a file; None where it names none.

    Raises:
        UserError: Options about a file without the file, or a file without who, when and what.
    """
    options = {"--label": label, "--time": time, "--entity": entity}
    more = {"--label-known-at": label_known_at, "--known-at": known_at}
    if source is None:
        if given := [option for option, value in (options | more).items() if value]:
            raise UserError(f"{', '.join(given)}: of which file? Name it by --from.")
        return None
    if missing := [option for option, value in options.items() if not value]:
        raise UserError(
            f"--from {source} also needs {', '.join(missing)}: --label names what is to be predicted, --time when the"
            " question is asked, --entity whom or what it is about."
        )
    return Asked(source, label or "", time or "", entity or "", label_known_at, known_at)


def init_loop(name: str, folder: Path, *, asked: Asked | None = None, features: bool = False) -> Written:
    """Writes a new loop into a folder.

    Args:
        name: The loop's name, and that of its files.
        folder: Made if it is not there.
        asked: The file to learn from; None for made-up data.
        features: Whether a Feast file with one view is written and used as well.

    Raises:
        UserError: The name is none, a file exists already, or the data can't be used as asked; nothing is written.
        StoreError: The folder can't be written.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} can't name a loop: a name is a letter, then letters, digits or _, at most 63."
        )
    _refuse_existing([folder / f"{name}.yaml"])
    if asked is None:
        from treadle.scaffold.example import example_files

        files = example_files(name, features=features)
    else:
        from treadle.scaffold.templates import files_on

        files = files_on(name, asked, folder, features=features)
    paths = _write_new(folder, files)
    left = [
        f"{folder / file}:{number}: {line.partition('DECIDE: ')[2]}"
        for file, text in files.items()
        for number, line in enumerate(text.splitlines(), 1)
        if "DECIDE: " in line
    ]
    return Written(folder / f"{name}.yaml", paths, tuple(left))


def _refuse_existing(paths: list[Path]) -> None:
    if there := [str(path) for path in paths if path.exists() or path.is_symlink()]:
        raise UserError(
            f"{', '.join(there)} exists already, and is never overwritten. Choose another name, or move it away."
        )


def _write_new(folder: Path, files: dict[str, str]) -> tuple[Path, ...]:
    """Creates each file, the loop's own last, so that no loop stands without its files; all or none."""
    _refuse_existing([folder / file for file in files])
    made: list[Path] = []
    try:
        for file in reversed(files):
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "x", encoding="utf-8", newline="\n") as opened:
                made.append(path)
                opened.write(files[file])
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            _refuse_existing([Path(error.filename)])
        raise StoreError(f"{error.filename or folder} can't be written: {error.strerror}.") from error
    return tuple(reversed(made))
