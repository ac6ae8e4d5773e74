"""What a GPU holds at the peak of a training step, stage by stage, term by term.

Bytes; the candidate stages (first, fullest inner ones, last) are rows of ``(n_candidates, n_layouts)`` arrays, the worst is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rapid_dse.common.columns import GatheredInTurn, Positions, Shared, added, at, distinct, largest, largest_of, numbered, summed
from rapid_dse.config.hardware import NARROW_BYTES, PRECISION_BYTES
from rapid_dse.config.scenario import Scenario
from rapid_dse.config.software import Software
from rapid_dse.config.software.memory_settings import MemorySettings
from rapid_dse.model.shapes import MicroBatch
from rapid_dse.parallel.layouts import BoolColumn, Layouts
from rapid_dse.parallel.schedules import HOLDS_ALL, SCHEDULE_CLASSES, SPLITS_BACKWARD
from rapid_dse.parallel.stages import Stages, alike_in_stages
from rapid_dse.simulate.held_weights import (
    embedding_parameters,
    head_parameters,
    held_bytes,
    layer_bytes,
    layer_weights,
    product_weights,
    stage_weights,
)
from rapid_dse.simulate.layer_memory import kept_of_all, layer_activations, weight_gradient_bytes
from rapid_dse.simulate.loss import loss_memory
from rapid_dse.simulate.operator_times import compute_bytes
from rapid_dse.simulate.pipeline_blocks import PipelineBlock, pipeline_blocks
from rapid_dse.simulate.residence import on_the_host, shards_are_master
from rapid_dse.simulate.slots import host_slowdown

FloatColumn = NDArray[np.float64]


@dataclass(frozen=True)
class PeakMemory:
    """Bytes a GPU holds on its worst stage, ``(n_layouts,)`` each; they add up to the peak."""

    parameters: FloatColumn
    gradients: FloatColumn
    optimizer: FloatColumn
    activations: FloatColumn
    gathered: FloatColumn
    buffers: FloatColumn
    framework: FloatColumn

    @property
    def peak(self) -> FloatColumn:
        """Bytes the allocator holds, ``(n_layouts,)``."""
        total: FloatColumn = self.parameters
        for term in (self.gradients, self.optimizer, self.activations, self.gathered, self.buffers, self.framework):
            total = total + term
        return total


# Columns of Layouts on which memory depends, beside the layers of the stages: what ZeRO shards, and activations.
STATES = ("num_gpus", "tp", "cp", "dp", "pp", "ep", "expert_tp", "shard_group", "zero", "accumulates")
TENSORS = ("tp", "cp", "ep", "expert_tp", "micro_batch_size", "sequence_parallel", "recompute")  # of a micro-batch
ACTIVATIONS = (*TENSORS, "pp", "vpp", "schedule")
GATHERS = 2  # of the sequence in a layer's forward pass: for the projection of queries, keys and values, and for the MLP's first product
FILLED = 3  # of so many micro-batches a stage, no schedule holds more than of fewer but those that hold all


def peak_memory(scenario: Scenario, layouts: Layouts, stages: Stages) -> PeakMemory:
    """The terms on the stage whose sum is the largest."""
    return shared_memory(scenario, layouts, Shared(stages, np.arange(len(layouts)))).part(slice(None))


@dataclass(frozen=True)
class SharedMemory:
    """The peaks of layouts: ``states`` stay all step long, by term, ``(n_candidates, n_kinds)`` each, of kinds of layouts (``kind``);
    ``worst`` is the candidate stage of each layout whose sum is the largest, with its ``activations``, ``(n_layouts,)``."""

    settings: MemorySettings
    states: dict[str, NDArray[np.float64]]
    kind: Positions
    worst: Positions
    activations: FloatColumn

    def part(self, rows: slice) -> PeakMemory:
        """The terms of some neighbouring layouts."""
        worst, kind, activations = self.worst[rows], self.kind[rows], self.activations[rows]
        on_worst = {name: at(term, worst, kind) for name, term in self.states.items()}
        bucket = on_worst.pop("bucket")
        return PeakMemory(
            **on_worst,
            activations=activations,
            buffers=(self.settings.fragmentation - 1) * activations + bucket,  # what the allocator loses, and the bucket of gradients
            framework=np.full(len(kind), self.settings.context),
        )


def shared_memory(scenario: Scenario, layouts: Layouts, stages: Shared[Stages]) -> SharedMemory:
    """The peak of each layout; states and activations are counted once for layouts that are alike in them."""
    software, table = scenario.software, layouts.alike
    first, made = table.by(*TENSORS, *(["pp"] if scenario.parallel.recompute_layers is not None else []))
    splits = bool(SPLITS_BACKWARD.take(layouts.schedule).any())
    activations = GatheredInTurn(Shared(micro_batch_bytes(scenario, layouts.take(first), splits), made))
    first, state = _alike_in_states(scenario, layouts, stages)
    states = _states(scenario, layouts.take(first), stages.take(first).rows)
    of_states = added(states.values())
    worst, largest_held = np.empty(len(layouts), np.intp), np.empty(len(layouts))
    for block in pipeline_blocks(layouts.schedule, stages):
        of_block = _activations(scenario, layouts, block, activations.rows(block.rows))
        here = state.take(block.rows)
        stage = largest(
            np.stack([of_states[candidate].take(here) for candidate in block.candidates]) + software.memory.fragmentation * of_block
        )
        worst[block.rows] = block.candidates.take(stage)
        largest_held[block.rows] = at(of_block, stage, np.arange(len(stage)))
    return SharedMemory(software.memory, states, state, worst, largest_held)


def _alike_in_states(scenario: Scenario, layouts: Layouts, stages: Shared[Stages]) -> tuple[Positions, Positions]:
    """One layout of each kind that ``_states`` tells apart, and the kind of each layout."""
    first, kind = alike_in_stages(layouts, STATES, stages)
    fresh = fresh_gradients(scenario, layouts)
    if not fresh.any():
        return first, kind
    # these take the place of activations
    micro_batches, (rows, made) = layouts.num_micro_batches, layouts.alike.by(*ACTIVATIONS)
    filled = np.where(HOLDS_ALL.take(layouts.schedule), micro_batches, np.minimum(micro_batches, FILLED * layouts.pp))
    _, kept = distinct([(made, len(rows)), numbered(filled)])
    return distinct([(kind, len(first)), numbered(np.where(fresh, kept + 1, 0))])


def reduces_each(software: Software, layouts: Layouts) -> BoolColumn:
    """Whether each micro-batch's gradients are reduced, as ZeRO 2 and 3 keep them sharded, ``(n_layouts,)``."""
    setting = software.overlap.reduce_each_micro_batch
    every_micro_batch: BoolColumn = layouts.sharding.gradients & (layouts.pp == 1 if setting == "without_pipelines" else setting)
    return every_micro_batch


def gradients_sharded(software: Software, layouts: Layouts) -> BoolColumn:
    """Whether a rank keeps its shard of the gradients alone, ``(n_layouts,)``: under ZeRO 2 and 3, unless micro-batches accumulate without
    synchronisation."""
    at_once: BoolColumn = layouts.sharding.gradients & (layouts.num_micro_batches == 1)
    return reduces_each(software, layouts) | at_once


def _states(scenario: Scenario, layouts: Layouts, stages: Stages) -> dict[str, NDArray[np.float64]]:
    """Bytes of parameters, gradients and optimizer states that stay all step long, of what ZeRO holds whole for a while, and of the bucket
    in which gradients are reduced, ``(n_candidates, n_layouts)`` each."""
    software, width = scenario.software, compute_bytes(scenario)
    weights, trained = (stage_weights(scenario, layouts, stages, only) for only in (False, True))
    gradient = PRECISION_BYTES[software.precision.gradient_dtype] + np.where(layouts.accumulates, software.memory.extra_gradient_bytes, 0.0)
    # Under fp32 and TF32 the weights that compute are the master weights; FSDP's shards are those that the optimizer steps.
    own_master = shards_are_master(scenario, layouts) | (width == 4)
    _, stay = _fp8_copies(scenario, layouts)
    gradients = trained.sharded(layouts, gradients_sharded(software, layouts)) * gradient
    bucket = np.minimum(software.overlap.gradient_bucket, trained.total * PRECISION_BYTES[software.precision.gradient_dtype])
    of_layers = layer_bytes(scenario, layouts)
    on_host = on_the_host(summed(stages.of_kinds, of_layers), largest_of(stages.of_kinds, of_layers), scenario.parallel.offload_weights)
    second = scenario.parallel.zero_hpz_partition_size  # of the weights as they compute, within a node
    second_copy = weights.total * (width / second * (second > 1))
    return {
        "parameters": held_bytes(scenario, layouts, weights, trained) - on_host + summed(stages.of_kinds, stay) + second_copy,
        "gradients": _beyond_activations(scenario, layouts, stages, gradients),
        "optimizer": trained.sharded(layouts, layouts.sharding.optimizer)
        * (1 - scenario.parallel.offload_optimizer)
        * (software.precision.optimizer_bytes - np.where(own_master, software.precision.master_bytes, 0.0)),
        "gathered": _gathered(scenario, layouts, stages, weights.total),
        "bucket": np.where(layouts.dp * layouts.cp > 1, bucket, 0.0),
    }


def fresh_gradients(scenario: Scenario, layouts: Layouts) -> BoolColumn:
    """Whether no buffer keeps gradients: those of a step's only micro-batch, where nothing adds to them, ``(n_layouts,)``."""
    kernels = scenario.software.kernels
    fresh: BoolColumn = (layouts.num_micro_batches == 1) & (not (kernels.fused_accumulation or kernels.accumulates_apart))
    return fresh


def _beyond_activations(scenario: Scenario, layouts: Layouts, stages: Stages, gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bytes of ``gradients`` at the peak beyond those of the activations whose place they take, ``(n_candidates, n_layouts)``.

    Where no buffer keeps gradients, those of a step's only micro-batch come layer by layer as the layer's activations go. While a layer's
    backward pass runs, both its own are alive, with the activations of the layers ahead and the gradients of those behind: the peak is
    at the last layer or at the first. Weight gradients that run apart take the place of what they needed.
    """
    fresh = fresh_gradients(scenario, layouts)
    if not fresh.any():
        return gradients
    activations, apart = layer_activations(scenario, layouts), SPLITS_BACKWARD.take(layouts.schedule)
    if (fresh & apart).any():
        needed = weight_gradient_bytes(scenario, layouts)
        activations = tuple(np.where(apart, np.maximum(*share), share[0]) for share in zip(activations, needed, strict=True))
    largest_kept = largest_of(stages.of_kinds, activations)
    freed = summed(stages.of_kinds, activations) - largest_kept
    freed = freed - on_the_host(freed, largest_kept, scenario.parallel.offload_activations)
    parameters = [weights.total for weights in layer_weights(scenario, layouts, trained=True)]
    own = largest_of(stages.of_kinds, parameters) * PRECISION_BYTES[scenario.software.precision.gradient_dtype]
    return np.where(fresh, np.maximum(np.minimum(own, gradients), gradients - freed), gradients)


def _fp8_copies(scenario: Scenario, layouts: Layouts) -> tuple[tuple[FloatColumn, ...], tuple[FloatColumn, ...]]:
    """Bytes that the products of a layer of each kind keep in 8 bits beyond their 16-bit weights, ``(n_layouts,)`` each: of weights that
    ZeRO 3 gathers, kept while these are whole, and of others, kept all step long.

    A weight and its transpose, as Hopper's fp8 products read both operands along their inner dimension (Transformer Engine's
    ``Float8Tensor`` with ``_transpose``); none beyond where these take the 16-bit weight's place.
    """
    kept, narrow = scenario.keeps_narrow, NARROW_BYTES[scenario.narrow or "fp8"]
    copies = 2.0 * narrow - (compute_bytes(scenario) if scenario.software.precision.fp8_parameters else 0.0)
    while_whole, stay = [], []
    for products in product_weights(scenario, layouts):
        whole, always = np.zeros(len(layouts)), np.zeros(len(layouts))
        for weights, shards in ((products.dense, layouts.shards), (products.experts, layouts.expert_shards)) if kept else ():
            if weights is not None:
                gathered = layouts.sharding.parameters & (shards > 1)
                whole = whole + np.where(gathered, copies * weights, 0.0)
                always = always + np.where(gathered, 0.0, copies * weights)
        while_whole.append(whole)
        stay.append(always)
    return tuple(while_whole), tuple(stay)


@dataclass(frozen=True)
class LateBytes:
    """Of schedules that split the backward pass: what weight gradients of a layer of each kind need, and what takes the place of
    ``MicroBatchBytes.while_backward``, ``(n_kinds, n_layouts)`` each."""

    delayed: NDArray[np.float64]
    while_backward: NDArray[np.float64]


@dataclass(frozen=True)
class MicroBatchBytes:
    """Bytes of one micro-batch on a rank, ``(n_kinds, n_layouts)`` of a layer of each kind, or ``(n_layouts,)``.

    Attributes:
        kept: by autograd for a layer; ``while_backward``: what a layer has more while it runs backward.
        headed: logits beside the head; ``working``: copies of the whole stream that a layer works on; ``gathered``: what the gathers of a
            layer's forward pass read and give.
        late: None where no schedule splits the backward pass.
    """

    kept: NDArray[np.float64]
    while_backward: NDArray[np.float64]
    headed: FloatColumn
    working: FloatColumn
    gathered: FloatColumn
    late: LateBytes | None


def micro_batch_bytes(scenario: Scenario, layouts: Layouts, splits: bool) -> MicroBatchBytes:
    """Those of each layout; ``splits``: whether some schedule splits the backward pass."""
    shape, memory = MicroBatch.of(layouts, scenario.workload), scenario.software.memory
    kept, every = np.stack(layer_activations(scenario, layouts)), np.stack(kept_of_all(scenario, layouts))
    some_run_again = scenario.parallel.recompute_layers is not None
    again = np.stack(layer_activations(scenario, layouts, mean=False)) if some_run_again else kept
    delayed = np.stack(weight_gradient_bytes(scenario, layouts)) if splits else kept
    along_sequence = (layouts.tp > 1) & layouts.sequence_parallel
    stream = compute_bytes(scenario) * shape.tokens * scenario.model.hidden_size * along_sequence
    return MicroBatchBytes(
        kept=kept,
        while_backward=np.maximum(0.0, every - again),
        headed=loss_memory(scenario, shape, compute_bytes(scenario)),
        working=stream * memory.working_copies,
        gathered=GATHERS * stream * (1 + 1 / layouts.tp),
        late=LateBytes(delayed, np.maximum(0.0, every - np.maximum(again, delayed))) if splits else None,
    )


def _activations(scenario: Scenario, layouts: Layouts, block: PipelineBlock, made: MicroBatchBytes) -> NDArray[np.float64]:
    """Layers in flight, what one layer's backward needs besides, and the logits on the last stage, ``(n_candidates, n_rows)``.

    Args:
        made: by the block's layouts, which are some of ``layouts``.
    """
    schedule, stages = SCHEDULE_CLASSES[block.schedule], block.stages
    pp, chunks, micro_batches = block.of_pipeline(layouts.pp), block.of_pipeline(layouts.chunks), layouts.num_micro_batches.take(block.rows)
    of_stage, beside_layers = summed(stages.of_kinds, made.kept), made.while_backward
    in_flight = alive = schedule.in_flight(stages.position, pp, chunks, micro_batches, np.zeros(1))
    if schedule.splits_backward and made.late is not None:
        # what weight gradients need may be more than what is kept under recomputation: then later stages hold more
        beside_layers, needed = made.late.while_backward, summed(stages.of_kinds, made.late.delayed)
        late = np.divide(needed, of_stage, out=np.ones_like(of_stage), where=of_stage > 0)
        in_flight = np.maximum(*(schedule.in_flight(place, pp, chunks, micro_batches, late) for place in (stages.position, stages.latest)))
    kept = in_flight * of_stage
    if scenario.parallel.offload_activations > 0:
        kept = kept - on_the_host(kept, largest_of(stages.of_kinds, made.kept), scenario.parallel.offload_activations)
    if scenario.software.memory.layers_ahead > 0:
        kept = kept + _layers_ahead(scenario, layouts.take(block.rows), stages, alive) * made.gathered
    return kept + made.working + largest_of(stages.of_kinds, beside_layers) + stages.has_head * made.headed


def _layers_ahead(scenario: Scenario, layouts: Layouts, stages: Stages, alive: NDArray[np.float64]) -> NDArray[np.float64]:
    """Layers whose forward passes the host of a stage has launched before the device comes to them, ``(n_candidates, n_layouts)``, at the
    most: as many as wait in the device's queue, and no more than the step has.

    Hosts that launch one after the other (``host_slowdown``) are as late as the device, but for a stage of a pipeline that waits to send
    its second micro-batch until the next stage is through with the first: the host launches meanwhile what is left of ``alive``
    micro-batches.
    """
    micro_batches: NDArray[np.float64] = layouts.num_micro_batches.astype(np.float64)
    if scenario.cluster.host_slowdown > 1:
        micro_batches = np.where(host_slowdown(scenario, layouts) > 1, np.maximum(0.0, alive - 2), micro_batches)
    ahead: NDArray[np.float64] = np.minimum(scenario.software.memory.layers_ahead, stages.layers * micro_batches)
    return ahead


def _gathered(scenario: Scenario, layouts: Layouts, stages: Stages, parameters: NDArray[np.float64]) -> NDArray[np.float64]:
    """What ZeRO holds whole for a while, ``(n_candidates, n_layouts)``: from 2 on the gradient of what computes, until it is reduced, and
    under 3 its weights (with Transformer Engine's 8-bit copies) and those that are fetched meanwhile, no more than the stage has.

    What computes is a layer, with another fetched beside it, or, on the stages that have them, embedding or head beside a layer.
    """
    # experts that no other rank has a shard of are not gathered, but FSDP makes 16-bit copies of its shards all the same
    of_experts = (layouts.expert_shards > 1) | scenario.software.precision.master_shards
    gathered = [
        weights.dense if weights.experts is None else weights.dense + np.where(of_experts, weights.experts, 0.0)
        for weights in layer_weights(scenario, layouts)
    ]
    layer = largest_of(stages.of_kinds, gathered)
    table = np.maximum(stages.has_embedding * embedding_parameters(scenario, layouts), stages.has_head * head_parameters(scenario, layouts))
    largest, two = np.maximum(layer, table), np.minimum(2, stages.layers)
    copies = largest_of(stages.of_kinds, _fp8_copies(scenario, layouts)[0])
    sharded = layouts.sharding.parameters & (layouts.shards > 1)
    weights = np.where(sharded, np.minimum(layer + largest, parameters) * compute_bytes(scenario) + two * copies, 0.0)
    gradient = _trained_beside(scenario, layouts, stages, largest) * PRECISION_BYTES[scenario.software.precision.gradient_dtype]
    return weights + np.where(gradients_sharded(scenario.software, layouts) & (layouts.shards > 1), gradient, 0.0)


def _trained_beside(scenario: Scenario, layouts: Layouts, stages: Stages, gathered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Parameters whose gradient is whole until it is reduced, ``(n_candidates, n_layouts)``: all of ``gathered``, what computes, or the
    adapters of a layer."""
    if scenario.workload.trains_all:
        return gathered
    return largest_of(stages.of_kinds, [weights.total for weights in layer_weights(scenario, layouts, trained=True)])
