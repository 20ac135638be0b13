"""The loop's own code: what a hook needs, and imports that leave no trace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from treadle.errors import HookError, SpecError
from treadle.loop import Loop
from treadle.loop_code import code_of, load_hook


def loop_in(folder: Path, **files: str) -> Loop:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py").replace("_sql", ".sql")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sections: dict[str, Any] = {
        "sources": {"rows": "rows.csv"},
        "tables": {
            "rows": {"sql": "rows.sql", "entity": "e", "event_time": "t", "label": "y", "label_known_at": "t"}
        },
    }
    loop = Loop(name="small", data=sections)
    loop._folder = folder
    return loop


def test_code_follows_imports_through_the_folder_and_no_further(tmp_path: Path) -> None:
    loop = loop_in(
        tmp_path,
        hooks_py="import json\nfrom lib import a\ndef make(): import late\n",
        lib____init___py="",
        lib__a_py="from . import b\n",
        lib__b_py="x = 1\n",
        late_py="",
        unused_py="",
    )
    (tmp_path / "lib" / "__init__.py").write_text("")
    assert set(code_of(loop, ["hooks:make"])) == {
        "hooks.py",
        "lib/__init__.py",
        "lib/a.py",
        "lib/b.py",
        "late.py",
    }


def test_changed_helper_changes_the_code(tmp_path: Path) -> None:
    loop = loop_in(tmp_path, hooks_py="import helper\n", helper_py="x = 1\n")
    before = code_of(loop, ["hooks:make"])
    (tmp_path / "helper.py").write_text("x = 2\n")
    after = code_of(loop, ["hooks:make"])
    assert before["hooks.py"] == after["hooks.py"]
    assert before["helper.py"] != after["helper.py"]


def test_two_folders_with_the_same_module_do_not_meet(tmp_path: Path) -> None:
    early = "import shared\ndef f(): return shared.x\n"
    late = "def f():\n    import shared\n    return shared.x\n"
    old_loop = loop_in(tmp_path / "old", hooks_py=early, shared_py="x = 1")
    new_loop = loop_in(tmp_path / "new", hooks_py=late, shared_py="x = 2")
    old, new = (load_hook(loop, "hooks:f", "train.hook") for loop in (old_loop, new_loop))
    assert (old(), new(), old()) == (1, 2, 1)
    assert "hooks" not in sys.modules
    assert "shared" not in sys.modules
    assert not list(tmp_path.glob("**/__pycache__"))


def test_edited_hook_is_read_again_in_the_same_process(tmp_path: Path) -> None:
    loop = loop_in(tmp_path, hooks_py="def f(): return 1\n")
    assert load_hook(loop, "hooks:f", "train.hook")() == 1
    (tmp_path / "hooks.py").write_text("def f(): return 2\n")
    assert load_hook(loop, "hooks:f", "train.hook")() == 2


def test_hook_that_raises_shows_its_own_traceback(tmp_path: Path) -> None:
    loop = loop_in(tmp_path, hooks_py="def f():\n    return {}['gone']\n")
    with pytest.raises(HookError) as caught:
        load_hook(loop, "hooks:f", "train.hook")()
    assert "hooks.py" in str(caught.value)
    assert "line 2" in str(caught.value)
    assert "KeyError: 'gone'" in str(caught.value)
    assert "loop_code.py" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone:f", "gone.py is not in the loop's folder"),
        ("hooks:g", "no function 'g'"),
        ("../out.sql", "not in"),
    ],
)
def test_missing_code_is_named(tmp_path: Path, name: str, words: str) -> None:
    loop = loop_in(tmp_path, hooks_py="def f(): return 1\n")
    with pytest.raises(SpecError, match=words):
        load_hook(loop, name, "train.hook") if ":" in name else code_of(loop, [name])


def test_hook_that_does_not_parse_names_its_line(tmp_path: Path) -> None:
    loop = loop_in(tmp_path, hooks_py="x = 1\ndef f(:\n")
    with pytest.raises(SpecError, match=r"hooks\.py:2"):
        code_of(loop, ["hooks:f"])
