"""Stores: the conformance suite on local files and on S3, and what only one of them can suffer."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from treadle.errors import StoreError, Transient
from treadle.object_store import ObjectStore
from treadle.store import LocalStore, Store, open_store, probe, put_blob
from treadle.testing.store import StoreSuite


class TestLocalStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "store")


@pytest.fixture
def s3_store(s3_environment: str, request: pytest.FixtureRequest) -> ObjectStore:
    return ObjectStore(f"s3://treadle/{request.node.name}")


class TestObjectStore(StoreSuite):
    @pytest.fixture
    def store(self, s3_store: ObjectStore) -> Store:
        return s3_store

    def test_a_creation_asks_the_server_to_refuse_an_existing_file(
        self, s3_store: ObjectStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level("DEBUG", logger="s3fs"):
            s3_store.create("a", b"x")
        assert "'IfNoneMatch': '*'" in caplog.text

    def test_a_file_sent_in_parts_is_created_once_too(self, s3_store: ObjectStore, tmp_path: Path) -> None:
        large = tmp_path / "large"
        with open(large, "wb") as file:
            file.truncate(101 << 20)
        assert s3_store.create_from("large", large) is True
        assert s3_store.create_from("large", large) is False

    def test_a_forked_child_can_use_its_parents_store(self, s3_store: ObjectStore) -> None:
        s3_store.create("before", b"x")
        parent, s3_store._pid = s3_store._pid, -1
        assert s3_store.read("before") == b"x"
        assert s3_store._pid == parent

    def test_a_bucket_that_does_not_exist_is_named(self, s3_environment: str) -> None:
        with pytest.raises(
            StoreError, match=r"s3://nowhere-at-all/x can't be written.*bucket does not exist"
        ):
            open_store("s3://nowhere-at-all/x")

    @pytest.mark.parametrize("operation", ["create", "read", "exists", "list"])
    def test_a_server_that_does_not_listen_is_a_transient_failure_soon(
        self, operation: str, s3_environment: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        store = ObjectStore(f"s3://treadle/unreachable-{operation}")
        store._client().clear_instance_cache()
        store._pid = -1
        began = time.monotonic()
        with pytest.raises(Transient, match=r"s3://treadle/unreachable.*127\.0\.0\.1:9.*Try again"):
            getattr(store, operation)("a", *([b"x"] if operation == "create" else []))
        assert time.monotonic() - began < 30

    def test_missing_credentials_are_told_and_not_tried_again(
        self, s3_environment: str, tmp_path: Path
    ) -> None:
        found = subprocess.run(
            [sys.executable, "-c", "from treadle.store import open_store; open_store('s3://treadle/x')"],
            env={
                "PATH": os.environ["PATH"],
                "AWS_ENDPOINT_URL": s3_environment,
                "AWS_EC2_METADATA_DISABLED": "true",
                "HOME": str(tmp_path),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert "treadle.errors.StoreError: the store s3://treadle/x can't be" in found.stderr
        assert "Check the credentials" in found.stderr


class Overwriting(LocalStore):
    """A store that checks, then writes, as fsspec does on local files."""

    def create(self, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        time.sleep(0.01)  # as long as a write over a network takes
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return True


class Forgetful(LocalStore):
    """A store that says yes to every creation."""

    def create(self, path: str, data: bytes) -> bool:
        self.delete(path)
        return super().create(path, data)


class Liar(LocalStore):
    """A store that says no to the second creation and keeps its content."""

    def create(self, path: str, data: bytes) -> bool:
        first = not self.exists(path)
        self.replace(path, data)
        return first


@pytest.mark.parametrize("broken", [Overwriting, Forgetful, Liar])
def test_a_store_that_lets_two_win_is_refused(broken: type[LocalStore], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="lets a file be created twice"):
        probe(broken(tmp_path))
    assert not LocalStore(tmp_path).exists("probe/passed")
    assert not LocalStore(tmp_path).list("probe")


def test_an_opened_store_is_probed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(tmp_path)
    monkeypatch.setattr("treadle.store.probe", lambda store: pytest.fail("probed again"))
    open_store(tmp_path)
    open_store(f"file://{tmp_path}")


def test_a_store_below_a_file_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match=r"file/store can't be written: Not a directory.*--store"):
        open_store(tmp_path / "file" / "store")


def test_a_read_only_store_is_read_and_refuses_writes_in_words(tmp_path: Path) -> None:
    # No right forbids root to write, so the folder is mounted read-only, where that is allowed.
    script = """
import subprocess, sys
from pathlib import Path
from treadle.store import open_store
store = open_store(sys.argv[1])
store.create("a", b"x")
for options in (["--bind", sys.argv[1]], ["-o", "remount,ro,bind"]):
    if subprocess.run(["mount", *options, sys.argv[1]], capture_output=True).returncode:
        sys.exit(77)
assert open_store(sys.argv[1]).read("a") == b"x"
try:
    store.create("b", b"x")
except Exception as error:
    print(type(error).__name__, error)
"""
    command = ["unshare", "--mount", sys.executable, "-c", script, str(tmp_path)]
    if os.geteuid():
        command[1:1] = ["--map-root-user", "--user"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode == 77 or "unshare" in found.stderr:
        pytest.skip("this machine forbids mounts")
    assert found.stdout.startswith(
        f"StoreError the store {tmp_path} can't be written: Read-only file system"
    ), found.stderr


def test_a_full_disk_is_told_and_leaves_nothing_behind(tmp_path: Path) -> None:
    script = """
import resource, sys
from treadle.store import open_store, put_blob
store = open_store(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    put_blob(store, b"x" * 1_000_000)
except Exception as error:
    print(type(error).__name__, error)
print(put_blob(store, b"a small one"))
"""
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith(
        f"StoreError the store {tmp_path} can't be written: File too large. Nothing was"
    )
    files = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert [path.name for path in files] == found.stdout.split()[-1:]


def test_what_a_killed_writer_left_is_invisible_and_swept_after_a_day(tmp_path: Path) -> None:
    LocalStore(tmp_path).create("records/1.json", b"x")
    old, new = tmp_path / "records/.new-old", tmp_path / "records/.new-new"
    for leftover in (old, new):
        leftover.write_bytes(b"half a rec")
    os.utime(old, (0, time.time() - 90_000))
    store = LocalStore(tmp_path)
    assert store.list("records") == ["1.json"]
    store.create("records/2.json", b"x")
    assert not old.exists()
    assert new.exists()


def test_a_kill_between_link_and_unlink_leaves_a_whole_file(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from treadle.store import LocalStore
link = os.link
def link_and_die(*arguments):
    link(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
os.link = link_and_die
LocalStore(Path(sys.argv[1])).create("log/1", b"whole")
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    store = LocalStore(tmp_path)
    assert store.list("log") == ["1"]
    assert store.create("log/1", b"other") is False
    assert store.read("log/1") == b"whole"


def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
from treadle.store import LocalStore
os.umask(0o027)
LocalStore(Path(sys.argv[1])).create("a", b"x")
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_readers_of_an_altered_blob_never_miss_it_while_two_put_it_right(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    sha256 = put_blob(store, b"x" * 100_000)
    path = store.local_path(f"blobs/{sha256[:2]}/{sha256}")
    stop, missing = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if not path.exists():
                missing.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        store.replace(f"blobs/{sha256[:2]}/{sha256}", b"altered")
        menders = [threading.Thread(target=put_blob, args=(store, b"x" * 100_000)) for _ in range(2)]
        for mender in menders:
            mender.start()
        for mender in menders:
            mender.join()
    stop.set()
    watcher.join()
    assert not missing
