"""What the torch flavour needs on each worker of Ray Train: its device, and a process group with the others.

    worker 0: listens ── address and port, by Ray ──► the others ──► one process group

The first listens on the loopback, or for other nodes at its own's address. Ray's own group opens a port on every
address of the machine, and before anyone has looked for the devices.
"""

# ruff: noqa: TID253  only a fit over Ray imports this module
from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from treadle.models.torch.device import open_device

_STEP = timedelta(minutes=30)


def without_group() -> Any:
    """Ray Train's settings for torch, but for the process group: `joined` makes that."""
    from ray.train.backend import Backend
    from ray.train.torch import TorchConfig

    class SharedDevices(Backend):
        """Each worker sees the GPUs of all workers of its node, and takes the one of its local rank."""

        share_cuda_visible_devices = True

    class WithoutGroup(TorchConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return SharedDevices

    return WithoutGroup()


@contextmanager
def joined(kind: str) -> Iterator[None]:
    """Within it this worker is one of a process group with all others, by what its device takes.

    Args:
        kind: The device that each worker must have: cpu or gpu.

    Raises:
        UserError: It is not there.
    """
    from ray.train import get_context

    context = get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    os.environ["LOCAL_RANK"] = str(context.get_local_rank())
    collective = open_device(kind).collective
    own = "127.0.0.1" if context.get_local_world_size() == size else _address()
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform)
    if own == "127.0.0.1" and loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    dist.init_process_group(
        collective, store=_meeting(own, rank, size), rank=rank, world_size=size, timeout=_STEP
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def _address() -> str:
    """Of this node, as its cluster knows it."""
    import ray

    nodes: Any = ray.nodes  # it has no types
    own = ray.get_runtime_context().get_node_id()
    return next(str(node["NodeManagerAddress"]) for node in nodes() if node["NodeID"] == own)


def _meeting(own: str, rank: int, size: int) -> Any:
    """Where the workers learn each other's addresses; the first one keeps it."""
    from ray.train.collective import broadcast_from_rank_zero

    options = {"wait_for_workers": False, "timeout": _STEP}
    if rank:
        host, port = broadcast_from_rank_zero(None)
        return dist.TCPStore(host, port, size, is_master=False, **options)
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    listening = socket.create_server((own, 0), family=family)
    port = listening.getsockname()[1]
    store = dist.TCPStore(own, port, size, is_master=True, master_listen_fd=listening.detach(), **options)
    broadcast_from_rank_zero((own, port))
    return store
