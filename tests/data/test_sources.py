from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest
from planted import make_loop, parcels, run
from treadle.data.sources import source_digests
from treadle.errors import HookError, Transient, UserError
from treadle.stages import Context
from treadle.stages.prepare import prepare
from treadle.store import LocalStore


def test_a_digest_is_the_sha256_of_the_bytes_wherever_they_are(tmp_path: Path) -> None:
    import fsspec

    loop = make_loop(tmp_path, parcels(50))
    content = (tmp_path / "parcels.csv").read_bytes()
    fsspec.filesystem("memory").pipe_file("/treadle-sources/parcels.csv", content)
    elsewhere = make_loop(tmp_path, None, sources={"parcels": "memory://treadle-sources/parcels.csv"})
    assert (
        source_digests(loop) == source_digests(elsewhere) == {"parcels": hashlib.sha256(content).hexdigest()}
    )


def test_csv_zip_and_remote_file_give_one_digest(tmp_path: Path) -> None:
    import fsspec

    plain = run(make_loop(tmp_path, parcels()), tmp_path)
    with zipfile.ZipFile(tmp_path / "parcels.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "parcels.csv", "anything.csv")
    zipped = run(make_loop(tmp_path, None, sources={"parcels": "parcels.zip"}), tmp_path)
    fsspec.filesystem("memory").pipe_file("/treadle-remote/p.csv", (tmp_path / "parcels.csv").read_bytes())
    remote = run(make_loop(tmp_path, None, sources={"parcels": "memory://treadle-remote/p.csv"}), tmp_path)
    assert plain.digest == zipped.digest == remote.digest


def test_null_spellings_are_the_sources_own(tmp_path: Path) -> None:
    rows = parcels(300)
    run(make_loop(tmp_path, rows), tmp_path)
    (tmp_path / "parcels.csv").write_text((tmp_path / "parcels.csv").read_text().replace(",,", ",NA,"))
    loop = make_loop(tmp_path, None, sources={"parcels": {"uri": "parcels.csv", "nulls": ["NA"]}})
    assert run(loop, tmp_path).digest == run(make_loop(tmp_path / "blank", rows), tmp_path / "blank").digest


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("gone.csv", None, "does not exist"),
        ("cut.parquet", b"PAR1 and then nothing", "can't be read as Parquet"),
        ("cut.zip", b"PK\x03\x04 and then nothing", "broken zip"),
        ("bad.csv", b"id,late\na,1\n" * 50 + b"b,2,3,4,5\n" + b"c,0\n" * 50, "can't be read as CSV"),
    ],
)
def test_a_source_that_can_not_be_read_names_itself_and_the_remedy(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    loop = make_loop(tmp_path, None, sources={"parcels": name})
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        run(loop, tmp_path)
    assert "'parcels'" in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_other_separators_than_the_comma_are_read(tmp_path: Path, mark: str) -> None:
    comma = run(make_loop(tmp_path, parcels(200)), tmp_path)
    (tmp_path / "parcels.csv").write_text((tmp_path / "parcels.csv").read_text().replace(",", mark))
    assert run(make_loop(tmp_path, None), tmp_path).digest == comma.digest


def test_a_zip_of_two_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.writestr("a.csv", "x\n1\n")
        archive.writestr("b.csv", "x\n1\n")
    with pytest.raises(UserError, match="zip of 2 files"):
        run(make_loop(tmp_path, None, sources={"parcels": "two.zip"}), tmp_path)


def test_a_source_that_changes_after_it_was_hashed_is_worth_a_retry(tmp_path: Path) -> None:
    loop = make_loop(tmp_path, parcels(100))
    context = Context(loop, None, LocalStore(tmp_path), None, tmp_path, print)  # type: ignore[arg-type]
    with pytest.raises(Transient, match="changed while"):
        prepare(context, {"parcels": "0" * 64})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"label": "tardy"}, "no column 'tardy'"),
        ({"event_time": "sent"}, "no column 'sent'"),
        ({"label_known_at": "weight"}, "not a time"),
        ({"known_at_of": {"wight": "sent_at"}}, "no column 'wight'"),
        ({"entity": "weight"}, "an entity is text or a whole number"),
    ],
)
def test_a_column_that_is_not_there_or_not_fit_is_named_with_its_file(
    tmp_path: Path, table: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        run(make_loop(tmp_path, parcels(100), table=table), tmp_path)
    assert "parcels.sql" in str(error.value)


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("SELECT * FROM parcles", "parcles"),
        ("SELEC 1", "syntax error"),
        ("SELECT p.*, [1, 2] AS list FROM parcels p", "is BIGINT\\[\\]|is INTEGER\\[\\]"),
        ("SELECT * FROM parcels JOIN '{folder}/parcels.csv' USING (id)", "disabled"),
        ("SELECT *, 1 AS row_id FROM parcels", "a name that treadle gives"),
    ],
    ids=["no-source", "syntax", "list", "own-file", "row-id"],
)
def test_sql_that_fails_shows_its_file_and_the_engine_s_words(tmp_path: Path, sql: str, words: str) -> None:
    loop = make_loop(tmp_path, parcels(100), sql=sql.replace("{folder}", str(tmp_path)))
    with pytest.raises(UserError, match=words) as error:
        run(loop, tmp_path)
    assert "parcels.sql" in str(error.value)


HOOK = """\
def parcels(sources):
    return sources["parcels"].mutate(heavy=sources["parcels"].weight > 25)

def frame(sources):
    return parcels(sources).to_pandas()

def broken(sources):
    return 1 / 0

def number(sources):
    return 7
"""


def test_a_python_hook_makes_a_table_as_ibis_or_pandas(tmp_path: Path) -> None:
    loops = []
    for hook in ("parcels", "frame"):
        loop = make_loop(tmp_path / hook, parcels(), table={"sql": None, "python": f"hooks:{hook}"})
        (tmp_path / hook / "hooks.py").write_text(HOOK)
        loops.append(run(loop, tmp_path / hook))
    assert loops[0].digest == loops[1].digest
    assert "heavy" in [column["name"] for column in loops[0].results["tables"]["parcels"]["columns"]]


@pytest.mark.parametrize(("hook", "words"), [("broken", "ZeroDivisionError"), ("number", "returned int")])
def test_a_hook_that_fails_says_so_in_its_own_words(tmp_path: Path, hook: str, words: str) -> None:
    loop = make_loop(tmp_path, parcels(50), table={"sql": None, "python": f"hooks:{hook}"})
    (tmp_path / "hooks.py").write_text(HOOK)
    with pytest.raises(HookError, match=words):
        run(loop, tmp_path)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("id,late,weight,late", r"columns 2 and 4 are called both 'late'"),
        ("id,late,weight,Late", r"columns 2 and 4 are called 'late' and 'Late', which SQL takes for one"),
        ('\ufeff"id";"late";"weight";"late"', r"columns 2 and 4 are called both 'late'"),
    ],
)
def test_two_columns_of_one_name_are_refused(tmp_path: Path, header: str, words: str) -> None:
    mark = ";" if ";" in header else ","
    (tmp_path / "twice.csv").write_text("\n".join([header, *[mark.join("1234")] * 9]) + "\n")
    loop = make_loop(tmp_path, None, sources={"parcels": "twice.csv"})
    with pytest.raises(UserError, match=rf"'parcels' \(.*twice\.csv\): its {words}.*Rename"):
        run(loop, tmp_path)


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["id", "id"]), tmp_path / "twice.parquet")
    with pytest.raises(UserError, match="columns 1 and 2 are called both 'id'"):
        run(make_loop(tmp_path, None, sources={"parcels": "twice.parquet"}), tmp_path)
