"""The files that a loop reads: their digests, and local copies that DuckDB can open."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from treadle.errors import Transient, TreadleError, UserError
from treadle.identity import sha256_of_file
from treadle.loop import Loop
from treadle.redaction import cause, redacted

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A source as a file on this machine, unpacked; `uri` is where it came from, for messages."""

    name: str
    uri: str
    path: Path
    format: Literal["csv", "parquet"]
    nulls: tuple[str, ...]


def source_digests(loop: Loop) -> dict[str, str]:
    """sha256 of each source's bytes, by name; read in pieces, every time.

    Raises:
        UserError: A source is missing or can't be read. Transient: its storage did not answer.
    """
    return {name: _digest(loop, name) for name in sorted(loop.data.sources)}


def _digest(loop: Loop, name: str) -> str:
    with _opened(loop, name) as file:
        hasher = hashlib.sha256()
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.hexdigest()


@contextmanager
def _opened(loop: Loop, name: str) -> Iterator[IO[bytes]]:
    """A source's bytes, from a local path or through fsspec."""
    uri = loop.source_uri(name)
    what = f"the source {name!r} ({uri})"
    try:
        if "://" not in uri:
            with open(uri, "rb") as file:
                yield file
            return
        import fsspec

        with fsspec.open(uri, "rb") as file:
            yield file
    except FileNotFoundError as error:
        if _may_pass(error.__cause__):  # what fsspec says of a server that doesn't answer
            raise Transient(f"{what} could not be read: its server did not answer. Try again.") from None
        raise UserError(
            f"{what} does not exist. Correct `data.sources.{name}` in the loop, or put the file there."
        ) from None
    except IsADirectoryError:
        raise UserError(
            f"{what} is a folder. Name one CSV, zipped CSV or Parquet file in `data.sources.{name}`."
        ) from None
    except PermissionError as error:
        raise UserError(f"{what} can't be read: {error}. Give this user the right to read it.") from None
    except ImportError as error:
        raise UserError(
            f"{what} needs another package: {error}. For s3:// install it with: pip install 'treadle[s3]'"
        ) from None
    except ValueError as error:
        # fsspec's word for a protocol that it doesn't know
        raise UserError(f"{what} can't be opened: {error}. Correct `data.sources.{name}`.") from None
    except TreadleError:
        raise
    except Exception as error:  # network libraries share no base class
        problem = f"{what} could not be read: {type(error).__name__}: {redacted(str(error), uri)}."
        if type(error).__name__ in _REFUSED:
            raise UserError(f"{problem} Correct the address or the credentials.") from cause(error, uri)
        raise Transient(f"{problem} Try again.") from cause(error, uri)


# By name, as their packages may not be installed.
_REFUSED = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ParamValidationError"}


def _may_pass(error: BaseException | None) -> bool:
    """Whether an error of the network speaks of a server that is away or busy, not of a file that isn't there."""
    while isinstance(error, FileNotFoundError):
        error = error.__cause__
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status >= 500 or status == 429
    return isinstance(error, (OSError, TimeoutError))


def fetch_source(loop: Loop, name: str, digest: str, folder: Path) -> LocalSource:
    """A source as a local, unpacked file whose bytes have `digest`; a local file is used where it stands.

    Raises:
        UserError: It is no CSV, zipped CSV with one member, or Parquet. Transient: it changed since it was
        hashed.
    """
    spec = loop.data.sources[name]
    uri = loop.source_uri(name)
    if "://" in uri:
        path = folder / f"{name}-{Path(uri.partition('?')[0]).name}"
        with _opened(loop, name) as file, open(path, "wb") as copy:
            shutil.copyfileobj(file, copy, _PIECE)
    else:
        path = Path(uri)
    if sha256_of_file(path) != digest:
        raise Transient(
            f"the source {name!r} ({uri}) changed while it was read. Try again when it is at rest."
        )
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        path = _unzipped(name, uri, path, folder)
        head = _head(path)
    kind = spec.format or ("parquet" if head == b"PAR1" or path.suffix in {".parquet", ".pq"} else "csv")
    return LocalSource(name, uri, path, kind, spec.nulls)


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4)


def separator_of(path: Path) -> str:
    """What stands most often between the names of a CSV file's first line: comma, semicolon, tab or bar."""
    with open(path, "rb") as file:
        first = file.readline(_PIECE)
    unquoted = b"".join(first.split(b'"')[::2])
    return max(",;\t|", key=lambda mark: unquoted.count(mark.encode()))


def refuse_repeated_names(source: LocalSource) -> None:
    """Nothing, where each column of a file has a name of its own; DuckDB would call the second of two `a` `a_1`.

    Raises:
        UserError: Two columns have one name, or names that differ only in case, which SQL takes for one.
    """
    seen: dict[str, tuple[int, str]] = {}
    for number, name in enumerate(_names(source), 1):
        if not name:
            continue
        before = seen.setdefault(name.casefold(), (number, name))
        if before[0] != number:
            called = (
                f"both {name!r}"
                if name == before[1]
                else f"{before[1]!r} and {name!r}, which SQL takes for one"
            )
            raise UserError(
                f"the source {source.name!r} ({source.uri}): its columns {before[0]} and {number} are called"
                f" {called}: nobody can say which is meant. Rename one of them in the file."
            )


def _names(source: LocalSource) -> list[str]:
    """The names of a file's columns; none where it can't be read, which its reader then says."""
    if source.format == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(source.path).names)
        except (pa.ArrowException, OSError):
            return []
    import csv

    try:
        with open(source.path, encoding="utf-8-sig", newline="") as file:
            return next(csv.reader(file, delimiter=separator_of(source.path)), [])
    except (UnicodeDecodeError, csv.Error):
        return []


def _unzipped(name: str, uri: str, path: Path, folder: Path) -> Path:
    import zipfile
    import zlib

    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) != 1:
                raise UserError(
                    f"the source {name!r} ({uri}) is a zip of {len(members)} files; a source is a zip of"
                    " one CSV."
                    " Unpack it and name each file as a source of its own."
                )
            # The member's own name could lead out of the folder.
            target = folder / f"{name}{Path(members[0].filename).suffix or '.csv'}"
            with archive.open(members[0]) as packed, open(target, "wb") as copy:
                shutil.copyfileobj(packed, copy, _PIECE)
            return target
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f"the source {name!r} ({uri}) is a broken zip file: {error}. Fetch it again from where it came."
        ) from None
