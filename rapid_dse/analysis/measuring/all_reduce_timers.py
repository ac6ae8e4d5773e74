"""Times all-reduces over the GPUs of a machine: a process a GPU, NCCL between them."""

from __future__ import annotations

import socket
import statistics
import time
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
    torch = torch_on("cuda")
    gpus = torch.cuda.device_count()
    if gpus < 2:
        return []
    context = torch.multiprocessing.get_context("spawn")
    times = context.SimpleQueue()
    try:
        torch.multiprocessing.spawn(_rank, args=(gpus, free_port(), times), nprocs=gpus)
    except Exception as error:  # whatever a process ended with; its own traceback is the message's rest
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"all-reduces over {gpus} GPUs are not timed: {said[-1] if said else type(error).__name__}") from error
    common = {"hw": name, "kind": "all_reduce", "n_gpus": gpus, "precision": "bf16", "impl": "NCCL", "note": "host clock of calls in a row"}
    return [{**common, "size_bytes": size, "measured.time_s": seconds} for size, seconds in times.get()]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _rank(rank: int, gpus: int, port: int, queue: Any) -> None:
    """A process's share: sums of all sizes, timed by the first of them."""
    import os

    torch = torch_on("cuda")
    os.environ.update({"MASTER_ADDR": HOST, "MASTER_PORT": str(port)})
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", rank=rank, world_size=gpus)
    times = []
    for size in REDUCED_BYTES:
        buffer = torch.zeros(size // 2, device="cuda", dtype=torch.bfloat16)
        taken = []
        for _ in range(REPLAYS + 1):
            torch.distributed.barrier()
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(CALLS):
                torch.distributed.all_reduce(buffer)
            torch.cuda.synchronize()
            taken.append((time.perf_counter() - begin) / CALLS)
        times.append((size, statistics.median(taken[1:])))
    torch.distributed.destroy_process_group()
    if rank == 0:
        queue.put(times)
