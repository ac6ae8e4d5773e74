"""Routes around failed links.

In several dimensions the route stops before the failed link, steps +1 in the next dimension and leaves the failed one
for later: the dimensions are gone through from the last to the first, back to the last, and so on until the message is
there. Of the rules that were tried this is the simplest that gives ASTRA-sim's recorded times for a failed link of the
first and of the last dimension. Where it leads nowhere, the shortest way that is left is taken. One-dimensional rings, switches
and fully connected networks with a failed link are an error: ASTRA-sim runs them as if the link were healthy.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.interconnect.records import FAT_TREE, LINE, State, callable_compiled, detour_t, route_t, run_t, word_t
from rapid_dse.interconnect.routing import link_below, link_within, next_link
from rapid_dse.interconnect.rows import Tables, link_at, word_at
from rapid_dse.interconnect.topology import Links, Topology


def find_detours(topology: Topology, layout: Links) -> tuple[NDArray[Any], NDArray[Any]]:
    """Find a route for each pair of ranks whose usual one has failed.

    Returns the table of detours, ascending by key (none: a single row of zeros), and the routes that they point to.
    Raises ValueError when a pair has no way left, or for a failed link in a network of one dimension.
    """
    if not layout.failed.any():
        return np.zeros(1, detour_t), np.zeros(1, route_t)
    if len(layout.dims) == 1 and layout.dims["kind"][0] not in (FAT_TREE, LINE):
        src, dst, _ = next(fault for fault in topology.faulty_links if fault[2] == 0)
        raise ValueError(
            f"faulty_links: link {src}-{dst} has factor 0 in a network of one dimension, which ASTRA-sim runs as "
            "healthy: use a factor > 0 or a network of several dimensions"
        )
    walker = _Walker(topology, layout)
    keys: list[int] = []
    places: list[int] = []
    routes: list[int] = []
    for src, dst in walker.broken_pairs():
        keys.append(src * topology.ranks + dst)
        places.append(len(routes))
        routes.extend([*walker.route(src, dst), -1])
    detours = np.zeros(max(len(keys), 1), detour_t)
    if keys:
        detours["key"], detours["place"] = keys, places
    table = np.zeros(len(routes) + 1, route_t)
    table["link"][:-1] = routes
    return detours, table


@callable_compiled
def _link_within(s: State, d: int, rank: int, here: int, there: int) -> int:
    return link_within(s, d, rank, here, there)


@callable_compiled
def _link_below(s: State, device: int, dst: int) -> int:
    return link_below(s, device, dst)


@callable_compiled
def _mark_broken(s: State, src: int, broken: NDArray[np.bool_]) -> None:
    """Mark the ranks that the usual routes from ``src`` do not reach; words hold whether a link has failed."""
    for dst in range(len(broken)):
        device = src
        while device != dst and not broken[dst]:
            link = next_link(s, device, dst)
            broken[dst] = word_at(s, link).bits == 1
            device = link_at(s, link).device


class _Walker:
    """Walks a network with failed links."""

    def __init__(self, topology: Topology, layout: Links) -> None:
        head = np.zeros(1, run_t)
        head["ranks"], head["dims"] = topology.ranks, len(layout.dims)
        words = layout.failed.astype(np.uint64).view(word_t)
        tables = {"run": head, "links": layout.links, "dims": layout.dims, "devices": layout.devices, "words": words}
        self._tables = Tables(tables)
        self._layout = layout
        self._sizes = [(int(d["stride"]), int(d["n"])) for d in layout.dims]
        self._ranks = topology.ranks
        self._neighbours: dict[int, list[tuple[int, int]]] | None = None

    def broken_pairs(self) -> list[tuple[int, int]]:
        """Pairs of ranks, ascending, whose usual route goes over a failed link."""
        out = []
        for src in range(self._ranks):
            broken = np.zeros(self._ranks, bool)
            _mark_broken(self._tables.state, src, broken)
            out += [(src, int(dst)) for dst in np.flatnonzero(broken)]
        return out

    def route(self, src: int, dst: int) -> list[int]:
        """Links from ``src`` to ``dst``; raises ValueError when there is no way."""
        return self._step_aside(src, dst) or self._shortest(src, dst)

    def _cross(self, d: int, rank: int, target: int) -> tuple[list[int], int]:
        """Links of one step from ``rank`` in dimension d towards ``target``, and the rank it ends on.

        [] if one has failed.
        """
        stride, n = self._sizes[d]
        here, there = rank // stride % n, target // stride % n
        goal = rank + (there - here) * stride
        links = [_link_within(self._tables.state, d, rank, here, there)]
        device = int(self._layout.links["device"][links[0]])
        while device >= self._ranks:
            links.append(_link_below(self._tables.state, device, goal))
            device = int(self._layout.links["device"][links[-1]])
        return ([] if self._layout.failed[links].any() else links), device

    def _step_aside(self, src: int, dst: int) -> list[int]:
        """ASTRA-sim's way; [] when it does not come through."""
        dims = len(self._sizes)
        if dims == 1:
            return []
        at, path, order = src, [], list(reversed(range(dims)))
        for _ in range(2 * dims):
            for d in order:
                stride, n = self._sizes[d]
                links = [-1]
                while links and at // stride % n != dst // stride % n:
                    links, after = self._cross(d, at, dst)
                    if not links:
                        aside, after = self._cross_by_one((d + 1) % dims, at)
                        if not aside:
                            return []
                        path += aside
                    path += links
                    at = after
            if at == dst:
                return path
            order.reverse()
        return []

    def _cross_by_one(self, d: int, rank: int) -> tuple[list[int], int]:
        stride, n = self._sizes[d]
        here = rank // stride % n
        return self._cross(d, rank, rank + ((here + 1) % n - here) * stride)

    def _shortest(self, src: int, dst: int) -> list[int]:
        if self._neighbours is None:
            self._neighbours = {}
            good = np.flatnonzero((self._layout.source >= 0) & ~self._layout.failed)
            for link in good.tolist():
                ends = int(self._layout.source[link]), int(self._layout.links["device"][link])
                self._neighbours.setdefault(ends[0], []).append((link, ends[1]))
        came: dict[int, tuple[int, int]] = {src: (-1, -1)}
        line = deque([src])
        while line and dst not in came:
            device = line.popleft()
            for link, far in self._neighbours.get(device, ()):
                if far not in came:
                    came[far] = (link, device)
                    line.append(far)
        if dst not in came:
            raise ValueError(f"faulty_links: no way is left from rank {src} to rank {dst}")
        path, device = [], dst
        while device != src:
            link, device = came[device]
            path.append(link)
        return path[::-1]
