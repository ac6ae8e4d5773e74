"""Networks: products of dimensions, each of its own kind, with derated and failed links.

Rank r has the coordinates (a0, a1, …) with r = a0 + n0·(a1 + n1·a2 …). A torus is a product of rings, a mesh one of
lines. Bandwidths are GB/s with GB = 2^30 bytes, latencies ns a link.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.interconnect.records import (
    FAT_TREE,
    FULLY_CONNECTED,
    LINE,
    RING,
    SWITCH,
    device_t,
    dim_t,
    link_t,
)

KINDS = {"Ring": RING, "FullyConnected": FULLY_CONNECTED, "Switch": SWITCH, "Line": LINE, "FatTree": FAT_TREE}
BYTES_PER_GB = 1 << 30
NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """One dimension of a network."""

    kind: str
    """Ring, FullyConnected, Switch, Line or FatTree."""
    size: int
    """Ranks along it."""
    bandwidth: float
    """GB/s (2^30) of each link."""
    latency: float
    """ns of each link."""
    leaf: int = 0
    """FatTree: ranks under a leaf switch."""
    oversubscription: float = 1.0
    """FatTree: a leaf's bandwidth down over its bandwidth up; it has leaf / oversubscription spines above it."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"topology {self.kind!r} is none of {', '.join(KINDS)}")
        if self.size < 1:
            raise ValueError(f"npus_count is {self.size}, it must be >= 1")
        if not (self.bandwidth > 0 and isfinite(self.bandwidth)):
            raise ValueError(f"bandwidth is {self.bandwidth} GB/s, it must be > 0")
        if not (self.latency >= 0 and isfinite(self.latency)):
            raise ValueError(f"latency is {self.latency} ns, it must be >= 0")
        if self.kind == "FatTree":
            if self.leaf < 1 or self.size % self.leaf:
                raise ValueError(f"leaf is {self.leaf}, it must divide the fat tree's {self.size} ranks")
            if self.oversubscription <= 0 or self.leaf % self.spines or self.spines * self.oversubscription != self.leaf:
                raise ValueError(f"oversubscription is {self.oversubscription}: it must divide the leaf's {self.leaf} ranks")

    @property
    def spines(self) -> int:
        """Spine switches of a fat tree, one link from each leaf to each."""
        return max(1, int(self.leaf / self.oversubscription))


@dataclass(frozen=True, slots=True)
class Topology:
    """A network: the product of its dimensions, dimension 0 the fastest to count."""

    dimensions: tuple[Dimension, ...]
    faulty_links: tuple[tuple[int, int, float], ...] = ()
    """(device, device, factor): both directions keep that share of their bandwidth; 0 is a failed link. Devices are
    the ranks, then the switches, dimension by dimension."""

    def __post_init__(self) -> None:
        if not self.dimensions:
            raise ValueError("topology is empty, it must name at least one dimension")

    @property
    def ranks(self) -> int:
        """Ranks in all."""
        return prod(d.size for d in self.dimensions)

    @staticmethod
    def of(
        kinds: Sequence[str],
        sizes: Sequence[int],
        bandwidths: Sequence[float],
        latencies: Sequence[float],
        faulty_links: Sequence[Sequence[float]] = (),
        fat_trees: tuple[Sequence[int] | None, Sequence[float] | None] = (None, None),
    ) -> Topology:
        """Build from ASTRA-sim's lists, and those of ``fat_trees``: ranks a leaf, and oversubscription.

        Raises:
            ValueError: they differ in length, or a value is out of bounds.
        """
        count, (leaves, oversubscriptions) = len(kinds), fat_trees
        lists: dict[str, Sequence[float]] = {"npus_count": sizes, "bandwidth": bandwidths, "latency": latencies}
        lists |= {"leaf": leaves or [0] * count, "oversubscription": oversubscriptions or [1.0] * count}
        for key, values in lists.items():
            if len(values) != count:
                raise ValueError(f"{key} has {len(values)} values, topology has {count} dimensions")
        dims = tuple(
            Dimension(kind=kind, size=int(n), bandwidth=float(bw), latency=float(ns), leaf=int(leaf), oversubscription=over)
            for kind, n, bw, ns, leaf, over in zip(kinds, *lists.values(), strict=True)
        )
        return Topology(dims, _read_faults(faulty_links))

    @staticmethod
    def torus(sizes: Sequence[int], bandwidth: float, latency: float) -> Topology:
        """Build a torus, GB/s and ns of each link."""
        return Topology.of(["Ring"] * len(sizes), sizes, [bandwidth] * len(sizes), [latency] * len(sizes))

    @staticmethod
    def mesh(sizes: Sequence[int], bandwidth: float, latency: float) -> Topology:
        """Build a mesh, GB/s and ns of each link."""
        return Topology.of(["Line"] * len(sizes), sizes, [bandwidth] * len(sizes), [latency] * len(sizes))

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Topology:
        """Read the keys of ``network.yml`` (bandwidth and latency with or without their units in the name)."""
        kinds = data.get("topology")
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise ValueError(f"topology is {kinds!r}, it must be a list of names, one a dimension")
        bandwidth = "bandwidth_GBps" if "bandwidth_GBps" in data else "bandwidth"
        latency = "latency_ns" if "latency_ns" in data else "latency"
        sizes, bandwidths, latencies = (_numbers(data, key) for key in ("npus_count", bandwidth, latency))
        leaves, ratios = (_numbers(data, key) if key in data else None for key in ("leaf", "oversubscription"))
        return Topology.of(kinds, sizes, bandwidths, latencies, data.get("faulty_links", ()), (leaves, ratios))


def _numbers(data: Mapping[str, Any], key: str) -> list[Any]:
    values = data.get(key)
    if not isinstance(values, list) or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{key} is {values!r}, it must be a list of numbers, one a dimension")
    return values


def _read_faults(faults: Any) -> tuple[tuple[int, int, float], ...]:
    if not isinstance(faults, (list, tuple)):
        raise ValueError(f"faulty_links is {faults!r}, it must be [[device, device, factor], …]")
    rows = []
    for fault in faults:
        if not isinstance(fault, (list, tuple)) or len(fault) != 3 or not all(isinstance(v, (int, float)) for v in fault):
            raise ValueError(f"faulty_links has {fault!r}, it must be [device, device, factor]")
        src, dst, factor = fault
        if not (float(src).is_integer() and float(dst).is_integer()):
            raise ValueError(f"faulty_links has {fault!r}, its devices must be whole numbers")
        if not 0 <= factor <= 1:
            raise ValueError(f"faulty_links: the factor of link {src}-{dst} is {factor}, it must be in 0 … 1")
        rows.append((int(src), int(dst), float(factor)))
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class Links:
    """A network laid out as arrays: dimensions, switches, directed links."""

    dims: NDArray[Any]
    devices: NDArray[Any]
    links: NDArray[Any]
    source: NDArray[np.int32]
    """int32[links]: the device at the near end, -1 where the layout has no link."""
    failed: NDArray[np.bool_]


def lay_out(topology: Topology) -> Links:
    """Lay a network out as arrays; raises ValueError for a faulty link that is no link."""
    ranks = topology.ranks
    dims = np.zeros(len(topology.dimensions), dim_t)
    devices: list[NDArray[Any]] = []
    links: list[tuple[NDArray[np.int32], NDArray[np.int32], int]] = []
    stride, first_link, first_device = 1, 0, ranks
    for d, dimension in enumerate(topology.dimensions):
        dim = dims[d]
        dim["kind"], dim["n"], dim["stride"] = KINDS[dimension.kind], dimension.size, stride
        dim["bandwidth"] = dimension.bandwidth * BYTES_PER_GB / NS_PER_S  # in ASTRA-sim's order of rounding
        dim["latency"] = dimension.latency
        dim["links"], dim["devices"] = first_link, first_device
        if dimension.kind == "FatTree":
            dim["leaf"], dim["spines"], dim["leaves"] = (
                dimension.leaf,
                dimension.spines,
                dimension.size // dimension.leaf,
            )
        switches = _switches(d, dim, ranks)
        source, far = _ends(dim, ranks)
        devices.append(switches)
        links.append((source, far, d))
        first_link += len(source)
        first_device += len(switches)
        stride *= dimension.size
    table = np.zeros(first_link, link_t)
    source = np.concatenate([s for s, _, _ in links])
    table["device"] = np.concatenate([f for _, f, _ in links])
    which = np.concatenate([np.full(len(s), d) for s, _, d in links])
    table["bandwidth"], table["latency"] = dims["bandwidth"][which], dims["latency"][which]
    table["head"] = table["tail"] = table["touched"] = -1
    return Links(dims, np.concatenate(devices), table, source, _with_faults(topology, which, source, table))


def _with_faults(topology: Topology, which: NDArray[np.int64], source: NDArray[np.int32], table: NDArray[Any]) -> NDArray[np.bool_]:
    """Lowers the bandwidth of faulty links in ``table``, whose dimensions are ``which``; gives those that have failed, ``(n_links,)``."""
    failed = np.zeros(len(table), bool)
    for src, dst, factor in topology.faulty_links:
        both = (source == src) & (table["device"] == dst) | (source == dst) & (table["device"] == src)
        if not both.any():
            ends = sorted({*table["device"][source == src].tolist(), *source[table["device"] == src].tolist()})
            has = f" ({src} has links to {', '.join(map(str, ends[:8]))}{' …' if len(ends) > 8 else ''})" if ends else ""
            raise ValueError(f"faulty_links: {src}-{dst} is no link of this network{has}")
        failed[both] |= factor == 0
        if factor > 0:
            nominal = np.array([d.bandwidth for d in topology.dimensions])[which[both]]
            table["bandwidth"][both] = nominal * factor * BYTES_PER_GB / NS_PER_S
    return failed


def _origins(dim: NDArray[Any], ranks: int) -> NDArray[np.int64]:
    """Ranks whose coordinate in a dimension is 0, ascending: one a line of ranks along it."""
    all_ranks = np.arange(ranks)
    origins: NDArray[np.int64] = all_ranks[(all_ranks // int(dim["stride"])) % int(dim["n"]) == 0]
    return origins


def _switches(d: int, dim: NDArray[Any], ranks: int) -> NDArray[Any]:
    """Switches of a dimension; a fat tree's are its leaves and then its spines, line by line."""
    if dim["kind"] not in (SWITCH, FAT_TREE):
        return np.zeros(0, device_t)
    origins = _origins(dim, ranks)
    tiers = [0] if dim["kind"] == SWITCH else [0] * int(dim["leaves"]) + [1] * int(dim["spines"])
    index = [0] if dim["kind"] == SWITCH else list(range(int(dim["leaves"]))) + list(range(int(dim["spines"])))
    out = np.zeros(len(origins) * len(tiers), device_t)
    out["dim"], out["origin"] = d, np.repeat(origins, len(tiers))
    out["tier"], out["index"] = np.tile(tiers, len(origins)), np.tile(index, len(origins))
    return out


def _ends(dim: NDArray[Any], ranks: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Near and far device of each directed link of a dimension, in the order that ``routing`` counts on."""
    n, stride = int(dim["n"]), int(dim["stride"])
    rank = np.arange(ranks)
    at = (rank // stride) % n
    origin = rank - at * stride
    if dim["kind"] in (RING, LINE):
        ahead, behind = origin + (at + 1) % n * stride, origin + (at - 1) % n * stride
        near, far = np.repeat(rank, 2), np.stack([ahead, behind], 1).ravel()
        if dim["kind"] == LINE:
            missing = np.stack([at == n - 1, at == 0], 1).ravel()
            near = np.where(missing, -1, near)
        return near.astype(np.int32), far.astype(np.int32)
    if dim["kind"] == FULLY_CONNECTED:
        far = (origin[:, None] + np.arange(n)[None, :] * stride).ravel()
        near = np.repeat(rank, n)
        return np.where(near == far, -1, near).astype(np.int32), far.astype(np.int32)
    line = np.searchsorted(_origins(dim, ranks), origin)
    if dim["kind"] == SWITCH:
        switch = int(dim["devices"]) + line
        return np.concatenate([rank, switch]).astype(np.int32), np.concatenate([switch, rank]).astype(np.int32)
    return _fat_tree_ends(dim, rank, at, line)


def _fat_tree_ends(
    dim: NDArray[Any], rank: NDArray[np.int64], at: NDArray[np.int64], line: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    leaves, spines = int(dim["leaves"]), int(dim["spines"])
    first = int(dim["devices"])
    leaf = first + line * (leaves + spines) + at // int(dim["leaf"])
    lines = np.arange(len(rank) // int(dim["n"]))
    base = first + lines[:, None, None] * (leaves + spines)
    low = (base + np.arange(leaves)[None, :, None] + np.zeros((1, 1, spines), np.int64)).ravel()
    high = (base + leaves + np.zeros((1, leaves, 1), np.int64) + np.arange(spines)[None, None, :]).ravel()
    near = np.concatenate([rank, leaf, low, high])
    far = np.concatenate([leaf, rank, high, low])
    return near.astype(np.int32), far.astype(np.int32)


def longest_route(topology: Topology) -> int:
    """Links of the longest route there is; with failed links a bound on it."""
    hops = {"Switch": 2, "FatTree": 4, "FullyConnected": 1}
    total = 0
    for d in topology.dimensions:
        total += hops.get(d.kind, d.size // 2 if d.kind == "Ring" else d.size - 1)
    failed = sum(factor == 0 for _, _, factor in topology.faulty_links)
    return max(total, 1) + 4 * failed * len(topology.dimensions) + (topology.ranks if failed else 0)
