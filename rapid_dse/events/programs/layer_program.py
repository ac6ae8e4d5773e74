"""A transformer layer as a program: its operators and the transfers between them, forward, backward and weight gradient.

What overlaps follows the software's profile, as in the closed forms: a transfer that hides behind a share of some computation
starts when all but that share has run; a share of a transfer that always hides is a node of its own beside the computation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rapid_dse.events.programs.script import MAIN, RING, After, Message, Script, joined

Transfer = Callable[[Script, After], After]


AGAIN = "ALL_GATHER again"
LAST = ("REDUCE_SCATTER", "ALL_REDUCE")  # what ends a half's forward pass, by how its buffers are shared
LATE = (AGAIN, *LAST)  # what ends its backward pass
WAIT = "waiting for other ranks"  # what a collective has beside its bytes


@dataclass(frozen=True)
class Exchange:
    """A buffer that a group of ranks which share products gathers (``gathered`` bytes), scatters or reduces (``size``), and the seconds
    of each in closed form.

    ``again``: of the gather that the backward pass repeats for the weight gradient; 0 where what was gathered is kept, in the share of
    layers that ``regathered`` leaves. ``scattered``: it is
    gathered before and scattered after, else reduced after. ``group``: tp, or etp for the rows of routed experts; ``term`` of a result that
    its time is. ``skew``: seconds of a blocking collective's in which its ranks wait for each other (those on other hosts, or a framework's
    latency). ``shots``: of a kernel that sums by itself what its peers send it, all of their
    buffers at once (1) or a share of each and then its sum to all (2), ``ranks`` of them; 0: a library's all-reduce.
    """

    size: float
    gathered: float
    gather: float
    scatter: float
    reduce: float
    again: float
    scattered: bool = False
    group: str = "tp"
    skew: float = 0.0
    term: str = "tp"
    shots: int = 0
    ranks: int = 1
    only: tuple[int, str] | None = None
    regathered: float = 1.0

    def times(self, count: int) -> Exchange:
        """So many of such buffers as one."""
        numbers = {name: count * getattr(self, name) for name in ("size", "gathered", "gather", "scatter", "reduce", "again")}
        return replace(self, **numbers)

    def has(self, kind: str, way: int) -> bool:
        """Whether it takes part in one kind of collectives, by its name in graphs, of a forward (0) or backward (1) pass."""
        if self.only is not None:
            return self.only == (way, kind)
        return (kind == "ALL_REDUCE") != self.scattered

    def seconds(self, kind: str) -> float:
        """Of a collective by its name in graphs, or of the gather once more."""
        again = self.regathered * self.again
        return {"ALL_GATHER": self.gather, "REDUCE_SCATTER": self.scatter, "ALL_REDUCE": self.reduce, AGAIN: again}[kind]

    def bytes(self, kind: str) -> float:
        """Of the whole buffer, by the collective's name."""
        if kind == AGAIN:
            return self.regathered * self.gathered
        return self.gathered if kind == "ALL_GATHER" else self.size


@dataclass(frozen=True)
class ExpertRoute:
    """What goes to other ranks' experts before a half of a layer, and comes back after it.

    Attributes:
        size: bytes, of the whole buffer where it is gathered; ``seconds`` of one way in closed form.
        kinds: the collectives there and back, by their names in graphs.
        parts: bytes that go to the places of each dimension, inner to outer, where tokens go once to each part; else none.
        exposed_share: share of each way that hides behind nothing.
        ways_beside: ways, another micro-batch's, that run beside a forward pass, and beside a backward pass; of the latter the share
            ``late`` beside weight gradients, where these run apart.
        skew: seconds of each way in which its ranks wait for each other.
    """

    size: float
    seconds: float
    kinds: tuple[str, str] = ("ALL_TO_ALL", "ALL_TO_ALL")
    parts: tuple[float, ...] = ()
    exposed_share: float = 1.0
    ways_beside: tuple[float, float] = (0.0, 0.0)
    late: float = 0.0
    skew: float = 0.0


@dataclass(frozen=True)
class HalfAgain:
    """What recomputation repeats of a half: seconds without the attention kernel, and the share of the transfers of each kind."""

    seconds: float
    gathers: float
    scatters: float
    dispatched: float
    combined: float


@dataclass(frozen=True)
class Half:
    """Seconds of one half of a layer, attention's or the MLP's: operators before, the attention kernel, operators after it.

    ``forward`` and ``input_gradient`` are without the attention kernel. ``exchanges`` are what tensor parallelism gathers before and
    scatters or reduces after it, ``route`` what goes to other ranks' experts and back.
    ``spared``: seconds of ``forward`` that recomputation leaves out. ``again``: what runs again where a part of the half does, with
    transfers.
    """

    name: str
    forward: float
    input_gradient: float
    weight_gradient: float
    exchanges: tuple[Exchange, ...]
    attention_forward: float = 0.0
    attention_backward: float = 0.0
    route: ExpertRoute | None = None
    spared: float = 0.0
    again: HalfAgain | None = None


@dataclass(frozen=True)
class LayerWork:
    """One layer of one micro-batch on one rank: seconds, bytes; transfers with the time that closed forms give them.

    Attributes:
        halves: attention's, the MLP's.
        again: seconds that selective recomputation repeats besides the attention kernel, of which it repeats the share
            ``again_attention`` with its ring; ``full`` runs the whole forward pass again (the kernel as ``again_attention`` says). Where
            transfers run again too, or only in some layers, each half says what does (``Half.again``).
        trades: bytes and seconds of each of the all-to-alls of queries, keys, values and outputs in a ring's place, else none.
        keys: bytes of one hop of ring attention, ``ring`` hops forward; twice as many backward.
        stream: the activations between layers as they are, of all of a tensor-parallel group.
        tp_hidden: share of all tensor-parallel transfers that hides (async_tp); ``tp_backward_hidden``: of the backward pass's
            that hides behind the weight gradient; ``cp_hidden``: share of attention that ring hops hide behind.
        copies_forward, copies_backward: exposed copies between GPU and host in each pass, s.
    """

    halves: tuple[Half, Half]
    tp: int
    stream: Exchange
    sequence_parallel: bool = False
    again: float = 0.0
    again_attention: float = 0.0
    full: bool = False
    ring: int = 0
    keys: float = 0.0
    hop: float = 0.0
    tp_hidden: float = 0.0
    tp_backward_hidden: float = 0.0
    cp_hidden: float = 0.0
    copies_forward: float = 0.0
    copies_backward: float = 0.0
    trades: tuple[tuple[float, float], ...] = ()

    @property
    def weight_gradient(self) -> float:
        """Seconds of the layer's weight gradients."""
        return sum(half.weight_gradient for half in self.halves)

    @property
    def talks(self) -> bool:
        """Whether its ranks exchange anything within the layer."""
        shared = any(exchange.gather > 0 or exchange.reduce > 0 for half in self.halves for exchange in half.exchanges)
        routed = any(half.route is not None and half.route.seconds > 0 for half in self.halves)
        return self.tp > 1 or self.ring > 0 or bool(self.trades) or shared or routed


def forward(script: Script, work: LayerWork, after: After, again: bool = False) -> After:
    """The forward pass; ``again`` names it a recomputation."""
    name = " again" if again else ""
    others = () if again else _beside_pass(script, work, after, 0)
    for half in work.halves:
        after = exchange(script, half, _routed(script, half, after, 0), ExchangePart("ALL_GATHER", 1 - work.tp_hidden))
        side = after
        for kind in ("ALL_GATHER", *LAST) if work.tp_hidden > 0 else ():
            side = exchange(script, half, side, ExchangePart(kind, work.tp_hidden))
        attention = half.attention_forward if work.again_attention or not again else 0.0
        own = half.forward - half.spared * again
        after = script.compute(after, own / 2 if attention and work.ring else own, f"{half.name} forward{name}")
        after = _attention(script, work, after, attention, f"attention kernel forward{name}", work.ring)
        after = script.compute(after, own / 2 if attention and work.ring else 0.0, f"{half.name} output forward{name}")
        after = joined(after, side if work.tp_hidden > 0 else ())
        for kind in LAST:
            after = exchange(script, half, after, ExchangePart(kind, 1 - work.tp_hidden))
        after = _routed(script, half, after, 1)
    after = joined(after, others)
    return after if again else script.compute(after, work.copies_forward, "waiting for copies to the host", "host")


def backward(script: Script, work: LayerWork, after: After, weights: bool = True) -> After:
    """The backward pass with what is recomputed; without ``weights`` the weight gradients are left for later (zero bubble)."""
    others = _beside_pass(script, work, after, 1, "whole" if weights else "input")
    if work.full:
        after = forward(script, work, after, again=True)
    else:
        after = script.compute(after, work.again, "recompute")
        for half in work.halves:
            after = _half_again(script, work, half, after)
    hidden = work.tp_backward_hidden if weights else 0.0
    for half in reversed(work.halves):
        after = _backward_half(script, work, half, after, weights, hidden)
    return script.compute(joined(after, others), work.copies_backward, "waiting for copies from the host", "host")


def _half_again(script: Script, work: LayerWork, half: Half, after: After) -> After:
    """What runs again of a half: some of its computation, the attention kernel, some of its transfers."""
    again = half.again
    if again:
        after = _routed(script, half, after, 0, again.dispatched)
        after = exchange(script, half, after, ExchangePart("ALL_GATHER", again.gathers * (1 - work.tp_hidden)))
        after = script.compute(after, again.seconds, f"{half.name} again")
    hops = work.ring if work.again_attention else 0
    after = _attention(script, work, after, half.attention_forward * work.again_attention, "attention kernel forward again", hops)
    if again:
        for kind in LAST:
            after = exchange(script, half, after, ExchangePart(kind, again.scatters * (1 - work.tp_hidden)))
        after = _routed(script, half, after, 1, again.combined)
    return after


def _backward_half(script: Script, work: LayerWork, half: Half, after: After, weights: bool, hidden: float) -> After:
    after = exchange(script, half, _routed(script, half, after, 0), ExchangePart("ALL_GATHER", 1 - work.tp_hidden, way=1))
    side = after
    for kind in ("ALL_GATHER", *LATE) if work.tp_hidden > 0 else ():
        side = exchange(script, half, side, ExchangePart(kind, work.tp_hidden, way=1))
    attention = half.attention_backward
    after = script.compute(after, half.input_gradient / 2 if attention and work.ring else half.input_gradient, f"{half.name} backward")
    after = _attention(script, work, after, attention, "attention kernel backward", 2 * work.ring)
    after = script.compute(after, half.input_gradient / 2 if attention and work.ring else 0.0, f"{half.name} input backward")
    after = _behind_weights(script, work, half, after, hidden, weights)
    return _routed(script, half, joined(after, side if work.tp_hidden > 0 else ()), 1)


def _behind_weights(script: Script, work: LayerWork, half: Half, after: After, hidden: float, weights: bool) -> After:
    """The late transfers of a half, a part of them behind its weight gradient.

    ``hidden`` is a share of all the half's transfers; as all of it lies in the late ones, their own share is larger.
    """
    late = sum(exchange.seconds(kind) for exchange in half.exchanges for kind in LATE if exchange.has(kind, 1))
    every = late + sum(exchange.gather for exchange in half.exchanges if exchange.has("ALL_GATHER", 1))
    share = min(1.0, hidden * every / late) if late > 0 else 0.0
    return behind_weights(script, half, after, LATE, (share, 1 - work.tp_hidden), weights)


def behind_weights(
    script: Script, half: Half, after: After, kinds: tuple[str, ...], shares: tuple[float, float], weights: bool = True
) -> After:
    """Transfers beside and after a half's weight gradient.

    Args:
        shares: of the transfers that run beside it, and of all of them that are not hidden elsewhere.
        weights: whether the weight gradient runs here.
    """
    share, exposed_share = shares
    side = after
    for kind in kinds if share > 0 else ():
        side = exchange(script, half, side, ExchangePart(kind, share * exposed_share, skew=share == 1, way=1))
    gradient = script.compute(after, half.weight_gradient, f"{half.name} weight gradient") if weights else after
    after = joined(gradient, side if share > 0 else ())
    for kind in kinds if share < 1 else ():
        after = exchange(script, half, after, ExchangePart(kind, (1 - share) * exposed_share, way=1))
    return after


def weight_gradient(script: Script, work: LayerWork, after: After, layers: int = 1) -> After:
    """The weight gradients of some layers by themselves, as zero-bubble schedules run them."""
    others = after
    for _ in range(layers):
        others = _beside_pass(script, work, others, 1, "weights") or others
    return joined(script.compute(after, layers * work.weight_gradient, "weight gradient"), others if others != after else ())


def compute_beside_transfer(script: Script, after: After, seconds: float, share: float, name: str, transfer: Transfer | None) -> After:
    """Computation and a transfer that can hide behind ``share`` of it."""
    if transfer is None:
        return script.compute(after, seconds, name)
    after = script.compute(after, (1 - share) * seconds, name)
    last = transfer(script, after)
    return joined(script.compute(after, share * seconds, name), last)


def _attention(script: Script, work: LayerWork, after: After, seconds: float, name: str, hops: int) -> After:
    """The attention kernel beside ring attention's hops: each rank hands keys and values on."""
    if seconds <= 0:
        return after

    def transfer(script: Script, after: After) -> After:
        for _ in range(hops):
            sent = script.send(after, "cp next", Message(work.keys, work.hop, "cp", stream=RING))
            after = joined(sent, script.receive(after, "cp previous", work.keys, "cp"))
        return after

    after = _traded(script, work.trades[:-1], after)
    after = compute_beside_transfer(script, after, seconds, work.cp_hidden, name, transfer if hops else None)
    return _traded(script, work.trades[-1:], after)


def _traded(script: Script, trades: Sequence[tuple[float, float]], after: After) -> After:
    """All-to-alls of what attention's kernel reads or gives, one after the other; backward the same sizes go the other way."""
    for size, seconds in trades:
        after = script.exchange(after, "ALL_TO_ALL", "cp", Message(size, seconds, "cp"))
    return after


@dataclass(frozen=True)
class ExchangePart:
    """A share of one kind of a half's tensor-parallel collectives in a forward (0) or backward (1) pass; ``skew``: with the wait for other
    hosts, which comes with the exposed part."""

    kind: str
    share: float = 1.0
    way: int = 0
    skew: bool = True


def exchange(script: Script, half: Half, after: After, part: ExchangePart) -> After:
    """Part of the half's tensor-parallel collectives."""
    kind, share, way = part.kind, part.share, part.way
    for this_exchange in half.exchanges if share > 0 else ():
        if not this_exchange.has(kind, way):
            continue
        seconds = this_exchange.seconds(kind)
        if this_exchange.bytes(kind) == 0 or seconds == 0:
            continue
        if not script.style.ideal and part.skew:
            after = script.compute(after, this_exchange.skew * share, WAIT, this_exchange.term)
        name, size = "ALL_GATHER" if kind == AGAIN else kind, share * this_exchange.bytes(kind)
        count = 1
        if this_exchange.shots and kind == "ALL_REDUCE" and not script.style.ideal:
            name, count = "ALL_TO_ALL", this_exchange.shots
            size = this_exchange.ranks * size if this_exchange.shots == 1 else size
        for _ in range(count):
            after = script.exchange(after, name, this_exchange.group, Message(size, share * seconds, this_exchange.term))
    return after


def _routed(script: Script, half: Half, after: After, way: int, share: float = 1.0) -> After:
    """Tokens (or their gradients) on their way to the experts, or back, as far as that does not hide."""
    return after if half.route is None else _route(script, half.route, after, way, share * half.route.exposed_share, MAIN)


def _beside_pass(script: Script, work: LayerWork, after: After, direction: int, part: str = "whole") -> After:
    """Another micro-batch's exchanges of experts, beside a forward (0) or backward (1) pass: the whole, input gradients or weights'."""
    done: After = ()
    for half in work.halves:
        if half.route is not None and half.route.ways_beside[direction] > 0:
            share = {"whole": 1.0, "input": 1 - half.route.late, "weights": half.route.late}[part]
            done = _route(script, half.route, after, direction, share * half.route.ways_beside[direction], RING)
    return done


def _route(script: Script, route: ExpertRoute, after: After, way: int, share: float, stream: int) -> After:
    if share <= 0:
        return after
    if not script.style.ideal:
        after = script.compute(after, share * route.skew, WAIT, "ep")
    if route.parts:
        return script.spread(after, "ep", [share * part for part in route.parts], share * route.seconds, "ep", stream)
    return script.exchange(after, route.kinds[way], "ep", Message(share * route.size, share * route.seconds, "ep", stream=stream))
