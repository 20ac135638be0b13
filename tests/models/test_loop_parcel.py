"""A loop in a parcel: its code works where its folder is not, and what fails there names the files at home."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from small import write_small_loop
from treadle.errors import HookError, SpecError
from treadle.loop import Loop
from treadle.loop_code import load_hook
from treadle.models.loop_parcel import LoopParcel, pack_loop
from treadle.models.weights import BadWeights

HOOK = "from parts.layers import twice\ndef net(number):\n    return twice(number)\n"


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    folder = tmp_path / "loop"
    path = write_small_loop(folder, days=1)
    (folder / "parts").mkdir()
    (folder / "hooks.py").write_text(HOOK)
    (folder / "parts/layers.py").write_text("def twice(number):\n    return 2 * number\n")
    (folder / "unused.py").write_text("")
    return Loop.load(path, overrides=("train.flavour=torch", "train.hook=hooks:net", "train.params={}"))


def elsewhere(loop: Loop) -> LoopParcel:
    """The parcel as another machine gets it, which has no such folder."""
    data = pickle.dumps(pack_loop(loop, "train"))
    loop.folder.rename(loop.folder.with_name("away"))
    return pickle.loads(data)


def test_a_hook_works_with_the_modules_that_it_imports_and_no_others(loop: Loop) -> None:
    parcel = elsewhere(loop)
    assert set(parcel.files) == {"hooks.py", "parts/layers.py"}
    with parcel.at_work() as there:
        assert load_hook(there, "hooks:net", "train.hook")(21) == 42
        folder = there.folder
    assert not folder.exists()


@pytest.mark.parametrize("is_called", [True, False], ids=["in the hook", "by what it made"])
def test_what_fails_is_told_by_the_files_that_the_user_has(loop: Loop, is_called: bool) -> None:
    layers = loop.folder / "parts/layers.py"
    layers.write_text("def twice(number):\n    raise OSError('no such luck')\n")
    parcel = elsewhere(loop)

    def work(there: Loop) -> None:
        if is_called:
            load_hook(there, "hooks:net", "train.hook")(21)
        from parts.layers import twice

        twice(21)

    with pytest.raises(HookError) as caught, parcel.at_work() as there:
        work(there)
    assert f'File "{layers}", line 2, in twice' in str(caught.value)
    assert "OSError: no such luck" in str(caught.value)
    assert str(there.folder) not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_hook_that_is_not_there_is_named_with_the_users_folder(loop: Loop) -> None:
    (loop.folder / "hooks.py").write_text("")
    parcel = elsewhere(loop)
    with pytest.raises(SpecError, match=r"hooks\.py has no function 'net'"), parcel.at_work() as there:
        load_hook(there, "hooks:net", "train.hook")
    parcel.files.pop("hooks.py")
    with pytest.raises(SpecError) as caught, parcel.at_work() as there:
        load_hook(there, "hooks:net", "train.hook")
    assert f"hooks.py is not in the loop's folder {loop.folder}" in str(caught.value)


def test_an_error_of_treadles_keeps_its_class(loop: Loop) -> None:
    with pytest.raises(BadWeights, match="of another network"), elsewhere(loop).at_work():
        raise BadWeights("of another network")
