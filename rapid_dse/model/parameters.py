"""How many parameters a model has, by the part that holds them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from rapid_dse.common.remembered import remembered
from rapid_dse.config.model import Model
from rapid_dse.config.run import Workload
from rapid_dse.model.architecture import Architecture, adapters_of, architecture, predictions_of
from rapid_dse.model.layers.part import Number
from rapid_dse.model.layers.registry import part_of
from rapid_dse.model.shapes import ONE


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters (weights, not bytes) of a model; the vocabulary is unpadded.

    ``attention``, ``norm``, ``mlp``, ``router``, ``shared_experts`` and ``expert`` are those of one layer; ``mlp`` is a dense layer's,
    ``router``, ``shared_experts`` and ``expert`` (one routed expert) are a mixture-of-experts layer's, zero in a dense model.
    """

    embedding: int
    positions: int
    attention: int
    norm: int
    mlp: int
    router: int
    shared_experts: int
    expert: int
    num_experts: int
    num_experts_per_tok: int
    dense_layers: int
    moe_layers: int
    final_norm: int
    head: int  # zero where the embedding is tied to it
    alone: int = 0  # of all layers that have neither attention nor an MLP

    @property
    def layer(self) -> int:
        """Parameters of one dense layer."""
        return self.attention + self.norm + self.mlp

    @property
    def moe_layer(self) -> int:
        """Parameters of one mixture-of-experts layer, all experts included."""
        return self._moe_layer(self.num_experts)

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return self._outside + self.alone + self.dense_layers * self.layer + self.moe_layers * self.moe_layer

    @property
    def active(self) -> int:
        """Parameters that one token passes through: of the routed experts only those it is sent to."""
        return self._outside + self.alone + self.dense_layers * self.layer + self.moe_layers * self._moe_layer(self.num_experts_per_tok)

    @property
    def _outside(self) -> int:
        return self.embedding + self.positions + self.final_norm + self.head

    def _moe_layer(self, experts: int) -> int:
        return self.attention + self.norm + self.router + self.shared_experts + experts * self.expert


@lru_cache(maxsize=256)
@remembered(16)
def count(model: Model, positions: int = 2048) -> ParameterCounts:
    """The parameters of ``model``.

    Args:
        model: dense or mixture of experts, with multi-head, grouped-query or latent attention.
        positions: rows of the learned position table, tokens; of no effect where the positions are rotary.
    """
    kinds = architecture(model)
    if any(len(kind.parts) == 1 for kind in kinds.kinds):
        return _of_single_parts(kinds)
    embedding, head = kinds.embedding.counted(), kinds.head.counted()
    moe_layers = sum(count for count, kind in zip(kinds.counts, kinds.kinds, strict=True) if kind.copies)
    mixer, mlp, experts = (part.parameters(ONE) for part in (kinds.kinds[0].parts[0], part_of(model, "mlp"), part_of(model, "experts")))
    expert = round(float(np.sum(experts.routed))) // model.num_experts if moe_layers else 0
    return ParameterCounts(
        embedding=embedding,
        positions=kinds.embedding.positions(positions),
        attention=_whole(mixer.products) + _whole(mixer.biases) + _whole(mixer.added),
        norm=_whole(mixer.norms) + _whole(mlp.norms),
        mlp=_whole(mlp.products) + _whole(mlp.biases) + _whole(mlp.added),
        router=_whole(experts.router) if moe_layers else 0,
        shared_experts=_whole(experts.products) + _whole(experts.biases) + _whole(experts.added) if moe_layers else 0,
        expert=expert,
        num_experts=model.num_experts,
        num_experts_per_tok=model.num_experts_per_tok,
        dense_layers=model.num_hidden_layers - moe_layers,
        moe_layers=moe_layers,
        final_norm=_whole(kinds.head.parameters(ONE).norms),
        head=0 if model.tie_word_embeddings else head,
    )


def prediction_parameters(model: Model) -> int:
    """Parameters of the layers that predict a token beside the next one, which look-up and head are no part of."""
    kinds = architecture(model, predictions=model.num_nextn_predict_layers)
    behind = (kinds.kinds[kind] for kind in kinds.order[model.num_hidden_layers :])
    return sum(_whole(part.dense) + _whole(part.routed) for kind in behind for part in kind.parameters(ONE))


def adapter_parameters(model: Model, work: Workload) -> int:
    """Parameters of the adapters that are trained in place of the model's own; 0 where these are trained."""
    adapters = adapters_of(work)
    if adapters is None:
        return 0
    adapted = architecture(model, adapters, predictions_of(model, work))
    adapters_a_layer = (
        sum(_whole(part.adapters) + _whole(part.expert_adapters) for part in kind.parameters(ONE)) for kind in adapted.kinds
    )
    return sum(layers * more for layers, more in zip(adapted.counts, adapters_a_layer, strict=True))


def _of_single_parts(whole: Architecture) -> ParameterCounts:
    """Those of a model whose layers have no attention with an MLP behind it."""
    names = [count.name for count in fields(ParameterCounts) if count.name not in ("embedding", "final_norm", "head", "alone")]
    every = [count * _whole(kind.parts[0].parameters(ONE).dense) for count, kind in zip(whole.counts, whole.kinds, strict=True)]
    return ParameterCounts(
        **dict.fromkeys(names, 0),
        embedding=whole.embedding.counted(),
        final_norm=_whole(whole.head.parameters(ONE).norms),
        head=whole.head.counted(),
        alone=sum(every),
    )


def _whole(parameters: Number) -> int:
    """Parameters on one rank that shares with none, as a whole number."""
    return round(float(np.sum(parameters)))
