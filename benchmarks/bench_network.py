"""Figures of the network engine: time and memory of large runs, events a second, a cache hit, the first compilation.

python benchmarks/bench_network.py [--first]      (--first also compiles anew, in a cache of its own)
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rapid_dse.events.cache import AstraCache, run_key
from rapid_dse.interconnect.engine import run_graph
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.tables import CollectiveCase
from rapid_dse.interconnect.topology import Topology
from rapid_dse.trace.graph import COLLECTIVE, COMPUTE, WORLD, Graph, Groups

MIB = 1 << 20


def transformer(ranks: int, layers: int = 24, world_last: bool = False) -> Graph:
    """Layers of 500 us and a 16 MiB all-reduce in groups of 8 neighbours; then 256 MiB over ranks of equal place."""
    groups = {1 + g: list(range(8 * g, 8 * g + 8)) for g in range(ranks // 8)}
    groups |= {1 + ranks // 8 + p: list(range(p, ranks, 8)) for p in range(8)}
    per = 2 * layers + 1
    rank, place = np.repeat(np.arange(ranks), per), np.tile(np.arange(per), ranks)
    last = place == per - 1
    kind = np.where((place % 2 == 0) & ~last, COMPUTE, COLLECTIVE).astype(np.int8)
    zeros = np.zeros(len(rank), np.int64)
    final = np.full(len(rank), WORLD) if world_last else ranks // 8 + rank % 8
    return Graph(
        ranks=ranks,
        rank=rank,
        id=place,
        kind=kind,
        deps_ptr=np.concatenate(([0], np.cumsum(place > 0))),
        deps=np.flatnonzero(place > 0) - 1,
        duration_ns=np.where(kind == COMPUTE, 500_000, 0),
        size=np.where(last, 256 * MIB, 16 * MIB),
        collective=zeros.astype(np.int8),
        group=np.where(last, final, rank // 8),
        peer=zeros,
        tag=zeros,
        stream=zeros.astype(np.int8),
        groups=Groups.of(groups),
    )


def each_dimension(inner: int, outer: int, size: int) -> Graph:
    """An all-reduce in each group along dimension 0, then one in each along dimension 1."""
    ranks = inner * outer
    groups = {1 + g: list(range(inner * g, inner * (g + 1))) for g in range(outer)}
    groups |= {1 + outer + p: list(range(p, ranks, inner)) for p in range(inner)}
    rank = np.repeat(np.arange(ranks), 2)
    zeros = np.zeros(2 * ranks, np.int64)
    second = np.tile([False, True], ranks)
    return Graph(
        ranks=ranks,
        rank=rank,
        id=second.astype(np.int64),
        kind=np.full(2 * ranks, COLLECTIVE, np.int8),
        deps_ptr=np.concatenate(([0], np.cumsum(second))),
        deps=np.flatnonzero(second) - 1,
        duration_ns=zeros,
        size=np.full(2 * ranks, size),
        collective=zeros.astype(np.int8),
        group=np.where(second, outer + rank % inner, rank // inner),
        peer=zeros,
        tag=zeros,
        stream=zeros.astype(np.int8),
        groups=Groups.of(groups),
    )


def peak_mb() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(name: str, graph: Graph, topology: Topology, system: SystemSettings, symmetry: bool) -> None:
    """Time one run, compiled already."""
    start = time.perf_counter()
    result = run_graph(graph, topology, system, "congestion_aware", symmetry)
    took = time.perf_counter() - start
    events = result.hops + result.delays
    how = "one rank for all" if result.folded else "in full"
    rate = "" if result.folded else f", {events / took / 1e6:.1f} M events/s"
    print(f"{name}, {how}: {took:.3f} s{rate}, {events / 1e6:.1f} M events, peak {peak_mb():.0f} MB so far")


def cache_hit() -> None:
    """Time a hit: the key is made anew each time, as a caller does."""
    topology, system = Topology.of(["Switch"], [64], [50], [500]), SystemSettings()
    graph = transformer(64, 4)
    with tempfile.TemporaryDirectory() as folder:
        cache = AstraCache(Path(folder))

        def look() -> None:
            key = run_key(graph, topology, system, "congestion_aware", "builtin")
            cache.run(key, lambda: run_graph(graph, topology, system, "congestion_aware"))

        look()
        start = time.perf_counter()
        for _ in range(200):
            look()
        print(f"cache hit: {(time.perf_counter() - start) / 200 * 1e3:.3f} ms")


def first_run() -> None:
    """Time the very first run: a process that finds no compiled engine."""
    program = "from rapid_dse.interconnect.event_runs import _kernel; _kernel()"
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        subprocess.run([sys.executable, "-c", program], env=os.environ | {"NUMBA_CACHE_DIR": folder}, check=True)
        took = time.perf_counter() - start
        user = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        print(f"first run with compilation: {took:.1f} s ({user:.1f} s of processor time)")


def main() -> None:
    """Print all figures."""
    ring4 = Topology.of(["Ring"], [4], [50], [500])
    start = time.perf_counter()
    CollectiveCase("congestion_aware", ring4, SystemSettings(), "ALL_REDUCE", MIB).run()
    print(f"loading the compiled engine: {time.perf_counter() - start:.2f} s")
    switch = Topology.of(["Switch"], [1024], [50], [500])
    for chunks in (1, 4):
        system = SystemSettings(splits=chunks, active_chunks=chunks)
        for symmetry in (True, False):
            report(f"transformer on 1,024 ranks, {chunks} chunks", transformer(1024), switch, system, symmetry)
    system = SystemSettings(splits=4, active_chunks=4)
    for symmetry in (True, False):
        report("the same, the last all-reduce over all ranks", transformer(1024, world_last=True), switch, system, symmetry)
    big = Topology.of(["FullyConnected", "Switch"], [8, 2048], [450, 50], [500, 500])
    for symmetry in (True, False):
        report("16,384 ranks, 64 MiB", each_dimension(8, 2048, 64 * MIB), big, SystemSettings(), symmetry)
    cache_hit()
    if "--first" in sys.argv:
        first_run()


if __name__ == "__main__":
    main()
