"""The compiled event loop: it takes tokens off the calendar in order and does what each stands for."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from rapid_dse.common.compiled import compiled_once
from rapid_dse.interconnect.calendar import MASK, empty_slot, free_token, next_time
from rapid_dse.interconnect.fair import update_flows
from rapid_dse.interconnect.rank_work import end_node, end_phase, end_send, make_ready, start_ready
from rapid_dse.interconnect.records import (
    BUNDLE,
    COLLECTIVE_MESSAGE,
    FLOW_TICK,
    LINK_FREE,
    NODE_DONE,
    POSTED_LATE,
    RANK_DELAYS,
    RECEIVE_LATE,
    SEND_MESSAGE,
    State,
    compiled,
    inlined,
)
from rapid_dse.interconnect.rows import node_at, run, slot_at, token_at
from rapid_dse.interconnect.symmetry_check import came_to_rank
from rapid_dse.interconnect.transport import delay, end_delays, forward, release_link
from rapid_dse.interconnect.trees import arrive, end_bundle, receive


@inlined
def end_item(s: State, rank: int, i: int) -> None:
    """End one of a rank's delays."""
    own = token_at(s, i).own
    if token_at(s, i).kind != BUNDLE:
        free_token(s, i)
        end_node(s, own)
        return
    reduction = token_at(s, i).size
    if reduction >= 0:
        token_at(s, i).size = -1
        delay(s, rank, i, reduction)
        return
    free_token(s, i)
    if end_bundle(s, own):
        end_phase(s, own)


@inlined
def end_group(s: State, group: int) -> None:
    """End all of a rank's delays that are due now, also those that are added meanwhile."""
    g = token_at(s, group)
    rank = g.own
    if run(s).folded:
        came_to_rank(s, rank, -1)
    i = g.k
    while i >= 0:
        # the item may be used again at once: what is added behind the last one hangs on the group itself meanwhile
        after = token_at(s, i).next
        last = after < 0
        if last:
            g.dst = group
            g.next = -1
        run(s).delays += 1
        end_item(s, rank, i)
        i = g.next if last else after
    end_delays(s, group)


@inlined
def end_message(s: State, i: int) -> None:
    """Take message i from the end of a link to the next, or in."""
    run(s).hops += 1
    if forward(s, i):
        return
    if token_at(s, i).kind == COLLECTIVE_MESSAGE:
        if run(s).folded:
            came_to_rank(s, 0, token_at(s, i).own)
        arrive(s, i)
    else:
        v = token_at(s, i).own
        free_token(s, i)
        end_send(s, v)


@inlined
def run_event(s: State, i: int) -> None:
    """Do what token i stands for."""
    kind = token_at(s, i).kind
    if kind == LINK_FREE:
        release_link(s, i - 1)
    elif kind in (COLLECTIVE_MESSAGE, SEND_MESSAGE):
        end_message(s, i)
    elif kind == RANK_DELAYS:
        end_group(s, i)
    elif kind == POSTED_LATE:
        if run(s).folded:
            came_to_rank(s, 0, token_at(s, i).own)
        receive(s, token_at(s, i).own, i)
    elif kind == FLOW_TICK:
        planned = token_at(s, i).size
        free_token(s, i)
        if planned == run(s).flow_tick:
            update_flows(s)
    else:
        assert kind in (RECEIVE_LATE, NODE_DONE)
        v = token_at(s, i).own
        free_token(s, i)
        end_node(s, v)


@compiled
def start_ranks(s: State) -> None:
    """Start every rank's nodes that wait for nothing; of a folded run, those of rank 0 only."""
    for v in range(run(s).nodes):
        if node_at(s, v).waits == 0:
            make_ready(s, v)
    for rank in range(1 if run(s).folded else run(s).ranks):
        start_ready(s, rank)


def content_key() -> int:
    """Checksum of this folder's sources.

    The cache of machine code must not outlive any that is compiled into the loop.
    """
    here = Path(__file__).parent
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(here.glob("*.py"))))


STOPPED = -1
"""What the loop returns where events are left."""


def make_kernel(key: int) -> Callable[[State, int], int]:
    """Build the compiled loop; ``key``, at least 0, becomes part of its key in numba's cache."""

    @compiled_once("int64(int64,int64)", f"{key:08x}")
    def event_loop(s: State, most: int) -> int:
        """Run a state on: at its beginning start every rank, then run events while there are any, up to the end of the ns in which they are
        ``most`` since the beginning; returns ``key``, or ``STOPPED``."""
        if run(s).step == 0:
            start_ranks(s)
        while run(s).step < most:
            time = next_time(s)
            if time < 0:
                return key
            run(s).now = time
            slot = time & MASK
            while slot_at(s, slot).head >= 0:
                i = slot_at(s, slot).head
                slot_at(s, slot).head = token_at(s, i).next
                run(s).step += 1
                run(s).event_made = token_at(s, i).made
                run_event(s, i)
                if run(s).overflow or run(s).ambiguous:
                    return key
            empty_slot(s, slot)
        return STOPPED

    return cast(Callable[[State, int], int], event_loop)
