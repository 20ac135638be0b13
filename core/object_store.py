"""A store on an object storage: S3, or any other to which fsspec can make create-only writes."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from treadle.errors import MissingPackage, StoreError, Transient
from treadle.redaction import cause, redacted

if TYPE_CHECKING:
    from treadle.store import Store

T = TypeVar("T")

# By default s3fs tries 5 times, within each botocore 5 times, and each may wait for a minute.
_S3_CONFIG = {"connect_timeout": 3, "read_timeout": 30, "retries": {"max_attempts": 1}}
_S3_TRIES = 2
_CONFLICTS = {"ConditionalRequestConflict", "OperationAborted", "409"}
_EXISTS = {"PreconditionFailed", "412"}


class ObjectStore:
    """A store at an fsspec URI such as `s3://bucket/prefix`: create-only by `If-None-Match`.

    Credentials, region and endpoint come from the environment (`AWS_*`), as for every AWS client, or from
    fsspec's own configuration, which also replaces the timeouts set here.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._pid = 0
        self._opened: Any = None
        self._root = ""
        self._cache: Path | None = None
        self._cached: dict[str, str] = {}
        self._client()

    def create(self, path: str, data: bytes) -> bool:
        """See Store."""
        return self._create(path, lambda files, full: files.pipe_file(full, data, mode="create"))

    def create_from(self, path: str, source: Path) -> bool:
        """See Store."""
        with open(source, "rb"):  # a missing source is not the store's fault
            return self._create(path, lambda files, full: files.put_file(str(source), full, mode="create"))

    def _create(self, path: str, write: Callable[[Any, str], object]) -> bool:
        for attempt in range(8):
            try:
                write(self._client(), f"{self._root}/{path}")
            except FileExistsError:
                return False
            except FileNotFoundError as error:
                raise StoreError(
                    f"the store {self.uri} can't be written: {error}. Does it exist?"
                ) from cause(error, self.uri)
            except Exception as error:
                code = _code(error)
                if code in _EXISTS:
                    return False
                if code not in _CONFLICTS:
                    raise self._explained(error, "written") from cause(error, self.uri)
                time.sleep(
                    0.05 * 2**attempt
                )  # another's write of the same name is under way: S3 says to ask again
            else:
                return True
        raise Transient(
            f"the store {self.uri} is busy with {path}: eight tries met another's write. Try again."
        )

    def replace(self, path: str, data: bytes) -> None:
        """See Store."""
        self._call("written", lambda files: files.pipe_file(f"{self._root}/{path}", data))

    def read(self, path: str) -> bytes:
        """See Store."""
        return bytes(self._call("read", lambda files: files.cat_file(f"{self._root}/{path}")))

    def exists(self, path: str) -> bool:
        """See Store."""
        return self._fingerprint(path) is not None

    def _fingerprint(self, path: str) -> str | None:
        """What changes when a file does; None when there is no such file."""
        try:
            info = self._call("read", lambda files: files.info(f"{self._root}/{path}", **self._fresh()))
        except FileNotFoundError:
            return None
        marks = [info.get(name) for name in ("ETag", "etag", "LastModified", "mtime", "updated", "size")]
        return repr(marks) if info["type"] == "file" else None

    def _fresh(self) -> dict[str, bool]:
        """How to ask for what is there now, not for what was listed before."""
        self._client().invalidate_cache()
        return {"refresh": True} if "s3" in self._client().protocol else {}

    def list(self, folder: str) -> list[str]:
        """See Store."""
        return [*self._names(folder, "file")]

    def folders(self, folder: str) -> tuple[str, ...]:
        """See ListsFolders."""
        return self._names(folder, "directory")

    def _names(self, folder: str, kind: str) -> tuple[str, ...]:
        full = f"{self._root}/{folder}"
        try:
            found = self._call("read", lambda files: files.ls(full, detail=True, **self._fresh()))
        except FileNotFoundError:
            return ()
        names = (item["name"].rstrip("/") for item in found if item["type"] == kind)
        return tuple(sorted(name.rsplit("/", 1)[-1] for name in names if not name.endswith(full)))

    def delete(self, path: str) -> None:
        """See Store."""
        if self.exists(path):
            self._call("deleted", lambda files: files.rm_file(f"{self._root}/{path}"))

    def local_path(self, path: str) -> Path:
        """See Store."""
        now = self._fingerprint(path)
        if now is None:
            raise FileNotFoundError(f"{self.uri}/{path}")
        if self._cache is None:
            self._cache = Path(tempfile.mkdtemp(prefix="treadle-"))
            atexit.register(shutil.rmtree, self._cache, ignore_errors=True)
        copy = self._cache / path
        if self._cached.get(path) != now or not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f".new-{uuid.uuid4().hex}")
            self._call("read", lambda files: files.get_file(f"{self._root}/{path}", str(temporary)))
            os.replace(temporary, copy)
            self._cached[path] = now
        return copy

    def _client(self) -> Any:
        """The client of fsspec; a new one after a fork, whose child can't use its parent's connections."""
        if self._pid != os.getpid():
            import fsspec

            try:
                self._opened, self._root = fsspec.core.url_to_fs(self.uri, **_options(self.uri))
            except ImportError as error:
                scheme = self.uri.partition("://")[0]
                raise MissingPackage(
                    f"fsspec's client for {scheme}", f"use the store {self.uri}", "s3"
                ) from error
            except ValueError as error:
                raise StoreError(
                    f"{self.uri!r} names no store: {error}. Give a folder or s3://..."
                ) from cause(error, self.uri)
            except Exception as error:  # some clients connect at once; see _explained
                raise self._explained(error, "opened") from cause(error, self.uri)
            if "s3" in self._opened.protocol:
                self._opened.retries = _S3_TRIES
            self._pid = os.getpid()
        return self._opened

    def _call(self, what: str, work: Callable[[Any], T]) -> T:
        try:
            return work(self._client())
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._explained(error, what) from cause(error, self.uri)

    def _explained(self, error: Exception, what: str) -> StoreError | Transient:
        # fsspec lets through what the network libraries raise, which share no base class.
        problem = redacted(str(error), self.uri)
        if isinstance(error, PermissionError) or type(error).__name__ in (
            "NoCredentialsError",
            "ProfileNotFound",
            "ParamValidationError",
        ):
            return StoreError(
                f"the store {self.uri} can't be {what}: {problem}. Check the credentials, the address and the rights."
            )
        return Transient(
            f"the store {self.uri} can't be {what} now: {type(error).__name__}: {problem}. Try again."
        )


def _options(uri: str) -> dict[str, Any]:
    from fsspec.config import conf

    # With a listing in its cache fsspec says of files that came since, unasked, that there are none.
    options: dict[str, Any] = {"use_listings_cache": False}
    if uri.startswith(("s3://", "s3a://")) and "config_kwargs" not in conf.get("s3", {}):
        options["config_kwargs"] = _S3_CONFIG
    return options


def _code(error: Exception) -> str:
    """The storage's own name for an error, or nothing."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


if TYPE_CHECKING:
    _is_a_store: Store = ObjectStore("")
