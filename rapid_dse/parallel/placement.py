"""Where the groups of each parallelism lie on the dimensions of the network.

Ranks are laid out by ``parallel.order``, inner to outer: neighbours in the first parallelism are neighbours on the machine. They fill
each dimension before the next one begins, whole or in part: ``_filled`` has the rule. Expert parallelism is no factor of the number of
GPUs: experts have a grid of their own on the ranks of tp, cp and dp together. The ranks that share an expert (etp) are cut out of those
of tp first; what tp leaves joins cp and dp, out of which ep's groups are cut, and what ep leaves holds copies of the same experts
(Megatron Core's ``RankGenerator`` does the same: its expert grid has no cp; Liu et al., arXiv 2504.14960, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import mul

import numpy as np
import numpy.typing as npt

from rapid_dse.config.hardware import Network
from rapid_dse.parallel.rank_runs import DATA, FACTORS, RankRun, beside_experts, take_ranks
from rapid_dse.parallel.span import Halves, Span

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Placement:
    """The spans of all groups of a table of layouts, and which of its rows keep the rules of the network's ``parallelisms``.

    ``gradient`` is the group of cp and dp together (dense gradients), ``expert_gradient`` the tp·cp·dp/(etp·ep) ranks that hold the same
    experts, ``etp`` the ranks that share an expert. ``halves`` and ``expert_halves`` are the groups of gradients cut into ranks that share
    one copy of what ZeRO shards and ranks that hold the same shard (hybrid sharding); None where no layout of the table is cut. ``legal``,
    shape ``(n_layouts,)``, is False where ``reasons`` (one text a rule, with its own mask) say why.
    """

    tp: Span
    cp: Span
    ep: Span
    dp: Span
    pp: Span
    gradient: Span
    expert_gradient: Span
    etp: Span
    halves: Halves | None = None
    expert_halves: Halves | None = None
    reasons: tuple[tuple[str, Mask], ...] = ()

    @property
    def shard(self) -> Span:
        """The ranks that share one copy of what ZeRO shards of dense weights."""
        return self.gradient if self.halves is None else self.halves.shard

    @property
    def expert_shard(self) -> Span:
        """The ranks that share one copy of what ZeRO shards of a rank's experts."""
        return self.expert_gradient if self.expert_halves is None else self.expert_halves.shard

    @property
    def legal(self) -> Mask | None:
        """False where a rule is broken, shape ``(n_layouts,)``; None where there is no rule to break."""
        if not self.reasons:
            return None
        broken = self.reasons[0][1]
        for _, mask in self.reasons[1:]:
            broken = broken | mask
        return ~broken


FEW = 1024  # degrees of as many layouts as are looked up before they are placed


@dataclass(frozen=True)
class _Groups:
    """The runs of ranks behind all groups of a table of layouts.

    ``runs``: each parallelism's own; ``gradient``: the group of cp and dp; ``sharing``: ranks that share an expert; ``taken`` and
    ``unplaced``: what ep takes of the ranks beside those, and the rest;
    ``cuts``: of dense weights, then of experts, the ranks that share one copy of the shards, and those that hold the same shard.
    ``apart``: ep has a dimension of its own, and a run among ``runs``; then nothing is taken.
    """

    runs: Mapping[str, RankRun]
    gradient: list[RankRun]
    sharing: list[RankRun]
    taken: list[RankRun]
    unplaced: list[RankRun]
    apart: bool
    reasons: tuple[tuple[str, Mask], ...]
    cuts: tuple[list[RankRun], ...] = ()

    @property
    def every(self) -> list[RankRun]:
        """All runs that something is exchanged in."""
        return [*self.runs.values(), *self.gradient, *self.sharing, *self.taken, *self.unplaced, *(run for cut in self.cuts for run in cut)]

    def ranks(self, dimensions: tuple[int, ...]) -> Integers:
        """Ranks that ride on these dimensions, ``(n_layouts,)``."""
        return _product(run.count for run in self.runs.values() if run.dimensions == dimensions)


def place(degrees: Mapping[str, npt.ArrayLike], order: Sequence[str], network: Network) -> Placement:
    """Places the groups of every layout.

    Args:
        degrees: columns ``tp, cp, dp, pp, ep, etp``, integers ≥ 1 that broadcast to ``(n_layouts,)``; a missing one is 1, a missing etp
            is tp; etp · ep divides tp · cp · dp. ``shards``, where given, is how many ranks of cp · dp share one copy of what ZeRO
            shards; it divides cp · dp, and etp · ep divides tp times it.
        order: the parallelisms, inner to outer (``parallel.order``); ep before dp puts an expert group on neighbouring ranks,
            ep after dp on the outermost ones.
        network: its dimensions, inner to outer; where one lists ``parallelisms``, these ride on it alone.

    Returns:
        a ``Placement`` whose spans have arrays ``(n_layouts,)``.

    Raises:
        ValueError: a parallelism that stands on two dimensions.
    """
    columns = {name: np.asarray(degree, dtype=np.int64) for name, degree in degrees.items()}
    if sum(column.size for column in columns.values()) > FEW:
        return _place(columns, order, network)
    return _place_few(tuple((name, column.shape, column.tobytes()) for name, column in columns.items()), tuple(order), network)


@lru_cache(maxsize=128)
def _place_few(degrees: tuple[tuple[str, tuple[int, ...], bytes], ...], order: tuple[str, ...], network: Network) -> Placement:
    """``place`` of few layouts, which other scenarios on the network have too."""
    return _place({name: np.frombuffer(rank_places, np.int64).reshape(shape) for name, shape, rank_places in degrees}, order, network)


def _place(degrees: Mapping[str, Integers], order: Sequence[str], network: Network) -> Placement:
    groups = _groups(degrees, order, network)
    filled = _filled(groups, network)

    def span(group: list[RankRun]) -> Span:
        return _span(group, network, groups, filled)

    spans = {name: span([run]) for name, run in groups.runs.items()}
    if groups.apart:
        spans["dp"], spans["etp"] = spans["ep"] * spans["dp"], spans["tp"]
        gradient = spans["cp"] * spans["dp"]
        rest = spans["cp"] * span([groups.runs["dp"]])
    else:
        gradient, spans["ep"], rest = span(groups.gradient), span(groups.taken), span(groups.unplaced)
        spans["etp"] = span(groups.sharing)
    cuts = [span(cut) for cut in groups.cuts]
    dense, experts = (Halves(*cuts[:2]), Halves(*cuts[2:])) if cuts else (None, None)
    return Placement(**spans, gradient=gradient, expert_gradient=rest, halves=dense, expert_halves=experts, reasons=groups.reasons)


def side_of(degrees: Mapping[str, npt.ArrayLike], order: Sequence[str], network: Network, ranks: Integers, stride: Integers) -> Span:
    """Where groups of ``ranks`` members of a tensor-parallel group lie, ``stride`` apart in it.

    Args:
        degrees, order, network: as of ``place``.
    """
    groups = _groups(degrees, order, network)
    whole = groups.runs["tp"]
    return _span([RankRun(ranks, whole.stride * stride, whole.dimensions)], network, groups, _filled(groups, network))


def places_filled(degrees: Mapping[str, int], order: Sequence[str], network: Network) -> dict[int, int]:
    """How many places of each free dimension (one that lists no parallelisms) one layout's ranks fill before the next one begins.

    Args:
        degrees, order, network: as of ``place``, one layout's.

    Returns:
        the number by the dimension's index; its size, unless the dimension may be filled in part; none for an open dimension.
    """
    places, below = {}, 1
    for index, ranks in _filled(_groups(degrees, order, network), network).items():
        filled = int(np.ravel(ranks)[0])
        places[index], below = filled // below, filled
    return places


def _groups(degrees: Mapping[str, npt.ArrayLike], order: Sequence[str], network: Network) -> _Groups:
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
    shards, shared = _cut_shards(degrees, columns), _sharing(degrees, columns)
    if apart:
        reasons.append(("etp other than tp is not priced where ep has a network dimension of its own", shared != columns["tp"]))
        if shards is not None:
            text = "shard_group is not priced where ep has a network dimension of its own"
            reasons.append((text, shards != columns["dp"] * columns["cp"]))
        return _Groups(runs, [], [], [], [], apart, tuple(reasons))
    first, second = (runs[name] for name in order if name in DATA)
    whole = RankRun(first.count * second.count, first.stride, first.dimensions)
    merged = [whole] if merges(order, network) else [first, second]
    inner = order.index("ep") < order.index("dp")
    sharing, pool = beside_experts(runs, merged, shared, order)
    taken, untaken = take_ranks(pool, columns["ep"], inner)
    cuts: tuple[list[RankRun], ...] = ()
    if shards is not None:
        of_experts = untaken if inner else untaken[::-1]  # inner to outer again
        copies = np.maximum(1, columns["tp"] * shards // (shared * columns["ep"]))
        cuts = *take_ranks(merged, shards, inner=True), *take_ranks(of_experts, copies, inner=True)
    return _Groups(runs, merged, sharing, taken, untaken, apart, tuple(reasons), cuts)


def _sharing(degrees: Mapping[str, npt.ArrayLike], columns: Mapping[str, Integers]) -> Integers:
    """Ranks that share an expert, ``(n_layouts,)``: etp, or tp where it is not given."""
    return np.atleast_1d(np.asarray(degrees.get("etp", columns["tp"]), dtype=np.int64))


def _cut_shards(degrees: Mapping[str, npt.ArrayLike], columns: Mapping[str, Integers]) -> Integers | None:
    """Ranks that share one copy of the shards, ``(n_layouts,)``; None where that is all of cp · dp in every layout."""
    if "shards" not in degrees:
        return None
    shards = np.atleast_1d(np.asarray(degrees["shards"], dtype=np.int64))
    return None if (shards == columns["cp"] * columns["dp"]).all() else shards


def _filled(groups: _Groups, network: Network) -> dict[int, Integers]:
    """How many ranks of each layout stand in one dimension, with those inside it, before the next place of the dimension outside begins.

    The rule: ranks fill a dimension whole, ``size`` places of it, whether or not groups are cut by its border. A dimension with
    ``allocation`` may be filled in part: then its ranks are as many as the most places (``size``, or a multiple of ``allocation``
    below it) at whose border no group is cut unevenly: each group lies inside whole, or has the same number of members in each part.
    So of a rack of 72 GPUs that are given out by 4, groups of powers of two fill 64, and groups of 3 × 8 fill 72; in nodes of 8, which
    are given out whole, groups of 6 lie across the border. Where no number of places does that, or the dimensions outside would not
    hold all the parts, the dimension is filled whole; so it is where all ranks stand in it anyway.

    Returns:
        by index of the free dimensions (they list no parallelisms), inner to outer, without an open one: ranks, ``(1,)`` or
        ``(n_layouts,)``.
    """
    dimensions = _free(network)
    inside, ranks = np.ones(1, np.int64), groups.ranks(dimensions)
    extents = [run.extent for run in groups.every if run.dimensions == dimensions]
    filled: dict[int, Integers] = {}
    for position, index in enumerate(dimensions):
        dimension = network.dimensions[index]
        if dimension.size is None:
            break
        outside = [network.dimensions[outer].size for outer in dimensions[position + 1 :]]
        room = np.inf if None in outside else float(np.prod([size for size in outside if size is not None]))
        whole, step = inside * dimension.size, dimension.allocation
        if step is not None and outside:
            counts = dict.fromkeys([dimension.size, *range(dimension.size // step * step, 0, -step)])
            inside = _even(inside, list(counts), ranks, room, extents)
        else:
            inside = whole
        filled[index] = inside
    return filled


def _even(inside: Integers, counts: Sequence[int], ranks: Integers, room: float, extents: Sequence[Integers]) -> Integers:
    """The first of ``counts`` times ``inside`` at whose border no group is cut unevenly; the first of all where none is.

    Args:
        inside: ranks in each place.
        counts: numbers of places, falling.
        ranks: of the whole layout.
        room: parts that the dimensions outside hold.
        extents: of each kind of group, ``(n_layouts,)``, from one group to the next.
    """
    shape = np.broadcast_shapes(inside.shape, ranks.shape, *(extent.shape for extent in extents))
    filled = np.broadcast_to(inside * counts[0], shape).copy()
    unsettled = np.flatnonzero(np.broadcast_to(ranks, shape) > filled)
    columns = [np.broadcast_to(column, shape)[unsettled] for column in (inside, ranks, *extents)]
    for count in counts:
        if not len(unsettled):
            break
        part = columns[0] * count
        even = -(-columns[1] // part) <= room
        for extent in columns[2:]:
            even &= (np.maximum(part, extent) % np.minimum(part, extent)) == 0
        filled[unsettled[even]] = part[even]
        unsettled, columns = unsettled[~even], [column[~even] for column in columns]
    return filled


def _free(network: Network) -> tuple[int, ...]:
    return tuple(index for index, dimension in enumerate(network.dimensions) if dimension.parallelisms is None)


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


def _runs(counts: Mapping[str, Integers], order: Sequence[str], network: Network, homes: Mapping[str, int]) -> dict[str, RankRun]:
    """Count and stride of each parallelism, among those that ride on the same dimensions."""
    free = _free(network)
    inside: dict[tuple[int, ...], Integers] = {}
    runs = {}
    for name in order:
        if name in counts:
            dimensions = (homes[name],) if name in homes else free
            stride = inside.get(dimensions, np.ones(1, np.int64))
            runs[name] = RankRun(counts[name], stride, dimensions)
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


def _span(group: list[RankRun], network: Network, groups: _Groups, filled: Mapping[int, Integers]) -> Span:
    spans = [_span_of_run(run, network, groups.ranks(run.dimensions), filled) for run in group]
    result = spans[0]
    for span in spans[1:]:
        result = result * span
    return result


def _span_of_run(run: RankRun, network: Network, ranks: Integers, filled: Mapping[int, Integers]) -> Span:
    """Members by dimension of ranks at a constant stride.

    A dimension boundary cuts ranks 0, c, 2c, …; a group of n ranks at stride s is cut at multiples of gcd(n·s, c) / s members, so
    that is what the least filled part of the worst group holds. Where the group takes all ranks, s divides c and c does not divide n·s,
    it is what is left for the last part: (n·s mod c) / s.
    """
    shape = np.broadcast_shapes(ranks.shape, run.count.shape, run.stride.shape)
    one = np.ones(shape)
    members, strides = [one] * len(network.dimensions), [one] * len(network.dimensions)
    below: Floats = one  # members within the dimensions so far
    capacity: Integers = np.ones(1, np.int64)
    for index in run.dimensions:
        strides[index] = np.broadcast_to(np.maximum(run.stride / capacity, 1.0), shape)
        if len(run.dimensions) == 1 or index not in filled:
            span: Floats = np.broadcast_to(run.count.astype(np.float64), shape)
        else:
            capacity = filled[index]
            share = _least_part(run, capacity, ranks) / run.stride
            span = np.clip(np.where(ranks <= capacity, run.count, share), below, run.count)
        members[index] = span / below
        below = span
    return Span(tuple(members), tuple(strides))


def _least_part(run: RankRun, capacity: Integers, ranks: Integers) -> Integers:
    """Ranks between the cuts that lie closest in any group of the run; what does not divide is an order slower and rare."""
    extent = run.extent
    least = np.minimum(extent, capacity)
    odd = (capacity % least != 0) | (extent % least != 0)
    if np.any(odd):
        alone = (extent == ranks) & (capacity % run.stride == 0) & (extent > capacity)
        least = np.where(odd, np.where(alone, extent % capacity, np.gcd(extent, capacity)), least)
    return least


def _product(counts: Iterable[Integers]) -> Integers:
    return reduce(mul, counts, np.ones(1, np.int64))
