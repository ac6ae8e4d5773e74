"""Stage maps: which of a model's chunks of layers each rank of a pipeline holds, and where activations and gradients go from there.

A model is cut into pp · chunks pieces of consecutive layers; a piece's place counts from 0, first to last. Stages count from 0 too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

IntColumn = NDArray[np.int64]


class StageMap(ABC):
    """One way to lay a model's chunks on the ranks of a pipeline."""

    @abstractmethod
    def places(self, pp: int, chunks: int) -> IntColumn:
        """The place of each chunk that each stage holds, ``(pp, chunks)``."""

    @abstractmethod
    def head_stage(self, pp: IntColumn) -> IntColumn:
        """The stage that holds the last layers, head and loss; same shape."""

    @abstractmethod
    def crossings(self, pp: IntColumn, chunks: IntColumn) -> IntColumn:
        """How often a micro-batch goes from one rank to another, one way; same shape."""

    @abstractmethod
    def sends(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn) -> IntColumn:
        """Messages that a stage sends for one micro-batch, forward and backward together; of the shape that the three give together."""

    @abstractmethod
    def peer(self, stage: int, chunk: int, pp: int, chunks: int, ahead: bool) -> str:
        """The rank that holds the chunk at the next place (``ahead``) or at the one before: the ``next`` or ``previous`` of the ring of
        stages, or "" where it is the same rank or there is none."""


class Looped(StageMap):
    """Stage s holds the places s, s + pp, s + 2 pp and so on; with one chunk a stage, its own alone."""

    def places(self, pp: int, chunks: int) -> IntColumn:
        return np.arange(pp)[:, None] + pp * np.arange(chunks)

    def head_stage(self, pp: IntColumn) -> IntColumn:
        return pp - 1

    def crossings(self, pp: IntColumn, chunks: IntColumn) -> IntColumn:
        return pp * chunks - 1

    def sends(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn) -> IntColumn:
        ends = (stage == 0) | (stage == pp - 1)
        sent: IntColumn = 2 * chunks - ends
        return sent

    def peer(self, stage: int, chunk: int, pp: int, chunks: int, ahead: bool) -> str:
        place = stage + pp * chunk
        if ahead:
            return "next" if place < pp * chunks - 1 else ""
        return "previous" if place > 0 else ""


class VShaped(StageMap):
    """Stage s holds the places s and 2 pp - 1 - s: the first stage has both ends of the model, the last one its middle."""

    def places(self, pp: int, chunks: int) -> IntColumn:
        assert chunks == 2, "a V has two arms"
        return np.stack([np.arange(pp), 2 * pp - 1 - np.arange(pp)], axis=1)

    def head_stage(self, pp: IntColumn) -> IntColumn:
        return np.zeros_like(pp)

    def crossings(self, pp: IntColumn, chunks: IntColumn) -> IntColumn:
        return 2 * pp - 2  # of 2 pp - 1 boundaries the one in the middle lies on one rank

    def sends(self, stage: IntColumn, pp: IntColumn, chunks: IntColumn) -> IntColumn:
        ends = (stage == 0) | (stage == pp - 1)
        sent: IntColumn = 2 * chunks - 2 * ends
        return sent

    def peer(self, stage: int, chunk: int, pp: int, chunks: int, ahead: bool) -> str:
        outward = ahead == (chunk == 0)  # away from the first stage
        if outward:
            return "next" if stage < pp - 1 else ""
        return "previous" if stage > 0 else ""


LOOPED, V_SHAPED = Looped(), VShaped()
