"""Chunks over processes, so that Ctrl-C stops them without a word from any of them."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import replace

from rapid_dse.sweep.chunks import Chunk, Summary, run_chunk, seconds_a_layout
from rapid_dse.sweep.launch import cores, launcher

# Below this, starting workers (each imports numpy, pydantic and pyarrow) costs more than it saves.
_WORTH_WORKERS_SECONDS = 2.0


def estimate(chunks: Sequence[Chunk]) -> float:
    """Seconds of one core that the chunks will take, roughly."""
    return sum(len(piece.layouts) * seconds_a_layout(piece) for chunk in chunks for piece in chunk.pieces)


def summaries(chunks: Sequence[Chunk], jobs: int, name: str = "loky", address: str | None = None) -> Generator[Summary]:
    """The chunks' summaries as they come: on this machine in this process where the work is small, else over ``jobs`` processes.

    Args:
        name: search.launcher; a cluster's workers write into the same folder, which they must share.
        address: search.launcher_address.

    Raises:
        Exception: what ``run_chunk`` raises; ChildProcessError where workers keep being killed.
    """
    n_jobs = min(cores(jobs), len(chunks))
    if name == "loky" and address is None and (n_jobs <= 1 or estimate(chunks) < _WORTH_WORKERS_SECONDS):
        yield from map(run_chunk, chunks)
        return
    with launcher(name, n_jobs, address) as run, warnings.catch_warnings():
        # After Ctrl-C joblib warns of results that nobody fetched; their files are there all the same.
        warnings.filterwarnings("ignore", r"[\s\S]*tasks .*(have been|still being)", UserWarning)
        summaries_of_chunks = run(run_chunk, [_anywhere(chunk) for chunk in chunks])
        try:
            for _, summary in summaries_of_chunks:
                yield summary
        except BrokenExecutor:
            raise ChildProcessError("a worker process was killed, perhaps for want of memory: fewer search.jobs need less") from None
        finally:
            summaries_of_chunks.close()


def _anywhere(chunk: Chunk) -> Chunk:
    """The chunk with paths that mean the same in a worker that runs in another folder."""
    return replace(chunk, folder=chunk.folder.absolute(), others=tuple(path.absolute() for path in chunk.others))
