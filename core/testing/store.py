"""What every store must do, as tests: subclass `StoreSuite` and give it a store.

class TestOurs(StoreSuite):
@pytest.fixture
def store(self):
return OurStore("ours://bucket/empty-place")
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from treadle.errors import BlobDeleted, BlobLost
from treadle.store import (
    ListsFolders,
    Store,
    blob_is_intact,
    blob_path,
    fetch_blob,
    open_store,
    probe,
    put_blob,
    read_memo,
    write_memo,
)

_RACER = """
import sys
from treadle.store import open_store

uri, racer = sys.argv[1:]
store = open_store(uri)
print("ready", flush=True)
sys.stdin.readline()
print([store.create(f"race/{n}", racer.encode() * 50_000) for n in range(10)].count(True))
"""

_WRITER = """
import sys
from treadle.store import open_store

store = open_store(sys.argv[1])
print("ready", flush=True)
for n in range(100_000):
    store.create(f"many/{n}", b"%08d" % n * 250_000)
"""


class StoreSuite:
    """The promises of `treadle.store.Store`.

    Overrides:
        store: An empty store, made by a fixture.
        processes_share_it: Whether another process opens it by `open_store(store.uri)`.
    """

    processes_share_it = True

    @pytest.fixture
    def store(self) -> Store:
        """An empty store."""
        raise NotImplementedError("give this suite a `store` fixture")

    @pytest.fixture
    def shared(self, store: Store) -> Store:
        """The store, where other processes can open it too."""
        if not self.processes_share_it:
            pytest.skip("other processes can't open this store")
        return store

    def test_a_file_is_created_once_and_keeps_its_first_content(self, store: Store) -> None:
        """The second creation says False and changes nothing."""
        assert store.create("a/b/c.json", b"first") is True
        assert store.create("a/b/c.json", b"second") is False
        assert store.read("a/b/c.json") == b"first"

    def test_a_file_is_created_once_from_a_local_file(self, store: Store, tmp_path: Path) -> None:
        """As for bytes; and a missing source is told as such."""
        source = tmp_path / "source"
        source.write_bytes(b"from a file")
        assert store.create_from("a/file", source) is True
        source.write_bytes(b"another")
        assert store.create_from("a/file", source) is False
        assert store.read("a/file") == b"from a file"
        with pytest.raises(FileNotFoundError):
            store.create_from("a/other", tmp_path / "missing")
        assert not store.exists("a/other")

    def test_an_empty_file_exists(self, store: Store) -> None:
        """Nothing is content too."""
        assert store.create("empty", b"") is True
        assert store.create("empty", b"x") is False
        assert store.read("empty") == b""

    def test_what_is_not_there_is_said_to_be_missing(self, store: Store) -> None:
        """Files, folders, and folders taken for files."""
        store.create("folder/file", b"x")
        for missing in ("none", "folder", "folder/none", "folder/file/below"):
            assert not store.exists(missing)
            with pytest.raises(FileNotFoundError):
                store.local_path(missing)
        for missing in ("none", "folder/none", "folder/file/below"):
            with pytest.raises(FileNotFoundError):
                store.read(missing)

    def test_a_listing_names_the_files_of_one_folder_in_order(self, store: Store) -> None:
        """Sorted names, no folders, new files at once."""
        assert store.list("logs/x") == []
        for name in ("00000002", "00000001", "deeper/3"):
            store.create(f"logs/x/{name}", b"x")
        assert store.list("logs/x") == ["00000001", "00000002"]
        store.create("logs/x/00000003", b"x")
        assert store.list("logs/x") == ["00000001", "00000002", "00000003"]
        assert store.list("logs") == []
        if isinstance(store, ListsFolders):
            assert store.folders("logs") == ("x",)
            assert store.folders("logs/x") == ("deeper",)
            assert store.folders("none") == ()

    def test_a_deleted_file_is_gone_and_can_be_created_again(self, store: Store) -> None:
        """Deleting twice does nothing."""
        store.create("lease", b"1")
        store.delete("lease")
        store.delete("lease")
        assert not store.exists("lease")
        assert store.list("") == []
        assert store.create("lease", b"2") is True

    def test_a_replaced_file_has_the_new_content(self, store: Store) -> None:
        """Also in the local copy."""
        store.create("blob", b"altered")
        assert store.local_path("blob").read_bytes() == b"altered"
        store.replace("blob", b"right again")
        assert store.read("blob") == b"right again"
        assert store.local_path("blob").read_bytes() == b"right again"

    def test_of_racing_threads_one_wins(self, store: Store) -> None:
        """And what it wrote stays."""
        for turn in range(5):
            together = Barrier(8)

            def race(racer: int, path: str = f"race/{turn}", together: Barrier = together) -> bool:
                together.wait()
                return store.create(path, str(racer).encode() * 10_000)

            with ThreadPoolExecutor(8) as pool:
                won = list(pool.map(race, range(8)))
            assert sum(won) == 1
            assert store.read(f"race/{turn}") == str(won.index(True)).encode() * 10_000

    def test_of_racing_processes_one_wins(self, shared: Store) -> None:
        """Each of ten files has one writer, and is whole."""
        racers = [_start(_RACER, shared.uri, str(n)) for n in range(4)]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n", racer.communicate()[1]
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        assert sum(int(racer.communicate(timeout=120)[0]) for racer in racers) == 10
        for n in range(10):
            content = shared.read(f"race/{n}")
            assert content == content[:1] * 50_000

    def test_a_killed_writer_leaves_only_whole_files(self, shared: Store) -> None:
        """Every name that exists has its full content, and the next writer of the same names can go on."""
        writer = _start(_WRITER, shared.uri)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n", writer.communicate()[1]
        while len(shared.list("many")) < 4:
            assert writer.poll() is None, writer.communicate()[1]
        writer.kill()
        writer.communicate()
        names = shared.list("many")
        for name in names:
            assert shared.read(f"many/{name}") == b"%08d" % int(name) * 250_000
        # A server may still finish the dead writer's last request: then it has the name, and the whole content.
        following, content = f"many/{len(names)}", b"%08d" % len(names) * 250_000
        assert shared.create(following, content) or shared.read(following) == content

    def test_the_probe_lets_it_pass(self, store: Store) -> None:
        """Twice, leaving one note behind."""
        probe(store)
        probe(store)
        assert store.list("probe") == ["passed"]

    def test_a_blob_is_named_by_its_content(self, store: Store, tmp_path: Path) -> None:
        """Bytes and files of one content are one blob."""
        file = tmp_path / "file"
        file.write_bytes(b"content")
        sha256 = put_blob(store, b"content")
        assert put_blob(store, file) == sha256
        assert fetch_blob(store, sha256).read_bytes() == b"content"

    def test_an_altered_or_missing_blob_is_noticed_and_put_right(self, store: Store) -> None:
        """Each time, though a right copy was fetched before."""
        sha256 = put_blob(store, b"content")
        fetch_blob(store, sha256)
        store.replace(blob_path(sha256), b"Content")
        with pytest.raises(BlobLost, match="altered"):
            fetch_blob(store, sha256)
        assert not blob_is_intact(store, sha256)
        assert put_blob(store, b"content") == sha256
        assert fetch_blob(store, sha256).read_bytes() == b"content"
        store.delete(blob_path(sha256))
        with pytest.raises(BlobLost, match="missing"):
            fetch_blob(store, sha256)
        assert put_blob(store, b"content") == sha256
        assert blob_is_intact(store, sha256)

    def test_a_blob_with_a_tombstone_stays_away(self, store: Store) -> None:
        """It is neither read nor made again."""
        sha256 = put_blob(store, b"someone's data")
        store.create(f"tombstones/{sha256}.json", b"{}")
        store.delete(blob_path(sha256))
        with pytest.raises(BlobDeleted, match="for good"):
            fetch_blob(store, sha256)
        with pytest.raises(BlobDeleted, match="for good"):
            put_blob(store, b"someone's data")
        assert not store.exists(blob_path(sha256))
        assert not blob_is_intact(store, sha256)

    def test_a_memo_keeps_its_first_value(self, store: Store) -> None:
        """And is None before, or when it can't be read."""
        assert read_memo(store, "join", "key") is None
        write_memo(store, "join", "key", {"rows": 1})
        write_memo(store, "join", "key", {"rows": 2})
        assert read_memo(store, "join", "key") == {"rows": 1}
        store.replace("memo/join/key.json", b"{")
        assert read_memo(store, "join", "key") is None

    def test_another_process_opens_it_by_its_uri(self, shared: Store) -> None:
        """What one wrote the other reads."""
        shared.create("from/here", b"hello")
        assert open_store(shared.uri).read("from/here") == b"hello"


def _start(script: str, *arguments: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
