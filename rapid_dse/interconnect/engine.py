"""Runs a graph on a network: lays the state of the compiled event loop out, runs it, reads the results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rapid_dse.interconnect import records as rec
from rapid_dse.interconnect.calendar import LEVELS, SLOTS, WORDS
from rapid_dse.interconnect.event_runs import run_events
from rapid_dse.interconnect.faults import find_detours
from rapid_dse.interconnect.fold import first_rank, fold, spread_links
from rapid_dse.interconnect.plans import PlanTables
from rapid_dse.interconnect.rows import Tables
from rapid_dse.interconnect.system import SystemSettings
from rapid_dse.interconnect.time_limits import check_delays, check_end
from rapid_dse.interconnect.topology import Links, Topology, lay_out, longest_route
from rapid_dse.interconnect.transport import link_tokens
from rapid_dse.trace.graph import COLLECTIVE, COMPUTE, RECEIVE, SEND, WORLD, Graph, Ints

Network = Literal["congestion_aware", "congestion_unaware", "fair", "ideal"]
NETWORKS: dict[str, int] = {
    "congestion_aware": rec.AWARE,
    "congestion_unaware": rec.UNAWARE,
    "fair": rec.FAIR,
    "ideal": rec.IDEAL,
}


@dataclass(frozen=True, slots=True)
class LinkUse:
    """What went over each directed link, rows in the order of the topology's layout."""

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    bytes: Ints
    busy_ns: Ints


@dataclass(frozen=True, slots=True)
class RunResult:
    """Times of a run, ns from its start; -1 for what never happened."""

    makespan_ns: int
    start_ns: Ints
    """int64[nodes]."""
    end_ns: Ints
    """int64[nodes]."""
    finish_ns: Ints
    """int64[ranks]: the end of each rank's last node."""
    links: LinkUse
    waiting: Ints
    """Rows of the nodes that started and never ended; not empty means that the graph deadlocks."""
    hops: int
    """Messages that ended a hop."""
    delays: int
    """Delays that ended on a rank."""
    folded: bool = False
    """Whether one rank was simulated in the place of all."""

    @property
    def deadlocked(self) -> bool:
        """Whether some node never ended."""
        return bool((self.end_ns < 0).any())


def check_topology(topology: Topology, network: str) -> None:
    """Raise ValueError for what ASTRA-sim's congestion-aware network hangs on or gets wrong without saying so."""
    if network not in NETWORKS:
        raise ValueError(f"network is {network!r}, it must be one of {', '.join(NETWORKS)}")
    if network != "congestion_aware":
        return
    if any(d.kind == "Ring" and d.size == 2 for d in topology.dimensions):
        raise ValueError("a Ring of 2 hangs ASTRA-sim's congestion-aware network: use FullyConnected of 2")


def run_graph(graph: Graph, topology: Topology, system: SystemSettings, network: str, symmetry: bool = True) -> RunResult:
    """Simulate a graph on a network.

    ``ideal`` gives each collective and send its node's ``duration_ns``: a collective runs from when its last rank is
    there. A graph that deadlocks is a result whose ``waiting`` is not empty. Raises ValueError for what cannot run.
    """
    check_topology(topology, network)
    if graph.ranks != topology.ranks:
        raise ValueError(f"the graph has {graph.ranks} ranks, npus_count makes {topology.ranks}")
    layout = lay_out(topology)
    if symmetry and network in ("congestion_aware", "congestion_unaware") and not topology.faulty_links:
        folded = _run_folded(graph, topology, layout, system, network)
        if folded is not None:
            return folded
        layout = lay_out(topology)
    room = 1
    while True:
        state = build_state(graph, topology, layout, system, network, room)
        run_events(state, graph)
        if not state["run"]["overflow"][0]:
            check_end(state["slots"])
            _check_ways(state, system)
            return _result(graph, layout, state)
        layout = lay_out(topology)
        room *= 2


def _check_ways(state: Tables, system: SystemSettings) -> None:
    if state["run"]["two_ways"][0]:
        raise ValueError(
            f"queues-per-dim is {system.queues_per_dim}: ranks took part in different numbers of collectives before one, and run "
            "its rings different ways round, which ASTRA-sim mostly hangs on; use 1"
        )


def _run_folded(graph: Graph, topology: Topology, layout: Links, system: SystemSettings, network: str) -> RunResult | None:
    """Simulate rank 0 in the place of all; None when that might not be identical."""
    one = first_rank(graph)
    if one is None:
        return None
    state = build_state(one, topology, layout, system, network, 1)
    routes = fold(graph, one, topology, layout, {name: state[name] for name in ("nodes", "phases", "plans")})
    if routes is None:
        return None
    table = np.zeros(len(routes.routes) + 1, rec.route_t)
    by_message = np.zeros(len(routes.message_routes) + 1, rec.message_route_t)
    table["link"][:-1], by_message[:-1] = routes.routes, routes.message_routes
    state["run"]["folded"] = 1
    state = state.with_tables(routes=table, message_routes=by_message)
    run_events(state, one)
    if state["run"]["overflow"][0] or state["run"]["ambiguous"][0]:
        return None
    check_end(state["slots"])
    spread_links(topology, layout, state["links"])
    single = _result(replace(one, ranks=1), layout, state)
    ranks, tile = graph.ranks, np.tile
    starts, ends = tile(single.start_ns, ranks), tile(single.end_ns, ranks)
    return replace(
        single,
        start_ns=starts,
        end_ns=ends,
        finish_ns=tile(single.finish_ns, ranks),
        waiting=np.flatnonzero((starts >= 0) & (ends < 0)),
        hops=single.hops * ranks,
        delays=single.delays * ranks,
        folded=True,
    )


def _result(graph: Graph, layout: Links, state: Tables) -> RunResult:
    start, end = state["nodes"]["start"].copy(), state["nodes"]["end"].copy()
    finish = np.full(graph.ranks, -1, np.int64)
    np.maximum.at(finish, graph.rank, end)
    real = layout.source >= 0
    links = state["links"][real]
    use = LinkUse(layout.source[real], links["device"].copy(), links["bytes"].copy(), links["busy_ns"].copy())
    waiting = np.flatnonzero((start >= 0) & (end < 0))
    run = state["run"][0]
    return RunResult(
        makespan_ns=int(end.max()),
        start_ns=start,
        end_ns=end,
        finish_ns=finish,
        links=use,
        waiting=waiting,
        hops=int(run["hops"]),
        delays=int(run["delays"]),
    )


def build_state(graph: Graph, topology: Topology, layout: Links, system: SystemSettings, network: str, room: int) -> Tables:
    """Lay out all that the event loop works on; ``room`` scales what it cannot know beforehand."""
    sizes = [d.size for d in topology.dimensions]
    tables = PlanTables(system, sizes)
    nodes = _node_table(graph, tables, network)
    groups, members, counters = _group_tables(graph)
    plans, phases, halving, trees = tables.arrays()
    if network != "ideal":
        check_delays(topology, layout, np.concatenate([phases["size"], halving["size"], graph.size[graph.kind >= SEND]]))
    ranks, dims, queues = graph.ranks, len(sizes), system.queues_per_dim
    detours, routes = find_detours(topology, layout)
    run = _run_row(graph, dims, system, network)
    run["world_counters"] = groups["size"][:-1].sum()
    counts = _room(graph, groups, nodes, (plans, phases), int(run["queue_limit"][0]) * queues, room)
    if network == "fair":
        run["flow_room"], run["longest"] = counts[0], longest_route(topology)
    run["detours"] = len(detours) if layout.failed.any() else 0
    run["endpoints"], run["streams"], run["instances"] = counts[1:]
    network_tables = {"links": layout.links, "dims": layout.dims, "devices": layout.devices, "routes": routes, "detours": detours}
    collective_tables = {"groups": groups, "members": members, "plans": plans, "phases": phases, "halving": halving, "trees": trees}
    return Tables(
        _empty_tables(run, counters)
        | network_tables
        | collective_tables
        | {
            "run": run,
            "tokens": _free_list(counts[0], link_tokens(len(layout.links)), run),
            "slots": _filled(LEVELS * SLOTS, rec.slot_t, "head", "tail"),
            "ranks": _filled(ranks, rec.rank_t, "delays", "touched"),
            "ready": _filled(ranks * int(run["classes"][0]), rec.ready_t, "head", "tail"),
            "queues": _filled(ranks * dims * queues, rec.queue_t, "head", "tail"),
            "nodes": nodes,
            "children": _children(graph, nodes),
            "channels": _filled(int(nodes["channel"].max(initial=0)) + 1, rec.channel_t, "head", "tail"),
        }
    )


def _empty_tables(run: NDArray[Any], counters: int) -> dict[str, NDArray[Any]]:
    """The tables that begin as zeros, by the room that the run's row and the count of ``counters`` say."""
    ranks, dims = int(run["ranks"][0]), int(run["dims"][0])
    rows = {
        "words": LEVELS * WORDS,
        "message_routes": 1,
        "turns": ranks * dims,
        "flips": ranks * dims * 4,
        "counters": counters,
        "instances": int(run["instances"][0]),
        "streams": int(run["streams"][0]),
        "endpoints": int(run["endpoints"][0]),
        "flows": int(run["flow_room"][0]),
        "paths": int(run["flow_room"][0] * run["longest"][0]) + 1,
    }
    return {name: np.zeros(count, rec.TABLES[name]) for name, count in rows.items()}


def _run_row(graph: Graph, dims: int, system: SystemSettings, network: str) -> NDArray[Any]:
    """The run's one row, as far as the graph and the settings say it."""
    run = np.zeros(1, rec.run_t)
    run["model"], run["ranks"], run["dims"], run["nodes"] = NETWORKS[network], graph.ranks, dims, len(graph)
    run["classes"] = rec.CLASS_COMM + 1 + int(graph.stream.max(initial=0))
    run["lifo"], run["queues_per_dim"] = system.scheduling_policy == "LIFO", system.queues_per_dim
    run["queue_limit"] = -(-system.active_chunks // system.queues_per_dim)
    run["flow_due"] = -1
    return run


def _filled(count: int, dtype: np.dtype[Any], *fields: str) -> NDArray[Any]:
    table = np.zeros(count, dtype)
    for name in fields:
        table[name] = -1
    return table


def _free_list(count: int, first: int, run: NDArray[Any]) -> NDArray[Any]:
    """Tokens of which the first ``first`` are taken, the other ``count`` free."""
    tokens = np.zeros(first + count, rec.token_t)
    tokens["next"][first:] = np.arange(first + 1, first + count + 1)
    tokens["next"][-1] = -1
    run["free_tokens"] = first
    return tokens


def _node_table(graph: Graph, tables: PlanTables, network: str) -> NDArray[Any]:
    nodes = np.zeros(len(graph), rec.node_t)
    nodes["size"], nodes["duration"] = graph.size, graph.duration_ns
    nodes["kind"], nodes["rank"], nodes["peer"] = graph.kind, graph.rank, graph.peer
    cls = np.where((graph.kind == COMPUTE) & (graph.stream == 0), rec.CLASS_COMPUTE, rec.CLASS_COMM + graph.stream)
    nodes["cls"] = np.where(graph.kind == RECEIVE, rec.CLASS_RECEIVE, cls)
    nodes["start"] = nodes["end"] = -1
    nodes["waits"] = np.diff(graph.deps_ptr)
    where = np.flatnonzero(graph.kind == COLLECTIVE)
    if len(where):
        _collective_columns(graph, tables, nodes, where, network)
    pairs = np.flatnonzero(graph.kind >= SEND)
    if len(pairs):
        nodes["channel"][pairs] = _channels(graph, pairs)
    return nodes


def _collective_columns(graph: Graph, tables: PlanTables, nodes: NDArray[Any], where: Ints, network: str) -> None:
    groups = graph.groups
    sizes = np.diff(groups.ptr)
    group = graph.group[where]
    world = group == WORLD
    size = np.where(world, graph.ranks, sizes[group] if len(groups) else graph.ranks)
    members = np.where(size == graph.ranks, 0, size)
    first, plan = _distinct(graph.collective[where], members, graph.size[where])
    rows = np.empty(len(first), np.int64)
    shapes = zip(graph.collective[where[first]].tolist(), graph.size[where[first]].tolist(), members[first].tolist(), strict=True)
    for i, (collective, nbytes, of) in enumerate(shapes):
        if network == "ideal":
            tables.plans.append((1, 0, 0, int(of == 0)))
            rows[i] = len(tables.plans) - 1
        else:
            rows[i] = tables.add(collective, nbytes, of or None)
    nodes["plan"][where] = rows[plan]
    nodes["group"][where] = np.where(world, len(groups), group)
    nodes["pos"][where] = graph.rank[where]
    nodes["counter"][where] = groups.ptr[-1] + graph.rank[where]
    inside = where[~world]
    if len(inside):
        owner = np.repeat(np.arange(len(groups)), sizes)
        keys = owner * graph.ranks + groups.ranks
        order = np.argsort(keys)
        at = order[np.searchsorted(keys[order], graph.group[inside] * graph.ranks + graph.rank[inside])]
        nodes["counter"][inside] = at
        nodes["pos"][inside] = at - groups.ptr[graph.group[inside]]


def _distinct(*columns: NDArray[Any]) -> tuple[Ints, Ints]:
    """First rows of the distinct combinations of columns of numbers >= 0, and which combination each row has.

    One key a row: sorting rows of a table is an order slower.
    """
    key = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        count, code = int(column.max()) + 1, column
        if count > 1 << 20:
            values, code = np.unique(column, return_inverse=True)
            count = len(values)
        key = key * count + code
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    return first, which


def _channels(graph: Graph, pairs: Ints) -> Ints:
    """Number the pairs' channels: sends and receives of one tag, source, target and size share one."""
    sends = graph.kind[pairs] == SEND
    rank, peer = graph.rank[pairs], graph.peer[pairs]
    src, dst = np.where(sends, rank, peer), np.where(sends, peer, rank)
    keys = (graph.size[pairs], graph.tag[pairs], src * graph.ranks + dst)
    order = np.lexsort(keys)
    change = np.zeros(len(pairs), bool)
    for key in keys:
        change[1:] |= np.diff(key[order]) != 0
    channel = np.empty(len(pairs), np.int64)
    channel[order] = np.cumsum(change)
    return channel


def _group_tables(graph: Graph) -> tuple[NDArray[Any], NDArray[Any], int]:
    """Groups with the world behind them, their ranks, and how many counters of streams there are."""
    table = _filled(len(graph.groups) + 1, rec.group_t, "live")
    table["offset"][:-1], table["size"][:-1] = graph.groups.ptr[:-1], np.diff(graph.groups.ptr)
    table["offset"][-1], table["size"][-1] = -1, graph.ranks
    members = np.zeros(len(graph.groups.ranks) + 1, rec.member_t)
    members["rank"][:-1] = graph.groups.ranks
    return table, members, int(graph.groups.ptr[-1]) + graph.ranks


def _children(graph: Graph, nodes: NDArray[Any]) -> NDArray[Any]:
    """Turn dependencies round: the nodes that wait for each, which point to their part of the list."""
    owner = np.repeat(np.arange(len(graph), dtype=np.int32), np.diff(graph.deps_ptr))
    end = np.cumsum(np.bincount(graph.deps, minlength=len(graph)))
    nodes["children_end"] = end
    nodes["children"][1:] = end[:-1]
    children = np.zeros(len(owner) + 1, rec.child_t)
    children["node"][:-1] = owner[np.argsort(graph.deps, kind="stable")]
    return children


def _room(
    graph: Graph,
    groups: NDArray[Any],
    nodes: NDArray[Any],
    collectives: tuple[NDArray[Any], NDArray[Any]],
    active: int,
    room: int,
) -> tuple[int, int, int, int]:
    """Estimate tokens, endpoints, streams and instances that are in use at a time; ``collectives``: their plans, and those's phases."""
    plans, phases = collectives
    where = graph.kind == COLLECTIVE
    if not where.any():
        return 8 * graph.ranks * room + 64, 1, 1, 1
    pairs = np.unique(nodes["group"][where] * np.int64(len(plans)) + nodes["plan"][where])
    members = groups["size"][pairs // len(plans)].astype(np.int64)
    shape = plans[pairs % len(plans)]
    streams = members * shape["chunks"]
    instances = 2 * len(pairs) + 2
    endpoints = 2 * (streams * shape["phases"]).sum()
    parallel = int(phases["parallel"].max(initial=1))
    busy = min(active, int(plans["chunks"].max())) * len(set(phases["dim"].tolist()))
    tokens = graph.ranks * (2 * parallel * busy + 8)
    return tokens * room + 64, int(endpoints) * room + 1, int(2 * streams.sum()) * room + 1, instances * room
