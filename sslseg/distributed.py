"""Starting under torchrun, slurm or mpi, on GPUs or (gloo) on CPUs; and choosing the device."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.distributed as dist
from mmengine.device import get_device
from mmengine.dist import get_rank, init_dist

from sslseg.compat import use_cpu
from sslseg.errors import UserError
from sslseg.registry import register_modules

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
T = TypeVar("T")


def launch(launcher: str, device: str) -> None:
    """Import mmseg quietly, select ``device`` (``auto``, ``cpu``, ``cuda`` or ``cuda:N``) and join the process group of ``launcher``."""
    if launcher not in LAUNCHERS:
        raise UserError(f"launcher {launcher!r} is unknown; use --launcher with one of: {', '.join(LAUNCHERS)}")
    register_modules()
    _select(device)
    if get_device() == "cpu":
        _keep_freed_memory()
    if launcher == "none" or dist.is_initialized():
        return
    if launcher == "pytorch" and "RANK" not in os.environ:
        raise UserError(
            "--launcher pytorch needs torchrun: torchrun --nproc-per-node N -m sslseg ... --launcher pytorch"
        )
    if get_device() == "cuda":
        init_dist(launcher, backend="nccl")
    elif launcher == "pytorch":
        # mmengine's own set-up calls torch.cuda.set_device, which a CPU build of torch lacks.
        dist.init_process_group("gloo")
    else:
        raise UserError(f"--launcher {launcher} needs GPUs; on CPUs use torchrun with --launcher pytorch")


def _select(device: str) -> None:
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and not index.isdigit()):
        raise UserError(f"device {device!r} is unknown; use --device with auto, cpu, cuda or cuda:N")
    if kind == "cpu":
        use_cpu()
    elif kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {device}: torch sees no GPU (torch {torch.__version__}); use --device cpu or install torch with CUDA"
        )
    elif index:
        if int(index) >= torch.cuda.device_count():
            raise UserError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
        torch.cuda.set_device(int(index))


def _keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors: each iteration allocates the same again, and fresh pages cost a tenth of it."""
    m_trim_threshold, m_mmap_threshold, largest = -1, -3, 2**31 - 1
    with contextlib.suppress(OSError, TypeError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(m_mmap_threshold, 2**30)
        library.mallopt(m_trim_threshold, largest)


def on_main(work: Callable[[], T]) -> T | None:
    """Run ``work`` on the main process while the others wait, and return its result there, None elsewhere.

    What it raises is raised on every rank, so that none waits for a rank that has gone.
    """
    result: T | None = None
    failure: list[Exception | None] = [None]
    if get_rank() == 0:
        try:
            result = work()
        except (UserError, OSError) as error:
            failure[0] = error
    if dist.is_initialized():
        dist.broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]
    return result
