"""Links and ranks as the event engine runs them: store-and-forward first-in first-out links,
and a rank's own delays.
"""

from __future__ import annotations

from rapid_dse.interconnect.calendar import free_token, push, take_token
from rapid_dse.interconnect.fair import join_flows
from rapid_dse.interconnect.records import AWARE, FAIR, LINK_FREE, RANK_DELAYS, State, compiled
from rapid_dse.interconnect.routing import detour, flight_ns, next_link
from rapid_dse.interconnect.rows import link_at, rank_at, route_at, run, token_at
from rapid_dse.interconnect.symmetry_check import came_to_link


@compiled
def occupy(s: State, i: int, link: int) -> None:
    """Start message i on a free link; it arrives at the far end after latency and serialisation,
    the link is free earlier.
    """
    at = link_at(s, link)
    size = token_at(s, i).size
    wire = size / at.bandwidth
    busy = int(wire)
    at.busy = 1
    at.bytes += size
    at.busy_ns += busy
    push(s, i, run(s).now + int(at.latency + wire))
    push(s, link + 1, run(s).now + busy)


@compiled
def enter_link(s: State, i: int, link: int) -> None:
    """Bring message i to a link: it starts, or queues."""
    token_at(s, i).link = link
    at = link_at(s, link)
    if run(s).folded:
        came_to_link(s, link)
    if at.busy == 0:
        occupy(s, i, link)
        return
    token_at(s, i).next = -1
    if at.head < 0:
        at.head = i
    else:
        token_at(s, at.tail).next = i
    at.tail = i


@compiled
def release_link(s: State, link: int) -> None:
    """Let the next message of the queue have the link."""
    at = link_at(s, link)
    at.busy = 0
    i = at.head
    if i >= 0:
        at.head = token_at(s, i).next
        occupy(s, i, link)


@compiled
def forward(s: State, i: int) -> bool:
    """Send message i, which has come to the end of a link, over its next one; False when it is where it was to go."""
    m = token_at(s, i)
    if m.link < 0:
        return False
    if m.route >= 0:
        m.route += 1
        after = route_at(s, m.route).link
        if after < 0:
            return False
    else:
        device = link_at(s, m.link).device
        if device == m.dst:
            return False
        after = next_link(s, device, m.dst)
    enter_link(s, i, after)
    return True


@compiled
def inject(s: State, i: int, src: int, route: int) -> None:
    """Put message i of rank ``src`` on the network; ``route`` is its place in the route table, or -1."""
    m = token_at(s, i)
    m.route = route
    m.link = -1
    if run(s).model == AWARE:
        if route < 0 and run(s).detours > 0:
            m.route = detour(s, src, m.dst)
        enter_link(s, i, route_at(s, m.route).link if m.route >= 0 else next_link(s, src, m.dst))
    elif run(s).model == FAIR:
        join_flows(s, i, src)
    else:
        push(s, i, run(s).now + flight_ns(s, src, m.dst, m.size))


@compiled
def delay(s: State, rank: int, i: int, wait: int) -> None:
    """Let token i wait on its rank; delays of a rank that end in the same ns run together,
    in the place of the first.
    """
    time = run(s).now + wait
    token_at(s, i).next = -1
    group = rank_at(s, rank).delays
    while group >= 0 and token_at(s, group).time != time:
        group = token_at(s, group).route
    if group >= 0:
        token_at(s, token_at(s, group).dst).next = i
        token_at(s, group).dst = i
        return
    group = take_token(s)
    g = token_at(s, group)
    g.kind = RANK_DELAYS
    g.own = rank
    g.k = i
    g.dst = i
    g.route = rank_at(s, rank).delays
    rank_at(s, rank).delays = group
    push(s, group, time)


@compiled
def end_delays(s: State, group: int) -> None:
    """Take a rank's delays that have all run off its list."""
    at = rank_at(s, token_at(s, group).own)
    i = at.delays
    if i == group:
        at.delays = token_at(s, group).route
    else:
        while token_at(s, i).route != group:
            i = token_at(s, i).route
        token_at(s, i).route = token_at(s, group).route
    free_token(s, group)


def link_tokens(links: int) -> int:
    """How many tokens the links' own events take: the scratch token 0, then one a link, of kind ``LINK_FREE``."""
    assert LINK_FREE == 0
    return links + 1
