"""The footprint of a group of ranks on the dimensions of the network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from operator import mul

import numpy as np
import numpy.typing as npt

from rapid_dse.common.remembered import Remembered

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """The footprint of a group on the network's dimensions, inner to outer.

    ``members[i]``, shape ``(n_layouts,)``: how many members of the group a dimension holds for each one of the next; their product
    is the group's size. Where a group does not divide into a dimension it is the share of the worst group (a group of 6 in nodes
    of 8 may have two members in one node and four in the next: 2 × 3), and it need not be whole.
    ``strides[i]``, same shape: how far apart, in places of that dimension, neighbours of the group sit; as many groups lie interleaved.
    """

    members: tuple[Floats, ...]
    strides: tuple[Floats, ...]

    @cached_property
    def size(self) -> Floats:
        """Members of the group, shape ``(n_layouts,)``."""
        return reduce(mul, self.members)

    @cached_property
    def is_alone(self) -> bool:
        """Whether no group has a second member."""
        return bool((self.size <= 1).all())

    @cached_property
    def remembered(self) -> Remembered:
        """What was worked out of this very group."""
        return Remembered(8)

    def parts(self, inner: int) -> Floats:
        """How many parts of the network's first ``inner`` dimensions the group is spread over, shape ``(n_layouts,)``."""
        return reduce(mul, self.members[inner:], np.ones_like(self.members[0]))

    def __mul__(self, other: Span) -> Span:
        """The group that has a member for each pair of members; it is as wide apart as the one of the two that is present."""
        members = tuple(a * b for a, b in zip(self.members, other.members, strict=True))
        mine = zip(self.members, self.strides, other.strides, strict=True)
        strides = tuple(np.where(m > 1, a, b) for m, a, b in mine)
        return Span(members, strides)


def two_ends(group: Span) -> Span:
    """The first and the last member of each group alone, as a group of two; of one where the group has one member.

    They stand apart on the outermost dimension on which the group has several members, and talk over that one.
    """
    apart = np.zeros(1, bool)
    members: list[Floats] = []
    for count in reversed(group.members):
        members.append(np.where((count > 1) & ~apart, 2.0, 1.0))
        apart = apart | (count > 1)
    return Span(tuple(reversed(members)), group.strides)


@dataclass(frozen=True)
class Halves:
    """A group cut in two: ``shard`` (its innermost ranks) and ``replica`` (the ranks at the same place of each shard group)."""

    shard: Span
    replica: Span
