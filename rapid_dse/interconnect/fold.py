"""Symmetric graphs: when one rank may stand for all, and the routes that its messages then take.

Ranks stand for each other when each has the same nodes, each collective's groups split the ranks evenly, and a
message of one rank meets the same links as that of any other: links of a switch serve one rank each, those of a ring
or a fully connected dimension are alike along the dimension when all messages go the same way. Then rank 0's links
stand for all of their kind, and a message that it sends is the one that it receives. What may still break the
symmetry, the order of events of one ns, is watched during the run (``symmetry_check``); a run that comes to such an
order is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.interconnect import records as rec
from rapid_dse.interconnect.topology import Links, Topology
from rapid_dse.trace.graph import COLLECTIVE, SEND, WORLD, Graph, Ints

Coordinates = list[int]


def first_rank(graph: Graph) -> Graph | None:
    """Cut rank 0's nodes out, if every rank has the same; None otherwise."""
    n, rest = divmod(len(graph), graph.ranks)
    if rest or n == 0 or (graph.kind >= SEND).any() or (graph.rank != np.repeat(np.arange(graph.ranks), n)).any():
        return None
    for name in ("id", "kind", "duration_ns", "size", "collective", "stream"):
        table = getattr(graph, name).reshape(graph.ranks, n)
        if (table != table[0]).any():
            return None
    counts = np.diff(graph.deps_ptr).reshape(graph.ranks, n)
    if (counts != counts[0]).any():
        return None
    deps = graph.deps.reshape(graph.ranks, -1) - np.arange(graph.ranks)[:, None] * n
    if (deps != deps[0]).any() or not _groups_split_ranks(graph, n):
        return None
    columns = ("rank", "id", "kind", "duration_ns", "size", "collective", "group", "peer", "tag", "stream")
    cut: dict[str, Any] = {name: getattr(graph, name)[:n] for name in columns}
    return replace(graph, deps_ptr=graph.deps_ptr[: n + 1], deps=deps[0], **cut)


def _groups_split_ranks(graph: Graph, n: int) -> bool:
    """Whether each collective's groups are of one size and each is used by all of its ranks."""
    sizes = np.diff(graph.groups.ptr)
    table = graph.group.reshape(graph.ranks, n)[:, graph.kind[:n] == COLLECTIVE]
    for column in np.unique(table, axis=1).T:
        if (column == WORLD).all():
            continue
        if (column == WORLD).any() or len(np.unique(sizes[column])) > 1:
            return False
        used, counts = np.unique(column, return_counts=True)
        if (counts != sizes[used]).any():
            return False
    return True


@dataclass(slots=True)
class Folding:
    """Routes of rank 0's messages, over links that stand for all of their kind."""

    topology: Topology
    layout: Links
    graph: Graph
    routes: list[int]
    message_routes: list[tuple[int, int]]

    def add_phase(self, phase: NDArray[Any], offset: Coordinates | None) -> bool:
        """Add the routes of a phase whose rings step by ``offset`` (None: along its dimension).

        False if it cannot fold.
        """
        algorithm, n = int(phase["algorithm"]), int(phase["n"])
        if algorithm == rec.ALG_TREE:
            return False
        sizes = [d.size for d in self.topology.dimensions]
        step = offset or [int(d == phase["dim"]) for d in range(len(sizes))]
        along = [d for d, o in enumerate(step) if o]
        if len(along) != 1:
            return False
        kind = self.topology.dimensions[along[0]].kind
        if kind not in ("Switch", "Ring", "FullyConnected") or (algorithm == rec.ALG_HALVING and kind != "Switch"):
            return False
        phase["route"] = len(self.message_routes)
        shifts = range(1, n) if algorithm == rec.ALG_DIRECT else range(1, 2)
        for way in (1, -1):
            for shift in shifts:
                far = way * shift * step[along[0]] % sizes[along[0]]
                # on a switch all targets are alike, and a ring of a group may come round to rank 0's own place
                self._add_route(along[0], 1 if kind == "Switch" else far)
        return True

    def _add_route(self, d: int, far: int) -> None:
        dim = self.layout.dims[d]
        first = int(dim["links"])
        if dim["kind"] == rec.SWITCH:
            links = [first, first + self.topology.ranks]
        elif dim["kind"] == rec.FULLY_CONNECTED:
            links = [first + far]
        else:
            back = 2 * far > dim["n"]
            links = [first + 1] * int(dim["n"] - far) if back else [first] * far
        self.message_routes.append((len(self.routes), far * int(dim["stride"])))
        self.routes += [*links, -1]

    def offset(self, group_of: Ints) -> Coordinates | None:
        """Give how far apart, by coordinate, neighbours in these groups' rings are.

        None when that differs or cannot fold.
        """
        groups = self.graph.groups
        rows = np.stack([groups.members(int(g)) for g in np.unique(group_of)])
        after = np.roll(rows, -1, axis=1)
        out: Coordinates = []
        for dim, dimension in zip(self.layout.dims, self.topology.dimensions, strict=True):
            stride, n = int(dim["stride"]), int(dim["n"])
            apart = (after // stride - rows // stride) % n
            if dimension.kind == "Switch" and apart.all():
                apart = np.ones_like(apart)
            if (apart != apart[0, 0]).any():
                return None
            out.append(int(apart[0, 0]))
        return out


def fold(graph: Graph, one: Graph, topology: Topology, layout: Links, tables: Mapping[str, NDArray[Any]]) -> Folding | None:
    """Lay the routes of rank 0's messages out for all phases of its plans; None when some cannot fold.

    ``tables`` are the engine's of ``one``, which ``first_rank`` cut out of ``graph``.
    """
    nodes, phases, plans = (tables[name] for name in ("nodes", "phases", "plans"))
    folding = Folding(topology, layout, one, [], [])
    n = len(one)
    by_node = graph.group.reshape(graph.ranks, n)
    for plan in np.unique(nodes["plan"][one.kind == COLLECTIVE]).tolist():
        used = np.flatnonzero((nodes["plan"] == plan) & (one.kind == COLLECTIVE))
        offsets: list[Coordinates | None] = [None]
        if not plans["world"][plan]:
            offsets = [folding.offset(by_node[:, i]) for i in used]
            # one plan's messages take one route: its groups must all step alike
            if None in offsets or any(o != offsets[0] for o in offsets):
                return None
        first = int(plans["first_phase"][plan])
        for phase in range(first, first + int(plans["phases"][plan])):
            if not folding.add_phase(phases[phase], offsets[0]):
                return None
    return folding


def spread_links(topology: Topology, layout: Links, links: NDArray[Any]) -> None:
    """Copy what went over rank 0's links to all that they stand for, in place."""
    ranks = topology.ranks
    rank = np.arange(ranks)
    for dim in layout.dims:
        first, n, stride = int(dim["links"]), int(dim["n"]), int(dim["stride"])
        if dim["kind"] == rec.SWITCH:
            like = np.repeat([0, ranks], ranks)
        elif dim["kind"] == rec.RING:
            like = np.tile([0, 1], ranks)
        elif dim["kind"] == rec.FULLY_CONNECTED:
            at = rank // stride % n
            like = ((np.arange(n)[None, :] - at[:, None]) % n).ravel()
        else:
            continue
        for name in ("bytes", "busy_ns"):
            block = links[name][first : first + len(like)]
            block[:] = block[like]
