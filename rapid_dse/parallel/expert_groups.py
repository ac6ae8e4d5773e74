"""Which ranks hold which experts: their own grid on the ranks of tp, cp and dp together.

``placement`` counts members by dimension for the closed forms; here every rank has its place in its groups, for graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Network
from rapid_dse.parallel.placement import merges
from rapid_dse.parallel.rank_runs import DATA, FACTORS

Ints = NDArray[np.int64]
Axis: TypeAlias = tuple[Ints, int]  # the number of each rank along an axis, and how many numbers there are


@dataclass(frozen=True)
class ExpertGroups:
    """Where each rank of a stage stands in the experts' grid, ``(dp, cp, tp)`` each.

    ``part`` of an expert: which of the etp ranks that share it. ``member``: its share of the experts, and its number among the ep ranks
    that exchange tokens. ``copy``: which of the grids that hold all experts it belongs to.
    """

    part: Ints
    member: Ints
    copy: Ints

    @cached_property
    def blocks(self) -> Ints:
        """Data-parallel ranks whose layers exchange anything, directly or through others, ``(blocks, dp ranks of each)``."""
        copies = self.copy.reshape(len(self.copy), -1)
        block = np.arange(len(copies))
        while True:
            least = np.full(int(copies.max()) + 1, len(block), np.int64)
            np.minimum.at(least, copies, block[:, None])
            joined = least[copies].min(axis=1)
            if (joined == block).all():
                break
            block = joined
        return np.argsort(block, kind="stable").reshape(len(np.unique(block)), -1)

    @property
    def one_a_rail(self) -> bool:
        """Whether ranks at the same place of their tensor-parallel groups exchange tokens with each other alone: etp is tp."""
        return bool((self.part == np.arange(self.part.shape[2])).all())

    def of(self, replicas: Ints) -> ExpertGroups:
        """Those of some data-parallel ranks, whose groups are whole."""
        _, copy = np.unique(self.copy[replicas], return_inverse=True)
        return ExpertGroups(self.part[replicas], self.member[replicas], copy.reshape(self.copy[replicas].shape))

    def first_rails(self, count: int) -> ExpertGroups:
        """Those of the first ranks of each tensor-parallel group."""
        return ExpertGroups(*(getattr(self, field.name)[..., :count] for field in fields(self)))

    def tables(self, places: Ints) -> tuple[Ints, Ints, Ints]:
        """The groups that exchange tokens, those that hold the same experts, and those that share each expert, ``(groups, members)`` each.

        Args:
            places: of ranks, ``(pp, dp, cp, tp)``.
        """
        parts, members, copies = (int(column.max()) + 1 for column in (self.part, self.member, self.copy))
        order = np.lexsort((self.part.ravel(), self.member.ravel(), self.copy.ravel()))
        grid = places.reshape(len(places), -1)[:, order].reshape(len(places), copies, members, parts)
        exchanging, alike = grid.transpose(0, 3, 1, 2), grid.transpose(0, 3, 2, 1)
        return exchanging.reshape(-1, members), alike.reshape(-1, copies), grid.reshape(-1, parts)


def expert_groups(degrees: Mapping[str, int], order: Sequence[str], network: Network) -> ExpertGroups:
    """The groups of a layout, where ``placement.place`` puts them.

    Args:
        degrees: tp, cp, dp, ep, etp (tp where it is missing); etp · ep divides tp·cp·dp, and ep dp where it has a network dimension of
            its own.
        order: the parallelisms, inner to outer.
    """
    tp, cp, dp, ep = (degrees.get(name, 1) for name in ("tp", "cp", "dp", "ep"))
    etp = degrees.get("etp", tp)
    index = dict(zip(("dp", "cp", "tp"), np.indices((dp, cp, tp)), strict=True))
    if own_dimension(network):
        return ExpertGroups(index["tp"], index["dp"] % ep, index["dp"] // ep * cp + index["cp"])
    share = int(np.gcd(tp, etp))
    pool = _ranks_beside(index, {"tp": tp, "cp": cp, "dp": dp}, share, order, network)
    wider, pool = _split(pool, etp // share, inner=True)
    member, outside = _split(pool, ep, inner=order.index("ep") < order.index("dp"))
    copy, size = np.zeros((dp, cp, tp), np.int64), 1
    for where, count in outside:
        copy, size = copy + size * where, size * count
    return ExpertGroups(index["tp"] % share + share * wider, member, copy)


def _ranks_beside(index: Mapping[str, Ints], counts: Mapping[str, int], share: int, order: Sequence[str], network: Network) -> list[Axis]:
    """The ranks of tp, cp and dp beside the ``share`` of tp that splits an expert, inner to outer; neighbours are one axis."""
    homes: dict[str, int] = {name: i for i, dimension in enumerate(network.dimensions) for name in dimension.parallelisms or ()}
    names, together = [name for name in order if name in FACTORS], merges(order, network)
    pool: list[Axis] = []
    joins = False  # the next of cp and dp is one axis with the one before
    for place, name in enumerate(names):
        if name not in ("tp", *DATA):
            continue
        axis = (index["tp"] // share, counts["tp"] // share) if name == "tp" else (index[name], counts[name])
        if joins and name != "tp":
            where, count = pool.pop()
            axis = (where + count * axis[0], count * axis[1])
        pool.append(axis)
        follower = names[place + 1] if place + 1 < len(names) else ""
        neighbours = name == "tp" and follower in DATA and homes.get("tp") == homes.get(follower)
        joins = neighbours or (name in DATA and together)
    return pool


def _split(axes: list[Axis], count: int, inner: bool) -> tuple[Ints, list[Axis]]:
    """Takes ``count`` ranks from the inner or outer end: each rank's number among them, and what is left, from that end on."""
    member, taken, outside = np.zeros_like(axes[0][0]), 1, []
    for where, ranks in axes if inner else reversed(axes):
        share = int(np.gcd(ranks, count)) if len(axes) > 1 else count
        count //= share
        rest = ranks // share
        mine, other = (where % share, where // share) if inner else (where // rest, where % rest)
        member, taken = member + taken * mine, taken * share
        outside.append((other, rest))
    return member, outside


def own_dimension(network: Network) -> bool:
    """Whether ep has a network dimension that neither cp nor dp is on."""
    homes: dict[str, int] = {name: i for i, dimension in enumerate(network.dimensions) for name in dimension.parallelisms or ()}
    return "ep" in homes and homes["ep"] not in {homes.get("cp"), homes.get("dp")}
