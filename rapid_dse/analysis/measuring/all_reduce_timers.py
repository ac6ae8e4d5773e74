"""Times all-reduces over the GPUs of a machine: a process a GPU, NCCL between them."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence
from typing import Any

from rapid_dse.analysis.measuring.kernel_timers import Row, torch_on
from rapid_dse.analysis.measuring.timed_shapes import REDUCED_BYTES

CALLS, REPLAYS = 20, 5
HOST = "127.0.0.1"


def all_reduces(name: str) -> list[Row]:
    """All-reduces of each size over all GPUs, as ``kernels.csv`` has them; none where there is one GPU.

    Raises:
        ValueError: one line, where a process fails.
    """
    gpus = torch_on("cuda").cuda.device_count()
    if gpus < 2:
        return []
    common = {"hw": name, "kind": "all_reduce", "n_gpus": gpus, "precision": "bf16", "impl": "NCCL", "note": "host clock of calls in a row"}
    times = reduction_times("cuda", gpus, REDUCED_BYTES)
    return [{**common, "size_bytes": size, "measured.time_s": seconds} for size, seconds in times]


def reduction_times(device: str, ranks: int, sizes: Sequence[int]) -> list[tuple[int, float]]:
    """Sizes in bytes with the seconds that an all-reduce over so many processes takes, each with a device of its own; on the CPU over gloo.

    Raises:
        ValueError: one line, where a process fails.
    """
    torch = torch_on(device)
    times = torch.multiprocessing.get_context("spawn").SimpleQueue()
    try:
        torch.multiprocessing.spawn(_rank, args=(ranks, free_port(), device, sizes, times), nprocs=ranks)
    except Exception as error:  # whatever a process ended with; its own traceback is the message's rest
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"all-reduces over {ranks} GPUs are not timed: {said[-1] if said else type(error).__name__}") from error
    seconds_by_size: list[tuple[int, float]] = times.get()
    return seconds_by_size


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _rank(rank: int, ranks: int, port: int, device: str, sizes: Sequence[int], queue: Any) -> None:
    """A process's share: sums of all sizes, timed by the first of them."""
    import os

    torch, on_gpu = torch_on(device), device == "cuda"
    os.environ.update({"MASTER_ADDR": HOST, "MASTER_PORT": str(port)})
    if on_gpu:
        torch.cuda.set_device(rank)
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    torch.distributed.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=ranks)
    times = []
    for size in sizes:
        buffer = torch.zeros(size // 2, device=device, dtype=torch.bfloat16)
        taken = []
        for _ in range(REPLAYS + 1):
            torch.distributed.barrier()
            wait()
            begin = time.perf_counter()
            for _ in range(CALLS):
                torch.distributed.all_reduce(buffer)
            wait()
            taken.append((time.perf_counter() - begin) / CALLS)
        times.append((size, statistics.median(taken[1:])))
    torch.distributed.destroy_process_group()
    if rank == 0:
        queue.put(times)
