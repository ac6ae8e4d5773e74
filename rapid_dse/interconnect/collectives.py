"""A rank's collectives in the compiled engine: running instances, and the queues in which their chunks take turns."""

from __future__ import annotations

from rapid_dse.interconnect.records import ALG_TREE, IDEAL, State, compiled
from rapid_dse.interconnect.rows import (
    counter_at,
    endpoint_at,
    flip_at,
    group_at,
    instance_at,
    node_at,
    phase_at,
    plan_at,
    queue_at,
    rank_at,
    run,
    stream_at,
    turn_at,
)
from rapid_dse.interconnect.trees import start_phase


@compiled
def find_instance(s: State, v: int, tag: int) -> int:
    """Find the running collective that node v takes part in by its group, tag and shape, or begin it."""
    n = node_at(s, v)
    i = group_at(s, n.group).live
    while i >= 0 and (instance_at(s, i).tag != tag or instance_at(s, i).plan != n.plan):
        i = instance_at(s, i).next
    if i >= 0:
        return int(i)
    plan = plan_at(s, n.plan)
    members = 1 if run(s).folded else group_at(s, n.group).size
    i = plan.free
    if i >= 0 and instance_at(s, i).room >= members:
        plan.free = instance_at(s, i).next
    else:
        i = new_instance(s, n.plan, members)
        if i < 0:
            return -1
    one = instance_at(s, i)
    one.tag = tag
    one.left = members * plan.chunks
    one.members = members
    one.arrived = 0
    one.next = group_at(s, n.group).live
    group_at(s, n.group).live = i
    if run(s).model != IDEAL:
        clear_endpoints(s, one.endpoints, n.plan, members)
    return int(i)


@compiled
def new_instance(s: State, plan: int, members: int) -> int:
    """Lay out room for one more running collective; -1, and an overflow is flagged, when there is none."""
    p = plan_at(s, plan)
    r = run(s)
    i = r.instances_top
    endpoints = members * p.chunks * p.phases
    streams = members * p.chunks
    if i == r.instances or r.eps_top + endpoints > r.endpoints or r.streams_top + streams > r.streams:
        r.overflow = 1
        return -1
    one = instance_at(s, i)
    one.plan = plan
    one.endpoints = r.eps_top
    one.streams = r.streams_top
    one.room = members
    r.instances_top = i + 1
    r.eps_top += endpoints
    r.streams_top += streams
    return int(i)


@compiled
def clear_endpoints(s: State, first: int, plan: int, members: int) -> None:
    """Put a collective's endpoints into the state in which messages may come but none is expected."""
    shape = plan_at(s, plan)
    for at in range(members * shape.chunks * shape.phases):
        e = endpoint_at(s, first + at)
        e.phase = shape.first_phase + at // members % shape.phases
        e.step = 0
        e.sent = 0
        e.free = 0
        e.received = 0
        e.inserted = 0
        e.state = 0
        e.reduced = 0
        e.early = 0 if phase_at(s, e.phase).algorithm == ALG_TREE else -1


@compiled
def retire_instance(s: State, i: int, group: int) -> None:
    """Take an ended collective off its group's list and keep its room for the next of its shape."""
    g = group_at(s, group)
    if g.live == i:
        g.live = instance_at(s, i).next
    else:
        before = g.live
        while instance_at(s, before).next != i:
            before = instance_at(s, before).next
        instance_at(s, before).next = instance_at(s, i).next
    plan = plan_at(s, instance_at(s, i).plan)
    instance_at(s, i).next = plan.free
    plan.free = i


@compiled
def take_queue(s: State, rank: int, dim: int, half: int) -> int:
    """Take the next of a dimension's queues in turn: any (0), of the first half (1), of the second half (2)."""
    per_dim = run(s).queues_per_dim
    turn = turn_at(s, rank * run(s).dims + dim)
    middle = per_dim // 2
    if half == 0:
        q = turn.any
        turn.any = (q + 1) % per_dim
    elif half == 1:
        q = turn.first
        turn.first = (q + 1) % max(middle, 1)
    else:
        q = middle + turn.last
        turn.last = (turn.last + 1) % (per_dim - middle)
    return int((rank * run(s).dims + dim) * per_dim + q)


@compiled
def set_endpoint(s: State, ep: int, v: int, stream: int, phase: int) -> None:
    """Lay out one rank's part in one phase of one chunk."""
    n = node_at(s, v)
    p = phase_at(s, phase)
    e = endpoint_at(s, ep)
    per_dim = run(s).queues_per_dim
    e.rank = n.rank
    e.stream = stream
    e.queue = take_queue(s, n.rank, p.dim, p.half)
    backwards = p.half == 2 or (p.half == 0 and per_dim > 1 and e.queue % per_dim >= per_dim // 2)
    e.step = -1 if backwards else 1
    if plan_at(s, n.plan).world:
        e.group = -1
        e.pos = (n.rank // p.stride) % p.n
    else:
        e.group = group_at(s, n.group).offset
        e.pos = n.pos
    if per_dim > 1 and run(s).folded == 0:
        watch_ways(s, ep)
    if p.algorithm == ALG_TREE:
        flip = flip_at(s, (n.rank * run(s).dims + p.dim) * 4 + p.origin)
        e.tree = p.table + (flip.taken % 2) * p.n
        flip.taken += 1


@compiled
def watch_ways(s: State, ep: int) -> None:
    """Flag a ring whose neighbours run it the other way round: their queues' turns differ."""
    e = endpoint_at(s, ep)
    p = phase_at(s, e.phase)
    for shift in (1, p.n - 1):
        there = (e.pos + shift) % p.n
        if endpoint_at(s, ep + (there - e.pos) * p.stride).step == -e.step:
            run(s).two_ways = 1


@compiled
def start_collective(s: State, rank: int, v: int) -> None:
    """Start a rank's part in a collective: a stream a chunk, each of which enters the queue of its first phase."""
    n = node_at(s, v)
    plan = plan_at(s, n.plan)
    tag = counter_at(s, n.counter).count
    counter_at(s, n.counter).count += plan.chunks
    world = run(s).world_counters + rank
    if n.counter != world:
        # the world without a group id counts every stream of its rank: unequal use of groups makes its tags differ
        counter_at(s, world).count += plan.chunks
    i = find_instance(s, v, tag)
    if i < 0:
        return
    one = instance_at(s, i)
    member = 0 if run(s).folded else (rank if plan.world else n.pos)
    priority = rank_at(s, rank).priority
    rank_at(s, rank).priority += 1 if run(s).lifo else -1
    n.left = plan.chunks
    for chunk in range(plan.chunks):
        st = one.streams + chunk * one.members + member
        x = stream_at(s, st)
        x.rank = rank
        x.instance = i
        x.node = v
        x.phase = -1
        x.queue = -1
        x.priority = priority
        x.base = one.endpoints + chunk * plan.phases * one.members + member
        for phase in range(plan.phases):
            set_endpoint(s, x.base + phase * one.members, v, st, plan.first_phase + phase)
        next_phase(s, st)


@compiled
def enqueue(s: State, queue: int, st: int) -> None:
    """Put a stream behind those of a queue that have at least its priority."""
    q = queue_at(s, queue)
    x = stream_at(s, st)
    x.next = -1
    if q.head < 0:
        q.head = st
        q.tail = st
    elif stream_at(s, q.tail).priority >= x.priority:
        stream_at(s, q.tail).next = st
        q.tail = st
    elif stream_at(s, q.head).priority < x.priority:
        x.next = q.head
        q.head = st
    else:
        before = q.head
        while stream_at(s, stream_at(s, before).next).priority >= x.priority:
            before = stream_at(s, before).next
        x.next = stream_at(s, before).next
        stream_at(s, before).next = st


@compiled
def start_waiting(s: State, queue: int) -> None:
    """Start streams of a queue while it runs fewer than it may."""
    q = queue_at(s, queue)
    while q.head >= 0 and q.running < run(s).queue_limit:
        x = stream_at(s, q.head)
        q.head = x.next
        q.running += 1
        start_phase(s, x.base + x.phase * instance_at(s, x.instance).members)


@compiled
def next_phase(s: State, st: int) -> None:
    """Move a stream to the queue of its next phase."""
    x = stream_at(s, st)
    before = x.queue
    x.phase += 1
    x.queue = endpoint_at(s, x.base + x.phase * instance_at(s, x.instance).members).queue
    enqueue(s, x.queue, st)
    if before >= 0:
        queue_at(s, before).running -= 1
        start_waiting(s, before)
    start_waiting(s, x.queue)
