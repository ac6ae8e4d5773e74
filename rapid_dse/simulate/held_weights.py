"""Parameters that a rank holds and those that it trains, by the group that shares them: of layers, of stages, and how wide they stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import summed
from rapid_dse.config.scenario import Scenario
from rapid_dse.model.architecture import LayerKind, architecture_of
from rapid_dse.model.layers.part import Number
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import BoolColumn, Layouts
from rapid_dse.parallel.stages import Stages
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.residence import shard_bytes

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """Parameters that a rank holds, by the group that shares their gradients: cp·dp ranks hold the same ``dense`` ones,
    tp·cp·dp/(etp·ep) the same ``experts`` (None in a dense model); arrays whose last axis is ``(n_layouts,)``.
    """

    dense: FloatColumn
    experts: FloatColumn | None = None

    @property
    def total(self) -> FloatColumn:
        """All of them."""
        return self.dense if self.experts is None else self.dense + self.experts

    def first_stage(self) -> Weights:
        """Those of the first candidate stage, ``(n_layouts,)``."""
        return Weights(self.dense[0], None if self.experts is None else self.experts[0])

    def times(self, share: NDArray[Any] | float) -> Weights:
        """So many times the parameters of both kinds."""
        return Weights(self.dense * share, None if self.experts is None else self.experts * share)

    def without(self, other: Weights) -> Weights:
        """What is left where ``other`` is taken away."""
        return Weights(self.dense - other.dense, None if self.experts is None or other.experts is None else self.experts - other.experts)

    def sharded(self, layouts: Layouts, where: BoolColumn) -> FloatColumn:
        """What is left a rank where they are sharded, ``(n_layouts,)``, and all of them elsewhere."""
        shards = np.where(where, layouts.shards.astype(float), 1.0)
        if self.experts is None:
            return self.dense / shards
        return self.dense / shards + self.experts / np.where(where, layouts.expert_shards.astype(float), 1.0)


def product_weights(scenario: Scenario, layouts: Layouts) -> tuple[Weights, ...]:
    """Weights of the products of a layer of each kind that a rank holds, the router's left out, ``(n_layouts,)`` each."""
    return tuple(
        _weights(layouts, kind, sum(part.products for part in parts), sum(part.experts for part in parts))
        for kind in architecture_of(scenario).kinds
        for parts in [kind.parameters(MicroBatch.of(layouts, scenario.workload))]
    )


def layer_weights(scenario: Scenario, layouts: Layouts, trained: bool = False) -> tuple[Weights, ...]:
    """Parameters of a layer of each kind that a rank holds, ``(n_layouts,)`` each; ``trained``: those that have gradients."""
    return layouts.alike.remembered.once((layer_weights, scenario, trained), lambda: _layer_weights(scenario, layouts, trained))


def _layer_weights(scenario: Scenario, layouts: Layouts, trained: bool) -> tuple[Weights, ...]:
    return tuple(
        _weights(layouts, kind, sum(part.dense for part in parts), sum(part.routed for part in parts))
        for kind in architecture_of(scenario).kinds
        for every in [kind.parameters(MicroBatch.of(layouts, scenario.workload))]
        for parts in [[part.trained for part in every] if trained else every]
    )


def _weights(layouts: Layouts, kind: LayerKind, dense: Number, experts: Number) -> Weights:
    none = np.zeros(len(layouts))
    return Weights(none + dense, none + experts if kind.copies else None)


def weights_of(counts: NDArray[Any], layers: Sequence[Weights]) -> Weights:
    """Those of so many layers of each kind; ``counts`` as of ``columns.summed``."""
    experts = [(count, layer.experts) for count, layer in zip(counts, layers, strict=True) if layer.experts is not None]
    dense = summed(counts, [layer.dense for layer in layers])
    return Weights(
        dense, sum((count * weights_of_layer for count, weights_of_layer in experts), np.zeros(dense.shape)) if experts else None
    )


def mean_of_stages(scenario: Scenario, layouts: Layouts, layers: Sequence[FloatColumn]) -> FloatColumn:
    """What the layers of the mean stage have, from what a layer of each kind has, ``(n_layouts,)``."""
    counts = np.array(architecture_of(scenario).counts)[:, None]
    return summed(counts, layers) / layouts.pp


def embedding_parameters(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Parameters of what stands before the layers that a tensor-parallel rank holds, positions left out, ``(n_layouts,)``."""
    embedding = architecture_of(scenario).embedding
    return layouts.alike.remembered.once((embedding,), lambda: embedding.weights(layouts.tp))


def head_parameters(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """The same of what stands behind them; where the tables are tied it is the embedding's."""
    head = architecture_of(scenario).head
    return layouts.alike.remembered.once((head,), lambda: head.weights(layouts.tp))


def looked_up_twice(scenario: Scenario) -> bool:
    """Whether the stage of the head has the embedding too: it predicts more than the next token, and no tied table stands there anyway."""
    return architecture_of(scenario).predictions > 0 and not scenario.model.tie_word_embeddings


def stage_weights(scenario: Scenario, layouts: Layouts, stages: Stages, trained: bool = False) -> Weights:
    """Parameters a rank holds on each candidate stage, ``(n_candidates, n_layouts)``; tied tables are one where a stage has both.

    ``trained``: those that have gradients; of adapters none are of tables.
    """
    layers = weights_of(stages.of_kinds, layer_weights(scenario, layouts, trained))
    if trained and not scenario.workload.trains_all:
        return layers
    both = stages.has_embedding & stages.has_head & scenario.model.tie_word_embeddings
    looks_up = stages.has_embedding | stages.has_head if looked_up_twice(scenario) else stages.has_embedding
    tables = looks_up * embedding_parameters(scenario, layouts)
    tables = tables + (stages.has_head & ~both) * head_parameters(scenario, layouts)
    positions = architecture_of(scenario).embedding.positions(scenario.workload.seq_len)
    return Weights(layers.dense + tables + stages.has_embedding * positions, layers.experts)


def held_bytes(scenario: Scenario, layouts: Layouts, weights: Weights, trained: Weights) -> FloatColumn:
    """Bytes of ``weights``, of which some are ``trained``, where they stay all step long; arrays as of ``Weights``.

    Frozen weights have no master copy: they stay as wide as they compute.
    """
    own, shards = trained.sharded(layouts, layouts.sharding.parameters), shard_bytes(scenario, layouts)
    if scenario.workload.trains_all:
        return own * shards
    return weights.without(trained).sharded(layouts, layouts.sharding.parameters) * compute_bytes(scenario) + own * shards


def layer_bytes(scenario: Scenario, layouts: Layouts) -> tuple[FloatColumn, ...]:
    """``held_bytes`` of a layer of each kind, ``(n_layouts,)`` each."""
    every, trained = (layer_weights(scenario, layouts, only) for only in (False, True))
    return tuple(held_bytes(scenario, layouts, *layer) for layer in zip(every, trained, strict=True))
