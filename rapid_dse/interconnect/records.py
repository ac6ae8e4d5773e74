"""Record layouts that the compiled event engine runs on, and the numbers that name their states.

Everything the engine touches is a row of one of these record arrays. Rows refer to each other by index, and -1 is
"none".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

State = int
"""A run as compiled functions see it: the address of the addresses of its tables (see ``Tables``)."""

LEAN: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Helpers are called from compiled code only, and never divide by zero: what else numba makes costs time to compile."""

F = TypeVar("F", bound=Callable[..., Any])


def inlined(function: F) -> F:
    """Compile a hot helper of the event loop and force it into its callers."""
    return cast(F, njit(forceinline=True, **LEAN)(function))


def compiled(function: F) -> F:
    """Compile a helper that is called less than once a message."""
    return cast(F, njit(**LEAN)(function))


@intrinsic
def _trailing_zeros(typingctx: Any, value: Any) -> Any:
    """Count the zeros below the lowest set bit of a non-zero uint64 (one machine instruction)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), codegen


trailing_zeros = cast(Callable[[int], int], _trailing_zeros)


def callable_compiled(function: F) -> F:
    """Compile a function that Python calls too."""
    return cast(F, njit(error_model="numpy")(function))


# what a token in the calendar stands for
LINK_FREE, COLLECTIVE_MESSAGE, SEND_MESSAGE, RANK_DELAYS, POSTED_LATE, RECEIVE_LATE, NODE_DONE, FLOW_TICK = range(8)
# what an item of a rank's delays stands for
COMPUTE_END, BUNDLE = 16, 17

# kinds of graph nodes (as in rapid_dse.trace.graph) and resource classes of a rank
COMPUTE, COLLECTIVE, SEND, RECEIVE = range(4)
CLASS_RECEIVE, CLASS_COMPUTE, CLASS_COMM = range(3)

# kinds of network dimensions
RING, FULLY_CONNECTED, SWITCH, LINE, FAT_TREE = range(5)

# algorithms and collectives
ALG_RING, ALG_DIRECT, ALG_HALVING, ALG_TREE = range(4)
ALL_REDUCE, REDUCE_SCATTER, ALL_GATHER, ALL_TO_ALL = range(4)

# models of the links
AWARE, UNAWARE, FAIR, IDEAL = range(4)

token_t = np.dtype(
    [
        ("time", "i8"),  # ns at which it leaves the calendar
        ("size", "i8"),  # a message: bytes; a bundle: ns of its reduction, or -1
        ("next", "i8"),  # in the calendar, a link's queue, a rank's delays, or the free list
        ("kind", "i8"),
        ("own", "i8"),  # receiving endpoint, node, link or rank, by kind
        ("k", "i8"),  # sequence number of the message at its sender; first item of a rank's delays
        ("dst", "i8"),  # destination rank; last item of a rank's delays
        ("route", "i8"),  # place in the route table, or -1: routed hop by hop; next group of a rank's delays
        ("link", "i8"),  # the link it is on, -1 for none
        ("made", "i8"),  # ns at which it was made (folded runs)
    ],
    align=True,
)
link_t = np.dtype(
    [
        ("bandwidth", "f8"),  # bytes per ns
        ("latency", "f8"),  # ns
        ("bytes", "i8"),
        ("busy_ns", "i8"),
        ("busy", "i8"),
        ("head", "i8"),
        ("tail", "i8"),
        ("device", "i8"),  # at its far end
        ("spare", "f8"),  # `fair`: bytes per ns that are not given away yet, and flows that still want some
        ("users", "i8"),
        ("touched", "i8"),  # folded runs: the last ns at which a message came to it, in which event, made when
        ("touched_step", "i8"),
        ("touched_made", "i8"),
    ],
    align=True,
)
endpoint_t = np.dtype(
    [
        ("rank", "i8"),
        ("pos", "i8"),  # place in the phase's ring
        ("phase", "i8"),
        ("stream", "i8"),
        ("group", "i8"),  # offset of the group's ranks, -1 when ranks follow from a stride
        ("queue", "i8"),
        ("step", "i8"),  # +1 or -1: which way its ring runs; 0 until its rank is there
        ("sent", "i8"),
        ("free", "i8"),  # credits; of a tree: which receives are posted, a bit each
        ("received", "i8"),
        ("inserted", "i8"),
        ("early", "i8"),  # list of messages that came before their receive; of a tree: a bit each
        ("state", "i8"),  # of a tree; else the last of the early messages
        ("reduced", "i8"),
        ("tree", "i8"),
    ],
    align=True,
)
stream_t = np.dtype(
    [
        ("priority", "i8"),
        ("rank", "i8"),
        ("instance", "i8"),
        ("node", "i8"),
        ("phase", "i8"),  # -1 before the first
        ("queue", "i8"),
        ("next", "i8"),
        ("base", "i8"),  # its endpoint in phase 0
    ],
    align=True,
)
instance_t = np.dtype(
    [
        ("tag", "i8"),
        ("plan", "i8"),
        ("endpoints", "i8"),
        ("streams", "i8"),
        ("members", "i8"),
        ("left", "i8"),  # streams that have not ended
        ("next", "i8"),  # of the same group, or in the plan's list of free ones
        ("arrived", "i8"),
        ("room", "i8"),
    ],
    align=True,
)
plan_t = np.dtype(
    [
        ("chunks", "i8"),
        ("phases", "i8"),
        ("first_phase", "i8"),
        ("world", "i8"),  # 1: phases over the network's dimensions; 0: one ring over the group
        ("free", "i8"),  # instances to use again
    ],
    align=True,
)
phase_t = np.dtype(
    [
        ("size", "i8"),  # bytes a message
        ("reduction", "i8"),  # ns
        ("endpoint", "i8"),  # ns
        ("algorithm", "i8"),
        ("collective", "i8"),
        ("n", "i8"),
        ("total", "i8"),  # messages a rank sends
        ("parallel", "i8"),  # credits
        ("unreduced", "i8"),  # of a period's insertions those that never reduce
        ("period", "i8"),
        ("dim", "i8"),
        ("stride", "i8"),
        ("table", "i8"),  # halving-doubling: its row of steps; tree: its row of parents
        ("half", "i8"),  # which queues it takes: 0 any, 1 first half, 2 last half
        ("route", "i8"),  # folded runs: its first entry in the table of routes by message
        ("origin", "i8"),  # the collective that it is a phase of
    ],
    align=True,
)
node_t = np.dtype(
    [
        ("size", "i8"),
        ("duration", "i8"),
        ("start", "i8"),  # ns, -1 before
        ("end", "i8"),
        ("children", "i8"),  # first of those that wait for it, and the end of them
        ("children_end", "i8"),
        ("kind", "i8"),
        ("cls", "i8"),  # the resource it needs
        ("rank", "i8"),
        ("waits", "i8"),  # unfinished dependencies
        ("next", "i8"),
        ("plan", "i8"),
        ("group", "i8"),
        ("pos", "i8"),  # place in the group
        ("counter", "i8"),  # its rank's count of streams in this group
        ("left", "i8"),  # chunks that have not ended
        ("peer", "i8"),
        ("channel", "i8"),
    ],
    align=True,
)
channel_t = np.dtype([("arrived", "i8"), ("head", "i8"), ("tail", "i8")], align=True)
ready_t = np.dtype([("head", "i8"), ("tail", "i8"), ("busy", "i8")], align=True)
queue_t = np.dtype([("head", "i8"), ("tail", "i8"), ("running", "i8")], align=True)
turn_t = np.dtype([("any", "i8"), ("first", "i8"), ("last", "i8")], align=True)
rank_t = np.dtype(
    [
        ("priority", "i8"),
        ("touched", "i8"),  # folded runs: the last ns at which an event ran on it, made when, on which endpoint
        ("touched_made", "i8"),
        ("touched_endpoint", "i8"),
        ("delays", "i8"),  # groups of delays that run on it
    ],
    align=True,
)
group_t = np.dtype([("offset", "i8"), ("size", "i8"), ("live", "i8")], align=True)
dim_t = np.dtype(
    [
        ("bandwidth", "f8"),
        ("latency", "f8"),
        ("kind", "i8"),
        ("n", "i8"),
        ("stride", "i8"),
        ("links", "i8"),  # first link
        ("devices", "i8"),  # first switch
        ("leaf", "i8"),  # fat tree: ranks a leaf
        ("spines", "i8"),
        ("leaves", "i8"),
    ],
    align=True,
)
device_t = np.dtype([("dim", "i8"), ("origin", "i8"), ("index", "i8"), ("tier", "i8")], align=True)


slot_t = np.dtype([("head", "i8"), ("tail", "i8")], align=True)
word_t = np.dtype([("bits", "u8")], align=True)
child_t = np.dtype([("node", "i8")], align=True)
member_t = np.dtype([("rank", "i8")], align=True)
counter_t = np.dtype([("count", "i8")], align=True)
route_t = np.dtype([("link", "i8")], align=True)  # links one after the other, -1 ends a route
# folded runs, by phase.route + k: place in the routes, and the rank that the message stands for going to
message_route_t = np.dtype([("place", "i8"), ("dst", "i8")], align=True)
detour_t = np.dtype([("key", "i8"), ("place", "i8")], align=True)  # src * ranks + dst, ascending
flip_t = np.dtype([("taken", "i8")], align=True)  # trees taken so far, by rank, dimension and collective
halving_t = np.dtype([("distance", "i8"), ("size", "i8"), ("reduction", "i8")], align=True)
tree_t = np.dtype([("parent", "i8"), ("left", "i8"), ("right", "i8")], align=True)
flow_t = np.dtype(
    [
        ("left", "f8"),  # bytes
        ("rate", "f8"),  # bytes per ns
        ("latency", "f8"),  # ns
        ("token", "i8"),
        ("path", "i8"),  # its first link in the paths
        ("hops", "i8"),
        ("fixed", "i8"),
    ],
    align=True,
)
path_t = np.dtype([("link", "i8")], align=True)
run_t = np.dtype(
    [
        ("now", "i8"),  # ns
        ("step", "i8"),  # events so far
        ("event_made", "i8"),  # ns at which the running event was made
        ("hops", "i8"),  # messages that ended a hop
        ("delays", "i8"),  # delays that ended on a rank
        ("free_tokens", "i8"),
        ("overflow", "i8"),  # 1: some table was too short, the run is void
        ("ambiguous", "i8"),  # 1: a folded run came to an order that it cannot know, the run is void
        ("two_ways", "i8"),  # 1: queues of one collective ran different ways round on different ranks
        ("model", "i8"),
        ("folded", "i8"),  # 1: rank 0 stands for all
        ("ranks", "i8"),
        ("classes", "i8"),
        ("dims", "i8"),
        ("nodes", "i8"),
        ("lifo", "i8"),
        ("queues_per_dim", "i8"),
        ("queue_limit", "i8"),  # streams that a queue runs at a time
        ("world_counters", "i8"),  # place of rank 0's count of all its streams
        ("detours", "i8"),
        ("instances", "i8"),  # rows there are, and rows in use
        ("instances_top", "i8"),
        ("endpoints", "i8"),
        ("eps_top", "i8"),
        ("streams", "i8"),
        ("streams_top", "i8"),
        ("flows", "i8"),  # `fair`: flows there are, and room for them
        ("flow_room", "i8"),
        ("longest", "i8"),  # links of the longest route
        ("flow_time", "i8"),  # ns to which the flows have been moved on
        ("flow_due", "i8"),  # ns at which they are looked at next
        ("flow_tick", "i8"),  # number of the look that counts; earlier ones are void
    ],
    align=True,
)

TABLES = {
    "run": run_t,
    "tokens": token_t,
    "slots": slot_t,
    "words": word_t,
    "links": link_t,
    "dims": dim_t,
    "devices": device_t,
    "routes": route_t,
    "message_routes": message_route_t,
    "detours": detour_t,
    "ranks": rank_t,
    "ready": ready_t,
    "queues": queue_t,
    "turns": turn_t,
    "flips": flip_t,
    "nodes": node_t,
    "children": child_t,
    "channels": channel_t,
    "groups": group_t,
    "members": member_t,
    "counters": counter_t,
    "plans": plan_t,
    "phases": phase_t,
    "instances": instance_t,
    "streams": stream_t,
    "endpoints": endpoint_t,
    "halving": halving_t,
    "trees": tree_t,
    "flows": flow_t,
    "paths": path_t,
}
"""All tables of a run, in the order of their addresses in its state."""
