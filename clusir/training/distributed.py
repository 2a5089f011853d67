"""Data-parallel training through torchrun: one process per device, found by the environment that torchrun sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from clusir.errors import BackendError

__all__ = ["distributed"]


@contextmanager
def distributed(device: str) -> Iterator[str]:
    """The device of this process. Joins the process group where torchrun started us, and leaves it in the end.

    ``cuda`` becomes this process's own GPU. Raises BackendError where it has none.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        yield device
        return
    gpu = device.startswith("cuda")
    if gpu:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise BackendError(f"process {local} has no GPU of its own ({torch.cuda.device_count()} here); start fewer")
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
