"""Training and compiling with the loop's own code: its classes can be imported, its failures say that they are its."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from treadle.errors import HookError, TreadleError
from treadle.loop import Loop
from treadle.loop_code import hooks_of, loop_imports, own_traceback


@contextmanager
def own_code(loop: Loop, doing: str = "training") -> Iterator[None]:
    """Within it the loop's own classes can be imported, and their failures become HookErrors."""
    own = bool(hooks_of(loop)["train"])
    with loop_imports(loop) if own else nullcontext():
        try:
            yield
        except TreadleError:
            raise
        except (Exception, SystemExit) as error:
            if not own:
                raise
            what = f"{doing} with {loop.train.hook or loop.train.flavour}"
            raise HookError(what, str(loop.folder), own_traceback(error, loop)) from error
