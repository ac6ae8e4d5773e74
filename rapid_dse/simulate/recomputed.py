"""What recomputation repeats in the backward pass of layouts, by their mode: seconds of computation, and shares of transfers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.scenario import Scenario
from rapid_dse.model import recompute
from rapid_dse.parallel.layouts import RECOMPUTE_FULL, RECOMPUTE_SELECTIVE, Layouts
from rapid_dse.simulate.layer_work import LayerBlock

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Repeated:
    """Shares of what a layer of one kind runs again, ``(n_layouts,)`` each.

    Attributes:
        whole: of the whole forward pass (full recomputation), in the mean over a stage's layers; ``partly``: of what selective
            recomputation repeats.
        core: of the attention kernel with its ring.
        routed: transfers to the experts or back.
        gathered_again: share of layers whose weight gradients need one more gather of what products read
            (``software.keeps_gathered``).
    """

    whole: FloatColumn
    partly: FloatColumn
    core: FloatColumn
    routed: FloatColumn
    gathered_again: FloatColumn


def whole_layers(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Share of a stage's layers that run again as a whole, ``(n_layouts,)``: all under full recomputation, or those that
    ``parallel.recompute_layers`` says, of a stage's layers in the mean."""
    full: FloatColumn = np.asarray(layouts.recompute == RECOMPUTE_FULL, dtype=np.float64)
    layers = scenario.parallel.recompute_layers
    if layers is None:
        return full
    return full * np.minimum(1.0, layers * layouts.pp / scenario.model.num_hidden_layers)


def repeated(scenario: Scenario, layouts: Layouts) -> tuple[Repeated, ...]:
    """Those of a layer of each kind."""
    return layouts.alike.remembered.once((repeated, scenario), lambda: _repeated(scenario, layouts))


def _repeated(scenario: Scenario, layouts: Layouts) -> tuple[Repeated, ...]:
    whole, partly = whole_layers(scenario, layouts), np.asarray(layouts.recompute == RECOMPUTE_SELECTIVE, dtype=np.float64)
    return tuple(
        Repeated(
            whole,
            partly,
            core=whole * full.core + partly * some.core,
            routed=whole * (full.dispatched + full.combined) + partly * (some.dispatched + some.combined),
            gathered_again=1.0 - scenario.software.memory.keeps_gathered * whole,
        )
        for full, some in zip(
            recompute.full(scenario) if whole.any() else recompute.nothing(scenario),  # of which none is taken
            recompute.selective(scenario),
            strict=True,
        )
    )


def recomputed(scenario: Scenario, layouts: Layouts, block: LayerBlock) -> FloatColumn:
    """What the backward pass of a layer computes once more, s, ``(n_layouts,)``; its weights have come already, so that no copy of them is
    repeated."""
    left_out = block.spared + block.gather_copies + (0.0 if scenario.software.memory.recomputes_attention else block.attention_forward)
    partly = np.where(layouts.recompute == RECOMPUTE_SELECTIVE, block.selective, 0.0)
    return whole_layers(scenario, layouts) * (block.forward - left_out) + partly
