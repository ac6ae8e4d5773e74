"""What a pipeline stage does beside its layers: the weights that its ranks share with others, and what is moved of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from rapid_dse.parallel.schedules.schedule import FORWARD

Move = tuple[str, str, float, float]  # a collective, its group, its bytes, its seconds in closed form


@dataclass(frozen=True)
class FourBits:
    """Gradients that go in 4 bits (ZeRO++): ``within`` and ``across`` name the ranks of a node and one of each node; ``members`` a node
    has; ``share`` of the seconds is within it; ``wire``: bytes on the wire over those of the gradients."""

    within: str
    across: str
    members: float
    share: float
    wire: float

    def moves(self, size: float, seconds: float) -> list[Move]:
        """The all-to-alls of gradients of ``size`` bytes before they are cast."""
        sent = self.wire * size
        return [
            ("ALL_TO_ALL", self.within, sent, self.share * seconds),
            ("ALL_TO_ALL", self.across, sent / self.members, (1 - self.share) * seconds),
        ]


@dataclass(frozen=True)
class SharedWeights:
    """A stage's weights that the ranks of one ``group`` share; bytes of what moves, and the seconds of that in closed form.

    Under hybrid sharding ``group`` is the ``shards`` ranks that share one copy of what ZeRO shards, and ``replicas`` names the ranks that
    hold the same shard and sum its gradient; else ``replicas`` is empty.

    Attributes:
        sent: gradients that are reduced once a step, ``sync`` in that time; ``gathered``: weights that ZeRO 1 and 2 gather.
        layer_gathered: a layer's, that ZeRO 3 gathers before each pass; ``layer_scattered``: its gradients after each backward.
        layer_again: of a gather before a backward pass, in the group ``second``, where few ranks have a copy of their own (ZeRO++).
        narrow: how gradients go where they go in 4 bits.
        across: seconds in which replicas sum the shards of ``sent``; ``layer_across`` those of a layer's gradients.
    """

    group: str
    sent: float = 0.0
    sync: float = 0.0
    gathered: float = 0.0
    gather: float = 0.0
    layer_gathered: float = 0.0
    layer_gather: float = 0.0
    layer_scattered: float = 0.0
    layer_scatter: float = 0.0
    replicas: str = ""
    shards: float = 1.0
    across: float = 0.0
    layer_across: float = 0.0
    layer_again: float = 0.0
    second: str = ""
    narrow: FourBits | None = None

    def gather_of(self, backward: bool) -> Move:
        """The gather of a layer's weights before one of its passes."""
        if backward and self.second:
            return ("ALL_GATHER", self.second, self.layer_gathered, self.layer_again)
        return ("ALL_GATHER", self.group, self.layer_gathered, self.layer_gather)

    def reduced(self, scatters: bool, tree: bool, share: float = 1.0) -> list[Move]:
        """The collectives that reduce a share of ``sent``: all-reduce, or reduce-scatter (``scatters``) where ZeRO shards what follows."""
        if not scatters:
            return _all_reduced(self.group, share * self.sent, share * self.sync, tree)
        return self._scattered(share * self.sent, share * self.sync, share * self.across, tree)

    def layer_reduced(self, tree: bool) -> list[Move]:
        """The collectives that reduce a layer's gradients after its backward pass."""
        return self._scattered(self.layer_scattered, self.layer_scatter, self.layer_across, tree)

    def _scattered(self, size: float, seconds: float, across: float, tree: bool) -> list[Move]:
        if self.narrow is not None:
            return self.narrow.moves(size, seconds)
        moves: list[Move] = [("REDUCE_SCATTER", self.group, size, seconds)]
        return moves + (_all_reduced(self.replicas, size / self.shards, across, tree) if self.replicas else [])


def _all_reduced(group: str, size: float, seconds: float, tree: bool) -> list[Move]:
    """One all-reduce, or as two halves where NCCL's trees are not to be had."""
    if tree:
        return [("ALL_REDUCE", group, size, seconds)]
    return [("REDUCE_SCATTER", group, size, seconds / 2), ("ALL_GATHER", group, size, seconds / 2)]


Kinds = tuple[int, ...]  # of layers in a row


# What a micro-batch's launches are for: its forward pass, its inputs' gradients, its weights'.
PASSES = FORWARDS, INPUTS, WEIGHT_GRADIENTS = range(3)


@dataclass(frozen=True)
class Boundary:
    """What crosses between stages: bytes of a message, its seconds in closed form, the host's share of each, whether it overlaps."""

    size: float
    seconds: float
    host: float
    overlaps: bool


@dataclass(frozen=True)
class ChunkLaunches:
    """A chunk's launches on the host's own timeline, by ``PASSES``: the seconds that the host launches each in (``host``), and what each
    takes longer on the device (``late``)."""

    host: tuple[float, ...]
    late: tuple[float, ...]


@dataclass(frozen=True)
class StageWork:
    """What a stage does beside its layers: seconds, bytes; of transfers both, the seconds in closed form.

    Attributes:
        chunks: the kind of each layer of each chunk, in the order in which a micro-batch passes them; ``sizes``: parameters of a layer of
            each kind on a rank.
        stalls: what the device waits for the host each micro-batch, by ``PASSES``, where the host has no timeline of its own; ``host_step``
            once a step.
        launches: of each chunk, where it has one. Empty: the host takes no time for a micro-batch.
        scatters: whether gradients are scattered, as ZeRO shards what follows, in place of all-reduced.
        shared: the weights by the group that shares them, the dense ones first; ``calls``: in how many calls gradients are reduced.
        layers: what moves of a layer of each kind with its passes, by the group that shares it.
        embedding, head: the embedding table and the head where the stage has them and ZeRO 2 or 3 shards them: their ``layer_gathered``
            is gathered before each of their forward passes, their ``layer_scattered`` reduced after each backward pass.
        tied: bytes of the tied table's gradient, which first and last stage sum at the end of the step, in ``tied_reduce``; 0: nothing.
        dp_hidden: share of the backward pass that reductions hide behind; ``gather_hidden``: of the forward pass, for gathers.
        wait: seconds that all-reduces of gradients wait for other ranks (``cluster.all_reduce_wait``), and nothing hides.
        tree: whether gradients are summed by one all-reduce, else by reduce-scatter and all-gather.
    """

    chunks: tuple[Kinds, ...]
    sizes: tuple[float, ...]
    stalls: tuple[float, ...]
    host_step: float
    optimizer: float
    scatters: bool
    shared: tuple[SharedWeights, ...]
    layers: tuple[tuple[SharedWeights, ...], ...]
    calls: int
    embedding: SharedWeights | None
    head: SharedWeights | None
    tied: float
    tied_reduce: float
    dp_hidden: float
    gather_hidden: float
    wait: float
    tree: bool
    launches: tuple[ChunkLaunches, ...] = ()

    @property
    def sent(self) -> float:
        """Bytes of gradients that are reduced once a step."""
        return sum(weights.sent for weights in self.shared)

    @property
    def gathers_weights(self) -> bool:
        """Whether new weights are gathered once a step (ZeRO 1 and 2)."""
        return any(weights.gathered > 0 for weights in self.shared)

    @property
    def gathers_layers(self) -> bool:
        """Whether each layer's weights are gathered before each pass (ZeRO 3)."""
        return any(weights.layer_gathered > 0 for layer in self.layers for weights in layer)

    @property
    def scatters_layers(self) -> bool:
        """Whether each layer's gradients are reduced after each backward pass."""
        return any(weights.layer_scattered > 0 for layer in self.layers for weights in layer)

    @property
    def count(self) -> int:
        """Layers of the stage."""
        return sum(len(kinds) for kinds in self.chunks)

    def share(self, layers: Kinds) -> float:
        """Share of the parameters of all the stage's layers that some of them have."""
        whole = sum(self.sizes[kind] for kinds in self.chunks for kind in kinds)
        return sum(self.sizes[kind] for kind in layers) / whole if layers else 0.0


def same_kinds(layers: Kinds) -> list[tuple[int, int]]:
    """Layers of one kind in a row: the kind, and how many."""
    return [(kind, len(list(same))) for kind, same in groupby(layers)]


def parts_of(direction: int, weights: bool) -> tuple[int, ...]:
    """Which of ``PASSES`` a forward or backward pass is, the latter with or without weight gradients."""
    return (FORWARDS,) if direction == FORWARD else (INPUTS, WEIGHT_GRADIENTS) if weights else (INPUTS,)
