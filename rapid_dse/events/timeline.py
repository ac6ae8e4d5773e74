"""A run as a Chrome trace, which Perfetto opens: a process a rank, named by its stage and its place in each group, a row a stream;
operators with their micro-batch, transfers with sizes, arrows from sends to what waits for them, bubbles."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rapid_dse.events.machine import AXES, Machine
from rapid_dse.events.programs.script import Traced
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.trace.graph import COLLECTIVE, COMPUTE, RECEIVE, SEND, Ints

if TYPE_CHECKING:
    from rapid_dse.events.runs import Run

ALL_RANKS = 200_000  # nodes up to which every rank is shown; beyond, one rank of each kind
ROWS = ("compute", "communication", "gradients", "ring", "pipeline", "host")


def chrome_trace(run: Run, name: str) -> dict[str, Any]:
    """The run in Chrome's trace-event format; times are µs."""
    traced, result = run.traced, run.result
    events: list[dict[str, Any]] = []
    names, ranks = rank_names(run.cluster), shown_ranks(traced, result)
    for rank in ranks:
        events += _rank_events(traced, result, rank, names.get(rank, f"rank {rank}"))
    events += _arrows(traced, result, ranks)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": name, "ranks": traced.graph.ranks}}


def rank_names(cluster: Machine) -> dict[int, str]:
    """What the rank at each place is called: its pipeline stage, and its number in the groups that have several members."""
    words = {"pp": "stage", **{axis: axis for axis in AXES if axis != "pp"}}
    axes = [axis for axis, size in zip(AXES, cluster.rank.shape, strict=True) if size > 1]
    names = {}
    for index, place in np.ndenumerate(cluster.rank):
        where = dict(zip(AXES, index, strict=True))
        named = ", ".join(f"{words[axis]} {where[axis]}" for axis in axes)
        names[int(place)] = f"{named} (rank {place})" if named else f"rank {place}"
    return names


def shown_ranks(traced: Traced, result: RunResult) -> list[int]:
    """Every rank that has work; of a large graph the first of each kind and the one that ends last."""
    busy = np.flatnonzero(np.bincount(traced.graph.rank, minlength=traced.graph.ranks) > 1)
    if len(traced.graph) <= ALL_RANKS:
        return [int(rank) for rank in busy]
    _, first = np.unique(traced.role[busy], return_index=True)
    return sorted({*(int(rank) for rank in busy[first]), int(result.finish_ns.argmax())})


def _rank_events(traced: Traced, result: RunResult, rank: int, name: str) -> Iterator[dict[str, Any]]:
    graph = traced.graph
    rows = np.arange(*np.searchsorted(graph.rank, [rank, rank + 1]))
    rows = rows[graph.kind[rows] != RECEIVE]  # a receive is a wait: it is drawn as the bubble that it causes
    stream = np.where((graph.kind[rows] == COMPUTE) & (graph.stream[rows] == 0), 0, 1 + graph.stream[rows])
    yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": name}}
    for row in np.unique(stream).tolist():
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": {"name": ROWS[row]}}
    for node, tid in zip(rows.tolist(), stream.tolist(), strict=True):
        yield _event(traced, result, node, rank, tid)
    yield from _bubbles(result, rows, rank)


def _event(traced: Traced, result: RunResult, node: int, rank: int, tid: int) -> dict[str, Any]:
    graph, label, batch = traced.graph, int(traced.label[node]), int(traced.batch[node])
    args: dict[str, Any] = {"node": int(graph.id[node])} | ({"micro_batch": batch} if batch >= 0 else {})
    if graph.kind[node] != COMPUTE:
        args["bytes"] = int(graph.size[node])
        group = int(graph.group[node])
        if graph.kind[node] == COLLECTIVE and group >= 0:
            args["group"] = int(graph.groups.ids[group])
            args["ranks"] = len(graph.groups.members(group))
        elif graph.kind[node] != COLLECTIVE:
            args["to"] = int(graph.peer[node])
    return {
        "ph": "X",
        "name": traced.labels.names[label] + (f", micro-batch {batch}" if batch >= 0 else ""),
        "cat": "+".join(traced.labels.shares[label]),
        "pid": rank,
        "tid": tid,
        "ts": int(result.start_ns[node]) / 1000,
        "dur": int(result.end_ns[node] - result.start_ns[node]) / 1000,
        "args": args,
    }


def _arrows(traced: Traced, result: RunResult, ranks: Sequence[int]) -> Iterator[dict[str, Any]]:
    """An arrow from each message between the shown ranks, where it is sent, to what waits for it, where that starts.

    Messages of one rank to another with one tag are received in the order in which they are sent.
    """
    graph = traced.graph
    drawn = np.zeros(graph.ranks, bool)
    drawn[list(ranks)] = True
    waiting: dict[tuple[int, int, int], deque[int]] = defaultdict(deque)
    for node in np.flatnonzero((graph.kind == RECEIVE) & drawn[graph.rank]).tolist():
        waiting[int(graph.peer[node]), int(graph.rank[node]), int(graph.tag[node])].append(node)
    first = np.arange(len(graph))  # what waits for a node first, else the node itself
    behind = np.repeat(np.arange(len(graph)), np.diff(graph.deps_ptr))
    first[graph.deps[::-1]] = behind[::-1]
    for number, node in enumerate(np.flatnonzero((graph.kind == SEND) & drawn[graph.rank]).tolist()):
        receives = waiting.get((int(graph.rank[node]), int(graph.peer[node]), int(graph.tag[node])))
        if not receives:
            continue
        arrow = {"name": traced.labels.names[int(traced.label[node])], "cat": "send", "id": number}
        for end, at in (("s", node), ("f", int(first[receives.popleft()]))):
            row = 0 if graph.kind[at] == RECEIVE or (graph.kind[at] == COMPUTE and graph.stream[at] == 0) else 1 + int(graph.stream[at])
            yield arrow | {"ph": end, "pid": int(graph.rank[at]), "tid": row, "ts": int(result.start_ns[at]) / 1000}


def _bubbles(result: RunResult, rows: Ints, rank: int) -> Iterable[dict[str, Any]]:
    """Spans in which the rank does nothing at all, on the row of computation."""
    order = np.argsort(result.start_ns[rows], kind="stable")
    starts, ends = result.start_ns[rows][order], np.maximum.accumulate(result.end_ns[rows][order])
    opens, closes = np.concatenate(([0], ends)), np.concatenate((starts, [result.makespan_ns]))
    for begin, end in zip(opens.tolist(), closes.tolist(), strict=True):
        if end > begin:
            yield {
                "ph": "X",
                "name": "bubble",
                "cat": "bubble",
                "pid": rank,
                "tid": 0,
                "ts": begin / 1000,
                "dur": (end - begin) / 1000,
                "args": {"ns": end - begin},
            }
