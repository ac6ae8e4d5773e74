"""What embedding table, head and loss send beside the layers' own traffic."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rapid_dse.config.hardware import Network
from rapid_dse.config.scenario import Scenario
from rapid_dse.interconnect import transfer
from rapid_dse.interconnect.transfer import Transfer
from rapid_dse.model.architecture import architecture_of
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import Layouts
from rapid_dse.parallel.placement import Placement
from rapid_dse.parallel.span import two_ends
from rapid_dse.simulate.communication import TensorParallel, gradient_bytes, node_wait
from rapid_dse.simulate.held_weights import embedding_parameters
from rapid_dse.simulate.layer_work import Block

FloatColumn = NDArray[np.float64]


LOSS_REDUCTIONS = 3  # of the largest logit, of the target's logit, of the sum of exponentials
LOSS_BYTES = 4  # each of them fp32, one a token


@dataclass(frozen=True)
class VocabularyParallel:
    """Transfers over a tensor-parallel group whose ranks hold a share of the vocabulary each: one micro-batch's, before anything hides.

    The look-up leaves each rank with the rows that it holds, which are summed; every rank's head reads the whole stream and has logits of
    its share, from which cross-entropy needs three numbers a token (Megatron-LM, arXiv 1909.08053, section 3; nanotron's
    ``sharded_cross_entropy`` and torchtitan's loss parallel do alike). Under sequence parallelism the sums are scattered and what they
    go into is gathered (arXiv 2205.05198, section 4.2.2), again for the head's weight gradient. Frozen tables have no gradients.

    Attributes:
        look_up: forward on the first stage; ``look_up_gradient`` backward there, under sequence parallelism alone.
        head_input: forward on the last stage, under sequence parallelism alone; ``head_gradient`` backward there.
        loss: one of the LOSS_REDUCTIONS forward on the last stage.
    """

    look_up: Transfer
    look_up_gradient: Transfer
    head_input: Transfer
    head_gradient: Transfer
    loss: Transfer

    @property
    def sent(self) -> NDArray[np.float64]:
        """Bytes that a rank sends into each network dimension, on first and last stage together, ``(n_dimensions, n_layouts)``."""
        return (
            self.look_up.sent
            + self.look_up_gradient.sent
            + self.head_input.sent
            + self.head_gradient.sent
            + LOSS_REDUCTIONS * self.loss.sent
        )


def vocabulary_parallel(
    scenario: Scenario, layouts: Layouts, stream: TensorParallel, placement: Placement, network: Network
) -> VocabularyParallel:
    """What a micro-batch of each layout exchanges; nothing at tp = 1. ``stream``: on the activations between layers."""
    streams = 1 + architecture_of(scenario).predictions
    if not architecture_of(scenario).shares_ends:
        nothing = transfer.nothing(network, len(layouts))
        return VocabularyParallel(nothing, nothing, nothing, nothing, nothing)
    scattered, trained = layouts.sequence_parallel, scenario.workload.trains_all
    loss = transfer.all_reduce(loss_bytes(scenario, layouts), placement.tp, network).waiting(node_wait(scenario, placement.tp))
    return VocabularyParallel(
        look_up=transfer.either(scattered, stream.scatter, stream.reduce),
        look_up_gradient=stream.gather.times(scattered & trained),
        head_input=stream.gather.times(scattered * streams),
        head_gradient=transfer.either(scattered, stream.again.times(trained) + stream.scatter, stream.reduce).times(streams),
        loss=loss,
    )


def loss_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """Bytes of a number a token, of a micro-batch on one context-parallel rank, ``(n_layouts,)``."""
    shape = MicroBatch.of(layouts, scenario.workload)
    return LOSS_BYTES * architecture_of(scenario).head.logits(shape).rows


@dataclass(frozen=True)
class Ends:
    """Exposed seconds of those transfers for one micro-batch, ``(n_layouts,)`` each: on the first stage, and on the last."""

    embedding_forward: FloatColumn
    embedding_backward: FloatColumn
    head_forward: FloatColumn
    head_backward: FloatColumn

    @property
    def embedding(self) -> FloatColumn:
        """On the first stage."""
        return self.embedding_forward + self.embedding_backward

    @property
    def head(self) -> FloatColumn:
        """On the last stage."""
        return self.head_forward + self.head_backward

    def added_to(self, block: Block) -> Block:
        """A block whose embedding and head take the time of their exposed transfers too."""
        return replace(
            block,
            embedding=block.embedding + self.embedding_forward,
            embedding_backward=block.embedding_backward + self.embedding_backward,
            head_forward=block.head_forward + self.head_forward,
            head_backward=block.head_backward + self.head_backward,
        )


def exposed_ends(scenario: Scenario, block: Block, transfers: VocabularyParallel) -> Ends:
    """What shows: all but the share of the head's backward transfers that hides behind its weight gradient, as in a layer.

    Frameworks pipeline layers' products with transfers (``software.async_tp``), not the head's.
    """
    head = transfers.head_gradient.seconds
    hidden = np.minimum(scenario.software.overlap.tp_backward_overlap * head, block.head_weight_gradient)
    ahead = transfers.head_input.seconds + LOSS_REDUCTIONS * transfers.loss.seconds
    return Ends(transfers.look_up.seconds, transfers.look_up_gradient.seconds, ahead, head - hidden)


@dataclass(frozen=True)
class TiedTable:
    """The all-reduce that ends a step where embedding and head are one table and the two ends of a pipeline hold a copy each; so they do
    of the embedding where the stage of the head predicts more than the next token, since it looks up the tokens between.

    The first and the last stage sum the table's gradient, rank by rank (Megatron's embedding group), after gradients are reduced over
    data-parallel ranks and before the optimizer: Megatron Core's ``finalize_model_grads``, nanotron's ``sync_tied_weights_gradients``;
    DeepSpeed's ``ReduceTiedGrads`` comes just before that reduction. Nothing is left to hide it.

    Attributes:
        size: bytes of the gradient that each of the two ranks has, and sends once, ``(n_layouts,)``; 0 without a pipeline or where
            tables are not tied. ZeRO 0 and 1 reduce the rank's whole part of the table: Megatron Core's gradient buffer stays whole
            under its distributed optimizer, and so do nanotron's and DeepSpeed's. From ZeRO 2 on a rank has kept its shard alone.
        reduction: the all-reduce.
    """

    size: FloatColumn
    reduction: Transfer


def tied_bytes(scenario: Scenario, layouts: Layouts) -> FloatColumn:
    """``TiedTable.size`` of each layout, bytes, ``(n_layouts,)``."""
    shared = scenario.model.tie_word_embeddings or architecture_of(scenario).predictions > 0
    if not shared or not scenario.workload.trains_all:
        return np.zeros(len(layouts))
    shards = np.where(layouts.sharding.gradients, layouts.shards, 1)
    return np.where(layouts.head_stage > 0, embedding_parameters(scenario, layouts) * gradient_bytes(scenario) / shards, 0.0)


def tied_table(scenario: Scenario, layouts: Layouts, placement: Placement, network: Network) -> TiedTable:
    """The tied table's all-reduce of each layout; of size 0 where there is none."""
    size = tied_bytes(scenario, layouts)
    if not size.any():
        return TiedTable(size, transfer.nothing(network, len(layouts)))
    return TiedTable(size, transfer.all_reduce(size, two_ends(placement.pp), network).times(size > 0))
