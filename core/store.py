"""The store: create-only files by content or by name, with races decided by whoever creates first.

<uri>/blobs/<2 hex>/<sha256>                      files of records
<uri>/records/<loop>/<kind>/<id>[.N].json         the commit of a stage's work
<uri>/memo/<kind>/<id>.json                       work on single partitions, for reuse
<uri>/logs/<loop>/<track>/<sequence>.json         the release log
<uri>/leases/<name>/<n>.json                      who is at work on what
<uri>/tombstones/<sha256>.json                    blobs deleted for good
<uri>/captures/<loop>/<track>/<candidate>/...     what the endpoint answered
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from treadle.errors import BlobLost, StoreError, Transient
from treadle.identity import sha256_of, sha256_of_file


class Store(Protocol):
    """What a store must do. Paths are relative, with `/`; a conformance suite is in `treadle.testing.store`."""

    uri: str

    def create(self, path: str, data: bytes) -> bool:
        """Whether this call made the file: False when it exists, whatever it holds. Never a partial file.

        Raises:
            StoreError: The store can't be written (read-only, full). Transient: the network failed.
        """
        ...

    def create_from(self, path: str, source: Path) -> bool:
        """As `create`, from a local file, without reading it into memory."""
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
        """A local file with these bytes: the file itself, or a copy that stays for the process's life."""
        ...


class LocalStore:
    """A store in a local folder: a temporary file in the same folder, fsync, then `os.link` to the final name."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.uri = str(self.root)

    def create(self, path: str, data: bytes) -> bool:
        """See Store."""

        def write(descriptor: int) -> None:
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)

        return self._commit(path, write)

    def create_from(self, path: str, source: Path) -> bool:
        """See Store."""

        def copy(descriptor: int) -> None:
            with open(source, "rb") as reader, os.fdopen(descriptor, "wb", closefd=False) as file:
                shutil.copyfileobj(reader, file, 1 << 20)

        return self._commit(path, copy)

    def _commit(self, path: str, write: Any) -> bool:
        final = self.root / path
        if final.exists():
            return False
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".new-", dir=final.parent)
            try:
                write(descriptor)
                os.fsync(descriptor)
                os.link(temporary, final)
            except FileExistsError:
                return False
            finally:
                os.close(descriptor)
                os.unlink(temporary)
        except OSError as error:
            raise StoreError(
                f"the store {self.uri} can't be written: {error.strerror or error}. "
                "Nothing was recorded; free or unlock it, or choose another with --store."
            ) from error
        return True

    def read(self, path: str) -> bytes:
        """See Store."""
        return (self.root / path).read_bytes()

    def exists(self, path: str) -> bool:
        """See Store."""
        return (self.root / path).exists()

    def list(self, folder: str) -> list[str]:
        """See Store."""
        try:
            with os.scandir(self.root / folder) as entries:
                return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
        except FileNotFoundError:
            return []

    def delete(self, path: str) -> None:
        """See Store."""
        (self.root / path).unlink(missing_ok=True)

    def local_path(self, path: str) -> Path:
        """See Store."""
        return self.root / path


class ObjectStore:
    """A store on an object storage that fsspec knows, such as `s3://bucket/prefix`: create-only by `If-None-Match`."""

    def __init__(self, uri: str) -> None:
        import fsspec

        self.uri = uri.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.uri)
        except ImportError as error:
            raise StoreError(
                f'the store {self.uri} needs another package: {error}; try pip install "treadle[s3]"'
            ) from error
        self._cache: Path | None = None

    def create(self, path: str, data: bytes) -> bool:
        """See Store."""
        try:
            self._files.pipe_file(f"{self._root}/{path}", data, mode="create")
        except FileExistsError:
            return False
        except (PermissionError, FileNotFoundError) as error:
            raise StoreError(f"the store {self.uri} can't be written: {error}") from error
        except OSError as error:
            raise self._explained(error) from error
        return True

    def create_from(self, path: str, source: Path) -> bool:
        """See Store."""
        return self.create(path, source.read_bytes())

    def read(self, path: str) -> bytes:
        """See Store."""
        try:
            return bytes(self._files.cat_file(f"{self._root}/{path}"))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise self._explained(error) from error

    def exists(self, path: str) -> bool:
        """See Store."""
        try:
            self._files.info(f"{self._root}/{path}", refresh=True)
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> list[str]:
        """See Store."""
        try:
            found = self._files.ls(f"{self._root}/{folder}", detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return sorted(item["name"].rsplit("/", 1)[-1] for item in found if item["type"] == "file")

    def delete(self, path: str) -> None:
        """See Store."""
        if self.exists(path):
            self._files.rm_file(f"{self._root}/{path}")

    def local_path(self, path: str) -> Path:
        """See Store."""
        import atexit

        if self._cache is None:
            self._cache = Path(tempfile.mkdtemp(prefix="treadle-"))
            atexit.register(shutil.rmtree, self._cache, ignore_errors=True)
        copy = self._cache / path
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=copy.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.read(path))
            os.replace(temporary, copy)
        return copy

    def _explained(self, error: OSError) -> Transient:
        return Transient(f"the store {self.uri} did not answer as it should: {error}. Try again.")


def open_store(uri: str | os.PathLike[str]) -> Store:
    """The store at a folder's path or an object storage's URI, probed once for create-only writes.

    Raises:
        StoreError: The store lets a file be created twice, or can't be written.
    """
    text = os.fspath(uri)
    local = "://" not in text or text.startswith("file://")
    store: Store = LocalStore(Path(text.removeprefix("file://"))) if local else ObjectStore(text)
    if not store.exists("probe/passed"):
        probe(store)
    return store


def probe(store: Store) -> None:
    """Creates one file twice, then races for one from eight threads; a store that lets two win is refused.

    Raises:
        StoreError: More than one creation of the same file succeeded, or the wrong bytes stayed.
    """
    import uuid
    from concurrent.futures import ThreadPoolExecutor

    name = f"probe/{uuid.uuid4().hex}"
    try:
        twice = [store.create(f"{name}-twice", data) for data in (b"first", b"second")]
        intact = store.read(f"{name}-twice") == b"first"
        with ThreadPoolExecutor(8) as pool:
            wins = list(pool.map(lambda racer: store.create(f"{name}-race", str(racer).encode()), range(8)))
    finally:
        for suffix in ("-twice", "-race"):
            store.delete(name + suffix)
    if twice != [True, False] or not intact or sum(wins) != 1:
        raise StoreError(
            f"the store {store.uri} lets a file be created twice, so records and the release log would not be safe"
            " there. Use a local folder or an object storage with conditional writes (If-None-Match)."
        )
    store.create("probe/passed", b"create-only writes hold\n")


def blob_path(sha256: str) -> str:
    """Where a blob is."""
    return f"blobs/{sha256[:2]}/{sha256}"


def put_blob(store: Store, data: bytes | Path) -> str:
    """The sha256 of bytes or a local file, now in the store."""
    if isinstance(data, Path):
        sha256 = sha256_of_file(data)
        created = store.create_from(blob_path(sha256), data)
    else:
        sha256 = sha256_of(data)
        created = store.create(blob_path(sha256), data)
    if not created and not blob_is_intact(store, sha256):
        # An altered or cut blob under the right name: this content is the right one.
        store.delete(blob_path(sha256))
        if isinstance(data, Path):
            store.create_from(blob_path(sha256), data)
        else:
            store.create(blob_path(sha256), data)
    return sha256


def fetch_blob(store: Store, sha256: str) -> Path:
    """A local file with a blob's bytes, its hash checked.

    Raises:
        BlobLost: It is missing, altered, or deleted for good by a tombstone.
    """
    if store.exists(f"tombstones/{sha256}.json"):
        raise BlobLost(sha256, "deleted for good (a tombstone names it)")
    try:
        path = store.local_path(blob_path(sha256))
        found = sha256_of_file(path)
    except FileNotFoundError:
        raise BlobLost(sha256, "missing") from None
    if found != sha256:
        raise BlobLost(sha256, "altered")
    return path


def blob_is_intact(store: Store, sha256: str) -> bool:
    """Whether a blob exists with the content that its name says."""
    try:
        fetch_blob(store, sha256)
    except BlobLost:
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
    _object: Store = ObjectStore("")
