"""A run as a Chrome trace, which Perfetto opens: a process a rank, a row a stream, operators, transfers with sizes, bubbles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from rapid_dse.events.programs.script import Traced
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.trace.graph import COLLECTIVE, COMPUTE, RECEIVE, Ints

ALL_RANKS = 200_000  # nodes up to which every rank is shown; beyond, one rank of each kind
ROWS = ("compute", "communication", "gradients", "ring", "pipeline")


def chrome_trace(traced: Traced, result: RunResult, name: str) -> dict[str, Any]:
    """The run in Chrome's trace-event format; times are µs."""
    events: list[dict[str, Any]] = []
    for rank in shown_ranks(traced, result):
        events += _rank_events(traced, result, rank)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"run": name, "ranks": traced.graph.ranks}}


def shown_ranks(traced: Traced, result: RunResult) -> list[int]:
    """Every rank that has work; of a large graph the first of each kind and the one that ends last."""
    busy = np.flatnonzero(np.bincount(traced.graph.rank, minlength=traced.graph.ranks) > 1)
    if len(traced.graph) <= ALL_RANKS:
        return [int(rank) for rank in busy]
    _, first = np.unique(traced.role[busy], return_index=True)
    return sorted({*(int(rank) for rank in busy[first]), int(result.finish_ns.argmax())})


def _rank_events(traced: Traced, result: RunResult, rank: int) -> Iterator[dict[str, Any]]:
    graph = traced.graph
    rows = np.arange(*np.searchsorted(graph.rank, [rank, rank + 1]))
    rows = rows[graph.kind[rows] != RECEIVE]  # a receive is a wait: it is drawn as the bubble that it causes
    stream = np.where(graph.kind[rows] == COMPUTE, 0, 1 + graph.stream[rows])
    yield {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
    for row in np.unique(stream).tolist():
        yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": row, "args": {"name": ROWS[row]}}
    for node, tid in zip(rows.tolist(), stream.tolist(), strict=True):
        yield _event(traced, result, node, rank, tid)
    yield from _bubbles(result, rows, rank)


def _event(traced: Traced, result: RunResult, node: int, rank: int, tid: int) -> dict[str, Any]:
    graph, label = traced.graph, int(traced.label[node])
    args: dict[str, Any] = {"node": int(graph.id[node])}
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
        "name": traced.labels.names[label],
        "cat": "+".join(traced.labels.shares[label]),
        "pid": rank,
        "tid": tid,
        "ts": int(result.start_ns[node]) / 1000,
        "dur": int(result.end_ns[node] - result.start_ns[node]) / 1000,
        "args": args,
    }


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
