"""Prompts as passes compute them: whole, or in chunks that each fill a step."""

from __future__ import annotations

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
