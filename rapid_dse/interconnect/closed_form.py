"""What a collective costs on columns of layouts, in closed form.

All functions take ``(bytes_, span, network)`` and return seconds. ``bytes_`` and the arrays of ``span`` broadcast to ``(n_layouts,)``;
scalars are fine. Every rank runs the same collective in its own group at the same time, so what a dimension's ``bandwidth`` gives
(bytes/s that one GPU can send into it) is each member's own. A group of one costs exactly 0, time never falls as bytes rise,
and no collective is faster than the bandwidth bound of Patarasu & Yuan (2009), section 3, on any dimension.

What has no closed form here (mesh, torus, fat tree with oversubscription, faulty links) is refused by ``require_closed_form``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
import numpy.typing as npt

from rapid_dse.common.remembered import remembered
from rapid_dse.config.hardware import Network, NetworkDimension
from rapid_dse.config.scenario import Scenario
from rapid_dse.interconnect.nccl import DEFAULT, Nccl
from rapid_dse.parallel.placement import Floats
from rapid_dse.parallel.span import Span

ON_RANKS, IN_NODE_SWITCH, IN_FABRIC = range(3)  # who adds up what is reduced

EVENT_BACKENDS = "hybrid, full_astrasim_hierarchical, full_astrasim_flattened"


@dataclass(frozen=True)
class _Ring:
    """A logical ring over a group: ``rate`` bytes/s that each member keeps flowing, the lesser of what the innermost dimension and those
    beyond it allow (infinite where it has no members along them); ``chain`` seconds of link latency once around."""

    inner_rate: Floats
    outer_rate: Floats
    chain: Floats
    size: Floats

    @cached_property
    def rate(self) -> Floats:
        return np.minimum(self.inner_rate, self.outer_rate)


@remembered(64)
def require_closed_form(network: Network) -> None:
    """Refuses a network that only an event-driven backend can price.

    Raises:
        ValueError: with the key, its value and the backends that take it.
    """
    for index, dimension in enumerate(network.dimensions):
        key = f"hw.network.dimensions.{index}"
        if dimension.topology in ("mesh", "torus"):
            raise ValueError(f"{key}.topology={dimension.topology} has no closed form; allowed with it: backend={EVENT_BACKENDS}")
        if dimension.oversubscription > 1:
            raise ValueError(
                f"{key}.oversubscription={dimension.oversubscription:g} has no closed form; allowed with it: backend={EVENT_BACKENDS}"
            )
    if network.faulty_links:
        raise ValueError(
            f"hw.network.faulty_links={list(network.faulty_links)} has no closed form; allowed with it: backend={EVENT_BACKENDS}"
        )


def has_closed_form(network: Network) -> bool:
    """Whether closed forms price it."""
    try:
        require_closed_form(network)
    except ValueError:
        return False
    return True


def with_closed_form(scenario: Scenario) -> Scenario:
    """The scenario itself, or one with switches where its network has no closed form."""
    network = scenario.hw.network
    if has_closed_form(network):
        return scenario
    dimensions = tuple(
        d.model_copy(update={"topology": "switch", "oversubscription": 1.0})
        if d.topology in ("mesh", "torus") or d.oversubscription > 1
        else d
        for d in network.dimensions
    )
    healthy = network.model_copy(update={"dimensions": dimensions, "faulty_links": ()})
    return scenario.model_copy(update={"hw": scenario.hw.model_copy(update={"network": healthy})})


def all_reduce(bytes_: npt.ArrayLike, span: Span, network: Network, nccl: Nccl = DEFAULT) -> Floats:
    """Seconds to sum a buffer of ``bytes_`` (the full buffer on each rank) over the group.

    The fastest of NCCL's ring (2(n−1) steps, 2(n−1)/n of the buffer through each link: Patarasu & Yuan 2009), double binary tree
    (Sanders, Speck & Träff 2009; a chain within the node) and, where switches reduce (``in_network_reduction``), of NVLS within a node
    (each member sends its buffer once and its share of the sum once: (1 + 1/n) of the buffer) and SHARP beyond it.
    """
    return all_reduce_and_where(bytes_, span, network, nccl)[0]


def all_reduce_and_where(bytes_: npt.ArrayLike, span: Span, network: Network, nccl: Nccl = DEFAULT) -> tuple[Floats, npt.NDArray[np.int8]]:
    """``all_reduce``'s seconds, and what reduces: ON_RANKS, IN_NODE_SWITCH or IN_FABRIC."""
    require_closed_form(network)
    size = np.asarray(bytes_, dtype=np.float64)
    ring = _ring(span, network)
    steps = 2.0 * (ring.size - 1.0)
    flow = size * steps / ring.size
    best = _fastest(flow / ring.rate, 2.0 * ring.chain, steps, nccl)
    if len(span.members) > 1:
        best = np.minimum(best, _tree(size, ring, span, network, nccl))
    where = np.full(np.shape(best), ON_RANKS, np.int8)
    if network.dimensions[0].in_network_reduction:
        switched = _in_switch(size * (1.0 + 1.0 / ring.size), ring, span, network.dimensions[0], nccl)
        where, best = np.where(switched < best, np.int8(IN_NODE_SWITCH), where), np.minimum(best, switched)
    if any(dimension.in_network_reduction for dimension in network.dimensions[1:]):
        switched = _in_fabric(size, span, network, nccl)
        where, best = np.where(switched < best, np.int8(IN_FABRIC), where), np.minimum(best, switched)
    return np.where(ring.size > 1, best, 0.0), where


def all_gather(bytes_: npt.ArrayLike, span: Span, network: Network, nccl: Nccl = DEFAULT) -> Floats:
    """Seconds to gather to ``bytes_`` (the full result, that each rank holds afterwards): a ring of n−1 steps, (n−1)/n of it each link.

    Where the node's switch reduces, it also sends what a member has to all of them at once (NVLS's multicast): the whole result comes down
    each link, in one step.
    """
    require_closed_form(network)
    size = np.asarray(bytes_, dtype=np.float64)
    ring = _ring(span, network)
    steps = ring.size - 1.0
    best = _fastest(size * steps / ring.size / ring.rate, ring.chain, steps, nccl)
    if network.dimensions[0].in_network_reduction:
        best = np.minimum(best, _in_switch(size, ring, span, network.dimensions[0], nccl))
    return np.where(steps > 0, best, 0.0)


def reduce_scatter(bytes_: npt.ArrayLike, span: Span, network: Network, nccl: Nccl = DEFAULT) -> Floats:
    """Seconds to sum a buffer of ``bytes_`` (the full buffer on each rank before) and leave each rank its share: all_gather reversed."""
    return all_gather(bytes_, span, network, nccl)


def broadcast(bytes_: npt.ArrayLike, span: Span, network: Network, nccl: Nccl = DEFAULT) -> Floats:
    """Seconds to copy ``bytes_`` from one rank to all of the group: a pipelined chain, the whole buffer through each link."""
    require_closed_form(network)
    ring = _ring(span, network)
    seconds = _fastest(np.asarray(bytes_, dtype=np.float64) / ring.rate, ring.chain, ring.size - 1.0, nccl)
    return np.where(ring.size > 1, seconds, 0.0)


def all_to_all(bytes_: npt.ArrayLike, span: Span, network: Network, nccl: Nccl = DEFAULT) -> Floats:
    """Seconds for each rank to send 1/n of its ``bytes_`` (the full buffer on each rank) to each member.

    Of the buffer, 1 − below/n leaves the below members within a dimension's boundary, over each rank's own share of the links; the
    slowest dimension counts, since messages to all peers are in flight together (NCCL: grouped ncclSend and ncclRecv).
    """
    require_closed_form(network)
    size = np.asarray(bytes_, dtype=np.float64)
    group = span.size
    below: Floats = np.asarray(1.0)
    slowest: Floats = np.asarray(0.0)
    farthest: Floats = np.asarray(0.0)
    for members, stride, dimension in zip(span.members, span.strides, network.dimensions, strict=True):
        load = 1.0 - below / group
        if dimension.topology == "ring":
            # Links are walked n/4 hops on average, of a bandwidth that both directions share.
            load = np.maximum(load, load * np.minimum(members, dimension.size or np.inf) / 4.0)
        rate = _rate(dimension, members, stride)
        slowest = np.maximum(slowest, np.where(members > 1, load / rate, 0.0))
        farthest = np.maximum(farthest, np.where(members > 1, dimension.latency, 0.0))
        below = below * members
    latency = farthest + (group - 2.0) * nccl.message
    return np.where(group > 1, _messages(size * slowest, latency, nccl), 0.0)


def dispatch(bytes_: npt.ArrayLike, copies: Sequence[Floats], span: Span, network: Network, nccl: Nccl = DEFAULT) -> Floats:
    """Seconds to send tokens of ``bytes_`` on each rank to those members of the group that need them, once to each part of the group.

    A token crosses a dimension once for each part there that needs it, is handed on inside it, and so on inwards (DeepEP: once to each node
    over the fabric, and within it once to each GPU over NVLink); all dimensions are busy at once.

    Args:
        copies: of each dimension, inner to outer, into how many of the parts that it joins the mean token goes, ``(n_layouts,)``; of these
            1/members are the sender's own.
    """
    require_closed_form(network)
    size = np.asarray(bytes_, dtype=np.float64)
    slowest: Floats = np.asarray(0.0)
    latency: Floats = np.asarray(0.0)
    for count, members, stride, dimension in zip(copies, span.members, span.strides, network.dimensions, strict=True):
        load = count * (1.0 - 1.0 / members)
        if dimension.topology == "ring":
            load = load * np.maximum(1.0, np.minimum(members, dimension.size or np.inf) / 4.0)
        slowest = np.maximum(slowest, np.where(members > 1, load / _rate(dimension, members, stride), 0.0))
        latency = latency + np.where(members > 1, dimension.latency, 0.0)
    return np.where(span.size > 1, _messages(size * slowest, latency, nccl), 0.0)


def send_recv(bytes_: npt.ArrayLike, span: Span, network: Network, nccl: Nccl = DEFAULT) -> Floats:
    """Seconds to send ``bytes_`` to the next member of the group (a pipeline's neighbour): its worst hop, over the outermost
    dimension on which the group has more than one member."""
    require_closed_form(network)
    size = np.asarray(bytes_, dtype=np.float64)
    rate: Floats = np.asarray(np.inf)
    latency: Floats = np.asarray(0.0)
    for members, stride, dimension in zip(span.members, span.strides, network.dimensions, strict=True):
        crosses = members > 1
        rate = np.where(crosses, _rate(dimension, np.minimum(members, 2.0), stride), rate)
        latency = np.where(crosses, dimension.latency, latency)
    return np.where(np.isfinite(rate), _messages(size / rate, latency, nccl), 0.0)


def _rate(dimension: NetworkDimension, members: Floats, stride: Floats) -> Floats:
    """Bytes/s that each of ``members`` on a dimension keeps flowing to its neighbours there.

    A switch gives each GPU its whole bandwidth. Full connection gives a link a peer: a group has those to its own members. A ring's
    links are shared by the groups that lie interleaved, and a part of the ring must send back through the links that it sends
    forth on, which leaves it one of the two directions.
    """
    rate = dimension.bandwidth * dimension.utilization
    if dimension.cabling is not None:
        counts = np.arange(2, len(dimension.cabling) + 2)
        return rate * np.interp(members, counts, dimension.cabling)
    if dimension.topology == "fully_connected" and dimension.size is not None and dimension.size > 1:
        return rate * np.clip((members - 1.0) / (dimension.size - 1.0), 1.0 / (dimension.size - 1.0), 1.0)
    if dimension.topology == "ring" and dimension.size is not None:
        return rate * np.where(members * stride < dimension.size, 0.5, 1.0) / stride
    return np.asarray(rate)


def port_rate(dimension: NetworkDimension, members: Floats, stride: Floats) -> Floats:
    """Bytes/s that a GPU sends into a dimension at most, all its transfers together; of a ring's links what a group has of them."""
    if dimension.topology == "ring" and dimension.cabling is None:
        return _rate(dimension, members, stride)
    return np.asarray(dimension.bandwidth * dimension.utilization)


def _ring(span: Span, network: Network) -> _Ring:
    """The ring through all members, found once a group."""
    return span.remembered.once((_ring_of, network), lambda: _ring_of(span, network))


def _ring_of(span: Span, network: Network) -> _Ring:
    """The ring, by dimensions: the ``below`` members within a boundary all send across it, on their own NICs."""
    below: Floats = np.asarray(1.0)
    rates: list[Floats] = []
    chain: Floats = np.asarray(0.0)
    for members, stride, dimension in zip(span.members, span.strides, network.dimensions, strict=True):
        rates.append(np.where(members > 1, below * _rate(dimension, members, stride), np.inf))
        # Once around the ring crosses this dimension's links members − 1 times for each group of the next dimension.
        chain = chain * members + (members - 1.0) * dimension.latency
        below = below * members
    return _Ring(rates[0], reduce(np.minimum, rates[1:], np.asarray(np.inf)), chain, below)


def _fastest(seconds: Floats, latency: Floats, steps: Floats | float, nccl: Nccl) -> Floats:
    """The best protocol for a flow of ``seconds`` at full bandwidth, with ``latency`` of links and ``steps`` of hand-over."""
    axes = max(np.ndim(seconds), np.ndim(latency), np.ndim(steps))
    start, hop, efficiency, ramp = nccl.ring_protocols.reshape(4, -1, *[1] * axes)
    times: Floats = _piped(seconds / efficiency, ramp) + (start + latency + steps * hop)
    return np.asarray(times.min(axis=0))


def _messages(seconds: Floats, latency: Floats, nccl: Nccl) -> Floats:
    """Point-to-point traffic, which neither reduces nor waits for a ring."""
    protocol = nccl.send
    return _piped(seconds / protocol.efficiency, protocol.ramp) + (protocol.start + protocol.hop + latency)


def _piped(seconds: Floats, ramp: Floats | float) -> Floats:
    """Time of a flow cut into chunks, the best number of them: (√seconds + √ramp)², less the ramp that starts count already."""
    return seconds + 2.0 * np.sqrt(ramp * seconds)


def _tree(size: Floats, ring: _Ring, span: Span, network: Network, nccl: Nccl) -> Floats:
    """The double binary tree over the outer dimensions with a chain in the innermost: latency grows with log2 of the nodes.

    A node sends up to two buffers (up once, down to two children, in two trees of half the buffer). Of two nodes each is the other's only
    child in one tree and its parent in the other, and sends one; of three the most that one sends is one and a half. Within
    a node sums go along the chain one way and come back the other: a member sends two.
    """
    inner = span.members[0]
    depth: Floats = inner - 1.0
    latency: Floats = depth * network.dimensions[0].latency
    nodes: Floats = np.asarray(1.0)
    for members, dimension in zip(span.members[1:], network.dimensions[1:], strict=True):
        levels = np.ceil(np.log2(np.maximum(members, 1.0)))
        depth = depth + levels
        latency = latency + levels * dimension.latency
        nodes = nodes * members
    buffers = np.clip(nodes / 2.0, 1.0, 2.0)
    seconds = size * np.maximum(2.0 / ring.inner_rate, buffers / ring.outer_rate) / nccl.tree
    return _fastest(seconds, 2.0 * latency, 2.0 * depth, nccl)


def _in_switch(flow: Floats, ring: _Ring, span: Span, dimension: NetworkDimension, nccl: Nccl) -> Floats:
    """NVLS: reduction and multicast in the node's switch, ``flow`` bytes through each link; infinite where the group leaves the node."""
    inside = ring.size <= span.members[0]
    if not np.any(inside):
        return np.asarray(np.inf)
    seconds = flow / (dimension.bandwidth * dimension.utilization * nccl.switch_reduction)
    return np.where(inside, _switched(seconds, 2.0 * dimension.latency, 2.0, nccl), np.inf)


def _in_fabric(size: Floats, span: Span, network: Network, nccl: Nccl) -> Floats:
    """SHARP on the dimensions beyond the innermost (NCCL's CollNet): a reduction tree of switches adds up what nodes send.

    The members of a node sum their buffers around a ring, or in the node's switch, so that each has a share of the sum; it sends the share
    up once and gets the whole sum of it back once, and the node gathers. Chunks follow each other, so the slowest dimension counts. Each
    switch passes on one buffer for all below it. Infinite where the group lies within the innermost dimension, or has members along one
    that does not reduce.
    """
    inner, first = span.members[0], network.dimensions[0]
    rate = _rate(first, inner, span.strides[0])
    slowest = 2.0 * (inner - 1.0) / inner * size / rate
    if first.in_network_reduction:
        slowest = np.minimum(slowest, size * (1.0 + 1.0 / inner) / (rate * nccl.switch_reduction) * (inner > 1.0))
    latency, steps = 2.0 * (inner - 1.0) * first.latency, 2.0 * inner
    below, reduces = inner, span.size > inner
    for members, stride, dimension in zip(span.members[1:], span.strides[1:], network.dimensions[1:], strict=True):
        crosses = members > 1
        reduces = reduces & (dimension.in_network_reduction | ~crosses)
        share = size / (below * _rate(dimension, members, stride) * nccl.switch_reduction)
        slowest = np.maximum(slowest, np.where(crosses, share, 0.0))
        latency = latency + np.where(crosses, 2.0 * dimension.latency, 0.0)
        below = below * members
    return np.where(reduces, _switched(slowest, latency, steps, nccl), np.inf)


def _switched(seconds: Floats, latency: Floats | float, steps: Floats | float, nccl: Nccl) -> Floats:
    """A flow of ``seconds`` at full bandwidth that switches reduce, with ``latency`` of links and ``steps`` of hand-over."""
    return _piped(seconds, nccl.simple.ramp) + nccl.switch_start + latency + steps * nccl.simple.hop


def switch_share(dimension: NetworkDimension, innermost: bool, members: int, nccl: Nccl = DEFAULT) -> float:
    """Link time of an all-reduce that the dimension's switches run, over that of the ring of its ``members``; 1 where the ring is faster.

    What a network that knows rings alone has to be given, for its links to be taken as long.
    """
    if not dimension.in_network_reduction or members < 2:
        return 1.0
    sent = 1.0 + 1.0 / members if innermost else 1.0
    return min(1.0, sent / nccl.switch_reduction / (2.0 * (members - 1.0) / members))
