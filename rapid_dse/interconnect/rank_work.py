"""The ranks' workload in the compiled engine: which node runs next, and what its end sets free."""

from __future__ import annotations

from rapid_dse.interconnect.calendar import push, take_token
from rapid_dse.interconnect.collectives import find_instance, next_phase, retire_instance, start_collective, start_waiting
from rapid_dse.interconnect.records import (
    CLASS_RECEIVE,
    COLLECTIVE,
    COMPUTE,
    COMPUTE_END,
    IDEAL,
    NODE_DONE,
    RECEIVE_LATE,
    SEND,
    SEND_MESSAGE,
    State,
    compiled,
)
from rapid_dse.interconnect.rows import (
    channel_at,
    child_at,
    counter_at,
    endpoint_at,
    instance_at,
    node_at,
    plan_at,
    queue_at,
    ready_at,
    run,
    stream_at,
    token_at,
)
from rapid_dse.interconnect.transport import delay, inject


@compiled
def make_ready(s: State, v: int) -> None:
    """Put node v among those of its rank and class that may start, in ascending order."""
    n = node_at(s, v)
    line = ready_at(s, n.rank * run(s).classes + n.cls)
    n.next = -1
    if line.head < 0:
        line.head = v
        line.tail = v
    elif line.tail < v:
        node_at(s, line.tail).next = v
        line.tail = v
    elif v < line.head:
        n.next = line.head
        line.head = v
    else:
        before = line.head
        while node_at(s, before).next < v:
            before = node_at(s, before).next
        n.next = node_at(s, before).next
        node_at(s, before).next = v


@compiled
def start_ready(s: State, rank: int) -> None:
    """Start the rank's ready nodes in ascending order as far as their resources are free."""
    first = rank * run(s).classes
    while True:
        best = -1
        where = -1
        for c in range(first, first + run(s).classes):
            v = ready_at(s, c).head
            if v >= 0 and ready_at(s, c).busy == 0 and (best < 0 or v < best):
                best = v
                where = c
        if best < 0:
            return
        ready_at(s, where).head = node_at(s, best).next
        if where > first + CLASS_RECEIVE:
            ready_at(s, where).busy = 1
        start_node(s, rank, best)


@compiled
def start_node(s: State, rank: int, v: int) -> None:
    """Start a node of a rank."""
    n = node_at(s, v)
    n.start = run(s).now
    if n.kind == COMPUTE:
        i = take_token(s)
        token_at(s, i).kind = COMPUTE_END
        token_at(s, i).own = v
        delay(s, rank, i, n.duration)
    elif n.kind == COLLECTIVE:
        if run(s).model == IDEAL:
            join_ideal(s, v)
        else:
            start_collective(s, rank, v)
    elif n.kind == SEND:
        start_send(s, rank, v)
    else:
        post_receive(s, v)


@compiled
def start_send(s: State, rank: int, v: int) -> None:
    """Send a node's message."""
    n = node_at(s, v)
    i = take_token(s)
    m = token_at(s, i)
    m.kind = SEND_MESSAGE
    m.own = v
    m.dst = n.peer
    m.size = n.size
    m.link = -1
    if run(s).model == IDEAL:
        push(s, i, run(s).now + n.duration)
    else:
        inject(s, i, rank, -1)


@compiled
def post_receive(s: State, v: int) -> None:
    """Post a receive; if its message is there, it ends in this ns, behind what is due already."""
    at = channel_at(s, node_at(s, v).channel)
    if at.arrived > 0:
        at.arrived -= 1
        i = take_token(s)
        token_at(s, i).kind = RECEIVE_LATE
        token_at(s, i).own = v
        push(s, i, run(s).now)
        return
    node_at(s, v).next = -1
    if at.head < 0:
        at.head = v
    else:
        node_at(s, at.tail).next = v
    at.tail = v


@compiled
def end_send(s: State, v: int) -> None:
    """End a send whose message has arrived, and then the receive that waits for it."""
    at = channel_at(s, node_at(s, v).channel)
    receiver = at.head
    if receiver >= 0:
        at.head = node_at(s, receiver).next
    else:
        at.arrived += 1
    end_node(s, v)
    if receiver >= 0:
        end_node(s, receiver)


@compiled
def end_node(s: State, v: int) -> None:
    """End a node: give back its resource, release its children, start what can start."""
    n = node_at(s, v)
    n.end = run(s).now
    ready_at(s, n.rank * run(s).classes + n.cls).busy = 0
    for e in range(n.children, n.children_end):
        child = child_at(s, e).node
        node_at(s, child).waits -= 1
        if node_at(s, child).waits == 0:
            make_ready(s, child)
    start_ready(s, n.rank)


@compiled
def join_ideal(s: State, v: int) -> None:
    """Enter a collective on ideal links: it runs once its last rank is there, and takes each rank its given time."""
    n = node_at(s, v)
    tag = counter_at(s, n.counter).count
    counter_at(s, n.counter).count += 1
    i = find_instance(s, v, tag)
    if run(s).overflow:
        return
    one = instance_at(s, i)
    # until the last rank is there, those that wait hang on each other by `next`
    n.next = -1 if one.arrived == 0 else stream_at(s, one.streams).node
    stream_at(s, one.streams).node = v
    one.arrived += 1
    if one.arrived < one.members:
        return
    while v >= 0:
        t = take_token(s)
        token_at(s, t).kind = NODE_DONE
        token_at(s, t).own = v
        push(s, t, run(s).now + node_at(s, v).duration)
        v = node_at(s, v).next
    retire_instance(s, i, n.group)


@compiled
def end_phase(s: State, ep: int) -> None:
    """Go on after a stream's phase: its next phase, or its end, which may be that of its node too."""
    st = endpoint_at(s, ep).stream
    x = stream_at(s, st)
    i = x.instance
    if x.phase + 1 < plan_at(s, instance_at(s, i).plan).phases:
        next_phase(s, st)
        return
    queue = x.queue
    n = node_at(s, x.node)
    n.left -= 1
    # the node ends, and others start, while the stream still holds its place in the queue
    if n.left == 0:
        end_node(s, x.node)
    queue_at(s, queue).running -= 1
    start_waiting(s, queue)
    instance_at(s, i).left -= 1
    if instance_at(s, i).left == 0:
        retire_instance(s, i, n.group)
