"""The store: create-only files by content or by name, with races decided by whoever creates first.

<uri>/blobs/<2 hex>/<sha256>                      files of records
<uri>/records/<loop>/<kind>/<id>[.N].json         the commit of a stage's work
<uri>/memo/<kind>/<id>.json                       work on single partitions, for reuse
<uri>/logs/<loop>/<track>/<sequence>.json         the release log
<uri>/leases/<name>/<n>.json                      who is at work on what
<uri>/tombstones/<sha256>.json                    blobs deleted for good
<uri>/jobs/<loop>/<key>/...                       stages as jobs on pools, and what they came to
<uri>/costs/<loop>/...                            what jobs may cost and did cost
<uri>/captures/<loop>/<track>/<candidate>/...     what the endpoint answered
<uri>/checkpoints/<id>/...                        unfinished training
<uri>/projections/<loop>/<track>/...              receipts of what MLflow and the online store were given
<uri>/online/, mlflow.db, mlartifacts/            projections themselves, beside a local store that names no other
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

from treadle.errors import BlobDeleted, BlobLost, StoreError, Transient
from treadle.identity import sha256_of, sha256_of_file
from treadle.object_store import ObjectStore


class Store(Protocol):
    """What a store must do. Paths are relative, with `/`. `treadle.testing.store.StoreSuite` tests it."""

    uri: str

    def create(self, path: str, data: bytes) -> bool:
        """Whether this call made the file: False when it exists, whatever it holds. Never a partial file.

        After a lost answer from a network, False may mean that this very call made it: look at what is there.

        Raises:
            StoreError: The store can't be written (read-only, full). Transient: the network failed.
        """
        ...

    def create_from(self, path: str, source: Path) -> bool:
        """As `create`, from a local file, without reading it into memory."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Puts these bytes in a file's place, all at once. Only to put an altered blob right."""
        ...

    def read(self, path: str) -> bytes:
        """A file's bytes. Raises FileNotFoundError when there is none."""
        ...

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        ...

    def list(self, folder: str) -> list[str]:
        """The names of the files directly in a folder, sorted; empty when there is no such folder."""
        ...

    def delete(self, path: str) -> None:
        """Removes a file; nothing happens when there is none. Only for leases, and blobs with a tombstone."""
        ...

    def local_path(self, path: str) -> Path:
        """A local file with these bytes: the file itself, or a copy that stays for the process's life.

        Raises FileNotFoundError when there is none.
        """
        ...


@runtime_checkable
class ListsFolders(Protocol):
    """A store that can also say which folders are in a folder: for words to people, nothing rests on it."""

    def folders(self, folder: str) -> tuple[str, ...]:
        """The names of the folders directly in a folder, sorted; empty when there is no such folder."""
        ...


class LocalStore:
    """A store in a local folder: a temporary file beside the final name, fsync, then `os.link`."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        self.uri = str(self.root)
        self._swept: set[Path] = set()

    def create(self, path: str, data: bytes) -> bool:
        """See Store."""
        return self._write(path, lambda file: file.write(data))

    def create_from(self, path: str, source: Path) -> bool:
        """See Store."""
        with open(source, "rb") as reader:
            return self._write(path, lambda file: shutil.copyfileobj(reader, file, 1 << 20))

    def replace(self, path: str, data: bytes) -> None:
        """See Store."""
        self._write(path, lambda file: file.write(data), over=True)

    def _write(self, path: str, write: Callable[[BinaryIO], object], *, over: bool = False) -> bool:
        final = self.root / path
        if not over and self.exists(path):
            return False
        temporary = final.with_name(f"{_UNFINISHED}{uuid.uuid4().hex}")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            self._sweep(final.parent)
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
                if over:
                    os.replace(temporary, final)
                elif not _link(temporary, final, file.fileno()):
                    return False
            if path.startswith("logs/"):
                _sync_folder(final.parent)  # what the log said must outlast a power failure too
        except OSError as error:
            raise StoreError(
                f"the store {self.uri} can't be written: {_reason(error)}. "
                "Nothing was recorded; free or unlock it, or choose another with --store."
            ) from error
        finally:
            with suppress(OSError):
                temporary.unlink()
        return True

    def _sweep(self, folder: Path) -> None:
        """Removes, once for each folder, what writers left that were killed more than a day ago."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(_UNFINISHED):
                    with suppress(OSError):
                        if time.time() - entry.stat().st_mtime > 86_400:
                            os.unlink(entry)

    def read(self, path: str) -> bytes:
        """See Store."""
        with self._reading(path):
            return (self.root / path).read_bytes()

    def exists(self, path: str) -> bool:
        """See Store."""
        with self._reading(path):
            return (self.root / path).is_file()

    def list(self, folder: str) -> list[str]:
        """See Store."""
        try:
            with self._reading(folder), os.scandir(self.root / folder) as entries:
                return sorted(e.name for e in entries if not e.name.startswith(_UNFINISHED) and e.is_file())
        except FileNotFoundError:
            return []

    def folders(self, folder: str) -> tuple[str, ...]:
        """See ListsFolders."""
        try:
            with self._reading(folder), os.scandir(self.root / folder) as entries:
                return tuple(sorted(e.name for e in entries if e.is_dir()))
        except FileNotFoundError:
            return ()

    def delete(self, path: str) -> None:
        """See Store."""
        with suppress(FileNotFoundError), self._reading(path, "deleted"):
            (self.root / path).unlink()

    def local_path(self, path: str) -> Path:
        """See Store."""
        if not self.exists(path):
            raise FileNotFoundError(f"{self.uri}/{path}")
        return self.root / path

    @contextmanager
    def _reading(self, path: str, what: str = "read") -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{self.uri}/{path}") from None
        except OSError as error:
            problem = f"{self.uri}/{path} can't be {what}: {_reason(error)}. Check the rights and the disk."
            raise StoreError(problem) from error


_UNFINISHED = ".new-"


def _link(temporary: Path, final: Path, descriptor: int) -> bool:
    """Whether `final` is now our file; False when another made it first."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        # NFS may make the link, lose the answer, and refuse its own repetition; two names say that it was us.
        return os.fstat(descriptor).st_nlink == 2
    return True


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EXDEV) and error.filename2:
        return f"this file system has no hard links ({error.strerror})"
    return error.strerror or str(error)


def open_store(uri: str | os.PathLike[str]) -> Store:
    """The store at a folder's path or an object storage's URI, probed once for create-only writes.

    Raises:
        StoreError: The store lets a file be created twice, or can't be written.
        Transient: It can't be reached.
    """
    text = os.fspath(uri)
    local = "://" not in text or text.startswith("file://")
    store: Store = LocalStore(Path(text.removeprefix("file://"))) if local else ObjectStore(text)
    if not store.exists("probe/passed"):
        probe(store)
    return store


def probe(store: Store, *, racers: int = 8, races: int = 3) -> None:
    """Creates one file twice, then races for others from threads; a store that lets two win is refused.

    Raises:
        StoreError: More than one creation of the same file succeeded, or the wrong bytes stayed.
    """
    name = f"probe/{uuid.uuid4().hex}"
    made = [f"{name}-twice", *(f"{name}-race-{number}" for number in range(races))]
    try:
        twice = [store.create(made[0], data) for data in (b"first", b"second")]
        sound = twice == [True, False] and store.read(made[0]) == b"first"
        sound = sound and all(_race(store, path, racers) for path in made[1:])
    finally:
        with suppress(StoreError, Transient):
            for path in made:
                store.delete(path)
    if not sound:
        raise StoreError(
            f"the store {store.uri} lets a file be created twice, so records and the release log would not be"
            " safe there. Use a local folder or an object storage with conditional writes (If-None-Match)."
        )
    store.create("probe/passed", b"create-only writes hold\n")


def _race(store: Store, path: str, racers: int) -> bool:
    """Whether of several threads that create one file at once exactly one wins, and its bytes stay."""
    from concurrent.futures import ThreadPoolExecutor

    together = threading.Barrier(racers)

    def create(racer: int) -> bool:
        together.wait()
        return store.create(path, str(racer).encode() * 4096)

    with ThreadPoolExecutor(racers) as pool:
        won = list(pool.map(create, range(racers)))
    return sum(won) == 1 and store.read(path) == str(won.index(True)).encode() * 4096


def blob_path(sha256: str) -> str:
    """Where a blob is."""
    return f"blobs/{sha256[:2]}/{sha256}"


def put_blob(store: Store, data: bytes | Path) -> str:
    """The sha256 of bytes or a local file, now in the store; an altered blob of that name is put right.

    Raises:
        BlobDeleted: A tombstone says that these bytes must not come back. StoreError, Transient: see Store.
    """
    sha256 = sha256_of_file(data) if isinstance(data, Path) else sha256_of(data)
    path = blob_path(sha256)
    _refuse_deleted(store, sha256)
    created = store.create_from(path, data) if isinstance(data, Path) else store.create(path, data)
    if not created and not blob_is_intact(store, sha256):
        store.replace(path, data.read_bytes() if isinstance(data, Path) else data)
    return sha256


def fetch_blob(store: Store, sha256: str) -> Path:
    """A local file with a blob's bytes, its hash checked.

    Raises:
        BlobLost: It is missing or altered. BlobDeleted: A tombstone names it.
    """
    _refuse_deleted(store, sha256)
    try:
        path = store.local_path(blob_path(sha256))
        found = _hash_of(path)
    except FileNotFoundError:
        raise BlobLost(sha256, "missing") from None
    except OSError as error:
        raise StoreError(
            f"blob {sha256} can't be read: {_reason(error)}. Check the rights and the disk."
        ) from error
    if found != sha256:
        raise BlobLost(sha256, "altered")
    return path


# File to its identity and hash: one process that turns the wheel through a year asks for the same blobs a
# thousand times. Whatever is written to a file changes its time.
_hashed: dict[str, tuple[tuple[int, int, int, int], str]] = {}


def _hash_of(path: Path) -> str:
    """The sha256 of a file, read again only when the file is another than when this process last read it."""
    found = os.stat(path)
    identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    known = _hashed.get(str(path))
    if known is None or known[0] != identity:
        known = _hashed[str(path)] = (identity, sha256_of_file(path))
    return known[1]


def _refuse_deleted(store: Store, sha256: str) -> None:
    if store.exists(f"tombstones/{sha256}.json"):
        raise BlobDeleted(sha256)


def blob_is_intact(store: Store, sha256: str) -> bool:
    """Whether a blob exists with the content that its name says."""
    try:
        fetch_blob(store, sha256)
    except (BlobLost, BlobDeleted):
        return False
    return True


def read_memo(store: Store, kind: str, key: str) -> dict[str, Any] | None:
    """What `write_memo` kept under a key (a digest), or None."""
    try:
        found = json.loads(store.read(f"memo/{kind}/{key}.json"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_memo(store: Store, kind: str, key: str, value: dict[str, Any]) -> None:
    """Keeps a small result under a key (a digest of all that made it); the first writer's stays."""
    store.create(f"memo/{kind}/{key}.json", json.dumps(value, sort_keys=True).encode())


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for temporary files, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="treadle-") as folder:
        yield Path(folder)


if TYPE_CHECKING:
    _local: Store = LocalStore(Path())
