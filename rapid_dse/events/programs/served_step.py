"""Passes of an inference engine as a stage's program: batches that follow each other through the stages, or that go round and round.

A decode step's batch comes back to the first stage with the tokens that the last one gave, and starts its next step. A prompt's chunks go
through once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from rapid_dse.events.programs import layer_program
from rapid_dse.events.programs.coarse_pipeline import Pass
from rapid_dse.events.programs.layer_program import ExchangePart, Half, LayerWork
from rapid_dse.events.programs.script import GRADIENTS, PIPELINE, RING, After, Labels, Message, Script, check_size

APART = (RING, GRADIENTS)  # streams of caches on their way between pools: those that no pass has
TOKEN_BYTES = 4.0  # of a token's number, on its way from the last stage to the first


class EngineNodes(Protocol):
    """How a stage's layers and the head become nodes."""

    def layers(self, script: Script, after: After, kind: int, count: int) -> After:
        """So many layers of a kind."""

    def head(self, script: Script, after: After, number: int) -> After:
        """The model's head (0), or that of drafts (1)."""


@dataclass(frozen=True)
class WholeLayers:
    """Kernel by kernel, and exchange by exchange."""

    works: tuple[LayerWork, ...]
    heads: tuple[Half, ...]

    def layers(self, script: Script, after: After, kind: int, count: int) -> After:
        """So many layers of a kind."""
        for _ in range(count):
            after = layer_program.forward(script, self.works[kind], after)
        return after

    def head(self, script: Script, after: After, number: int) -> After:
        """The product with the vocabulary, and the gather of the logits."""
        head = self.heads[number]
        return layer_program.exchange(script, head, script.compute(after, head.forward, "head"), ExchangePart("ALL_GATHER"))


class BlockLayers:
    """One node for all layers of a kind in a row, and one for the head, in the times that a stage's ranks took alone."""

    def __init__(self, labels: Labels, layers: Sequence[Pass], heads: Sequence[Pass]) -> None:
        """Takes the pass of a layer of each kind, and those of the heads."""
        self._layers = [(node.seconds, node.label(labels)) for node in layers]
        self._heads = [(node.seconds, node.label(labels)) for node in heads]

    def layers(self, script: Script, after: After, kind: int, count: int) -> After:
        """So many layers of a kind."""
        seconds, label = self._layers[kind]
        return script.work(after, count * seconds, label)

    def head(self, script: Script, after: After, number: int) -> After:
        """The head, the gather of its logits included."""
        return script.work(after, *self._heads[number])


@dataclass(frozen=True)
class Turns:
    """How an engine's batches go through its stages: ``flying`` at a time, each pass of one of the ``lengths``; ``returns``: each starts
    again when the last stage has its tokens, else all are there from the start."""

    stages: int
    flying: int
    lengths: tuple[int, ...]
    returns: bool

    @property
    def count(self) -> int:
        """Passes in all."""
        return len(self.lengths)


@dataclass(frozen=True)
class StageShare:
    """What a stage has of a pass: the kind of each of its layers, and on the last stage the head and ``drafts`` of kind ``draft_kind``.

    ``hop`` bytes go to the next stage in ``seconds`` (closed form), ``tokens`` bytes from the last stage to the first.
    """

    kinds: tuple[int, ...]
    stage: int
    drafts: int
    draft_kind: int
    hop: float
    seconds: float
    tokens: float


@dataclass
class Marks:
    """Where each pass of a stage begins and ends among its script's nodes, and the receive that it waits for (-1: none)."""

    arrives: list[int] = field(default_factory=list)
    begins: list[int] = field(default_factory=list)
    ends: list[After] = field(default_factory=list)


def write_stage(script: Script, passes: Sequence[tuple[EngineNodes, StageShare]], turns: Turns) -> Marks:
    """Writes all passes of one stage.

    Args:
        passes: how the layers of a pass of each length become nodes, and what the stage has of it.
    """
    stage = passes[0][1].stage
    last, marks = stage == turns.stages - 1, Marks()
    after: After = ()
    check_size(turns.count * len(passes[0][1].kinds) * turns.stages, "to write")
    for turn, length in enumerate(turns.lengths):
        nodes, share = passes[length]
        comes_back = turns.returns and turns.stages > 1 and turn >= turns.flying and stage == 0
        arrived: After = ()
        if stage or comes_back:
            size = share.hop if stage else share.tokens
            arrived = script.receive((), "previous", size, "pp", _tag(turns, turn, stage))
        marks.arrives.append(arrived[0] if arrived else -1)
        marks.begins.append(len(script))
        after = _pass(script, nodes, share, (*after, *arrived), last)
        marks.ends.append(after)
        if not last:
            script.send(after, "next", Message(share.hop, share.seconds, "pp", _tag(turns, turn, stage + 1), PIPELINE))
        elif turns.returns and turns.stages > 1 and turn + turns.flying < turns.count:
            tag = _tag(turns, turn + turns.flying, 0)
            script.send(after, "next", Message(share.tokens, 0.0, "pp", tag, PIPELINE))
    return marks


def _pass(script: Script, nodes: EngineNodes, share: StageShare, after: After, last: bool) -> After:
    for kind, same in groupby(share.kinds):
        after = nodes.layers(script, after, kind, len(list(same)))
    if last:
        after = nodes.head(script, after, 0)
        for _ in range(share.drafts):
            after = nodes.head(script, nodes.layers(script, after, share.draft_kind, 1), 1)
    return after


def _tag(turns: Turns, turn: int, stage: int) -> int:
    return turn * turns.stages + stage


def write_handover(script: Script, peers: Sequence[str], size: float, seconds: float, pieces: int, *, sends: bool) -> After:
    """Sends a prompt's cache to several peers, or receives it, piece by piece; the last of its nodes.

    Two messages are on their way at a time: on store-and-forward links one goes up to a switch while another comes down.

    Args:
        size: bytes of a piece for one peer; ``seconds`` of it in closed form.
    """
    ways: list[After] = [()] * len(APART)
    for number in range(pieces * len(peers)):
        peer, piece, way = peers[number % len(peers)], number // len(peers), number % len(APART)
        if sends:
            ways[way] = script.hand_over(ways[way], peer, Message(size, len(APART) * seconds, "prefill", piece, APART[way]))
        else:
            ways[way] = script.receive(ways[way], peer, size, "prefill", piece)
    return tuple(node for way in ways for node in way)
