"""ZeRO (Rajbhandari et al., arXiv 1910.02054) as what it shards and what is moved for that: nothing else knows what its stages are."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

BoolColumn = NDArray[np.bool_]
IntColumn = NDArray[np.int64]


@dataclass(frozen=True)
class ZeroStage:
    """Of which states a stage leaves each of the ranks that share weights a shard."""

    optimizer: bool
    gradients: bool
    parameters: bool


ZERO_STAGES = (
    ZeroStage(optimizer=False, gradients=False, parameters=False),
    ZeroStage(optimizer=True, gradients=False, parameters=False),
    ZeroStage(optimizer=True, gradients=True, parameters=False),
    ZeroStage(optimizer=True, gradients=True, parameters=True),
)
_TABLE = {field.name: np.array([getattr(stage, field.name) for stage in ZERO_STAGES]) for field in fields(ZeroStage)}


@dataclass(frozen=True)
class Sharding:
    """What is sharded under each layout, ``(n_layouts,)`` each.

    Sharded ``optimizer`` states: gradients are scattered in place of all-reduced, and each rank updates its shard of the weights.
    Sharded ``gradients``: they are reduced with each micro-batch, as far as the framework does that; those of tables too.
    Sharded ``parameters``: they are gathered before each pass.
    """

    optimizer: BoolColumn
    gradients: BoolColumn
    parameters: BoolColumn

    @classmethod
    def of(cls, zero: IntColumn) -> Sharding:
        """That of columns of stages."""
        return cls(**{name: column.take(zero) for name, column in _TABLE.items()})

    @property
    def gathers_once(self) -> BoolColumn:
        """Whether the new weights are gathered once a step: each rank keeps all of them, and has updated a shard."""
        return self.optimizer & ~self.parameters

    @property
    def optimizer_alone(self) -> BoolColumn:
        """Whether nothing but optimizer states is sharded, so that gradients are scattered once a step."""
        return self.optimizer & ~self.gradients

    @property
    def in_passes(self) -> IntColumn:
        """Numbers that are alike where passes move the same of it: gathers of weights, reductions of gradients."""
        passes: IntColumn = self.gradients.astype(np.int64) + self.parameters
        return passes
