"""What ASTRA-sim cannot run, hangs on or aborts at, said before it runs."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from rapid_dse.interconnect.engine import check_topology, run_graph
from rapid_dse.interconnect.faults import find_detours
from rapid_dse.interconnect.plans import PlanTables
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.topology import Topology, lay_out
from rapid_dse.trace.graph import COLLECTIVE, COLLECTIVES, WORLD, Graph, Ints


def check_groups(system: SystemSettings, collectives: Collection[str]) -> None:
    """Raise ValueError where groups run one of the ``collectives`` as ASTRA-sim has it for the world alone."""
    for name in collectives:
        if name in system.group_algorithms:
            raise ValueError(
                f"backend.engine=astrasim: in a network of several dimensions groups run {name.lower().replace('_', '-')} "
                f"{system.group_algorithms[name]} here and as rings there; allowed with it: backend.engine=builtin"
            )


def check_network(topology: Topology, network: str) -> None:
    """Raise ValueError for a network that no binary of ASTRA-sim simulates, or not as it is written."""
    if network not in ("congestion_aware", "congestion_unaware"):
        raise ValueError(f"network is {network!r}: ASTRA-sim runs congestion_aware or congestion_unaware")
    check_topology(topology, network)
    for dimension in topology.dimensions:
        if dimension.kind not in ("Ring", "FullyConnected", "Switch"):
            raise ValueError(f"topology {dimension.kind}: ASTRA-sim has Ring, FullyConnected and Switch")
    if topology.faulty_links:
        if network == "congestion_unaware":
            raise ValueError("faulty_links: ASTRA-sim's congestion_unaware network does not see them; use congestion_aware")
        find_detours(topology, lay_out(topology))


def check_for_astrasim(graph: Graph, topology: Topology, system: SystemSettings, network: str) -> None:
    """Raise ValueError for what ASTRA-sim cannot do, would hang on, or would abort at."""
    check_network(topology, network)
    if graph.ranks != topology.ranks:
        raise ValueError(f"the graph has {graph.ranks} ranks, npus_count makes {topology.ranks}")
    graph.check()
    check_groups(system, [COLLECTIVES[kind] for kind in np.unique(graph.collective[graph.kind == COLLECTIVE])])
    if (graph.stream != 0).any():
        raise ValueError("stream: ASTRA-sim runs one communication stream a rank")
    chunks = _chunks(graph, topology, system)
    free = np.flatnonzero((graph.kind == COLLECTIVE) & (np.diff(graph.deps_ptr) == 0))
    if system.endpoint_delay == 0 and len(free):
        raise ValueError(f"endpoint-delay is 0 and {graph.node_name(int(free[0]))} is a collective at the start: it aborts")
    _check_world_counts(graph, chunks)
    if system.queues_per_dim > 1:
        run_graph(graph, topology, system, network)  # which refuses rings that ranks run different ways round: the program hangs on them


def _chunks(graph: Graph, topology: Topology, system: SystemSettings) -> Ints:
    """Chunks that each node's collective is cut into, int64[nodes], 0 for other nodes; ValueError for one that cannot run."""
    tables, sizes = PlanTables(system, [d.size for d in topology.dimensions]), np.diff(graph.groups.ptr)
    chunk_counts = np.zeros(len(graph), np.int64)
    chunks: dict[tuple[int, int, int], int] = {}
    for i in np.flatnonzero(graph.kind == COLLECTIVE).tolist():
        members = graph.ranks if graph.group[i] == WORLD else int(sizes[graph.group[i]])
        shape = int(graph.collective[i]), int(graph.size[i]), members
        if shape not in chunks:
            row = tables.add(shape[0], shape[1], None if members == graph.ranks else members)
            chunks[shape] = tables.plans[row][0]
        chunk_counts[i] = chunks[shape]
    return chunk_counts


def _check_world_counts(graph: Graph, chunks: Ints) -> None:
    """Refuse collectives of the world before which ranks ran different numbers of chunks on groups.

    The program numbers a rank's chunks one by one, those on groups too, and matches those of the world by their number.
    """
    where = graph.kind == COLLECTIVE
    world = np.flatnonzero(where & (graph.group == WORLD))
    if not len(world):
        return
    on_groups = np.concatenate(([0], np.cumsum(np.where(where & (graph.group != WORLD), chunks, 0))))
    rank = graph.rank[world]
    before = on_groups[world] - on_groups[graph.rank_ptr[rank]]
    turn = np.arange(len(world)) - np.searchsorted(rank, rank)
    for k in range(int(turn.max()) + 1):
        now, ranks = before[turn == k], rank[turn == k]
        if now.min() != now.max():
            raise ValueError(
                f"rank {ranks[now.argmin()]} runs {now.min()} chunks on groups before a collective of the world and rank "
                f"{ranks[now.argmax()]} runs {now.max()}: without a pg of its own it then deadlocks; give the world a group id of its own"
            )
