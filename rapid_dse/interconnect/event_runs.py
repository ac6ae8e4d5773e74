"""Runs the compiled event loop in pieces, between which it tells how far it is and Ctrl-C is heard."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from rapid_dse.common.compiled import loading_numba
from rapid_dse.common.long_work import LongWork
from rapid_dse.interconnect.event_loop import STOPPED, content_key, make_kernel
from rapid_dse.interconnect.records import State
from rapid_dse.interconnect.rows import Tables
from rapid_dse.trace.graph import Graph

EVENTS_AT_ONCE = 1 << 20  # a tenth of a second


@cache
def engine_version() -> str:
    """Name the engine by its sources."""
    return f"builtin {content_key():08x}"


@cache
def _kernel() -> Callable[[State, int], int]:
    with loading_numba("the event engine (once, about 20 s; then it is cached)"):
        return make_kernel(content_key())


def run_events(state: Tables, graph: Graph) -> None:
    """Run a state to its end; who listens is told now and then how many of the graph's nodes have ended."""
    kernel, most = _kernel(), EVENTS_AT_ONCE
    work = LongWork(f"event engine, {graph.name}" if graph.name else "event engine", "operations", len(graph))
    while kernel(state.state, most) == STOPPED:
        most += EVENTS_AT_ONCE
        work.come(lambda: int((state["nodes"]["end"] >= 0).sum()))
