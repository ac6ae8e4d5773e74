"""Where a message goes next: dimension by dimension, from the last to dimension 0."""

from __future__ import annotations

from rapid_dse.interconnect.records import FAT_TREE, FULLY_CONNECTED, LINE, RING, SWITCH, State, compiled
from rapid_dse.interconnect.rows import detour_at, device_at, dim_at, run


@compiled
def link_within(s: State, d: int, rank: int, here: int, there: int) -> int:
    """Pick the link out of ``rank`` towards coordinate ``there`` of dimension ``d``, from coordinate ``here``."""
    dim = dim_at(s, d)
    if dim.kind == RING:
        ahead = there - here
        if ahead < 0:
            ahead += dim.n
        return int(dim.links + 2 * rank + (0 if 2 * ahead <= dim.n else 1))
    if dim.kind == FULLY_CONNECTED:
        return int(dim.links + rank * dim.n + there)
    if dim.kind == LINE:
        return int(dim.links + 2 * rank + (0 if there > here else 1))
    return int(dim.links + rank)  # up, to a switch or a leaf


@compiled
def link_below(s: State, device: int, dst: int) -> int:
    """Pick the link out of a switch (or a fat tree's leaf or spine) towards rank ``dst``."""
    ranks = run(s).ranks
    at = device_at(s, device - ranks)
    dim = dim_at(s, at.dim)
    there = (dst // dim.stride) % dim.n
    down = dim.links + ranks + at.origin + there * dim.stride
    if dim.kind == SWITCH:
        return int(down)
    leaf = there // dim.leaf
    trunks = dim.links + 2 * ranks
    tree = (device - dim.devices) // (dim.leaves + dim.spines) * dim.leaves * dim.spines
    if at.tier == 1:  # a spine
        all_trees = ranks // dim.n * dim.leaves * dim.spines
        return int(trunks + all_trees + tree + leaf * dim.spines + at.index)
    if at.index == leaf:
        return int(down)
    return int(trunks + tree + at.index * dim.spines + there % dim.spines)


@compiled
def next_link(s: State, device: int, dst: int) -> int:
    """Pick the link out of ``device`` towards rank ``dst``; the device is not ``dst`` itself."""
    if device >= run(s).ranks:
        return link_below(s, device, dst)
    for d in range(run(s).dims - 1, -1, -1):
        dim = dim_at(s, d)
        here = (device // dim.stride) % dim.n
        there = (dst // dim.stride) % dim.n
        if here != there:
            return link_within(s, d, device, here, there)
    return -1


@compiled
def flight_ns(s: State, src: int, dst: int, size: int) -> int:
    """Time a message of ``size`` bytes on a network where nothing is shared, ns.

    The first dimension that differs counts.
    """
    for d in range(run(s).dims):
        dim = dim_at(s, d)
        here = (src // dim.stride) % dim.n
        there = (dst // dim.stride) % dim.n
        if here != there:
            return int(hops_within(s, d, here, there) * dim.latency + size / dim.bandwidth)
    return 0


@compiled
def hops_within(s: State, d: int, here: int, there: int) -> int:
    """Count the links between two coordinates of dimension ``d``."""
    dim = dim_at(s, d)
    apart = abs(there - here)
    if dim.kind == RING:
        return int(min(apart, dim.n - apart))
    if dim.kind == FULLY_CONNECTED:
        return 1
    if dim.kind == LINE:
        return int(apart)
    if dim.kind == FAT_TREE and here // dim.leaf != there // dim.leaf:
        return 4
    return 2


@compiled
def detour(s: State, src: int, dst: int) -> int:
    """Look up the route of a pair whose usual one has failed: its place in the table, or -1."""
    key = src * run(s).ranks + dst
    low, high = 0, run(s).detours
    while low < high:
        middle = (low + high) // 2
        if detour_at(s, middle).key < key:
            low = middle + 1
        else:
            high = middle
    if low < run(s).detours and detour_at(s, low).key == key:
        return int(detour_at(s, low).place)
    return -1
