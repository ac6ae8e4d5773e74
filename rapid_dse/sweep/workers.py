"""Chunks over processes, so that Ctrl-C stops them without a word from any of them."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager

from rapid_dse.sweep.chunks import Chunk, Summary, run_chunk, seconds_a_layout

# Below this, starting workers (each imports numpy, pydantic and pyarrow) costs more than it saves.
_WORTH_WORKERS_SECONDS = 2.0


def cores(jobs: int) -> int:
    """How many processes search.jobs stands for: -1 is every core that this process may use; 0 and 1 are this process."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return usable if jobs < 0 else max(1, jobs)


def estimate(chunks: Sequence[Chunk]) -> float:
    """Seconds of one core that the chunks will take, roughly."""
    return sum(len(piece.layouts) * seconds_a_layout(piece) for chunk in chunks for piece in chunk.pieces)


def summaries(chunks: Sequence[Chunk], jobs: int) -> Generator[Summary]:
    """The chunks' summaries as they come, in this process where the work is small, else over ``jobs`` processes.

    Raises:
        Exception: what ``run_chunk`` raises; ChildProcessError where a worker was killed.
    """
    n_jobs = min(cores(jobs), len(chunks))
    if n_jobs <= 1 or estimate(chunks) < _WORTH_WORKERS_SECONDS:
        yield from map(run_chunk, chunks)
        return
    from joblib import Parallel, delayed  # 0.1 s that small sweeps need not pay

    parallel = Parallel(n_jobs=n_jobs, backend="loky", return_as="generator_unordered", max_nbytes=None, batch_size=1)
    with warnings.catch_warnings():
        # After Ctrl-C joblib warns of results that nobody fetched; their files are there all the same.
        warnings.filterwarnings("ignore", r"[\s\S]*tasks .*(have been|still being)", UserWarning)
        with _deaf_children():
            found = parallel(delayed(run_chunk)(chunk) for chunk in chunks)
        try:
            yield from found
        except BrokenExecutor:
            raise ChildProcessError("a worker process was killed, perhaps for want of memory: fewer search.jobs need less") from None
        finally:
            with _deaf_children():
                found.close()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that start in here never see Ctrl-C: the terminal sends it to all, and only this process shall answer.

    An ignored signal stays ignored across exec, so not even an import in a worker can be interrupted with a traceback.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
