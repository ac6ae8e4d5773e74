"""Graphs and runs as pictures (SVG, which browsers show) and as text."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import numpy as np

from rapid_dse.events.programs.script import Traced
from rapid_dse.events.timeline import shown_ranks
from rapid_dse.interconnect.engine import RunResult
from rapid_dse.trace.graph import COLLECTIVE, COLLECTIVES, COMPUTE, NODE_KINDS, Graph

COLOURS = {
    "compute": "#4c78a8",
    "tp": "#f58518",
    "cp": "#e45756",
    "ep": "#72b7b2",
    "pp": "#54a24b",
    "dp": "#eeca3b",
    "bubble": "#dddddd",
    "optimizer": "#b279a2",
    "host": "#9d755d",
}
WIDTH, ROW, MARGIN = 1600.0, 18.0, 90.0
MOST_RANKS, MOST_NODES = 32, 400


def run_picture(traced: Traced, result: RunResult) -> str:
    """A run as lanes below a legend: a rank a lane, computation in its upper half and transfers in its lower half; gaps are waits."""
    graph, ranks = traced.graph, shown_ranks(traced, result)[:MOST_RANKS]
    scale = (WIDTH - MARGIN) / max(1, result.makespan_ns)
    body = list(_legend(result.makespan_ns / 1e9))
    for lane, rank in enumerate(ranks):
        top = (1 + lane) * 2.5 * ROW
        body.append(f'<text x="4" y="{top + ROW:.0f}">rank {rank}</text>')
        for node in range(*np.searchsorted(graph.rank, [rank, rank + 1])):
            term = next(iter(traced.labels.shares[traced.label[node]]))
            if graph.kind[node] > 2:
                continue
            x, wide = MARGIN + result.start_ns[node] * scale, (result.end_ns[node] - result.start_ns[node]) * scale
            y = top if graph.kind[node] == COMPUTE and graph.stream[node] == 0 else top + ROW
            title = escape(traced.labels.names[traced.label[node]])
            body.append(
                f'<rect x="{x:.2f}" y="{y:.0f}" width="{max(wide, 0.3):.2f}" height="{ROW - 2:.0f}" fill="{COLOURS[term]}">'
                f"<title>{title}</title></rect>"
            )
    return _svg(body, (1 + len(ranks)) * 2.5 * ROW)


def _legend(seconds: float) -> Iterator[str]:
    """The colours of the terms, and the time from the left edge to the right."""
    terms = [term for term in COLOURS if term != "bubble"]
    for place, term in enumerate(terms):
        x = MARGIN + 100 * place
        yield f'<rect x="{x:.0f}" y="4" width="14" height="14" fill="{COLOURS[term]}"/><text x="{x + 18:.0f}" y="15">{term}</text>'
    yield f'<text x="{MARGIN:.0f}" y="{2 * ROW:.0f}">0</text>'
    yield f'<text x="{WIDTH:.0f}" y="{2 * ROW:.0f}" text-anchor="end">{seconds:.6g} s</text>'


def graph_picture(traced: Traced, rank: int) -> str:
    """The first nodes of a rank, each below what it waits for, with its dependencies."""
    graph = traced.graph
    first, last = (int(end) for end in np.searchsorted(graph.rank, [rank, rank + 1]))
    last = min(last, first + MOST_NODES)
    depth: dict[int, int] = {}
    wide: dict[int, int] = {}
    place: dict[int, tuple[float, float]] = {}
    for node in range(first, last):
        before = [int(dep) for dep in graph.deps[graph.deps_ptr[node] : graph.deps_ptr[node + 1]]]
        depth[node] = 1 + max((depth[dep] for dep in before if dep in depth), default=-1)
        column = wide[depth[node]] = wide.get(depth[node], -1) + 1
        place[node] = (10.0 + 260.0 * column, 10.0 + 2 * ROW * depth[node])
    body = list(_edges(graph, place))
    for node, (x, y) in place.items():
        term = next(iter(traced.labels.shares[traced.label[node]]))
        text = escape(f"{graph.id[node]} {traced.labels.names[traced.label[node]]}")
        body.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="240" height="{ROW:.0f}" fill="{COLOURS[term]}"/>')
        body.append(f'<text x="{x + 4:.0f}" y="{y + 13:.0f}">{text}</text>')
    return _svg(body, 20 + 2 * ROW * (1 + max(depth.values(), default=0)))


def _edges(graph: Graph, place: dict[int, tuple[float, float]]) -> Iterator[str]:
    for node, (x, y) in place.items():
        for dep in graph.deps[graph.deps_ptr[node] : graph.deps_ptr[node + 1]].tolist():
            if dep in place:
                a, b = place[dep]
                yield f'<line x1="{a + 120:.0f}" y1="{b + ROW:.0f}" x2="{x + 120:.0f}" y2="{y:.0f}" stroke="#888"/>'


def _svg(body: list[str], height: float) -> str:
    inside = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH:.0f}" height="{height + 10:.0f}" font-family="sans-serif" font-size="11">\n'
        f"{inside}\n</svg>\n"
    )


def text_dump(traced: Traced, rank: int) -> str:
    """The nodes of a rank's trace, a line each."""
    graph, lines = traced.graph, []
    for node in range(*np.searchsorted(graph.rank, [rank, rank + 1])):
        kind = int(graph.kind[node])
        parts = [f"{graph.id[node]}", NODE_KINDS[kind], traced.labels.names[traced.label[node]]]
        if kind == COMPUTE:
            parts.append(f"{graph.duration_ns[node]} ns")
        elif kind == COLLECTIVE:
            parts.append(f"{COLLECTIVES[graph.collective[node]]} {graph.size[node]} bytes group {graph.group[node] + 1}")
        else:
            parts.append(f"rank {graph.peer[node]} {graph.size[node]} bytes tag {graph.tag[node]}")
        before = graph.id[graph.deps[graph.deps_ptr[node] : graph.deps_ptr[node + 1]]]
        lines.append("; ".join(parts) + (f"; after {' '.join(map(str, before))}" if len(before) else ""))
    return "\n".join(lines) + "\n"
