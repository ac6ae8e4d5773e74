"""A layout's ranks on the machine: the event engine's topology, and where each rank of the layout stands in it.

``placement`` counts members by dimension for the closed forms; here every rank has its place, for graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod

import numpy as np

from rapid_dse.config.hardware import Network, NetworkDimension
from rapid_dse.interconnect.topology import BYTES_PER_GB, Dimension, Topology
from rapid_dse.parallel.placement import places_filled
from rapid_dse.trace.graph import Ints

AXES = ("pp", "dp", "cp", "tp")  # of ``Cluster.rank``, outer to inner
KINDS = {"ring": "Ring", "torus": "Ring", "mesh": "Line", "fully_connected": "FullyConnected", "switch": "Switch", "fat_tree": "FatTree"}
ALIKE = ("Switch", "FullyConnected")  # kinds whose places are all alike: what nobody uses can be left out
LEAF = 32  # ranks under a leaf switch of a fat tree, at most


@dataclass(frozen=True)
class Machine:
    """The places of a layout's ranks.

    Attributes:
        topology: dimensions with more than one place, inner to outer; places that no rank takes stay idle.
        rank: the place of each rank, ``(pp, dp, cp, tp)``.
        dimension: which dimension of the hardware each one of the topology is.
    """

    topology: Topology
    rank: Ints
    dimension: tuple[int, ...]

    def coordinates(self, places: Ints) -> list[Ints]:
        """Coordinates of places, one array of the same shape a dimension of the topology."""
        coordinate, stride = [], 1
        for dimension in self.topology.dimensions:
            coordinate.append(places // stride % dimension.size)
            stride *= dimension.size
        return coordinate

    def groups(self, axes: Sequence[str]) -> Ints:
        """The groups that span ``axes``, the last one fastest: ``(groups, members)``."""
        inside = [AXES.index(name) for name in axes]
        outside = [axis for axis in range(len(AXES)) if axis not in inside]
        ranks: Ints = self.rank.transpose(*outside, *inside).reshape(-1, prod(self.rank.shape[axis] for axis in inside))
        return ranks

    def phases(self, groups: Ints) -> list[Ints]:
        """The groups dimension by dimension, inner to outer, ``(groups, members)`` each, as hierarchical collectives walk them.

        Groups that are no full product of the places they take along each dimension stay whole: one ring in their order.
        """
        coordinates = self.coordinates(groups)
        distinct = [np.array([len(np.unique(row)) for row in column]) for column in coordinates]
        if any((count != count[0]).any() for count in distinct) or prod(int(count[0]) for count in distinct) != groups.shape[1]:
            return [groups]
        used = [axis for axis, count in enumerate(distinct) if count[0] > 1]
        phases = []
        for axis in used:
            others = [column for other, column in enumerate(coordinates) if other != axis]
            owner = np.broadcast_to(np.arange(len(groups))[:, None], groups.shape)
            order = np.lexsort([coordinates[axis].ravel(), *(column.ravel() for column in others), owner.ravel()])
            phases.append(groups.ravel()[order].reshape(-1, int(distinct[axis][0])))
        return phases

    def part(self, places: Ints) -> tuple[Machine, Ints]:
        """The network around some places alone: dimensions that they do not span are left out.

        Returns:
            that cluster (its ``rank`` is that of ``places``), and the new places in the same shape.
        """
        kept: list[tuple[Dimension, Ints, int]] = []
        for dimension, column, number in zip(self.topology.dimensions, self.coordinates(places), self.dimension, strict=True):
            used, at = np.unique(column, return_inverse=True)
            if len(used) == 1:
                continue
            if dimension.kind in ALIKE:
                kept.append((replace(dimension, size=len(used)), at.reshape(places.shape), number))
            else:
                kept.append((dimension, column, number))
        new, stride = np.zeros(places.shape, np.int64), 1
        for dimension, column, _ in kept:
            new, stride = new + column * stride, stride * dimension.size
        topology = Topology(tuple(dimension for dimension, _, _ in kept) or (_alone(),))
        topology = replace(topology, faulty_links=_faults_among(self, places, new, topology, [number for _, _, number in kept]))
        return Machine(topology, new, tuple(number for _, _, number in kept) or (0,)), new


def _alone() -> Dimension:
    return Dimension(kind="Switch", size=1, bandwidth=1.0, latency=0.0)


def switch_of(topology: Topology, axis: int, place: int) -> int:
    """The device number of the switch that a place hangs on along a dimension of switches."""
    ranks, sizes = topology.ranks, [dimension.size for dimension in topology.dimensions]
    before = sum(ranks // d.size for d in topology.dimensions[:axis] if d.kind == "Switch")
    stride = prod(sizes[:axis])
    # switches follow each other in the order of the first place on each
    return ranks + before + place // (stride * sizes[axis]) * stride + place % stride


def fault_ends(topology: Topology, fault: tuple[int, int, float]) -> tuple[tuple[int, ...], int]:
    """The places at the ends of a faulty link, one where the other end is a switch, and the dimension that it is a link of.

    Raises:
        ValueError: a link between the switches of a fat tree, or none at all.
    """
    source, target = sorted(fault[:2])
    sizes = [dimension.size for dimension in topology.dimensions]
    strides = [prod(sizes[:axis]) for axis in range(len(sizes))]
    if target < topology.ranks:
        along = [
            axis for axis, (size, stride) in enumerate(zip(sizes, strides, strict=True)) if (source // stride - target // stride) % size
        ]
        return (source, target), along[0]
    simple = all(dimension.kind != "FatTree" for dimension in topology.dimensions)
    for axis, dimension in enumerate(topology.dimensions) if simple and source < topology.ranks else ():
        if dimension.kind == "Switch" and switch_of(topology, axis, source) == target:
            return (source,), axis
    raise ValueError(
        f"hw.network.faulty_links has {list(fault)}, which is no link of a rank, and this backend times groups apart from the whole "
        "network; allowed with it: backend=full_astrasim_flattened"
    )


def _faults_among(cluster: Machine, places: Ints, new: Ints, topology: Topology, kept: Sequence[int]) -> tuple[tuple[int, int, float], ...]:
    """The faulty links that a part of the network has, under their new numbers."""
    new_places = dict(zip(places.ravel().tolist(), new.ravel().tolist(), strict=True))
    faults = []
    for fault in cluster.topology.faulty_links:
        ends, axis = fault_ends(cluster.topology, fault)
        number = cluster.dimension[axis]
        if number not in kept or any(end not in new_places for end in ends):
            continue
        here = [new_places[end] for end in ends]
        target = here[1] if len(here) == 2 else switch_of(topology, kept.index(number), here[0])
        faults.append((here[0], target, fault[2]))
    return tuple(faults)


def cluster_of(degrees: Mapping[str, int], order: Sequence[str], network: Network) -> Machine:
    """Places a layout's ranks.

    Args:
        degrees: tp, cp, dp, pp, ep; ep counts only where a dimension lists it.
        order: the parallelisms, inner to outer.
        network: with the bandwidth that the framework's collectives find.

    Raises:
        ValueError: a dimension that does not hold the parallelisms that it lists, or a faulty link that is none.
    """
    counts, index = _indices(degrees, network)
    homes: dict[str, int] = {name: i for i, dimension in enumerate(network.dimensions) for name in dimension.parallelisms or ()}
    free = [i for i, dimension in enumerate(network.dimensions) if dimension.parallelisms is None]
    coordinates, sizes = [np.zeros((), np.int64)] * len(network.dimensions), [1] * len(network.dimensions)
    for i, dimension in enumerate(network.dimensions):
        if dimension.parallelisms is not None:
            names = [name for name in order if homes.get(name) == i and name in counts]
            coordinates[i], sizes[i] = _mixed(names, counts, index)
            if dimension.size is not None and sizes[i] != dimension.size:
                raise ValueError(
                    f"hw.network.dimensions.{i}.size={dimension.size}: {'·'.join(names)} is {sizes[i]}; allowed: the two equal"
                )
    loose = [name for name in order if name in counts and name not in homes]
    place, inside_place = _mixed(loose, counts, index)
    filled = places_filled(degrees, order, network)
    if inside_place > 1 and not free:
        raise ValueError(f"no network dimension carries {', '.join(loose)}; allowed: one that lists it in parallelisms")
    for position, i in enumerate(free):
        given = network.dimensions[i].size
        last = position == len(free) - 1
        size = inside_place if given is None else given
        if given is not None and last and inside_place > given:
            raise ValueError(f"{'·'.join(loose)} is above the places of the network by {inside_place / given:g} times")
        used = filled.get(i, size)
        coordinates[i], sizes[i] = place % used, size
        place, inside_place = place // used, -(-inside_place // used)
    return _assembled(network, coordinates, sizes, tuple(degrees[axis] for axis in AXES))


def joined(network: Network, machines: Sequence[Machine]) -> tuple[Machine, list[Ints]]:
    """Several machines as one network: side by side along its outermost dimension.

    Args:
        machines: on that network without faults, each as if it were alone.

    Returns:
        the whole, and the places of each machine's ranks there, in the order of ``rank.ravel()``.

    Raises:
        ValueError: where the outermost dimension has fewer places than they need.
    """
    last = len(network.dimensions) - 1
    sizes, begins, used = [1] * (last + 1), [0], 0
    columns: list[list[Ints]] = [[] for _ in network.dimensions]
    for machine in machines:
        own = dict(zip(machine.dimension, machine.coordinates(machine.rank.ravel()), strict=True))
        for index in range(last + 1):
            column = own.get(index, np.zeros(machine.rank.size, np.int64))
            if index == last:
                column, used = column + used, used + int(column.max(initial=0)) + 1
            columns[index].append(column)
            sizes[index] = max(sizes[index], network.dimensions[index].size or 0, int(column.max(initial=0)) + 1)
        begins.append(begins[-1] + machine.rank.size)
    room = network.dimensions[last].size
    if room is not None and used > room:
        raise ValueError(f"hw.network.dimensions.{last}.size={room}: a prefill and a decode engine take {used} places of it")
    whole = _assembled(network, [np.concatenate(column) for column in columns], sizes, (1, 1, 1, begins[-1]))
    flat = whole.rank.ravel()
    return whole, [flat[begin:end] for begin, end in pairwise(begins)]


def _indices(degrees: Mapping[str, int], network: Network) -> tuple[dict[str, int], dict[str, Ints]]:
    """How many of each factor there are, and its index on the axes ``(pp, dp, cp, tp)``."""
    shape = tuple(degrees[axis] for axis in AXES)
    grid = np.indices(shape)
    counts = {axis: degrees[axis] for axis in AXES}
    index = {axis: grid[number] for number, axis in enumerate(AXES)}
    homes: dict[str, int] = {name: i for i, dimension in enumerate(network.dimensions) for name in dimension.parallelisms or ()}
    if "ep" in homes and homes["ep"] not in {homes.get("cp"), homes.get("dp")}:
        ep = degrees["ep"]
        if degrees["dp"] % ep:
            raise ValueError(f"parallel.ep={ep} has a network dimension of its own; allowed: a divisor of dp={degrees['dp']}")
        counts["dp"], counts["ep"] = degrees["dp"] // ep, ep
        index["dp"], index["ep"] = index["dp"] // ep, index["dp"] % ep
    return counts, index


def _mixed(names: Sequence[str], counts: Mapping[str, int], index: Mapping[str, Ints]) -> tuple[Ints, int]:
    number, stride = np.zeros((), np.int64), 1
    for name in names:
        number, stride = number + index[name] * stride, stride * counts[name]
    return np.asarray(number), stride


def _assembled(network: Network, coordinates: Sequence[Ints], sizes: Sequence[int], shape: tuple[int, ...]) -> Machine:
    dimensions, kept, rank, stride = [], [], np.zeros(shape, np.int64), 1
    for i, dimension in enumerate(network.dimensions):
        size, column = sizes[i], np.broadcast_to(coordinates[i], shape)
        used = int(column.max(initial=0)) + 1
        if KINDS[dimension.topology] in ALIKE and dimension.oversubscription == 1 and not network.faulty_links:
            size = used
        if size == 1:
            continue
        dimensions.append(_engine_dimension(dimension, size, used))
        kept.append(i)
        rank = rank + column * stride
        stride *= size
    return Machine(Topology(tuple(dimensions) or (_alone(),), network.faulty_links), rank, tuple(kept) or (0,))


def _engine_dimension(dimension: NetworkDimension, size: int, used: int) -> Dimension:
    """The dimension with the bandwidth of each of its links: full connection shares a GPU's bandwidth among its links."""
    rate = dimension.bandwidth * dimension.utilization
    if dimension.cabling is not None and used > 1:
        rate *= float(np.interp(used, np.arange(2, len(dimension.cabling) + 2), dimension.cabling))
    kind = KINDS[dimension.topology]
    if kind == "FullyConnected" and dimension.size is not None and dimension.size > 2:
        rate /= dimension.size - 1
    if kind == "Ring" and size == 2:
        kind = "FullyConnected"  # the same two links; a ring of two hangs ASTRA-sim
    values = {"size": size, "bandwidth": rate / BYTES_PER_GB, "latency": dimension.latency * 1e9}
    if kind == "FatTree" or dimension.oversubscription > 1:
        over = dimension.oversubscription
        leaf = max((n for n in range(1, min(LEAF, size) + 1) if size % n == 0 and (n / over).is_integer()), default=0)
        if leaf == 0:
            raise ValueError(
                f"hw.network.dimensions has oversubscription={over:g} on one of {size} places; allowed: a number that divides as many "
                f"places as a leaf switch has, which are at most {LEAF} and divide {size}"
            )
        return Dimension(kind="FatTree", leaf=leaf, oversubscription=over, **values)  # type: ignore[arg-type]
    return Dimension(kind=kind, **values)  # type: ignore[arg-type]
