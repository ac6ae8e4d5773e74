"""Where the time of one rank went: each ns of a run is put down to one term, by the rank's own timeline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rapid_dse.events.programs.script import HOST, Traced
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.simulate.results import TIME_TERMS
from rapid_dse.trace.graph import COMPUTE, RECEIVE, SEND, Ints

Floats = NDArray[np.float64]


def exposed(traced: Traced, result: RunResult, rank: int, begin: int = 0, end: int | None = None) -> dict[str, float]:
    """Seconds of each of TIME_TERMS between ``begin`` and ``end`` (None: the rank's last node), ns.

    While the rank computes, the time is the computation's; else while a transfer of its own runs, the transfer's; else the rank waits
    for another: while the message that ends the wait is on its way the time is the transfer's; before that it is the host's while that
    launches, else bubble. The terms add up to the whole.
    """
    graph = traced.graph
    first, last = np.searchsorted(graph.rank, [rank, rank + 1])
    rows = np.arange(first, last)
    finish = int(result.finish_ns[rank]) if end is None else end
    start, stop = result.start_ns[rows], result.end_ns[rows]
    terms = dict.fromkeys(TIME_TERMS, 0.0)
    cuts = np.unique(np.clip(np.concatenate([[begin, finish], start, stop, _sent_at(traced, result, rows)]), begin, finish))
    owner = np.full(len(cuts) - 1, -1, np.int64)
    launches = (graph.kind[rows] == COMPUTE) & (graph.stream[rows] == HOST)
    computes = (graph.kind[rows] == COMPUTE) & ~launches
    for layer in (launches, graph.kind[rows] == RECEIVE, (graph.kind[rows] != COMPUTE) & (graph.kind[rows] != RECEIVE), computes):
        chosen = rows[layer]
        begins = _sent_at(traced, result, chosen) if len(chosen) and graph.kind[chosen[0]] == RECEIVE else result.start_ns[chosen]
        _claim(owner, cuts, begins, result.end_ns[chosen], chosen)
    lengths = np.diff(cuts) / 1e9
    terms["bubble"] += float(lengths[owner < 0].sum())
    labelled = np.bincount(traced.label[owner[owner >= 0]], lengths[owner >= 0], minlength=len(traced.labels.names))
    for label in np.flatnonzero(labelled):
        for term, share in traced.labels.shares[label].items():
            terms[term] += share * float(labelled[label])
    return terms


def _claim(owner: Ints, cuts: Ints, begins: Ints, ends: Ints, rows: Ints) -> None:
    """Gives the intervals within each span to its row; of two spans the one that starts later has it."""
    order = np.argsort(begins, kind="stable")
    low, high = np.searchsorted(cuts, begins[order]), np.searchsorted(cuts, ends[order])
    for row, a, b in zip(rows[order].tolist(), low.tolist(), high.tolist(), strict=True):
        owner[a:b] = row


def _sent_at(traced: Traced, result: RunResult, rows: Ints) -> Ints:
    """When the message of each receive among ``rows`` set off, ns; the start of other nodes."""
    graph = traced.graph
    sent = result.start_ns[rows].copy()
    receives = np.flatnonzero(graph.kind[rows] == RECEIVE)
    if not len(receives):
        return sent
    wanted = rows[receives]
    peers = np.unique(graph.peer[wanted])
    own = int(graph.rank[wanted[0]])
    bounds = [np.searchsorted(graph.rank, [peer, peer + 1]) for peer in peers.tolist()]
    theirs = np.concatenate([np.arange(a, b) for a, b in bounds])
    sends = theirs[(graph.kind[theirs] == SEND) & (graph.peer[theirs] == own)]
    # the k-th message of a channel answers the k-th receive of it
    by_send = np.lexsort((graph.id[sends], graph.size[sends], graph.tag[sends], graph.rank[sends]))
    by_receive = np.lexsort((graph.id[wanted], graph.size[wanted], graph.tag[wanted], graph.peer[wanted]))
    sent[receives[by_receive]] = result.start_ns[sends[by_send]]
    return sent
