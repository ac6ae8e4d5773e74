"""Graphs as JSON files: the network, the system settings, the groups and each rank's nodes,
as users and tests write them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from rapid_dse.common.bounded_files import require_file
from rapid_dse.trace.graph import COLLECTIVE, COLLECTIVES, COMPUTE, LARGEST, SEND, WORLD, Graph, GraphBuilder, is_whole

MOST_RANKS = 1 << 20


@dataclass(frozen=True, slots=True)
class GraphFile:
    """What a file holds."""

    graph: Graph
    network: Mapping[str, Any]
    """Keys of ``network.yml``."""
    system: Mapping[str, Any]
    """Keys of ``system.json``."""


def read_graph_file(path: Path) -> GraphFile:
    """Read a graph; raises ValueError with the node and the key for anything that is wrong in it."""
    require_file(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    return parse_graph(data)


def parse_graph(data: Any) -> GraphFile:
    """Read a graph from what the file's JSON holds; raises ValueError as ``read_graph_file`` does."""
    if not isinstance(data, dict):
        raise ValueError("the graph must be a JSON object with network, system, comm_groups and ranks")
    for key in ("network", "ranks"):
        if not isinstance(data.get(key), dict):
            raise ValueError(f"the graph has no object {key!r}")
    for key in ("system", "comm_groups"):
        if not isinstance(data.get(key, {}), dict):
            raise ValueError(f"the graph's {key!r} is no object")
    groups = {_number_of(k, "comm_groups"): v for k, v in data.get("comm_groups", {}).items()}
    for g, ranks in groups.items():
        if not isinstance(ranks, list) or not all(is_whole(r) for r in ranks):
            raise ValueError(f"comm_groups: group {g} must be a list of ranks")
    lines = {_number_of(rank, "ranks"): nodes for rank, nodes in data["ranks"].items()}
    builder = GraphBuilder(_rank_count(data["network"], lines), groups, str(data.get("name", "")))
    for rank, nodes in lines.items():
        if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
            raise ValueError(f"ranks: rank {rank} must be a list of nodes, each an object")
        for node in nodes:
            _add_node(builder, rank, node)
    return GraphFile(builder.build(), data["network"], data.get("system", {}))


def _rank_count(network: Mapping[str, Any], lines: Mapping[int, Any]) -> int:
    counts = network.get("npus_count")
    if not isinstance(counts, list) or not counts or not all(is_whole(n) and n > 0 for n in counts):
        raise ValueError("network has no list of whole numbers > 0 'npus_count'")
    ranks = prod(counts)
    if ranks > MOST_RANKS:
        raise ValueError(f"npus_count makes {ranks:,} ranks; allowed: up to {MOST_RANKS:,}")
    for rank in lines:
        if not 0 <= rank < ranks:
            raise ValueError(f"ranks: there is no rank {rank}, npus_count makes ranks 0 to {ranks - 1}")
    return ranks


def _number_of(value: Any, where: str) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{where}: {value!r} is no whole number") from None
    if not is_whole(number):
        raise ValueError(f"{where}: {value!r} must be at most 2^53")
    return number


def _add_node(builder: GraphBuilder, rank: int, node: Mapping[str, Any]) -> None:
    where = f"node {node.get('id')} of rank {rank}"

    def get(key: str, default: int | None = None, least: int = -LARGEST) -> int:
        if key not in node and default is None:
            raise ValueError(f"{where}: it has no {key!r}")
        value = node.get(key, default)
        if not is_whole(value) or value < least:
            bound = f" >= {least}" if least > -LARGEST else ""
            raise ValueError(f"{where}: {key} is {value!r}, it must be a whole number{bound} and at most 2^53")
        return int(value)

    kind, deps, number = node.get("type"), node.get("deps", []), get("id", least=0)
    if not isinstance(deps, list) or not all(is_whole(dep) for dep in deps):
        raise ValueError(f"{where}: deps is {deps!r}, it must be a list of ids")
    if kind == "comp":
        micros = node.get("dur_us")
        if isinstance(micros, bool) or not isinstance(micros, (int, float)) or not 0 <= micros <= LARGEST / 1000:
            raise ValueError(f"{where}: dur_us is {micros!r}, it must be a number >= 0 and at most 2^53 ns")
        builder.compute(rank, number, round(micros * 1000), deps)
        builder.move_last(get("stream", 0))
    elif kind == "coll":
        group = node.get("pg")
        place = None if group in (None, "", "0", 0) else _number_of(group, f"{where}: pg")
        builder.collective(rank, number, str(node.get("coll")), get("size"), place, deps)
        builder.move_last(get("stream", 0))
    elif kind in ("send", "recv"):
        own, other = ("src", "dst") if kind == "send" else ("dst", "src")
        if node.get(own, rank) != rank:
            raise ValueError(f"{where}: {own} is {node[own]}, a {kind} must be on its own rank")
        if kind == "send":
            builder.send(rank, number, get(other), get("size"), get("tag"), deps)
            builder.move_last(get("stream", 0))
        else:
            builder.receive(rank, number, get(other), get("size"), get("tag"), deps)
    else:
        raise ValueError(f"{where}: type is {kind!r}, it must be comp, coll, send or recv")


def graph_to_json(graph: Graph, network: Mapping[str, Any], system: Mapping[str, Any]) -> dict[str, Any]:
    """Give a graph in the form of a file."""
    ranks: dict[str, list[dict[str, Any]]] = {str(r): [] for r in range(graph.ranks)}
    for i in range(len(graph)):
        ranks[str(graph.rank[i])].append(_node_to_json(graph, i))
    groups = {str(g): graph.groups.members(at).tolist() for at, g in enumerate(graph.groups.ids.tolist())}
    return {
        "name": graph.name,
        "network": dict(network),
        "system": dict(system),
        "comm_groups": groups,
        "ranks": ranks,
    }


def _node_to_json(graph: Graph, i: int) -> dict[str, Any]:
    deps = graph.id[graph.deps[graph.deps_ptr[i] : graph.deps_ptr[i + 1]]].tolist()
    node: dict[str, Any] = {"id": int(graph.id[i]), "deps": deps}
    kind = graph.kind[i]
    if kind == COMPUTE:
        return node | {"type": "comp", "dur_us": int(graph.duration_ns[i]) / 1000}
    node["size"] = int(graph.size[i])
    if kind == COLLECTIVE:
        node |= {"type": "coll", "coll": COLLECTIVES[graph.collective[i]]}
        if graph.group[i] != WORLD:
            node["pg"] = str(graph.groups.ids[graph.group[i]])
        return node
    own, other = int(graph.rank[i]), int(graph.peer[i])
    src, dst = (own, other) if kind == SEND else (other, own)
    return node | {"type": "send" if kind == SEND else "recv", "src": src, "dst": dst, "tag": int(graph.tag[i])}
