"""Prompts as passes compute them: whole, or in chunks that each fill a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Chunks:
    """Passes of one length that follow each other: ``count`` of them, each of which computes ``share`` of a prompt's tokens."""

    count: int
    share: float


WHOLE = Chunks(1, 1.0)  # one pass computes all


@dataclass(frozen=True)
class Prompts:
    """Prompts that are computed in passes of so many sequences: ``queries`` tokens of each, the last of ``keys``, in ``chunks``."""

    queries: float
    keys: float
    chunks: tuple[Chunks, ...] = (WHOLE,)


@dataclass(frozen=True)
class ChunkColumns:
    """``Chunks`` of rows whose prompts differ, ``(n,)`` each."""

    count: FloatColumn
    share: FloatColumn


@dataclass(frozen=True)
class PromptColumns:
    """``Prompts`` of rows whose prompts differ, in passes of as many lengths each, ``(n,)`` each."""

    queries: FloatColumn
    keys: FloatColumn
    chunks: tuple[ChunkColumns, ...]

    @classmethod
    def of(cls, every: Sequence[Prompts], rows: NDArray[np.intp]) -> PromptColumns:
        """Those at ``rows``, positions among ``every``."""
        queries, keys = np.array([(prompts.queries, prompts.keys) for prompts in every]).T
        chunks = np.array([[(chunk.count, chunk.share) for chunk in prompts.chunks] for prompts in every], np.float64)
        return cls(
            queries.take(rows), keys.take(rows), tuple(ChunkColumns(*alike.take(rows, axis=1)) for alike in chunks.transpose(1, 2, 0))
        )


def chunks_of(queries: float, step_tokens: float) -> tuple[Chunks, ...]:
    """The passes that compute ``queries`` tokens of a prompt: as many as ``step_tokens`` fill, and one for what is left."""
    full = int(queries // step_tokens)
    if queries <= step_tokens:
        return (WHOLE,)
    filled = Chunks(full, step_tokens / queries)
    rest = 1.0 - full * step_tokens / queries
    return (filled, Chunks(1, rest)) if rest > 0 else (filled,)


def passes_taken(count: int, ahead: int, slowest: FloatColumn) -> FloatColumn:
    """How many times a pass's seconds ``count`` passes of one length take that go through the stages behind ``ahead`` others.

    The first of all goes through all stages; each behind it ends as late as the slowest stage takes, a share ``slowest`` of a pass.
    """
    whole = 0.0 if ahead else 1.0
    return whole + (count - whole) * slowest
