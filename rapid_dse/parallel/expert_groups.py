"""Which ranks hold which experts: the groups of expert parallelism, cut out of the ranks of cp and dp together.

``placement`` counts members by dimension for the closed forms; here every rank has its place in its group, for graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Network
from rapid_dse.parallel.placement import merges

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ExpertGroups:
    """The expert-parallel group of each rank of a stage, and its member number there, which is also its share of the experts.

    Both ``(dp, cp)``; tensor-parallel ranks have groups of their own, alike.
    """

    group: Ints
    member: Ints

    @cached_property
    def blocks(self) -> Ints:
        """Data-parallel ranks whose layers exchange anything, directly or through others, ``(blocks, dp ranks of each)``."""
        block = np.arange(len(self.group))
        while True:
            least = np.full(int(self.group.max()) + 1, len(block), np.int64)
            np.minimum.at(least, self.group, block[:, None])
            joined = least[self.group].min(axis=1)
            if (joined == block).all():
                break
            block = joined
        return np.argsort(block, kind="stable").reshape(len(np.unique(block)), -1)

    def of(self, replicas: Ints) -> ExpertGroups:
        """Those of some data-parallel ranks, whose groups are whole."""
        _, group = np.unique(self.group[replicas], return_inverse=True)
        return ExpertGroups(group.reshape(len(replicas), -1), self.member[replicas])

    def tables(self, places: Ints) -> tuple[Ints, Ints]:
        """The groups that exchange tokens, and those that hold the same experts, ``(groups, members)`` each.

        Args:
            places: of ranks, ``(pp, dp, cp, tp)``.
        """
        size = int(self.member.max()) + 1
        order = np.lexsort((self.member.ravel(), self.group.ravel()))
        pp, tp = places.shape[0], places.shape[3]
        sorted_ = places.reshape(pp, -1, tp)[:, order].reshape(pp, -1, size, tp)
        return sorted_.transpose(0, 3, 1, 2).reshape(-1, size), sorted_.transpose(0, 3, 2, 1).reshape(pp * tp * size, -1)


def expert_groups(degrees: Mapping[str, int], order: Sequence[str], network: Network) -> ExpertGroups:
    """The groups of a layout, where ``placement.place`` puts them.

    Args:
        degrees: cp, dp, ep; ep divides cp·dp, and dp where it has a network dimension of its own.
        order: the parallelisms, inner to outer.
    """
    dp, cp, ep = degrees["dp"], degrees["cp"], degrees["ep"]
    index = dict(zip(("dp", "cp"), np.indices((dp, cp)), strict=True))
    counts = {"dp": dp, "cp": cp}
    if own_dimension(network):
        return ExpertGroups(index["dp"] // ep * cp + index["cp"], index["dp"] % ep)
    first, second = (name for name in order if name in counts)
    inner = order.index("ep") < order.index("dp")
    if merges(order, network):
        runs = [(index[first] + counts[first] * index[second], dp * cp)]
    else:
        runs = [(index[first], counts[first]), (index[second], counts[second])]
    member, group, taken, left = np.zeros((dp, cp), np.int64), np.zeros((dp, cp), np.int64), 1, 1
    remaining = ep
    for where, count in runs if inner else reversed(runs):
        share = int(np.gcd(count, remaining)) if len(runs) > 1 else remaining
        remaining //= share
        rest = count // share
        mine, other = (where % share, where // share) if inner else (where // rest, where % rest)
        member, group = member + taken * mine, group + left * other
        taken, left = taken * share, left * rest
    return ExpertGroups(group, member)


def own_dimension(network: Network) -> bool:
    """Whether ep has a network dimension that neither cp nor dp is on."""
    homes: dict[str, int] = {name: i for i, dimension in enumerate(network.dimensions) for name in dimension.parallelisms or ()}
    return "ep" in homes and homes["ep"] not in {homes.get("cp"), homes.get("dp")}
