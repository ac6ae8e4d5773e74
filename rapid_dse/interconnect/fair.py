"""The ``fair`` model of the links: messages cut through, and those that share a link share it max-min fairly.

A message holds all links of its route at once, at one rate; no rate can grow without one that is as small or smaller
shrinking. Rates change whenever a message comes or goes; it arrives when its bytes have passed and the latencies of
its links too.
"""

from __future__ import annotations

from math import ceil

from rapid_dse.interconnect.calendar import push, take_token
from rapid_dse.interconnect.records import FLOW_TICK, State, compiled
from rapid_dse.interconnect.routing import detour, next_link
from rapid_dse.interconnect.rows import flow_at, link_at, path_at, route_at, run, token_at

BOTTLENECK = 1 + 1e-9


@compiled
def join_flows(s: State, i: int, src: int) -> None:
    """Let message i of rank ``src`` flow; rates are set anew at the end of this ns."""
    r = run(s)
    if r.flows == r.flow_room:
        r.overflow = 1
        return
    f = flow_at(s, r.flows)
    f.token = i
    f.path = r.flows * r.longest
    f.left = token_at(s, i).size
    f.rate = 0.0
    f.latency = 0.0
    f.hops = 0
    r.flows += 1
    lay_path(s, r.flows - 1, src, token_at(s, i).dst)
    tick(s, r.now)


@compiled
def lay_path(s: State, at: int, src: int, dst: int) -> None:
    """Write down the links of a flow's route."""
    f = flow_at(s, at)
    place = -1
    if run(s).detours > 0:
        place = detour(s, src, dst)
    device = src
    while device != dst:
        link = route_at(s, place + f.hops).link if place >= 0 else next_link(s, device, dst)
        if f.hops == run(s).longest:
            run(s).overflow = 1
            return
        path_at(s, f.path + f.hops).link = link
        f.hops += 1
        f.latency += link_at(s, link).latency
        link_at(s, link).bytes += token_at(s, f.token).size
        device = link_at(s, link).device


@compiled
def tick(s: State, time: int) -> None:
    """Have the flows looked at in ``time`` ns, and at no other time that was planned."""
    r = run(s)
    if r.flow_due == time and r.now == time:
        return
    r.flow_due = time
    r.flow_tick += 1
    i = take_token(s)
    token_at(s, i).kind = FLOW_TICK
    token_at(s, i).size = r.flow_tick
    push(s, i, time)


@compiled
def update_flows(s: State) -> None:
    """Move all flows on to this ns, end those that are through, and share the links anew."""
    r = run(s)
    r.flow_due = -1
    passed = r.now - r.flow_time
    r.flow_time = r.now
    at = 0
    while at < r.flows:
        f = flow_at(s, at)
        f.left -= f.rate * passed
        mark_busy(s, at, passed)
        if f.left > f.rate * 1e-6:
            at += 1
            continue
        push(s, f.token, r.now + int(f.latency))
        r.flows -= 1
        if at < r.flows:
            move_flow(s, r.flows, at)
    share_links(s)
    soonest = -1.0
    for k in range(r.flows):
        f = flow_at(s, k)
        time = f.left / f.rate
        if soonest < 0 or time < soonest:
            soonest = time
    if soonest >= 0:
        tick(s, r.now + max(1, ceil(soonest)))


@compiled
def move_flow(s: State, old: int, new: int) -> None:
    """Move a flow to a place that has become free."""
    a, b = flow_at(s, old), flow_at(s, new)
    b.token = a.token
    b.left = a.left
    b.rate = a.rate
    b.latency = a.latency
    b.hops = a.hops
    for k in range(a.hops):
        path_at(s, b.path + k).link = path_at(s, a.path + k).link


@compiled
def mark_busy(s: State, at: int, passed: int) -> None:
    """Count a flow's links busy for the time that has passed, each once; a flow that has just come held none."""
    f = flow_at(s, at)
    if f.rate == 0:
        return
    for k in range(f.hops):
        link = link_at(s, path_at(s, f.path + k).link)
        if link.touched != run(s).flow_time:
            link.touched = run(s).flow_time
            link.busy_ns += passed


@compiled
def share_links(s: State) -> None:
    """Set all rates max-min fairly: fill until a link is full, fix its flows, go on with the others."""
    flows = run(s).flows
    for at in range(flows):
        f = flow_at(s, at)
        f.fixed = 0
        for k in range(f.hops):
            link = link_at(s, path_at(s, f.path + k).link)
            link.spare = link.bandwidth
            link.users = 0
    for at in range(flows):
        f = flow_at(s, at)
        for k in range(f.hops):
            link_at(s, path_at(s, f.path + k).link).users += 1
    unset = flows
    while unset > 0:
        least = smallest_share(s)
        for at in range(flows):
            f = flow_at(s, at)
            if f.fixed == 0 and narrowest(s, at) <= least * BOTTLENECK:
                f.fixed = 2
        for at in range(flows):
            f = flow_at(s, at)
            if f.fixed == 2:
                f.fixed = 1
                f.rate = least
                unset -= 1
                for k in range(f.hops):
                    link = link_at(s, path_at(s, f.path + k).link)
                    link.spare = max(link.spare - least, 0.0)
                    link.users -= 1


@compiled
def narrowest(s: State, at: int) -> float:
    """Share of a flow on the link of its route that gives it least, bytes per ns."""
    f = flow_at(s, at)
    least = -1.0
    for k in range(f.hops):
        link = link_at(s, path_at(s, f.path + k).link)
        share = link.spare / link.users
        if least < 0 or share < least:
            least = share
    return least


@compiled
def smallest_share(s: State) -> float:
    """Smallest share that a flow whose rate is not fixed gets on any link."""
    least = -1.0
    for at in range(run(s).flows):
        if flow_at(s, at).fixed == 0:
            share = narrowest(s, at)
            if least < 0 or share < least:
                least = share
    return least
