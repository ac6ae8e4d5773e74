"""Prompts as passes compute them: whole, or in chunks that each fill a step."""

from __future__ import annotations

from dataclasses import dataclass


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
