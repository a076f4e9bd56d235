"""Does one thing in several processes that form a gloo group, as the workers of a run do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

IMPORTED = ["d2v_platform.training.train_loop", "d2v_platform.tasks"]
mp.get_context("forkserver").set_forkserver_preload(IMPORTED)


def together(work: Callable[..., None], place: Path, *given: Any, size: int = 2) -> None:
    """Call ``work(rank, size, *given)`` in ``size`` processes; they meet in the folder ``place``.

    Raises:
        torch.multiprocessing.ProcessRaisedException: what the first process to fail raised.
    """
    place.mkdir(parents=True, exist_ok=True)
    # Forks of one process that has imported everything and computed nothing: a start costs no imports.
    arguments = (dict(os.environ), size, str(place), work, given)
    mp.start_processes(_member, arguments, nprocs=size, start_method="forkserver")


def _member(
    rank: int,
    environment: dict[str, str],
    size: int,
    place: str,
    work: Callable[..., None],
    given: tuple[Any, ...],
) -> None:
    os.environ |= environment  # the forks have that of the first call
    store = torch.distributed.FileStore(f"{place}/rendezvous", size)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=size)
    work(rank, size, *given)
    torch.distributed.destroy_process_group()
    # DDP and FSDP2 keep the group alive, and with it threads that may still hold tensors. If one lets go of
    # them while the interpreter is taken down, the process aborts (pytorch#179291), so it is not taken down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
