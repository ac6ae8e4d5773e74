"""Message schedules of one phase of a collective, as a rank runs them: ring, direct, halving-doubling.

After its endpoint delay a rank holds a credit; a credit sends the next message and posts the matching receive; a
receive costs the endpoint delay again, and the reduction where its data are reduced, and gives the credit back. The
phase ends with the last.
"""

from __future__ import annotations

from rapid_dse.interconnect.calendar import push, take_token
from rapid_dse.interconnect.records import (
    ALG_DIRECT,
    ALG_HALVING,
    ALL_REDUCE,
    BUNDLE,
    COLLECTIVE_MESSAGE,
    POSTED_LATE,
    REDUCE_SCATTER,
    State,
    compiled,
)
from rapid_dse.interconnect.rows import endpoint_at, halving_at, member_at, message_route_at, phase_at, run, token_at
from rapid_dse.interconnect.transport import delay, inject


@compiled
def bundle(s: State, ep: int, i: int, reduction: int) -> None:
    """Let token i pass through the endpoint of a rank; ``reduction`` ns follow if it is not -1."""
    token_at(s, i).kind = BUNDLE
    token_at(s, i).own = ep
    token_at(s, i).size = reduction
    e = endpoint_at(s, ep)
    delay(s, e.rank, i, phase_at(s, e.phase).endpoint)


@compiled
def insert(s: State, ep: int, i: int) -> None:
    """Turn token i, a first credit or a received message, into a credit to come."""
    e = endpoint_at(s, ep)
    p = phase_at(s, e.phase)
    j = e.inserted
    e.inserted = j + 1
    reduction = -1
    reduces = p.collective == REDUCE_SCATTER or (p.collective == ALL_REDUCE and (j // p.period) % 2 == 0)
    if reduces and j % p.period >= p.unreduced:
        reduction = p.reduction if p.algorithm != ALG_HALVING else halving_at(s, p.table + j).reduction
    bundle(s, ep, i, reduction)


@compiled
def partner(s: State, ep: int, k: int) -> int:
    """Place in the ring of the rank that message k goes to."""
    e = endpoint_at(s, ep)
    p = phase_at(s, e.phase)
    if p.algorithm == ALG_HALVING:
        return int(e.pos ^ halving_at(s, p.table + k).distance)
    there = e.pos + e.step
    if p.algorithm == ALG_DIRECT:
        there = e.pos + e.step * (k % (p.n - 1) + 1)
    if there >= p.n:
        there -= p.n
    elif there < 0:
        there += p.n
    return int(there)


@compiled
def post_message(s: State, ep: int, there: int, k: int, size: int) -> None:
    """Send message k of an endpoint to place ``there`` of its ring."""
    e = endpoint_at(s, ep)
    p = phase_at(s, e.phase)
    i = take_token(s)
    m = token_at(s, i)
    m.kind = COLLECTIVE_MESSAGE
    m.k = k
    m.size = size
    if run(s).folded:
        ways = p.n - 1 if p.algorithm == ALG_DIRECT else 1
        way = message_route_at(s, p.route + k % ways + (ways if e.step < 0 else 0))
        m.own = ep
        m.dst = way.dst
        inject(s, i, 0, way.place)
        return
    shift = (there - e.pos) * p.stride
    m.own = ep + shift
    m.dst = member_at(s, e.group + there).rank if e.group >= 0 else e.rank + shift
    inject(s, i, e.rank, -1)


@compiled
def send_next(s: State, ep: int) -> None:
    """Spend a credit: send the next message and post the receive of its number, which may have come already."""
    e = endpoint_at(s, ep)
    p = phase_at(s, e.phase)
    if e.sent == p.total or e.free == 0:
        return
    k = e.sent
    e.sent = k + 1
    e.free -= 1
    size = p.size
    if p.algorithm == ALG_HALVING:
        size = halving_at(s, p.table + k).size
    post_message(s, ep, partner(s, ep, k), k, size)
    if e.early >= 0:
        i = take_early(s, ep, k)
        if i >= 0:
            token_at(s, i).kind = POSTED_LATE
            push(s, i, run(s).now)


@compiled
def take_early(s: State, ep: int, k: int) -> int:
    """Take message k off those that came before their receive was posted; -1 if it has not come."""
    e = endpoint_at(s, ep)
    before = -1
    i = e.early
    while i >= 0 and token_at(s, i).k != k:
        before = i
        i = token_at(s, i).next
    if i >= 0:
        if before < 0:
            e.early = token_at(s, i).next
        else:
            token_at(s, before).next = token_at(s, i).next
        if token_at(s, i).next < 0:
            e.state = before
    return int(i)


@compiled
def keep_early(s: State, ep: int, i: int) -> None:
    """Keep message i until its receive is posted, behind those that came before it."""
    e = endpoint_at(s, ep)
    token_at(s, i).next = -1
    if e.early < 0:
        e.early = i
    else:
        token_at(s, e.state).next = i
    e.state = i


@compiled
def credit(s: State, ep: int) -> bool:
    """Give an endpoint a credit, which it spends if it can; True when that was the last of the phase."""
    e = endpoint_at(s, ep)
    p = phase_at(s, e.phase)
    e.free += 1
    if p.algorithm == ALG_DIRECT and p.collective == ALL_REDUCE and p.total - e.sent <= p.n - 1:
        # the second half gathers what the first has reduced: it waits for all of it, then sends as much as it may
        if e.received < p.n - 1:
            return False
        for _ in range(p.parallel):
            send_next(s, ep)
    else:
        send_next(s, ep)
    return bool(e.sent == p.total and e.free == p.parallel)
