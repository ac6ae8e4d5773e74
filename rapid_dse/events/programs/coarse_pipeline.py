"""The pipeline's graph without what is inside its blocks: a stage's layers are one node each pass, of the time that a block took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from rapid_dse.events.programs.script import After, Labels, Script


@dataclass(frozen=True)
class Pass:
    """A layer's pass: seconds in all, and how they split over the terms of a result."""

    name: str
    terms: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Seconds of one layer."""
        return float(sum(self.terms.values()))

    def label(self, labels: Labels) -> int:
        """A label whose time splits as the pass's does."""
        whole = self.seconds
        return labels.mixed(self.name, {term: seconds / whole for term, seconds in self.terms.items() if seconds})


NO_ENDS: Mapping[str, Pass] = MappingProxyType({})


class BlockPasses:
    """A stage's layers as single nodes (``stage.Passes``), whose transfers are within them."""

    talks = False

    def __init__(
        self,
        labels: Labels,
        layers: Sequence[tuple[Pass, ...]],
        weights: Sequence[float],
        regather: float,
        ends: Mapping[str, Pass] = NO_ENDS,
    ) -> None:
        """Takes forward and backward pass of a layer of each kind; ``weights`` seconds of the backward one are its weight gradients,
        without which it is the third pass, where there is one; ``regather`` follows a receive.

        ``ends`` are the passes of embedding and head, by their names in ``ends.PASSES``.
        """
        self._layers = tuple(layers)
        self._first_half = tuple(
            layer[2] if len(layer) > 2 else _without_weights(layer[1], weight) for layer, weight in zip(layers, weights, strict=True)
        )
        self._ends = ends
        passes = (*(time for layer in layers for time in layer[:2]), *self._first_half, *ends.values())
        self._labels = {id(task): task.label(labels) for task in passes}
        self._weights, self._regather = tuple(weights), regather

    def forward(self, script: Script, after: After, kind: int, layers: int) -> After:
        """Their forward pass."""
        return self._node(script, after, layers, self._layers[kind][0])

    def backward(self, script: Script, after: After, run: tuple[int, int], weights: bool) -> After:
        """Their backward pass, with or without weight gradients."""
        kind, layers = run
        return self._node(script, after, layers, self._layers[kind][1] if weights else self._first_half[kind])

    def weights(self, script: Script, after: After, kind: int, layers: int) -> After:
        """Their weight gradients alone."""
        return script.compute(after, layers * self._weights[kind], "weight gradient")

    def end(self, script: Script, after: After, name: str) -> After:
        """One of the passes of embedding and head."""
        return self._node(script, after, 1, self._ends[name]) if name in self._ends else after

    def regather(self, script: Script, after: After) -> After:
        """The group's gather of a boundary, in the time that it takes alone."""
        return script.compute(after, self._regather, "gathering the boundary", "pp")

    def _node(self, script: Script, after: After, layers: int, task: Pass) -> After:
        return script.work(after, layers * task.seconds, self._labels[id(task)])


def _without_weights(backward: Pass, seconds: float) -> Pass:
    """A backward pass without its weight gradients, which take so long."""
    terms = dict(backward.terms)
    terms["compute"] = max(0.0, terms["compute"] - seconds)
    return Pass("layers backward, input gradients", terms)
