"""Whether all ranks of a graph take part in their collectives in one order, however long each node takes: else it may deadlock."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np

from rapid_dse.events.programs.script import Traced
from rapid_dse.trace.graph import COLLECTIVE, SEND, Graph


def disorder(traced: Traced) -> list[str]:
    """What makes the order of collectives depend on time: empty where each rank's streams run them by id, each group's collectives are on
    one stream, and all ranks of a group have the same ones."""
    found, seen = [], set()
    for rank in range(traced.graph.ranks):
        if (role := int(traced.role[rank])) not in seen:
            seen.add(role)
            found += [f"rank {rank}: {fault}" for fault in _of_rank(traced, rank)]
    return found + _of_groups(traced.graph)


def _of_rank(traced: Traced, rank: int) -> list[str]:
    """A stream starts the ready node of the lowest id. So x starts before y, whose id is higher, where all that x waits for is also
    waited for by y, or comes before x on the stream, which is free for y only when that has ended."""
    graph, first, last = traced.graph, int(traced.graph.rank_ptr[rank]), int(traced.graph.rank_ptr[rank + 1])
    waits = [set((graph.deps[graph.deps_ptr[node] : graph.deps_ptr[node + 1]] - first).tolist()) for node in range(first, last)]
    before: list[int] = []  # a bit for each node that must have ended
    for others in waits:
        before.append(0)
        for other in others:
            before[-1] |= before[other] | 1 << other
    on_stream, streams = defaultdict(list), defaultdict(set)
    for node in range(last - first):
        if graph.kind[first + node] in (COLLECTIVE, SEND):
            on_stream[int(graph.stream[first + node])].append(node)
        if graph.kind[first + node] == COLLECTIVE:
            streams[int(graph.group[first + node])].add(int(graph.stream[first + node]))
    found = [f"group {group} is on streams {sorted(numbers)}" for group, numbers in streams.items() if len(numbers) > 1]
    for nodes in on_stream.values():
        own = set(nodes)
        for x, y in pairwise(nodes):
            if any(not before[y] >> other & 1 and not (other in own and other < x) for other in waits[x]):
                found.append(f"{_name(traced, first + y)} may start before {_name(traced, first + x)}")
    return found


def _name(traced: Traced, node: int) -> str:
    return f"node {traced.graph.id[node]} ({traced.labels.names[traced.label[node]]})"


def _of_groups(graph: Graph) -> list[str]:
    of_ranks: dict[int, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for node in np.flatnonzero(graph.kind == COLLECTIVE).tolist():
        of_ranks[int(graph.group[node])][int(graph.rank[node])].append((int(graph.collective[node]), int(graph.size[node])))
    return [
        f"the ranks of group {group} have different collectives"
        for group, ranks in of_ranks.items()
        if set(ranks) != set(graph.groups.members(group).tolist()) or len({tuple(each) for each in ranks.values()}) > 1
    ]
