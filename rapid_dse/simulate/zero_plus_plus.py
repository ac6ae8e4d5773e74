"""ZeRO++ (Wang et al., arXiv 2306.10209): what DeepSpeed's ZeRO 3 sends less of between nodes.

hpZ keeps a second copy of the weights, divided among the few ranks of a group within a node, and gathers it there for backward passes.
qwZ gathers weights in 8 bits. qgZ sends gradients in 4 bits: an all-to-all within each node, a sum, and an all-to-all of each rank's part
across nodes. Of 3 M that cross nodes for M of weights 0.75 M are left: half of a gather, none, and a quarter of a reduction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Network
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.parallel.span import Span

FloatColumn = NDArray[np.float64]

EIGHT_BITS, FOUR_BITS = 1, 0.5  # bytes of a weight, of a gradient


@dataclass(frozen=True)
class QuantizedReduction:
    """Gradients in 4 bits: ``within`` a node, and ``across`` nodes."""

    within: Transfer
    across: Transfer

    @classmethod
    def of(cls, parameters: FloatColumn, group: Span, network: Network, node_dimensions: int) -> QuantizedReduction:
        """That of so many parameters' gradients over a group of data-parallel ranks; a node is the network's first dimensions."""
        inside, outside = by_node(group, node_dimensions)
        size = FOUR_BITS * parameters
        return cls(transfer.all_to_all(size, inside, network), transfer.all_to_all(size / inside.size, outside, network))

    @property
    def both(self) -> Transfer:
        """One after the other."""
        return self.within + self.across


def by_node(group: Span, node_dimensions: int) -> tuple[Span, Span]:
    """A group's members within a node, and one of each node."""
    alone = np.ones_like(group.members[0])
    inside = [members if at < node_dimensions else alone for at, members in enumerate(group.members)]
    outside = [alone if at < node_dimensions else members for at, members in enumerate(group.members)]
    return Span(tuple(inside), group.strides), Span(tuple(outside), group.strides)


def innermost(group: Span, count: int) -> Span:
    """The parts of so many neighbours that a group is cut into."""
    free_count = np.full_like(group.members[0], float(count))
    members = []
    for count_here in group.members:
        taken = np.minimum(count_here, free_count)
        members.append(taken)
        free_count = np.maximum(1.0, free_count / taken)
    return Span(tuple(members), group.strides)
