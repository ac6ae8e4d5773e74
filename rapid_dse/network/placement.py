"""Where the groups of each parallelism lie on the dimensions of the network.

Ranks are laid out by ``parallel.order``, inner to outer: neighbours in the first parallelism are neighbours on the machine. Expert
parallelism is no factor of the number of GPUs: its groups are cut out of the ranks of cp and dp together (Megatron Core's
``RankGenerator`` does the same: its expert grid has no cp).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul

import numpy as np
import numpy.typing as npt

from rapid_dse.config.hardware import Network

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FACTORS = ("tp", "cp", "dp", "pp")  # their product is the number of GPUs
DATA = ("cp", "dp")  # what gradients are reduced over, and what experts are spread over


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

    @property
    def size(self) -> Floats:
        """Members of the group, shape ``(n_layouts,)``."""
        return reduce(mul, self.members)

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
    for held in reversed(group.members):
        members.append(np.where((held > 1) & ~apart, 2.0, 1.0))
        apart = apart | (held > 1)
    return Span(tuple(reversed(members)), group.strides)


@dataclass(frozen=True)
class Placement:
    """The spans of all groups of a table of layouts, and which of its rows keep the rules of the network's ``parallelisms``.

    ``gradient`` is the group of cp and dp together (dense gradients), ``expert_gradient`` its cp·dp/ep members that hold the same
    experts. ``legal``, shape ``(n_layouts,)``, is False where ``reasons`` (one text a rule, with its own mask) say why.
    """

    tp: Span
    cp: Span
    ep: Span
    dp: Span
    pp: Span
    gradient: Span
    expert_gradient: Span
    reasons: tuple[tuple[str, Mask], ...] = ()

    @property
    def legal(self) -> Mask | None:
        """False where a rule is broken, shape ``(n_layouts,)``; None where there is no rule to break."""
        if not self.reasons:
            return None
        broken = self.reasons[0][1]
        for _, mask in self.reasons[1:]:
            broken = broken | mask
        return ~broken


@dataclass(frozen=True)
class _Run:
    """Ranks at a constant distance: ``count`` of them, ``stride`` apart, both ``(n_layouts,)``, on one set of dimensions."""

    count: Integers
    stride: Integers
    dimensions: tuple[int, ...]


def place(degrees: Mapping[str, npt.ArrayLike], order: Sequence[str], network: Network) -> Placement:
    """Places the groups of every layout.

    Args:
        degrees: columns ``tp, cp, dp, pp, ep``, integers ≥ 1 that broadcast to ``(n_layouts,)``; a missing one is 1.
        order: the parallelisms, inner to outer (``parallel.order``); ep before dp puts an expert group on neighbouring ranks of
            cp·dp, ep after dp on the outermost ones.
        network: its dimensions, inner to outer; where one lists ``parallelisms``, these ride on it alone.

    Returns:
        a ``Placement`` whose spans have arrays ``(n_layouts,)``.

    Raises:
        ValueError: a parallelism that stands on two dimensions.
    """
    columns = {name: np.atleast_1d(np.asarray(degrees.get(name, 1), dtype=np.int64)) for name in (*FACTORS, "ep")}
    homes = _homes(network)
    apart = "ep" in homes and homes["ep"] not in {homes.get("cp"), homes.get("dp")}
    counts = {name: columns[name] for name in FACTORS}
    reasons = []
    if apart:
        # Experts on a dimension of their own: the data-parallel ranks that they take there are no longer on that of dp.
        reasons.append(("ep has a network dimension of its own and does not divide dp", columns["dp"] % columns["ep"] != 0))
        counts["dp"] = np.maximum(1, columns["dp"] // columns["ep"])
        counts["ep"] = columns["ep"]
    runs = _runs(counts, order, network, homes)
    reasons += _broken(counts, network, homes)
    spans = {name: _span([run], network, runs) for name, run in runs.items()}
    if apart:
        spans["dp"] = spans["ep"] * spans["dp"]
        gradient = spans["cp"] * spans["dp"]
        rest = spans["cp"] * _span([runs["dp"]], network, runs)
    else:
        first, second = (runs[name] for name in order if name in DATA)
        whole = _Run(first.count * second.count, first.stride, first.dimensions)
        merged = [whole] if merges(order, network) else [first, second]
        taken, left = _take(merged, columns["ep"], inner=order.index("ep") < order.index("dp"))
        gradient, spans["ep"], rest = (_span(part, network, runs) for part in (merged, taken, left))
    return Placement(**spans, gradient=gradient, expert_gradient=rest, reasons=tuple(reasons))


def _homes(network: Network) -> dict[str, int]:
    """The dimension that lists a parallelism, for those that are listed."""
    homes: dict[str, int] = {}
    for index, dimension in enumerate(network.dimensions):
        for name in dimension.parallelisms or ():
            if name in homes:
                raise ValueError(
                    f"hw.network.dimensions.{index}.parallelisms has {name}, which dimension {homes[name]} has too; "
                    "allowed: each parallelism on one dimension"
                )
            homes[name] = index
    return homes


def _runs(counts: Mapping[str, Integers], order: Sequence[str], network: Network, homes: Mapping[str, int]) -> dict[str, _Run]:
    """Count and stride of each parallelism, among those that ride on the same dimensions."""
    free = tuple(index for index, dimension in enumerate(network.dimensions) if dimension.parallelisms is None)
    inside: dict[tuple[int, ...], Integers] = {}
    runs = {}
    for name in order:
        if name in counts:
            dimensions = (homes[name],) if name in homes else free
            stride = inside.get(dimensions, np.ones(1, np.int64))
            runs[name] = _Run(counts[name], stride, dimensions)
            inside[dimensions] = stride * counts[name]
    return runs


def _broken(counts: Mapping[str, Integers], network: Network, homes: Mapping[str, int]) -> list[tuple[str, Mask]]:
    """The rules that ``parallelisms`` and sizes set, each with the mask of the rows that break it."""
    rules = []
    for index, dimension in enumerate(network.dimensions):
        if dimension.parallelisms is not None and dimension.size is not None:
            listed = [counts[name] for name in dimension.parallelisms if name in counts]
            product = _product(listed)
            names = "·".join(dimension.parallelisms)
            rules.append((f"{names} is not the size {dimension.size} of network dimension {index}", product != dimension.size))
    free = [dimension for dimension in network.dimensions if dimension.parallelisms is None]
    loose = [name for name in counts if name not in homes]
    if not free:
        rules += [(f"no network dimension carries {name}", counts[name] > 1) for name in loose]
    elif all(dimension.size is not None for dimension in free):
        room = int(np.prod([dimension.size for dimension in free if dimension.size is not None]))
        ranks = _product(counts[name] for name in loose)
        rules.append((f"{'·'.join(loose)} is above the {room} places of the network", ranks > room))
    return rules


def merges(order: Sequence[str], network: Network) -> bool:
    """Whether cp and dp are neighbours on the same dimensions, so that together they are one run of ranks."""
    homes = _homes(network)
    around = [name for name in order if name in FACTORS and (name in DATA or homes.get(name) == homes.get("dp"))]
    return homes.get("cp") == homes.get("dp") and abs(around.index("cp") - around.index("dp")) == 1


def _take(runs: list[_Run], count: Integers, inner: bool) -> tuple[list[_Run], list[_Run]]:
    """Splits ``count`` ranks off a group, from its inner or outer end: what was taken, and what is left."""
    taken, left = [], []
    for run in runs if inner else reversed(runs):
        share = np.gcd(run.count, count) if len(runs) > 1 else count
        rest = np.maximum(1, run.count // share)
        count = count // share
        taken.append(_Run(share, run.stride if inner else run.stride * rest, run.dimensions))
        left.append(_Run(rest, run.stride * share if inner else run.stride, run.dimensions))
    return taken, left


def _span(group: list[_Run], network: Network, runs: Mapping[str, _Run]) -> Span:
    spans = [_span_of_run(run, network, runs) for run in group]
    result = spans[0]
    for span in spans[1:]:
        result = result * span
    return result


def _span_of_run(run: _Run, network: Network, runs: Mapping[str, _Run]) -> Span:
    """Members by dimension of ranks at a constant stride.

    A dimension boundary cuts ranks 0, c, 2c, …; a group of n ranks at stride s is cut at multiples of gcd(n·s, c) / s members, so
    that is what the least filled part of the worst group holds.
    """
    ranks = _product(other.count for other in runs.values() if other.dimensions == run.dimensions)
    shape = np.broadcast_shapes(ranks.shape, run.count.shape, run.stride.shape)
    one = np.ones(shape)
    members, strides = [one] * len(network.dimensions), [one] * len(network.dimensions)
    extent = run.count * run.stride
    below: Floats = one  # members within the dimensions so far
    capacity = 1
    for index in run.dimensions:
        size = network.dimensions[index].size
        strides[index] = np.broadcast_to(np.maximum(run.stride / capacity, 1.0), shape)
        if size is None or len(run.dimensions) == 1:
            held: Floats = np.broadcast_to(run.count.astype(np.float64), shape)
        else:
            capacity *= size
            share = _common(extent, capacity) / run.stride
            held = np.clip(np.where(ranks <= capacity, run.count, share), below, run.count)
        members[index] = held / below
        below = held
    return Span(tuple(members), tuple(strides))


def _common(extent: Integers, capacity: int) -> Integers:
    """gcd(extent, capacity); the general case is an order slower and rare."""
    least = np.minimum(extent, capacity)
    odd = (capacity % least != 0) | (extent % least != 0)
    if np.any(odd):
        least = np.where(odd, np.gcd(extent, capacity), least)
    return least


def _product(counts: Iterable[Integers]) -> Integers:
    return reduce(mul, counts, np.ones(1, np.int64))
