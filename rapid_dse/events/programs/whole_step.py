"""The whole step as one graph: every layer of every micro-batch on every rank."""

from __future__ import annotations

from dataclasses import dataclass

from rapid_dse.events.programs import end_programs, layer_program
from rapid_dse.events.programs.end_programs import EndWork
from rapid_dse.events.programs.layer_program import LayerWork
from rapid_dse.events.programs.script import After, Message, Script


@dataclass(frozen=True)
class LayerPasses:
    """A stage's layers node by node (``stage.Passes``); ``works``: a layer of each kind."""

    works: tuple[LayerWork, ...]
    around: EndWork

    @property
    def talks(self) -> bool:
        """Whether the layers have transfers of their own."""
        return any(work.talks for work in self.works)

    def forward(self, script: Script, after: After, kind: int, layers: int) -> After:
        """Their forward pass."""
        for _ in range(layers):
            after = layer_program.forward(script, self.works[kind], after)
        return after

    def backward(self, script: Script, after: After, run: tuple[int, int], weights: bool) -> After:
        """Their backward pass, with or without weight gradients."""
        kind, layers = run
        for _ in range(layers):
            after = layer_program.backward(script, self.works[kind], after, weights)
        return after

    def weights(self, script: Script, after: After, kind: int, layers: int) -> After:
        """Their weight gradients alone."""
        return layer_program.weight_gradient(script, self.works[kind], after, layers)

    def end(self, script: Script, after: After, name: str) -> After:
        """One of the passes beside them, by its name in ``end_programs.PASSES``."""
        return end_programs.PASSES[name](script, self.around, after)

    def regather(self, script: Script, after: After) -> After:
        """The group's gather of a boundary that each rank has a share of; under sequence parallelism shares stay apart."""
        work = self.works[0]
        if work.tp == 1 or work.sequence_parallel:
            return after
        return script.exchange(after, "ALL_GATHER", "tp", Message(work.stream.size, work.stream.gather, "pp"))
