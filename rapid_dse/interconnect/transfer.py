"""What a transfer takes of the network: its seconds, and what it puts on each dimension.

``closed_form`` says how long a transfer takes alone. Several transfers that run at the same time share the ports of their dimensions, and
each byte costs the energy of the dimension that it crosses; both follow from the bytes that a GPU sends into each dimension.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rapid_dse.config.hardware import Network
from rapid_dse.interconnect import closed_form
from rapid_dse.parallel.placement import Floats
from rapid_dse.parallel.span import Span


@dataclass(frozen=True)
class Transfer:
    """One transfer, or several one after the other, on columns.

    Attributes:
        seconds: how long it takes alone, ``(n_layouts,)``.
        sent: bytes that a GPU sends into each dimension, inner to outer, the mean over the group, ``(n_dimensions, n_layouts)``.
        busy: seconds for which the busiest GPU's port of each dimension is taken, at most ``seconds``, ``(n_dimensions, n_layouts)``.
    """

    seconds: Floats
    sent: Floats
    busy: Floats

    def __add__(self, other: Transfer) -> Transfer:
        """This transfer, then the other."""
        return Transfer(self.seconds + other.seconds, self.sent + other.sent, self.busy + other.busy)

    def times(self, count: npt.ArrayLike) -> Transfer:
        """The transfer ``count`` times in a row; a count broadcasts to ``(n_layouts,)``, a mask leaves rows without a transfer."""
        many = np.asarray(count)
        return Transfer(self.seconds * many, self.sent * many, self.busy * many)

    def waiting(self, seconds: Floats | float) -> Transfer:
        """The transfer with a wait of so many seconds, in which the ports are free."""
        return Transfer(self.seconds + seconds, self.sent, self.busy)


def nothing(network: Network, rows: int) -> Transfer:
    """No transfer, for ``rows`` layouts."""
    return Transfer(np.zeros(rows), *np.zeros((2, len(network.dimensions), rows)))


def either(condition: npt.NDArray[np.bool_], one: Transfer, other: Transfer) -> Transfer:
    """``one`` where the condition holds, else ``other``."""
    return Transfer(*(np.where(condition, getattr(one, name), getattr(other, name)) for name in ("seconds", "sent", "busy")))


def sum_of(transfers: Iterable[Transfer]) -> Transfer:
    """All of them, one after the other; at least one."""
    first, *others = transfers
    for other in others:
        first = first + other
    return first


def all_gather(bytes_: npt.ArrayLike, span: Span, network: Network) -> Transfer:
    """Gathers to ``bytes_``, the full result, around a ring."""
    size = np.asarray(bytes_, dtype=np.float64)
    if span.is_alone:
        return _of_nobody(size, span)
    return _on_ring(closed_form.all_gather(size, span, network), size * (1.0 - 1.0 / span.size), span, network)


def reduce_scatter(bytes_: npt.ArrayLike, span: Span, network: Network) -> Transfer:
    """Sums buffers of ``bytes_`` and leaves each rank its share: a gather reversed."""
    return all_gather(bytes_, span, network)


def all_reduce(bytes_: npt.ArrayLike, span: Span, network: Network) -> Transfer:
    """Sums buffers of ``bytes_``: around a ring, or up and down trees that carry as much, or in the switches."""
    size = np.asarray(bytes_, dtype=np.float64)
    if span.is_alone:
        return _of_nobody(size, span)
    seconds, where = closed_form.all_reduce_and_where(size, span, network)
    sent = _on_ring(seconds, 2.0 * size * (1.0 - 1.0 / span.size), span, network)
    if np.any(where == closed_form.IN_NODE_SWITCH):
        # each member sends its buffer to the switch once, and its share of the sum once
        switched = _on_ring(seconds, size * (1.0 + 1.0 / span.size), span, network)
        sent = either(where == closed_form.IN_NODE_SWITCH, switched, sent)
    if np.any(where == closed_form.IN_FABRIC):
        sent = either(where == closed_form.IN_FABRIC, _in_fabric(seconds, size, span, network), sent)
    return sent


def _in_fabric(seconds: Floats, size: Floats, span: Span, network: Network) -> Transfer:
    """A sum within nodes, and of each member's share of it in the switches of the dimensions beyond, each of which passes on one buffer."""
    inner = span.members[0]
    sent, below = [2.0 * (inner - 1.0) / inner * size], inner
    for members in span.members[1:]:
        sent.append(np.where(members > 1, size / below, 0.0))
        below = below * members
    every = np.stack(np.broadcast_arrays(*sent))
    return Transfer(seconds, every, np.minimum(every / _ports(span, network), seconds))


def all_to_all(bytes_: npt.ArrayLike, span: Span, network: Network) -> Transfer:
    """Sends 1/n of ``bytes_`` to each of the n members; a byte crosses the outermost dimension on which its two ends differ."""
    size = np.asarray(bytes_, dtype=np.float64)
    if span.is_alone:
        return _of_nobody(size, span)
    seconds = closed_form.all_to_all(size, span, network)
    share, below = [], np.ones(())
    for members in span.members:
        share.append((members - 1.0) * below / span.size)
        below = below * members
    sent = np.stack(np.broadcast_arrays(*share)) * size
    hops = [np.maximum(1.0, m / 4.0) if d.topology == "ring" else 1.0 for m, d in zip(span.members, network.dimensions, strict=True)]
    walked = sent * np.stack(np.broadcast_arrays(*hops, span.size)[:-1])
    return Transfer(seconds, sent, np.minimum(walked / _ports(span, network), seconds))


def dispatch(bytes_: npt.ArrayLike, copies: Sequence[Floats], span: Span, network: Network) -> Transfer:
    """Sends tokens of ``bytes_`` once to each part of the group that needs them; ``copies`` as in ``closed_form.dispatch``."""
    size = np.asarray(bytes_, dtype=np.float64)
    seconds = closed_form.dispatch(size, copies, span, network)
    sent = np.stack(np.broadcast_arrays(*(size * count * (1.0 - 1.0 / m) for count, m in zip(copies, span.members, strict=True))))
    hops = [np.maximum(1.0, m / 4.0) if d.topology == "ring" else 1.0 for m, d in zip(span.members, network.dimensions, strict=True)]
    walked = sent * np.stack(np.broadcast_arrays(*hops, span.size)[:-1])
    return Transfer(seconds, sent, np.minimum(walked / _ports(span, network), seconds))


def send_to_next(bytes_: npt.ArrayLike, span: Span, network: Network) -> Transfer:
    """Sends ``bytes_`` to the next member of a chain, a pipeline's stages; the last member has none.

    The seconds are those of the worst hop, so are the busy ports; the bytes are the mean of the chain's hops.
    """
    size = np.asarray(bytes_, dtype=np.float64)
    if span.is_alone:
        return _of_nobody(size, span)
    hops = np.stack(np.broadcast_arrays(*_crossings(span)))
    return _hop(size, hops / np.maximum(hops.sum(axis=0), 1e-300), span, network)


def pass_round(bytes_: npt.ArrayLike, span: Span, network: Network) -> Transfer:
    """Each member of a ring sends ``bytes_`` to the next; seconds and busy ports are those of the worst hop."""
    size = np.asarray(bytes_, dtype=np.float64)
    return _of_nobody(size, span) if span.is_alone else _hop(size, _ring_shares(span), span, network)


def _of_nobody(size: Floats, span: Span) -> Transfer:
    """What groups of one member each send: nothing."""
    shape = np.broadcast_shapes(size.shape, span.size.shape)
    every = np.zeros((len(span.members), *shape))
    return Transfer(np.zeros(shape), every, every)


def _hop(size: Floats, shares: Floats, span: Span, network: Network) -> Transfer:
    seconds = closed_form.send_recv(size, span, network)
    crosses = np.stack(np.broadcast_arrays(*span.members)) > 1
    # a member whose neighbour is across a dimension puts the whole message on that dimension's port
    return Transfer(seconds, shares * size, np.minimum(crosses * size / _ports(span, network), seconds))


def _on_ring(seconds: Floats, flow: Floats, span: Span, network: Network) -> Transfer:
    """A collective in which each member hands ``flow`` bytes to the next around a ring; members of a node take turns at its border, so
    that each one's port there carries its share."""
    sent = _ring_shares(span) * flow
    return Transfer(seconds, sent, np.minimum(sent / _ports(span, network), seconds))


def _ring_shares(span: Span) -> Floats:
    """``_shares_of_ring``, found once a group."""
    return span.remembered.once((_shares_of_ring,), lambda: _shares_of_ring(span))


def _shares_of_ring(span: Span) -> Floats:
    """Share of a ring's hops that cross each dimension, ``(n_dimensions, n_layouts)``; they add up to 1, or to 0 in a group of one."""
    shares, below = [], np.ones(())
    for members in span.members:
        last = below * members >= span.size  # nothing of the group lies outside: here the ring closes
        shares.append(np.where(last, 1.0, (members - 1.0) / members) / below * (members > 1.0))
        below = below * members
    return np.stack(np.broadcast_arrays(*shares))


def _crossings(span: Span) -> list[Floats]:
    """Hops of a chain through the group that cross each dimension."""
    crossings, below = [], np.ones(())
    for members in span.members:
        below = below * members
        crossings.append((members - 1.0) * span.size / below)
    return crossings


def _ports(span: Span, network: Network) -> Floats:
    """``_rates_of_ports``, found once a group."""
    return span.remembered.once((_rates_of_ports, network), lambda: _rates_of_ports(span, network))


def _rates_of_ports(span: Span, network: Network) -> Floats:
    """Bytes/s that a GPU's port carries into each dimension, for all its transfers together, ``(n_dimensions, 1 or n_layouts)``."""
    rates = [
        closed_form.port_rate(dimension, members, stride)
        for dimension, members, stride in zip(network.dimensions, span.members, span.strides, strict=True)
    ]
    if all(np.ndim(rate) == 0 for rate in rates):
        return np.array(rates)[:, None]
    return np.stack(np.broadcast_arrays(*rates))
