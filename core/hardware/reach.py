"""Whether a pool's machines can reach a store: a folder of this machine is on no other, unless it is mounted there."""

from __future__ import annotations

from pathlib import Path

from treadle.errors import UserError
from treadle.hardware.backend import Backend
from treadle.hardware.pools import Pool
from treadle.redaction import redacted


def refuse_store_out_of_reach(backend: Backend, pool: Pool, store: str) -> None:
    """Nothing, where the machines of a pool may see the store at an address.

    Raises:
        UserError: The store is a folder of this machine, and they have disks of their own without it.
    """
    folder, can = _folder_of(store), backend.capabilities()
    if folder is None or not can.own_disks:
        return
    mounted = [Path(path) for path in pool.options.get("volumes", {})] if can.volumes else []
    if any(folder.is_relative_to(path) for path in mounted):
        return
    or_mount = (
        f" Or mount what holds it on this machine there, too: options: {{volumes: {{{folder}: NAME}}}}."
        if can.volumes
        else ""
    )
    raise UserError(
        f"the store {redacted(str(folder))} is a folder of this machine, and the machines of the pool {pool.name} have"
        f" disks of their own. Take a store that both reach: --store s3://BUCKET/FOLDER, or TREADLE_STORE.{or_mount}"
    )


def _folder_of(store: str) -> Path | None:
    """The folder of a store; None for one on object storage."""
    if "://" in store and not store.startswith("file://"):
        return None
    return Path(store.removeprefix("file://")).expanduser().absolute()
